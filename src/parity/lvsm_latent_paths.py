"""Golden files of lvsm_latent with camera paths."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from ..geometry.camera import Cameras
from ..geometry.path_keys import between
from ..geometry.path_orbit import spin
from ..geometry.path_pivot import PivotPair, ease, wobble_transform
from ..settings_video import Exaggerated, Wobble
from .report import Golden


def trajectory(golden: Golden) -> dict:
    """Poses at the positions `inputs.t`; radii, turns and reach are the published constants, our defaults."""
    given = golden.inputs
    first, last, parallel = (given[name].double() for name in ("first", "last", "parallel"))
    t = given["t"].double()
    smooth = ease(t)
    baseline = (last[:3, 3] - first[:3, 3]).norm()
    small, large = Wobble(), Exaggerated()
    pair = _pair(first, last)
    along = (1 + 2 * large.reach) * t - large.reach
    return {
        "t": t,
        "t_smooth": smooth,
        "interpolate": pair.at(smooth),
        "interpolate_parallel_views": _pair(first, parallel).at(smooth),
        "intrinsics": _intrinsics(given["K_first"], given["K_last"], smooth),
        "wobble": first @ wobble_transform(smooth, small.radius * baseline * smooth, small.turns),
        "exaggerated": pair.at(along) @ wobble_transform(t, (large.radius * baseline)[None], large.turns),
        "spin": _spin(golden),
    }


def _pair(first: Tensor, last: Tensor) -> PivotPair:
    return PivotPair.of(first[None], last[None])


def _intrinsics(first: Tensor, last: Tensor, t: Tensor) -> Tensor:
    """[3, 3], [3, 3], [f] -> [f, 3, 3]"""
    return between(torch.stack([first, last])[None].flatten(2), t)[0, 0].unflatten(1, (3, 3))


def _spin(golden: Golden) -> Tensor:
    """[f, 4, 4]; the arguments of this call stand in the notes of the file only."""
    found = re.search(
        r"spin: \d+ frames, elevation ([\d.-]+) degrees, radius (\d+\.?\d*)", golden.extra["notes"]
    )
    if not found:
        raise ValueError(f"{golden.path}: the notes do not give elevation and radius of spin.")
    elevation_deg, radius = map(float, found.groups())
    keys = Cameras(torch.eye(4)[None, None], torch.ones(1, 1, 4), 1, 1)
    return spin(keys, len(golden.outputs["spin"]), elevation_deg=elevation_deg, radius=radius).c2w[0]
