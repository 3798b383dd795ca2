"""Camera paths for videos: the table of them. Each is `path(keys, num_frames, ...) -> Cameras [b, f]`.

    interpolate   from key camera to key camera, slerp and straight lines (LVSM, UP-LVSM; the default)
    pivot         from key camera to key camera around what both look at (lvsm_latent)
    linear        from key camera to key camera, element by element (LaCT as published)
    wobble        the first key camera on a spiral in its image plane (lvsm_latent)
    exaggerated   around the pivot, beyond the first and the last camera, spiralling (lvsm_latent)
    turntable     around the origin with zoom, for objects (LaCT)
    spin          around the world's y axis (lvsm_latent)
    orbit         the first key camera around what the key cameras look at
    spiral        the mean key camera on a spiral, facing what they look at (LLFF)
    dolly         the first key camera towards what they look at and back

`loop` and `order` are taken by the paths they mean something for, further settings by name.

Public: TRAJECTORIES, settings_of, and the functions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from .camera import Cameras
from .path_keys import interpolate, linear_path
from .path_look import dolly, orbit, spiral
from .path_orbit import spin, turntable
from .path_pivot import exaggerated, pivot, wobble

TRAJECTORIES: dict[str, Callable[..., Cameras]] = {
    "interpolate": interpolate,
    "pivot": pivot,
    "linear": linear_path,
    "wobble": wobble,
    "exaggerated": exaggerated,
    "turntable": turntable,
    "spin": spin,
    "orbit": orbit,
    "spiral": spiral,
    "dolly": dolly,
}
"""`inference.render_video_config.traj_type` -> function(keys, num_frames, **settings)."""


def settings_of(name: str) -> set[str]:
    """Names of the keyword settings that a path takes."""
    parameters = inspect.signature(TRAJECTORIES[name]).parameters.values()
    return {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
