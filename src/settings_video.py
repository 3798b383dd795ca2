"""The section `inference.render_video_config`: a camera path, the settings of each kind of path, and the files.

Public: RenderVideo.
"""

from __future__ import annotations

from dataclasses import dataclass

from .config import ConfigError, key


@dataclass(kw_only=True)
class Turntable:
    """A turn about the world's origin, for objects."""

    hfov_deg: float = key("horizontal field of view", 50.0, least=1)
    radius: list = key("smallest and largest distance from the origin", [1.7, 3.0])
    elevation_deg: float = key("mean angle above the plane of the circle", 30.0)
    up: list = key("world direction that is up, which the cameras turn about", [0.0, 0.0, 1.0])

    def __post_init__(self) -> None:
        where = "inference.render_video_config.turntable"
        if not _are_numbers(self.radius, 2) or not 0 < self.radius[0] <= self.radius[1]:
            raise ConfigError(
                f"{where}.radius is {self.radius}: expected [smallest, largest], both positive."
            )
        if not _are_numbers(self.up, 3) or not any(self.up):
            raise ConfigError(f"{where}.up is {self.up}: expected a direction of three numbers.")
        if self.hfov_deg >= 180:
            raise ConfigError(f"{where}.hfov_deg is {self.hfov_deg}: it must be below 180.")


@dataclass(kw_only=True)
class Spin:
    """A turn about the world's y axis."""

    elevation_deg: float = key("angle above the plane of the circle", 15.0)
    radius: float = key("distance from the origin", 2.0, least=0)


@dataclass(kw_only=True)
class Wobble:
    """A spiral in the image plane of the first key camera."""

    radius: float = key("of the last frame, as a fraction of the baseline", 0.25, least=0)
    turns: float = key("revolutions", 1.0)


@dataclass(kw_only=True)
class Exaggerated:
    """Around the pivot of the first and the last key camera, beyond both."""

    radius: float = key("of the circles, as a fraction of the baseline", 0.5, least=0)
    turns: float = key("revolutions", 5.0)
    reach: float = key("how far the path exceeds both ends, in distances between them", 2.0, least=0)


@dataclass(kw_only=True)
class Orbit:
    """The first key camera around what the key cameras look at."""

    degrees: float = key("the arc it swings over; from 360 on it goes around", 40.0, least=0)


@dataclass(kw_only=True)
class Spiral:
    """The mean key camera on a spiral, facing what the key cameras look at."""

    radius: float = key("of the circle, as a fraction of the distance", 0.1, least=0)
    turns: float = key("revolutions", 2.0)


@dataclass(kw_only=True)
class Dolly:
    """The first key camera towards what the key cameras look at, away from it and back."""

    reach: float = key("farthest way to either side, as a fraction of the distance", 0.2, least=0)
    hold_size: bool = key("the focal length follows, so that what is looked at keeps its size", False)

    def __post_init__(self) -> None:
        if self.reach >= 1:
            raise ConfigError(
                f"inference.render_video_config.dolly.reach is {self.reach}: it must be below 1."
            )


def _are_numbers(values: list, count: int) -> bool:
    return len(values) == count and all(type(value) in (int, float) for value in values)


@dataclass(kw_only=True)
class RenderVideo:
    """A camera path and its files. Only the settings of the chosen path may be given."""

    traj_type: str = key("entry of TRAJECTORIES", "interpolate")
    num_frames: int = key(
        "frames per transition between key cameras; of paths that do not visit them, frames in all",
        60,
        least=1,
    )
    loop_video: bool = key("return to the first camera", False)
    order_poses: bool = key("visit the key cameras in nearest-neighbour order", False)
    turntable: Turntable = key("settings of traj_type turntable", Turntable)
    spin: Spin = key("settings of traj_type spin", Spin)
    wobble: Wobble = key("settings of traj_type wobble", Wobble)
    exaggerated: Exaggerated = key("settings of traj_type exaggerated", Exaggerated)
    orbit: Orbit = key("settings of traj_type orbit", Orbit)
    spiral: Spiral = key("settings of traj_type spiral", Spiral)
    dolly: Dolly = key("settings of traj_type dolly", Dolly)
    fps: int = key("frames per second", 30, least=1)
    format: str = key("files to write", "mp4", choices=("mp4", "gif", "both"))
