"""Key frames that a visitor sets, the path through them, and its file.

Public: KeyFrames.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..config import ConfigError
from ..geometry.camera import Cameras
from ..geometry.path_keys import interpolate
from .path_file import write_path
from .place import resized

MOST_FILES = 1000


@dataclass
class KeyFrames:
    """cameras: each [1, 1], of any size; the first one's size is the path's."""

    cameras: list[Cameras] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.cameras)

    def path(self, transition: int, loop: bool) -> Cameras:
        """The path through the key frames, with so many frames from one to the next. [1, f]

        Raises:
            ConfigError: there are fewer than two.
        """
        if len(self.cameras) < 2:
            raise ConfigError("a path needs at least two key frames: move the camera and add them.")
        first = self.cameras[0]
        same = [resized(key, first.height, first.width) for key in self.cameras]
        c2w, fxfycxcy = (
            torch.cat([getattr(key, name) for key in same], dim=1) for name in ("c2w", "fxfycxcy")
        )
        return interpolate(Cameras(c2w, fxfycxcy, first.height, first.width), transition, loop=loop)

    def export(self, folder: Path, transition: int, loop: bool, fps: int) -> Path:
        """Write the path as path_<number>.json, with a number that is free; the file."""
        path = self.path(transition, loop)
        folder.mkdir(parents=True, exist_ok=True)
        free = (folder / f"path_{number:03d}.json" for number in range(MOST_FILES))
        file = next((file for file in free if not file.exists()), None)
        if file is None:
            raise ConfigError(f"{folder} holds {MOST_FILES} paths already: move some away.")
        write_path(file, path, fps)
        return file
