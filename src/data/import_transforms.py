"""Importer of nerfstudio's and instant-ngp's `transforms.json`, which is also DL3DV's benchmark layout.

    <source>/<scene>/nerfstudio/transforms.json     or <source>/<scene>/transforms.json
    <source>/<scene>/nerfstudio/images_4/<name>     pictures, in any size; else where `file_path` says

It states size, intrinsics and distortion of the full-size pictures (w, h, fl_x, fl_y, cx, cy, k1..k6, p1, p2,
camera_model, or only camera_angle_x; a frame may have its own) and camera-to-world matrices with OpenGL axes. DL3DV's
scenes come in the order of the numbers in their names and in COLMAP's world, as published; others as the file has them.

Public: find_scenes, read_scene, read_dl3dv, read_lens, opencv_w2c.
"""

from __future__ import annotations

import hashlib
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..files import parse_json, read_bytes
from .importing import ImportOptions, SourceFrame, SourceScene, picture_in
from .lens import FISHEYE, PERSPECTIVE, Lens
from .objects import is_below
from .transforms import image_header

TRANSFORMS = "transforms.json"
EXPECTED = f"<scene>/nerfstudio/{TRANSFORMS} or <scene>/{TRANSFORMS}"
GL_AXES = np.array([1, -1, -1, 1])
"""Factors of a camera-to-world matrix's columns between OpenGL's axes and OpenCV's."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".JPG", ".webp")
"""Tried where `file_path` has none, as in the NeRF data sets."""


def find_scenes(source: Path) -> dict[str, Path]:
    """Scene name -> folder of its `transforms.json`."""
    found = {}
    for folder in [source, *sorted(path for path in source.iterdir() if path.is_dir())]:
        for place in (folder / "nerfstudio", folder):
            if (place / TRANSFORMS).is_file() and folder.name != "nerfstudio":
                found[folder.resolve().name] = place
                break
    return found


def read_scene(folder: Path, options: ImportOptions, *, dl3dv: bool = False) -> SourceScene:
    """The frames of a `transforms.json`. Raises ValueError if it is none."""
    content = read_bytes(folder / TRANSFORMS)
    tree = _transforms(content, sort=dl3dv)
    frames = [_frame(folder, options.images, tree, frame, undo_world=dl3dv) for frame in tree["frames"]]
    for number, reason in sorted(_missing(tree).items()):
        frames.insert(number, SourceFrame(None, problem=reason))
    made_by = {"transforms_sha256": hashlib.sha256(content).hexdigest(), "images": options.images}
    return SourceScene(frames, made_by)


read_dl3dv = partial(read_scene, dl3dv=True)


def _transforms(content: bytes, sort: bool) -> dict[str, Any]:
    try:
        tree = parse_json(content)
    except ValueError as error:
        raise ValueError(f"{TRANSFORMS} is not JSON ({error})") from error
    frames = tree.get("frames") if isinstance(tree, dict) else None
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise ValueError(f"{TRANSFORMS}: expected an object with a list of frames")
    numbers = [re.search(r"(\d+)\.\w+$", str(frame.get("file_path"))) for frame in frames]
    if sort and all(numbers):
        order = sorted(range(len(frames)), key=lambda i: int(numbers[i][1]))
        tree["frames"] = [frames[i] for i in order]
    return tree


def _missing(tree: dict) -> dict[int, str]:
    """Number -> reason of frames that an export left out."""
    stated = tree.get("missing")
    stated = stated if isinstance(stated, dict) else {}
    return {int(number): str(reason) for number, reason in stated.items() if number.isdecimal()}


def _frame(folder: Path, images: str, tree: dict, frame: dict, *, undo_world: bool) -> SourceFrame:
    name = frame.get("file_path")
    if not is_below(name):
        return SourceFrame(None, problem=f"file_path {str(name)[:80]!r} leads out of its folder")
    path = _with_suffix(picture_in(folder, images, name))
    try:
        w2c = opencv_w2c(frame.get("transform_matrix"), undo_world=undo_world)
        w2c = _exact(frame.get("w2c"), w2c)
        return SourceFrame(path, read_lens(tree, frame, path), w2c)
    except ValueError as error:
        return SourceFrame(path, problem=str(error))


def _exact(stated: object, w2c: np.ndarray) -> np.ndarray:
    """The matrix that an export kept beside its inverse, if the two agree."""
    try:
        stated = np.array(stated, dtype=np.float64)
    except (TypeError, ValueError):
        return w2c
    return stated if stated.shape == (4, 4) and np.allclose(stated, w2c, rtol=1e-9, atol=1e-9) else w2c


def _with_suffix(path: Path) -> Path:
    if path.suffix or path.is_file():
        return path
    return next((found for s in SUFFIXES if (found := path.with_name(path.name + s)).is_file()), path)


def read_lens(tree: dict, frame: dict, picture: Path | None = None) -> Lens:
    """The lens of a frame; its own numbers come before those of the file.

    Args:
        picture: asked for its size where the file does not state one.

    Raises:
        ValueError: numbers are missing or make no camera, or the camera model is not one of OpenCV's.
    """
    stated = {**tree, **frame}
    model = str(stated.get("camera_model") or "OPENCV").upper()
    fisheye = "FISHEYE" in model
    if not fisheye and model not in (
        "OPENCV",
        "FULL_OPENCV",
        "PINHOLE",
        "SIMPLE_PINHOLE",
        "SIMPLE_RADIAL",
        "RADIAL",
    ):
        raise ValueError(f"camera_model {model[:40]} is not known: expected one of OpenCV's")
    if picture is not None and ("w" not in stated or "h" not in stated):
        stated["w"], stated["h"] = _size(picture)
    try:
        width, height = float(stated["w"]), float(stated["h"])
        focal = float(stated["fl_x"]) if "fl_x" in stated else _focal(stated["camera_angle_x"], width)
        other = (
            _focal(stated["camera_angle_y"], height)
            if "camera_angle_y" in stated and "fl_x" not in stated
            else focal
        )
        centre = [float(stated.get(name, side / 2)) for name, side in (("cx", width), ("cy", height))]
        fxfycxcy = (focal, float(stated.get("fl_y", other)), *centre)
        coefficients = tuple(float(stated.get(name) or 0) for name in (FISHEYE if fisheye else PERSPECTIVE))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{TRANSFORMS} has no usable w, h, fl_x or distortion ({error!r})") from error
    return Lens(width, height, fxfycxcy, coefficients, fisheye)


def _focal(angle_rad: object, side: float) -> float:
    """Focal length of a field of view, pixels."""
    return side / 2 / math.tan(float(angle_rad) / 2)


def _size(picture: Path) -> tuple[int, int]:
    try:
        return image_header(read_bytes(picture))[:2]
    except FileNotFoundError:
        raise ValueError(f"{picture.parent.name}/{picture.name} is not there") from None


def opencv_w2c(transform_matrix: object, *, undo_world: bool) -> np.ndarray:
    """World to camera, OpenCV axes, of a camera-to-world matrix with OpenGL axes (x right, y up, z backward). [4, 4]

    Args:
        undo_world: also exchange the world's x and y and turn its z around, which nerfstudio had done to COLMAP's world.

    Raises:
        ValueError: it is no such matrix.
    """
    try:
        c2w = np.array(transform_matrix, dtype=np.float64)
    except (TypeError, ValueError):
        c2w = np.empty(0)
    if c2w.shape not in ((4, 4), (3, 4)):
        raise ValueError("transform_matrix is not a 4x4 matrix")
    c2w = np.concatenate([c2w[:3], [[0, 0, 0, 1]]]) * GL_AXES
    if undo_world:
        c2w = c2w[[1, 0, 2, 3]] * np.array([[1], [1], [-1], [1]])
    try:
        return np.linalg.inv(c2w)
    except np.linalg.LinAlgError:
        raise ValueError("camera rotation is singular") from None
