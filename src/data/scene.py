"""What a scene is, and scenes as `process_data.py` and the published tools write them.

A scene is a list of frames: encoded picture, intrinsics, pose. Frames keep their index for ever; one that cannot be
used is marked missing. Two sources give the same scenes: converted folders (here) and raw chunks (`chunk_index.py`).

Public: SceneError, FrameError, Scene, Scenes, ListedScenes, camera_problem.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ..config import ConfigError
from ..files import read_bytes, read_json
from .text_table import TextTable


class SceneError(ValueError):
    """A scene cannot give what was asked for; another one may."""


class FrameError(SceneError):
    """One frame of a scene cannot be used; other frames may."""


class Scene(Protocol):
    """Frames of one scene, read when asked for.

    `missing(i)` is the reason why frame i cannot be used, "" if it can (its picture may still turn out damaged).
    `camera(i)` is (fxfycxcy [4] in pixels of the encoded picture, w2c [4, 4] OpenCV), float64.
    `encoded(i)` are the bytes of a JPEG or PNG file.
    `posed`: whether the poses are known; if not, all are the identity.
    """

    name: str
    num_frames: int
    posed: bool

    def missing(self, frame: int) -> str: ...

    def camera(self, frame: int) -> tuple[np.ndarray, np.ndarray]: ...

    def encoded(self, frame: int) -> bytes: ...


class Scenes(Protocol):
    """A list of scenes, sorted by `<name>.json`. `problems` lists (file or scene, why it is not among them)."""

    names: Sequence[str]
    problems: list[tuple[str, str]]

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> Scene: ...


LARGEST = 1e9
"""Beyond it the squares and products that are made of a camera's numbers do not fit into float32."""


def camera_problem(fxfycxcy: np.ndarray, w2c: np.ndarray) -> str:
    """Why a camera is unusable, "" if it is fine.

    Args:
        fxfycxcy: intrinsics in any unit. [4]
        w2c: world to camera. [4, 4]
    """
    # Plain numbers: NumPy's calls on arrays of this size take longer than all the rest, for each picture that is read.
    intrinsics, rows = fxfycxcy.tolist(), w2c.tolist()
    numbers = [*intrinsics, *(number for row in rows for number in row)]
    if not all(map(math.isfinite, numbers)):
        return "camera is not finite"
    if max(map(abs, numbers)) > LARGEST:
        return f"camera has numbers beyond {LARGEST:g}"
    if min(intrinsics[:2]) <= 0:
        return "focal length is not positive"
    if abs(_determinant(rows)) < 1e-6:
        return "camera rotation is singular"
    if any(abs(found - wanted) > 1e-6 for found, wanted in zip(rows[3], (0, 0, 0, 1))):
        return "last row of w2c is not 0 0 0 1"
    return ""


def _determinant(rows: list[list[float]]) -> float:
    """Of the first three columns of the first three rows."""
    (a, b, c), (d, e, f), (g, h, i) = (row[:3] for row in rows[:3])
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


class JsonScene:
    """One scene of a metadata file. Implements `Scene`."""

    def __init__(self, path: Path, name: str) -> None:
        """Raises SceneError if the file is not scene metadata."""
        self.path, self.name, self.folder = path, name, str(path.parent)
        try:
            content = read_json(path)
            self.frames, self.posed = content["frames"], content.get("posed") is not False
        except OSError as error:
            raise SceneError(f"{path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SceneError(f"{path} is not scene metadata ({type(error).__name__}: {error})") from error
        if not isinstance(self.frames, list) or not all(isinstance(entry, dict) for entry in self.frames):
            raise SceneError(f"{path} is not scene metadata: frames must be a list of objects")
        self.num_frames = len(self.frames)

    def source(self, frame: int) -> str:
        """File name of the picture that this one was made of, as far as that is known."""
        entry = self.frames[frame]
        return str(entry.get("source") or Path(str(entry.get("image_path") or "")).name)

    def missing(self, frame: int) -> str:
        entry = self.frames[frame]
        if entry.get("missing") or not entry.get("image_path"):
            return str(entry.get("reason") or "marked missing")
        if not isinstance(entry["image_path"], str):
            return "image_path is not text"
        return camera_problem(*self._numbers(entry))

    def camera(self, frame: int) -> tuple[np.ndarray, np.ndarray]:
        return self._numbers(self.frames[frame])

    def encoded(self, frame: int) -> bytes:
        """Raises FrameError if the picture is not where the metadata says."""
        path = self._locate(self.frames[frame]["image_path"])
        try:
            return read_bytes(path)
        except OSError as error:
            raise FrameError(f"{path}: {error.strerror}") from error

    def _numbers(self, entry: dict) -> tuple[np.ndarray, np.ndarray]:
        try:
            fxfycxcy = np.array(entry["fxfycxcy"], dtype=np.float64).reshape(4)
            w2c = entry["w2c"] if self.posed else np.eye(4)
            return fxfycxcy, np.array(w2c, dtype=np.float64).reshape(4, 4)
        except (KeyError, TypeError, ValueError) as error:
            raise SceneError(f"{self.path}: a frame has no camera ({error})") from error

    def _locate(self, image_path: str) -> str:
        """Paths are relative to the metadata file; the published tool writes them relative to its working folder."""
        return _nearest_to(self.folder, image_path)


def _nearest_to(folder: str, path: str) -> str:
    """`path` relative to `folder` (or absolute); relative to the working folder if it only exists there."""
    beside = os.path.join(folder, path)
    return path if not os.path.exists(beside) and os.path.exists(path) else beside


class ListedScenes:
    """The scenes of a `full_list.txt`: one metadata file per line. Implements `Scenes`."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError if the list is absent, empty or something else."""
        if not path.is_file():
            raise ConfigError(
                f"{path}: no such file. Make it with process_data.py, or name a folder of .torch chunks."
            )
        if path.suffix == ".torch":
            raise ConfigError(f"{path} is one chunk: name its folder, {path.parent}.")
        lines = [line.strip() for line in read_bytes(path).decode("utf-8-sig", errors="replace").splitlines()]
        lines = sorted((line for line in lines if line), key=lambda line: line.rpartition("/")[2])
        if not lines:
            raise ConfigError(f"{path} lists no scenes.")
        if other := next((s for s in lines if not s.endswith(".json") or not s.isprintable()), ""):
            raise ConfigError(
                f"{path} is no full_list.txt: expected the path of a metadata .json in each line, found {other[:60]!r}."
            )
        self.path, self.lines = path, TextTable(lines)
        self.names = TextTable(line.rpartition("/")[2].removesuffix(".json") for line in lines)
        self.problems: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, position: int) -> JsonScene:
        """Raises SceneError if the scene's metadata cannot be read."""
        return JsonScene(self.metadata_path(position), self.names[position])

    def metadata_path(self, position: int) -> Path:
        """The file of a scene."""
        return Path(_nearest_to(str(self.path.parent), self.lines[position]))
