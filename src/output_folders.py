"""The pictures in a folder of results, whichever program wrote it.

Three layouts are read; the first that a scene's folder fits counts:

    <position>/render/<frame>.png, target/<frame>.png     src.inference with inference.save_targets, src.sample
    <position>/gt_vs_pred.png, scores.json                src.inference: truth above render, cut into its views
    <scene>/color/tgt_<frame>.png, gt_<frame>.png         KaiHelli/lvsm: render and truth

Folders of our own carry the names of their scenes in scores.json beside them or plan.json inside; without those files a
folder is its scene.

Public: Picture, View, Outputs, read_outputs, named_folder.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .files import read_json


@dataclass(frozen=True)
class Picture:
    """A picture file, or the part (left, upper, right, lower) of it."""

    path: Path
    box: tuple[int, int, int, int] | None = None

    def load(self) -> Tensor:
        """[3, h, w] float32 in [0, 1]. Raises ValueError when the file is no picture."""
        try:
            with Image.open(self.path) as image:
                image = image.convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"{self.path}: not readable as a picture ({error}).") from None
        pixels = np.array(image.crop(self.box) if self.box else image)
        return torch.from_numpy(pixels).permute(2, 0, 1) / 255


@dataclass(frozen=True)
class View:
    """One target view; `truth` is None where the program did not save it."""

    render: Picture
    truth: Picture | None


@dataclass(frozen=True)
class Outputs:
    """What one method wrote: scene -> frame -> view, and scene -> video."""

    name: str
    folder: Path
    scenes: dict[str, dict[int, View]]
    videos: dict[str, Path]

    def frames(self) -> set[tuple[str, int]]:
        """All (scene, frame)."""
        return {(scene, frame) for scene, views in self.scenes.items() for frame in views}


def named_folder(text: str) -> tuple[str, Path]:
    """A method and its folder from NAME=FOLDER, as an argument of a command line."""
    name, equals, folder = text.partition("=")
    if not equals or not name or not folder:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=FOLDER")
    return name, Path(folder)


def read_outputs(name: str, folder: Path) -> Outputs:
    """Find the pictures of a method; none is opened but sheets.

    Raises:
        ValueError: no such folder, no pictures in it, or a scores.json of another form.
    """
    if not folder.is_dir():
        raise ValueError(f"{name}: {folder} is no folder.")
    listed = _listed_scenes(folder)
    scenes: dict[str, dict[int, View]] = {}
    videos: dict[str, Path] = {}
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        if listed is not None and place.name not in listed:
            continue  # of an older run into the same folder
        scene, frames = (listed or {}).get(place.name) or (_planned_scene(place), [])
        views = _own_views(place) or _sheet_views(place, frames) or _published_views(place)
        if views:
            scenes[scene] = views
            video = _video(folder, place, scene)
            videos |= {scene: video} if video else {}
    if not scenes:
        raise ValueError(
            f"{name}: {folder} holds no renders: expected <scene>/render/<frame>.png (src.inference with "
            "inference.save_targets=true), <scene>/gt_vs_pred.png with scores.json, or <scene>/color/tgt_<frame>.png."
        )
    return Outputs(name, folder, scenes, videos)


def _listed_scenes(folder: Path) -> dict[str, tuple[str, list[int]]] | None:
    """Name of a scene's folder -> scene and target frames, from scores.json; None without such a file."""
    path = folder / "scores.json"
    if not path.is_file():
        return None
    try:
        scenes = read_json(path)["scenes"]
        return {f"{scene['position']:06d}": (scene["scene"], scene["frames"]) for scene in scenes}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a report of src.inference ({error}).") from None


def _planned_scene(place: Path) -> str:
    """Scene of a folder of src.sample, from its plan.json; without one a folder is its scene."""
    path = place / "plan.json"
    if not path.is_file():
        return place.name
    try:
        return str(read_json(path)["scene"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a plan of src.sample ({error}).") from None


def _own_views(place: Path) -> dict[int, View]:
    truths = _numbered(place / "target", r"(\d+)\.png")
    renders = _numbered(place / "render", r"(\d+)\.png")
    return {frame: View(render, truths.get(frame)) for frame, render in renders.items()}


def _published_views(place: Path) -> dict[int, View]:
    truths = _numbered(place / "color", r"gt_(\d+)\.png")
    renders = _numbered(place / "color", r"tgt_(\d+)\.png")
    return {frame: View(render, truths.get(frame)) for frame, render in renders.items()}


def _numbered(folder: Path, pattern: str) -> dict[int, Picture]:
    """Frame -> picture, of the files whose names fit."""
    if not folder.is_dir():
        return {}
    found = ((re.fullmatch(pattern, path.name), path) for path in sorted(folder.iterdir()))
    return {int(match[1]): Picture(path) for match, path in found if match}


def _sheet_views(place: Path, frames: list[int]) -> dict[int, View]:
    """Truths and renders of a sheet of two rows, one column for each frame."""
    path = place / "gt_vs_pred.png"
    if not path.is_file() or not frames:
        return {}
    with Image.open(path) as sheet:
        width, height = sheet.size
    if width % len(frames) or height % 2:
        raise ValueError(
            f"{path}: {width} x {height} pixels do not divide into 2 rows of {len(frames)} views."
        )
    w, h = width // len(frames), height // 2
    boxes = [[(i * w, row * h, (i + 1) * w, (row + 1) * h) for row in (0, 1)] for i in range(len(frames))]
    return {f: View(Picture(path, below), Picture(path, above)) for f, (above, below) in zip(frames, boxes)}


def _video(folder: Path, place: Path, scene: str) -> Path | None:
    own = [place / "rendered_video.mp4", place / "sampled.mp4"]
    published = folder / "video"
    candidates = [*own, *sorted(p for p in published.glob("*.mp4") if p.name.startswith(f"{scene}_frame_"))]
    return next((path for path in candidates if path.is_file()), None)
