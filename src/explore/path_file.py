"""Camera paths in files: what the viewer writes and `src.render` reads, and nerfstudio's.

    {"fps": 30, "size": [h, w], "frames": [{"c2w": 4x4, "fxfycxcy": [4]}, ...]}

Cameras are OpenCV's, in the world of the scene; intrinsics are pixels of the stated size. A nerfstudio path (`camera_path`
with `camera_to_world`, OpenGL axes, `fov` in degrees along the height) is read as well.

Public: CameraPath, read_path, write_path.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import ConfigError
from ..files import read_json, write_text
from ..geometry.camera import Cameras

MOST_FRAMES = 100_000
_GL = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)


@dataclass(frozen=True)
class CameraPath:
    """cameras: [1, f], pixels of height x width; fps: None if the file does not say."""

    cameras: Cameras
    fps: int | None = None


def write_path(path: Path, cameras: Cameras, fps: int) -> None:
    """Write a path [1, f]; the file appears only when it is whole."""
    frames = [
        {"c2w": c2w.tolist(), "fxfycxcy": fxfycxcy.tolist()}
        for c2w, fxfycxcy in zip(cameras.c2w[0], cameras.fxfycxcy[0], strict=True)
    ]
    content = {"fps": fps, "size": [cameras.height, cameras.width], "frames": frames}
    write_text(path, json.dumps(content, indent=1, allow_nan=False))


def read_path(path: Path) -> CameraPath:
    """Read a path.

    Raises:
        ConfigError: it is none, or holds numbers that are no cameras.
    """
    try:
        content = read_json(path)
        cameras = _nerfstudio(content) if "camera_path" in content else _own(content)
        fps = content.get("fps")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ConfigError(
            f"{path} is no camera path ({type(error).__name__}: {str(error)[:120]}): expected size [h, w] and frames with "
            "c2w and fxfycxcy, or nerfstudio's camera_path."
        ) from error
    if not 0 < cameras.num_views <= MOST_FRAMES:
        raise ConfigError(f"{path} has {cameras.num_views} frames: expected 1 to {MOST_FRAMES}.")
    if (
        not (cameras.c2w.isfinite().all() and cameras.fxfycxcy.isfinite().all())
        or (cameras.fxfycxcy[..., :2] <= 0).any()
    ):
        raise ConfigError(
            f"{path}: a frame has a camera that is not finite or a focal length that is not positive."
        )
    return CameraPath(cameras, int(fps) if isinstance(fps, (int, float)) and 1 <= fps <= 240 else None)


def _own(content: Any) -> Cameras:
    height, width = (int(side) for side in content["size"])
    c2w = torch.tensor([frame["c2w"] for frame in content["frames"]], dtype=torch.float64)
    fxfycxcy = torch.tensor([frame["fxfycxcy"] for frame in content["frames"]], dtype=torch.float64)
    return _cameras(c2w, fxfycxcy, height, width)


def _nerfstudio(content: Any) -> Cameras:
    frames = content["camera_path"]
    height, width = int(content["render_height"]), int(content["render_width"])
    c2w = (
        torch.tensor([frame["camera_to_world"] for frame in frames], dtype=torch.float64).reshape(-1, 4, 4)
        * _GL
    )
    focal = [height / 2 / math.tan(math.radians(float(frame["fov"])) / 2) for frame in frames]
    fxfycxcy = torch.tensor([[f, f, width / 2, height / 2] for f in focal], dtype=torch.float64)
    return _cameras(c2w, fxfycxcy, height, width)


def _cameras(c2w: Tensor, fxfycxcy: Tensor, height: int, width: int) -> Cameras:
    if c2w.shape[1:] != (4, 4) or fxfycxcy.shape[1:] != (4,) or height < 1 or width < 1:
        raise ValueError("c2w must be 4x4, fxfycxcy four numbers, size positive")
    return Cameras(c2w[None].float(), fxfycxcy[None].float(), height, width)
