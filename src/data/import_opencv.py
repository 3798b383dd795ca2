"""Importer of `opencv_cameras.json`: a list of {w, h, fx, fy, cx, cy, w2c, file_path}, as LaCT and Long-LRM have them.

    <source>/<scene>/opencv_cameras.json     pictures where `file_path` says, relative to this file

Intrinsics are in pixels of a w x h picture, with OpenCV's distortion (k1..k6, p1, p2) if there is any; w2c is 4 x 4 with
OpenCV axes. The list may stand under the key `frames` of an object.

Public: find_scenes, read_scene.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from ..files import parse_json, read_bytes
from .import_transforms import read_lens
from .importing import ImportOptions, SourceFrame, SourceScene, picture_in
from .objects import is_below

CAMERAS = "opencv_cameras.json"
EXPECTED = f"<scene>/{CAMERAS}"


def find_scenes(source: Path) -> dict[str, Path]:
    """Scene name -> folder of its cameras."""
    folders = [source, *sorted(path for path in source.iterdir() if path.is_dir())]
    return {folder.resolve().name: folder for folder in folders if (folder / CAMERAS).is_file()}


def read_scene(folder: Path, options: ImportOptions) -> SourceScene:
    """The frames of an `opencv_cameras.json`. Raises ValueError if it is none."""
    content = read_bytes(folder / CAMERAS)
    try:
        entries = parse_json(content)
    except ValueError as error:
        raise ValueError(f"{CAMERAS} is not JSON ({error})") from error
    entries = entries.get("frames") if isinstance(entries, dict) else entries
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{CAMERAS}: expected a list of objects with w, h, fx, fy, cx, cy, w2c, file_path")
    made_by = {"cameras_sha256": hashlib.sha256(content).hexdigest(), "images": options.images}
    return SourceScene([_frame(folder, options.images, entry) for entry in entries], made_by)


def _frame(folder: Path, images: str, entry: dict) -> SourceFrame:
    name = entry.get("file_path")
    if not is_below(name):
        return SourceFrame(None, problem=f"file_path {str(name)[:80]!r} leads out of its folder")
    path = picture_in(folder, images, name)
    renamed = {("fl_x" if k == "fx" else "fl_y" if k == "fy" else k): v for k, v in entry.items()}
    try:
        w2c = np.array(entry.get("w2c"), dtype=np.float64)
        if w2c.shape != (4, 4):
            raise ValueError("w2c is not a 4x4 matrix")
        return SourceFrame(path, read_lens(renamed, {}, path), w2c)
    except (TypeError, ValueError) as error:
        return SourceFrame(path, problem=str(error))
