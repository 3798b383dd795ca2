"""Paths that turn about what two cameras look at: pivot, wobble, exaggerated.

Two cameras that look at a thing from two sides should move around it, not on a straight line past it. The pivot is the
point closest to both look rays. A pose is written as five numbers: the pivot in the axes of its view direction
(three), and two angles, one about the normal of both view directions and one about the view direction itself. They
are interpolated linearly; a third angle is not needed, because both view directions lie in one plane.

Source: KaiHelli/lvsm, after MVSplat and pixelSplat (interpolate_pose, wobble). All in float64.

Public: pivot, wobble, exaggerated, PivotPair, wobble_transform, ease.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .camera import Cameras
from .path_keys import at_least_one_frame, between, key_sequence, rigid
from .path_orbit import rotation_y

PARALLEL = 1e-4
"""View directions whose cosine is this close to 1 or -1 have no useful pivot."""


def pivot(keys: Cameras, num_frames: int, *, loop: bool = False, order: bool = False) -> Cameras:
    """Path through the key cameras, each transition around its pivot, slower near the key cameras.

    Args:
        keys: v key cameras per sample.
        num_frames: frames per transition, both ends included, so that inner key cameras appear twice.
        loop, order: see `key_sequence`. With two key cameras a loop is the way there and back.

    Returns:
        [b, (v - 1) * num_frames] cameras, v including the appended one. A single camera stands still.
    """
    at_least_one_frame("pivot", num_frames)
    keys = key_sequence(keys, loop=loop, order=order)
    t = ease(_steps(num_frames, keys))
    c2w = PivotPair.of(keys.c2w[:, :-1, None], keys.c2w[:, 1:, None]).at(t)  # [b, v - 1, f, 4, 4]
    fxfycxcy = between(keys.fxfycxcy, t)
    return _cameras(c2w.flatten(1, 2), fxfycxcy.flatten(1, 2), keys)


def wobble(keys: Cameras, num_frames: int, *, loop: bool = False, radius: float, turns: float) -> Cameras:
    """The first key camera on a spiral in its own image plane.

    Args:
        keys: v key cameras per sample.
        num_frames: frames of the spiral.
        loop: append the way back.
        radius: of the last frame, as a fraction of the baseline (the largest distance of a key camera from the
            first). Cameras that coincide have none and stand still.
        turns: revolutions.

    Returns:
        [b, num_frames] cameras, twice as many with `loop`.
    """
    at_least_one_frame("wobble", num_frames)
    t = ease(_steps(num_frames, keys))
    shift = wobble_transform(t, radius * _baseline(keys)[:, None] * t, turns)  # [b, f, 4, 4]
    c2w = keys.c2w[:, :1].double() @ shift
    fxfycxcy = keys.fxfycxcy[:, :1].double().expand(-1, num_frames, -1)
    return _there_and_back(_cameras(c2w, fxfycxcy, keys), loop)


def exaggerated(
    keys: Cameras, num_frames: int, *, loop: bool = False, radius: float, turns: float, reach: float
) -> Cameras:
    """From the first to the last key camera around their pivot, and beyond both, while spiralling.

    Args:
        keys: v key cameras per sample; those between the first and the last are not visited.
        num_frames: frames of the path.
        loop: append the way back.
        radius: of the circles, as a fraction of the baseline (see `wobble`).
        turns: revolutions.
        reach: how far the path begins before the first camera and ends behind the last, in distances between them.

    Returns:
        [b, num_frames] cameras, twice as many with `loop`. Intrinsics stay those of the nearer end beyond the keys.
    """
    at_least_one_frame("exaggerated", num_frames)
    t = _steps(num_frames, keys)
    along = (1 + 2 * reach) * t - reach
    shift = wobble_transform(t, radius * _baseline(keys)[:, None], turns)
    ends = keys.views([0, -1])
    c2w = PivotPair.of(ends.c2w[:, :1], ends.c2w[:, 1:]).at(along) @ shift
    fxfycxcy = between(ends.fxfycxcy, along.clamp(0, 1))[
        :, 0
    ]  # a focal length extrapolated may turn negative
    return _there_and_back(_cameras(c2w, fxfycxcy, keys), loop)


def ease(t: Tensor) -> Tensor:
    """0 ... 1 to 0 ... 1, slow at both ends: (1 - cos(pi t)) / 2."""
    return (1 - (math.pi * t).cos()) / 2


def wobble_transform(t: Tensor, radius: Tensor, turns: float) -> Tensor:
    """Shifts by radius (sin 2 pi turns t, -cos 2 pi turns t, 0), to be applied in the camera's frame.

    Args:
        t: [f] float64.
        radius: scene units. Broadcasts to [b, f].

    Returns:
        [b, f, 4, 4] float64
    """
    angle = 2 * math.pi * turns * t
    circle = torch.stack([angle.sin(), -angle.cos(), torch.zeros_like(angle)], dim=-1)  # [f, 3]
    shift = radius[..., None] * circle  # [b, f, 3]
    return rigid(torch.eye(3, dtype=shift.dtype, device=shift.device).expand(*shift.shape, 3), shift)


# ----------------------------------------------------------------------------------------------- two poses


@dataclass
class PivotPair:
    """Two poses each, as five numbers in the frame of their pivot. All float64; [...] are the pairs.

    point: pivot, world. [..., 3]
    axes: columns (y x a, y, a): y the normal of both view directions, a the first of these. [..., 3, 3]
    translation: pivot minus centre in the axes of each view direction. [..., 3] each
    angles: about y, then about the view direction, radians. [..., 2] each; the second is within half a turn of the first.
    """

    point: Tensor
    axes: Tensor
    translation: tuple[Tensor, Tensor]
    angles: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, first: Tensor, last: Tensor) -> PivotPair:
        """Pairs of camera-to-world matrices. [..., 4, 4]"""
        first, last = first.double(), last.double()
        a, b = (_unit(pose[..., :3, 2]) for pose in (first, last))
        point = _pivot_point(first[..., :3, 3], a, last[..., :3, 3], b)
        normal = _normal(a, b)
        axes = _frame(normal, a)
        codes = [_encode(pose, point, axes, normal) for pose in (first, last)]
        (start, start_angles), (end, end_angles) = codes
        turn = end_angles - start_angles
        turn = torch.atan2(turn.sin(), turn.cos())  # the shorter arc
        return cls(point, axes, (start, end), (start_angles, start_angles + turn))

    def at(self, t: Tensor) -> Tensor:
        """Poses at positions on the way: 0 is the first, 1 the last, others extrapolate. [f] -> [..., f, 4, 4]

        A pair axis of size 1 stands where the frames go: pairs [b, v, 1] give [b, v, f].
        """
        (start, end), (start_angles, end_angles) = self.translation, self.angles
        translation = start + t[:, None] * (end - start)  # [..., f, 3]
        about_y, about_z = (start_angles + t[:, None] * (end_angles - start_angles)).unbind(-1)
        rotation = self.axes @ rotation_y(about_y) @ _rotation_z(about_z)  # [..., f, 3, 3]
        own = _frame(self.axes[..., 1].expand(*rotation.shape[:-1]), rotation[..., 2])
        return rigid(rotation, self.point - (own @ translation[..., None]).squeeze(-1))


def _encode(pose: Tensor, point: Tensor, axes: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
    """Translation [..., 3] and angles [..., 2] of a pose."""
    own = _frame(normal, _unit(pose[..., :3, 2]))
    translation = (own.mT @ (point - pose[..., :3, 3])[..., None]).squeeze(-1)
    turned = axes.mT @ pose[..., :3, :3]
    about_y = torch.atan2(turned[..., 0, 2], turned[..., 2, 2])
    about_z = torch.atan2(turned[..., 1, 0], turned[..., 1, 1])
    return translation, torch.stack([about_y, about_z], dim=-1)


def _pivot_point(centre_a: Tensor, a: Tensor, centre_b: Tensor, b: Tensor) -> Tensor:
    """Point with the least squared distance to two lines; half-way between the centres if they are parallel. [..., 3]"""
    cosine = (a * b).sum(-1, keepdim=True)
    parallel = (cosine.abs() - 1).abs() < PARALLEL
    across = centre_b - centre_a
    along_a, along_b = (across * a).sum(-1, keepdim=True), (across * b).sum(-1, keepdim=True)
    sine2 = torch.where(parallel, 1.0, 1 - cosine * cosine)
    on_a = centre_a + a * (along_a - cosine * along_b) / sine2  # nearest to the other line
    on_b = centre_b + b * (cosine * along_a - along_b) / sine2
    return torch.where(parallel, (centre_a + centre_b) / 2, (on_a + on_b) / 2)


def _normal(a: Tensor, b: Tensor) -> Tensor:
    """Unit normal of two directions; if they are parallel, of the first and the world's z, or else y. [..., 3]

    The original takes the world's axis already where there is no useful pivot (PARALLEL, 0.8 degrees); the last pose
    of the path is then not the last camera. Here only directions that agree to rounding count as parallel.
    """
    smallest = 1e-6
    normal = torch.linalg.cross(a, b, dim=-1)
    for spare in ([0.0, 0.0, 1.0], [0.0, 1.0, 0.0]):
        short = normal.norm(dim=-1, keepdim=True) < smallest
        normal = torch.where(short, torch.linalg.cross(a, a.new_tensor(spare).expand_as(a), dim=-1), normal)
    return _unit(normal)


def _frame(normal: Tensor, forward: Tensor) -> Tensor:
    """Columns normal x forward, normal, forward. [..., 3] -> [..., 3, 3]"""
    return torch.stack([torch.linalg.cross(normal, forward, dim=-1), normal, forward], dim=-1)


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def _rotation_z(angle: Tensor) -> Tensor:
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], dim=-1).unflatten(-1, (3, 3))


# ----------------------------------------------------------------------------------------------- shared parts


def _steps(num_frames: int, keys: Cameras) -> Tensor:
    return torch.linspace(0, 1, num_frames, dtype=torch.float64, device=keys.c2w.device)


def _baseline(keys: Cameras) -> Tensor:
    """Largest distance of a key camera from the first one. [b] float64"""
    centres = keys.c2w[:, :, :3, 3].double()
    return (centres - centres[:, :1]).norm(dim=-1).amax(dim=1)


def _cameras(c2w: Tensor, fxfycxcy: Tensor, keys: Cameras) -> Cameras:
    return Cameras(c2w.to(keys.c2w.dtype), fxfycxcy.to(keys.fxfycxcy.dtype), keys.height, keys.width)


def _there_and_back(path: Cameras, loop: bool) -> Cameras:
    if not loop:
        return path
    return path.views([*range(path.num_views), *reversed(range(path.num_views))])
