"""Camera paths for videos.

Public: interpolate, TRAJECTORIES.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .camera import Cameras
from .rotation import matrix_to_quat_xyzw, quat_xyzw_to_matrix, slerp


def interpolate(cameras: Cameras, num_frames: int, *, loop: bool = False, order: bool = False) -> Cameras:
    """Path through the given cameras: slerp of rotations, straight lines for centres and intrinsics.

    Args:
        cameras: v key cameras per sample.
        num_frames: frames per transition, both ends included, so that inner key cameras appear twice.
        loop: append the first camera as the last.
        order: begin with the first camera and go on to the nearest remaining centre each time.

    Returns:
        [b, (v - 1) * num_frames] cameras, v including the appended one. A single camera stands still.

    Parity: `order` sorts after `loop` has appended, as in LVSM, so the copy of the first camera comes second;
    a round trip would sort first.
    """
    if num_frames < 1:
        raise ValueError(
            f"interpolate: num_frames is {num_frames}; at least one frame per transition is needed."
        )
    c2w, fxfycxcy = cameras.c2w, cameras.fxfycxcy
    if loop or cameras.num_views == 1:
        c2w = torch.cat([c2w, c2w[:, :1]], dim=1)
        fxfycxcy = torch.cat([fxfycxcy, fxfycxcy[:, :1]], dim=1)
    if order:
        visits = torch.stack([_greedy_order(centres) for centres in c2w[:, :, :3, 3]])  # [b, v]
        c2w = c2w.take_along_dim(visits[:, :, None, None], dim=1)
        fxfycxcy = fxfycxcy.take_along_dim(visits[:, :, None], dim=1)

    t = torch.linspace(0, 1, num_frames, dtype=torch.float64, device=c2w.device)
    quat = matrix_to_quat_xyzw(c2w[..., :3, :3].double())[:, :, None]  # [b, v, 1, 4]
    path = torch.zeros(
        c2w.shape[0], c2w.shape[1] - 1, num_frames, 4, 4, dtype=torch.float64, device=c2w.device
    )
    path[..., :3, :3] = quat_xyzw_to_matrix(slerp(quat[:, :-1], quat[:, 1:], t))
    path[..., :3, 3] = _between(c2w[:, :, :3, 3], t)
    path[..., 3, 3] = 1
    return Cameras(
        path.flatten(1, 2).to(c2w.dtype),
        _between(fxfycxcy, t).flatten(1, 2).to(fxfycxcy.dtype),
        cameras.height,
        cameras.width,
    )


def _between(x: Tensor, t: Tensor) -> Tensor:
    """Straight lines between neighbours. [b, v, c], [f] -> [b, v - 1, f, c] float64"""
    start, end = x.double()[:, :-1, None], x.double()[:, 1:, None]
    return start + t[:, None] * (end - start)


def _greedy_order(centres: Tensor) -> Tensor:
    """Indices of camera centres, each the nearest to the one before among those left. [v, 3] -> [v]"""
    visits, left = [0], list(range(1, len(centres)))
    while left:
        distances = (centres[left] - centres[visits[-1]]).norm(dim=-1)
        visits.append(left.pop(int(distances.argmin())))
    return torch.tensor(visits, device=centres.device)


TRAJECTORIES: dict[str, Callable[..., Cameras]] = {"interpolate": interpolate}
"""`inference.render_video_config.traj_type` -> function(cameras, num_frames, loop=, order=)."""
