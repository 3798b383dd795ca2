"""Paths around or towards the point that the key cameras look at: orbit, spiral, dolly. For scenes of any kind, also with
one key camera.

Public: orbit, spiral, dolly, look_point.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .camera import Cameras
from .path_keys import at_least_one_frame, rigid

_PARALLEL = 1e-3
"""Smallest eigenvalue, per camera, at which optical axes still meet in a point."""
_FARTHEST = 20.0
"""A point farther away than so many baselines says nothing."""


def look_point(c2w: Tensor) -> Tensor:
    """The point nearest to the optical axes of all cameras. [b, v, 4, 4] -> [b, 3] float64

    Where axes are parallel, meet behind a camera or very far away, and for a single camera: the point ahead of the first
    camera at three times the largest distance between it and another (1 without any).
    """
    centres, axes = c2w[:, :, :3, 3].double(), c2w[:, :, :3, 2].double()
    axes = axes / axes.norm(dim=-1, keepdim=True)
    across = torch.eye(3, dtype=axes.dtype, device=axes.device) - axes[..., :, None] * axes[..., None, :]
    total = across.sum(dim=1)  # [b, 3, 3]
    wanted = (across @ centres[..., None]).sum(dim=1)  # [b, 3, 1]
    meet = torch.linalg.eigvalsh(total)[:, 0] > _PARALLEL * c2w.shape[1]
    solvable = torch.where(meet[:, None, None], total, torch.eye(3, dtype=total.dtype, device=total.device))
    point = torch.linalg.solve(solvable, wanted)[..., 0]
    baseline = (centres - centres[:, :1]).norm(dim=-1).amax(dim=1)  # [b]
    baseline = torch.where(baseline > 0, baseline, torch.ones_like(baseline))
    depth = ((point[:, None] - centres) * axes).sum(dim=-1)  # [b, v]
    good = meet & (depth > 0).all(dim=1) & (depth[:, 0] < _FARTHEST * baseline)
    ahead = centres[:, 0] + 3 * baseline[:, None] * axes[:, 0]
    return torch.where(good[:, None], point, ahead)


def orbit(keys: Cameras, num_frames: int, *, degrees: float) -> Cameras:
    """The first key camera on a circle around what the key cameras look at, always facing it as it does at first.

    Args:
        keys: v key cameras per sample.
        num_frames: frames in all.
        degrees: the arc; below 360 the camera swings over it, half to each side and back, from 360 on it goes around.

    Returns:
        [b, num_frames] cameras; the path closes.
    """
    at_least_one_frame("orbit", num_frames)
    c2w = keys.c2w.double()
    t = torch.arange(num_frames, dtype=c2w.dtype, device=c2w.device) / num_frames
    turn = math.radians(degrees)
    angle = turn * t if degrees >= 360 else turn / 2 * (2 * math.pi * t).sin()
    up = -c2w[:, :, :3, 1].mean(dim=1)
    up = up / up.norm(dim=-1, keepdim=True).clamp_min(1e-9)
    point = look_point(keys.c2w)[:, None, :]  # [b, 1, 3]
    rotation = _about(up, angle)  # [b, f, 3, 3]
    arm = (c2w[:, 0, :3, 3] - point[:, 0])[:, None, :, None]
    centre = point + (rotation @ arm)[..., 0]
    return _cameras(rigid(rotation @ c2w[:, :1, :3, :3], centre), keys.fxfycxcy[:, :1], keys)


def spiral(keys: Cameras, num_frames: int, *, radius: float, turns: float) -> Cameras:
    """The mean of the key cameras on a spiral that closes, facing what they look at.

    Args:
        keys: v key cameras per sample.
        num_frames: frames in all.
        radius: of the circle, as a fraction of the distance to what is looked at.
        turns: revolutions, during which the camera goes once half as far forward and back.

    Returns:
        [b, num_frames] cameras.

    Source: LLFF (arXiv 1905.00889), render_path_spiral, with a radius in units of depth.
    """
    at_least_one_frame("spiral", num_frames)
    c2w = keys.c2w.double()
    t = torch.arange(num_frames, dtype=c2w.dtype, device=c2w.device) / num_frames
    angle = 2 * math.pi * turns * t
    offset = torch.stack([angle.cos(), -angle.sin(), 0.5 * (2 * math.pi * t).sin()], dim=-1)  # [f, 3]
    point, middle = look_point(keys.c2w), c2w[:, :, :3, 3].mean(dim=1)
    down = c2w[:, :, :3, 1].mean(dim=1)
    frame = _facing(point - middle, down)  # [b, 3, 3]
    depth = (point - middle).norm(dim=-1)[:, None, None]
    centre = middle[:, None] + radius * depth * torch.einsum("bij,fj->bfi", frame, offset)
    rotation = _facing(point[:, None] - centre, down[:, None].expand_as(centre))
    return _cameras(rigid(rotation, centre), keys.fxfycxcy[:, :1], keys)


def dolly(keys: Cameras, num_frames: int, *, reach: float, hold_size: bool) -> Cameras:
    """The first key camera towards what the key cameras look at, away from it and back.

    Args:
        keys: v key cameras per sample.
        num_frames: frames in all.
        reach: farthest way to either side, as a fraction of the distance; below 1.
        hold_size: the focal length follows, so that what is looked at keeps its size (the "dolly zoom").

    Returns:
        [b, num_frames] cameras; the path closes.
    """
    at_least_one_frame("dolly", num_frames)
    if not -1 < reach < 1:
        raise ValueError(f"dolly: reach is {reach}; beyond 1 the camera would pass through what it looks at.")
    c2w = keys.c2w[:, :1].double()  # [b, 1, 4, 4]
    t = torch.arange(num_frames, dtype=c2w.dtype, device=c2w.device) / num_frames
    part = reach * (2 * math.pi * t).sin()  # [f]
    axis = c2w[..., :3, 2]
    depth = ((look_point(keys.c2w)[:, None] - c2w[..., :3, 3]) * axis).sum(dim=-1, keepdim=True)  # [b, 1, 1]
    centre = c2w[..., :3, 3] + part[:, None] * depth * axis
    fxfycxcy = keys.fxfycxcy[:, :1].double().expand(-1, num_frames, -1)
    if hold_size:
        fxfycxcy = torch.cat([fxfycxcy[..., :2] * (1 - part)[:, None], fxfycxcy[..., 2:]], dim=-1)
    return _cameras(rigid(c2w[..., :3, :3].expand(-1, num_frames, -1, -1), centre), fxfycxcy, keys)


def _about(axis: Tensor, angle: Tensor) -> Tensor:
    """Rotations about unit axes, by Rodrigues' formula. [b, 3], [f] -> [b, f, 3, 3]"""
    x, y, z = axis.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))[:, None]
    sine, cosine = angle.sin()[:, None, None], angle.cos()[:, None, None]
    return torch.eye(3, dtype=axis.dtype, device=axis.device) + sine * cross + (1 - cosine) * cross @ cross


def _facing(forward: Tensor, down: Tensor) -> Tensor:
    """Camera rotations, columns right, down, forward. [..., 3], [..., 3] -> [..., 3, 3]"""
    forward = forward / forward.norm(dim=-1, keepdim=True).clamp_min(1e-9)
    right = torch.linalg.cross(down, forward)
    right = right / right.norm(dim=-1, keepdim=True).clamp_min(1e-9)
    return torch.stack([right, torch.linalg.cross(forward, right), forward], dim=-1)


def _cameras(c2w: Tensor, fxfycxcy: Tensor, keys: Cameras) -> Cameras:
    fxfycxcy = fxfycxcy.expand(-1, c2w.shape[1], -1)
    return Cameras(c2w.to(keys.c2w.dtype), fxfycxcy.to(keys.fxfycxcy.dtype), keys.height, keys.width)
