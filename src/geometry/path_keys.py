"""Paths from key camera to key camera: interpolate (slerp), linear_path (element by element, as published by LaCT).

Public: key_sequence, interpolate, linear_path.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .camera import Cameras
from .rotation import matrix_to_quat_xyzw, quat_xyzw_to_matrix, slerp


def key_sequence(keys: Cameras, *, loop: bool, order: bool) -> Cameras:
    """The key cameras in the order in which a path visits them; at least two.

    Args:
        keys: v key cameras per sample.
        loop: append the first camera as the last; a single camera is always followed by itself.
        order: begin with the first camera and go on to the nearest remaining centre each time.

    Raises:
        ValueError: no camera.

    Parity: `order` sorts after `loop` has appended, as in LVSM, so the copy of the first camera comes second;
    a round trip would sort first.
    """
    if keys.num_views == 0:
        raise ValueError("camera path: no key cameras; at least one is needed.")
    visits = list(range(keys.num_views))
    if loop or keys.num_views == 1:
        visits.append(0)
    keys = keys.views(visits)
    if not order:
        return keys
    nearest = torch.stack([_greedy_order(centres) for centres in keys.c2w[:, :, :3, 3]])  # [b, v]
    return Cameras(
        keys.c2w.take_along_dim(nearest[:, :, None, None], dim=1),
        keys.fxfycxcy.take_along_dim(nearest[:, :, None], dim=1),
        keys.height,
        keys.width,
    )


def _greedy_order(centres: Tensor) -> Tensor:
    """Indices of camera centres, each the nearest to the one before among those left. [v, 3] -> [v]"""
    visits, left = [0], list(range(1, len(centres)))
    while left:
        distances = (centres[left] - centres[visits[-1]]).norm(dim=-1)
        visits.append(left.pop(int(distances.argmin())))
    return torch.tensor(visits, device=centres.device)


def interpolate(keys: Cameras, num_frames: int, *, loop: bool = False, order: bool = False) -> Cameras:
    """Path through the key cameras: slerp of rotations, straight lines for centres and intrinsics.

    Args:
        keys: v key cameras per sample.
        num_frames: frames per transition, both ends included, so that inner key cameras appear twice.
        loop, order: see `key_sequence`.

    Returns:
        [b, (v - 1) * num_frames] cameras, v including the appended one. A single camera stands still.
    """
    at_least_one_frame("interpolate", num_frames)
    keys = key_sequence(keys, loop=loop, order=order)
    c2w = keys.c2w
    t = torch.linspace(0, 1, num_frames, dtype=torch.float64, device=c2w.device)
    quat = matrix_to_quat_xyzw(c2w[..., :3, :3].double())[:, :, None]  # [b, v, 1, 4]
    rotation = quat_xyzw_to_matrix(slerp(quat[:, :-1], quat[:, 1:], t))  # [b, v - 1, f, 3, 3]
    path = rigid(rotation, between(c2w[:, :, :3, 3], t))
    return Cameras(
        path.flatten(1, 2).to(c2w.dtype),
        between(keys.fxfycxcy, t).flatten(1, 2).to(keys.fxfycxcy.dtype),
        keys.height,
        keys.width,
    )


def linear_path(keys: Cameras, num_frames: int, *, loop: bool = False, order: bool = False) -> Cameras:
    """Path through the key cameras by the published rule of LaCT; `interpolate` is the one for new videos.

    Args:
        keys: v key cameras per sample.
        num_frames: frames per transition: its first camera and num_frames - 1 between it and the next.
        loop, order: see `key_sequence`.

    Returns:
        [b, (v - 1) * num_frames + 1] cameras: the transitions, then the last key camera.

    Parity: every number of a pose is interpolated by itself, so the matrices between two key cameras are no
    rotations (they shrink the picture, to a point for opposite views).
    """
    at_least_one_frame("linear_path", num_frames)
    keys = key_sequence(keys, loop=loop, order=order)
    t = torch.arange(num_frames, dtype=torch.float64, device=keys.c2w.device) / num_frames
    poses = between(keys.c2w.flatten(2), t).flatten(1, 2).unflatten(2, (4, 4)).to(keys.c2w.dtype)
    intrinsics = between(keys.fxfycxcy, t).flatten(1, 2).to(keys.fxfycxcy.dtype)
    return Cameras(
        torch.cat([poses, keys.c2w[:, -1:]], dim=1),
        torch.cat([intrinsics, keys.fxfycxcy[:, -1:]], dim=1),
        keys.height,
        keys.width,
    )


def between(x: Tensor, t: Tensor) -> Tensor:
    """Straight lines from each row to the next. [b, v, c], [f] -> [b, v - 1, f, c] float64"""
    start, end = x.double()[:, :-1, None], x.double()[:, 1:, None]
    return start + t[:, None] * (end - start)


def rigid(rotation: Tensor, centre: Tensor) -> Tensor:
    """Camera-to-world matrices of rotations and camera centres. [..., 3, 3], [..., 3] -> [..., 4, 4]"""
    top = torch.cat([rotation, centre[..., None]], dim=-1)  # [..., 3, 4]
    bottom = torch.zeros_like(top[..., :1, :])
    bottom[..., 3] = 1
    return torch.cat([top, bottom], dim=-2)


def at_least_one_frame(path: str, num_frames: int) -> None:
    """Raises ValueError when a path would be empty."""
    if num_frames < 1:
        raise ValueError(f"{path}: num_frames is {num_frames}; at least one frame is needed.")
