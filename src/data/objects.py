"""Lists of `opencv_cameras.json`: renderings of objects with transparency, or converted photos, as LaCT reads them.

    list.json               ["gso_toy/opencv_cameras.json", ...], paths relative to the list
    opencv_cameras.json     [{w, h, fx, fy, cx, cy, w2c, file_path}, ...], one per picture, paths relative to this file

Intrinsics are in pixels of a w x h picture, w2c is 4 x 4 with OpenCV axes. A scene's file is written by somebody else:
its pictures must lie below its folder. One `opencv_cameras.json` by itself is a list of one scene.

Public: ObjectScene, ObjectScenes.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np

from ..config import ConfigError
from ..files import read_bytes, read_json
from .chunks import key_problem
from .scene import FrameError, SceneError, camera_problem
from .transforms import image_header

ASPECT_SLACK = 0.02
"""Largest relative difference of the two ratios stated size / size of the file: more is another picture."""


class ObjectScene:
    """The pictures of one `opencv_cameras.json`. Implements `Scene`."""

    posed = True

    def __init__(self, path: Path, name: str, entries: list | None = None) -> None:
        """entries: content of the file, if it is known. Raises SceneError if it is something else."""
        self.path, self.name = path, name
        self.entries = _read(path) if entries is None else entries
        if not self.entries or not all(isinstance(entry, dict) for entry in self.entries):
            raise SceneError(f"{path}: expected a list of objects with w, h, fx, fy, cx, cy, w2c, file_path")
        self.num_frames = len(self.entries)
        self.last: tuple[int, bytes] = (-1, b"")

    def missing(self, frame: int) -> str:
        if not is_below(self.entries[frame].get("file_path")):
            return f"file_path {str(self.entries[frame].get('file_path'))[:80]!r} leads out of its folder"
        return camera_problem(*self._numbers(frame))

    def camera(self, frame: int) -> tuple[np.ndarray, np.ndarray]:
        """Intrinsics follow a picture that was resized after its entry was written.

        Raises:
            FrameError: the picture has another shape than its entry says, or cannot be read.
        """
        fxfycxcy, w2c = self._numbers(frame)
        stated = [self.entries[frame].get(side) for side in ("w", "h")]
        if stated == [None, None]:
            return fxfycxcy, w2c
        try:
            width, height, _ = image_header(self.encoded(frame))
            ratios = width / float(stated[0]), height / float(stated[1])
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise FrameError(f"frame {frame}: {error}") from error
        if not abs(ratios[0] - ratios[1]) <= ASPECT_SLACK * max(ratios):  # not so for NaN either
            raise FrameError(
                f"frame {frame} is {width}x{height} pixels, but {self.path.name} says {stated[0]}x{stated[1]}"
            )
        return fxfycxcy * np.array([*ratios, *ratios]), w2c

    def encoded(self, frame: int) -> bytes:
        """Raises FrameError if the picture is not where the entry says."""
        if self.last[0] != frame:  # the camera and the picture of a frame are asked for one after the other
            path = self.path.parent / self.entries[frame]["file_path"]
            try:
                self.last = frame, read_bytes(path)
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                raise FrameError(f"{path}: {reason}") from error
        return self.last[1]

    def _numbers(self, frame: int) -> tuple[np.ndarray, np.ndarray]:
        entry = self.entries[frame]
        try:
            fxfycxcy = np.array([entry[name] for name in ("fx", "fy", "cx", "cy")], dtype=np.float64)
            return fxfycxcy.reshape(4), np.array(entry["w2c"], dtype=np.float64).reshape(4, 4)
        except (KeyError, TypeError, ValueError) as error:
            raise SceneError(f"{self.path}: entry {frame} has no camera ({error!r})") from error


class ObjectScenes:
    """The scenes of a list, sorted by name: that of their folder. Implements `Scenes`."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError if the list is absent, empty or something else."""
        try:
            content = _read(path)
        except SceneError as error:
            raise ConfigError(str(error)) from error
        if content and all(isinstance(line, str) for line in content):
            folders = [(PurePosixPath(line).parent.as_posix(), line) for line in content]
        elif content and isinstance(content[0], dict) and "w2c" in content[0]:
            folders = [(path.resolve().parent.name, path.name)]
        else:
            raise ConfigError(
                f"{path}: expected a list of paths of opencv_cameras.json files, or such a file itself."
            )
        counts = Counter(PurePosixPath(folder).name for folder, _ in folders)
        self.path, self.problems, found = path, [], {}
        for folder, line in folders:
            name = _name(folder, counts)
            problem = key_problem(name) or ("is listed twice" if name in found else "")
            if problem:
                self.problems.append((line, f"its name {name[:60]!r} {problem}"))
            else:
                found[name] = line
        if not found:
            raise ConfigError(f"{path}: none of its scenes can be used; first {': '.join(self.problems[0])}.")
        self.paths = dict(sorted(found.items()))
        self.names = list(self.paths)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, position: int) -> ObjectScene:
        """Raises SceneError if the scene's file cannot be read."""
        name = self.names[position]
        return ObjectScene(self.path.parent / self.paths[name], name)


def is_below(path: object) -> bool:
    """Whether a path from a file names something below the folder that it is relative to."""
    if not isinstance(path, str) or not path or "\\" in path or not path.isprintable():
        return False
    parts = PurePosixPath(path).parts
    return not path.startswith("/") and ".." not in parts


def _name(folder: str, counts: Counter[str]) -> str:
    """The folder's own name; where several have the same, those above it too."""
    name = PurePosixPath(folder).name
    return name if counts[name] == 1 else folder.replace("../", "").replace("/", "_").lstrip("._")


def _read(path: Path) -> list:
    """The list in a JSON file; raises SceneError."""
    try:
        content = read_json(path)
    except OSError as error:
        raise SceneError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise SceneError(f"{path} is not JSON ({error})") from error
    if not isinstance(content, list):
        raise SceneError(f"{path}: expected a list, found a {type(content).__name__}")
    return content
