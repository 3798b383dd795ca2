"""The video of a scene: from `inference.render_video_config` to a camera path, frames and files.

Frames are rendered a few at a time and go straight to the encoders, so a video may have any length.

Public: check_path, camera_path, video_frames, write_videos.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from .config import ConfigError
from .geometry.camera import Cameras
from .geometry.trajectory import TRAJECTORIES, settings_of
from .settings_video import RenderVideo
from .visualize import save_videos, to_uint8

SECTION = "inference.render_video_config"
FRAMES_AT_ONCE = 8
"""Rendered together when `inference.chunk` sets no limit."""

FILES = {"mp4": (".mp4",), "gif": (".gif",), "both": (".mp4", ".gif")}
"""`format` -> suffixes of the files."""


def check_path(path: RenderVideo) -> None:
    """Raises ConfigError when the path is unknown or has settings that would have no effect."""
    name = path.traj_type
    if name not in TRAJECTORIES:
        raise ConfigError(f"{SECTION}.traj_type {name} is unknown. Known: {', '.join(TRAJECTORIES)}.")
    taken = settings_of(name)
    for setting, given, taken_as in (
        ("loop_video", path.loop_video, "loop"),
        ("order_poses", path.order_poses, "order"),
    ):
        if given and taken_as not in taken:
            meant = ", ".join(other for other in TRAJECTORIES if taken_as in settings_of(other))
            raise ConfigError(f"{SECTION}.{setting} means nothing for traj_type {name}; it is for {meant}.")
    for field in dataclasses.fields(path):
        section = getattr(path, field.name)
        if field.name != name and dataclasses.is_dataclass(section) and section != type(section)():
            raise ConfigError(
                f"{SECTION}.{field.name} is set, but traj_type is {name}: set traj_type={field.name} or drop it."
            )


def camera_path(keys: Cameras, path: RenderVideo) -> Cameras:
    """The path through (or around) the key cameras that the settings describe. [b, f]"""
    taken = settings_of(path.traj_type)
    shared = {"loop": path.loop_video, "order": path.order_poses}
    settings = {name: value for name, value in shared.items() if name in taken}
    if hasattr(path, path.traj_type):
        settings |= dataclasses.asdict(getattr(path, path.traj_type))
    return TRAJECTORIES[path.traj_type](keys, path.num_frames, **settings)


def video_frames(render: Callable[[Cameras], Tensor], path: Cameras, chunk: int) -> Iterator[np.ndarray]:
    """Renders along a path, `chunk` at a time (0: FRAMES_AT_ONCE). each uint8 [h, w, 3] of the first sample

    Args:
        render: cameras -> images [b, v, 3, h, w] in [0, 1].
    """
    step = chunk or FRAMES_AT_ONCE
    for i in range(0, path.num_views, step):
        yield from to_uint8(render(path.views(slice(i, i + step)))[0])


def write_videos(folder: Path, frames: Iterable[np.ndarray], path: RenderVideo) -> None:
    """Write `rendered_video.mp4`, `.gif` or both, as `format` says."""
    save_videos([folder / f"rendered_video{suffix}" for suffix in FILES[path.format]], frames, path.fps)
