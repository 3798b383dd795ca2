"""Circles around a point: turntable (LaCT) and spin (lvsm_latent). They do not pass through the key cameras.

Of the key cameras they take the number of samples, the picture size, the dtype and, for `spin`, the intrinsics.

Public: turntable, spin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .camera import Cameras
from .path_keys import at_least_one_frame, rigid

SWING_DEG = 15.0
"""Largest departure of a turntable's camera from its mean elevation, degrees."""


def turntable(
    keys: Cameras,
    num_frames: int,
    *,
    hfov_deg: float,
    radius: Sequence[float],
    elevation_deg: float,
    up: Sequence[float],
    axis: Sequence[float] | None = None,
) -> Cameras:
    """Once around the world's origin, looking at it, while elevation and distance swing once up and down.

    Args:
        keys: give the number of samples and the picture size.
        num_frames: frames of the whole turn. The azimuth of frame i is i / num_frames of a turn; the swing is
            i / (num_frames - 1) of a period, so that it is back in the middle on the last frame.
        hfov_deg: horizontal field of view; pixels are square and the principal point is the picture's centre.
        radius: smallest and largest distance from the origin, scene units (the zoom).
        elevation_deg: mean angle above the plane of the circle; it swings by SWING_DEG.
        up: world direction that is up in the pictures.
        axis: what the cameras turn about; none: `up`. Parity: the published path always turns about (0, 0, 1).

    Returns:
        [b, num_frames] cameras in the dtype of `keys`; all computed in float64.

    Raises:
        ValueError: no frames, or numbers that make no circle.

    Source: LaCT (arXiv 2505.23884), get_turntable_cameras. The original's script passes height and width in the
    wrong order; here the picture size comes from the keys.
    """
    at_least_one_frame("turntable", num_frames)
    near, far = map(float, radius)
    if not 0 < near <= far or not 0 < hfov_deg < 180 or not any(up):
        raise ValueError(
            f"turntable: radius {list(radius)}, hfov_deg {hfov_deg}, up {list(up)}: expected two rising positive "
            "distances, an angle between 0 and 180 and a direction."
        )
    i = torch.arange(num_frames, dtype=torch.float64, device=keys.c2w.device)
    swing = (2 * math.pi * i / max(num_frames - 1, 1)).sin()
    azimuth, elevation = 2 * math.pi * i / num_frames, (elevation_deg + SWING_DEG * swing).deg2rad()
    distance = (near + far) / 2 + (far - near) / 2 * swing
    up = torch.tensor(up, dtype=torch.float64, device=keys.c2w.device)
    right, ahead, above = _circle_frame(up if axis is None else up.new_tensor(axis))
    outward = azimuth.cos()[:, None] * right + azimuth.sin()[:, None] * ahead  # [f, 3], in the plane
    tangent = azimuth.cos()[:, None] * ahead - azimuth.sin()[:, None] * right
    outward = elevation.cos()[:, None] * outward + elevation.sin()[:, None] * above  # [f, 3], from the origin
    c2w = rigid(_look(-outward, up, tangent), distance[:, None] * outward)
    focal = keys.width / (2 * math.tan(math.radians(hfov_deg) / 2))
    fxfycxcy = c2w.new_tensor([focal, focal, keys.width / 2, keys.height / 2]).expand(num_frames, 4)
    return _for_every_sample(c2w, fxfycxcy, keys)


def _circle_frame(axis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unit vectors in the plane (azimuth 0, azimuth 90 degrees) and along the axis; x, y, z for the axis z. [3]"""
    above = axis / axis.norm()
    start = axis.new_tensor([1.0, 0, 0] if above[0].abs() < 0.9 else [0, 1.0, 0])
    right = start - (start @ above) * above
    right = right / right.norm()
    return right, torch.linalg.cross(above, right), above


def _look(forward: Tensor, up: Tensor, beside: Tensor) -> Tensor:
    """OpenCV rotations with the given view direction and level horizon; `beside` is right when looking along up.

    [f, 3], [3], [f, 3] -> [f, 3, 3]
    """
    right = torch.linalg.cross(forward, up.expand_as(forward), dim=-1)
    length = right.norm(dim=-1, keepdim=True)
    right = torch.where(length > 1e-9 * up.norm(), right / length, beside)
    down = torch.linalg.cross(forward, right, dim=-1)
    return torch.stack([right, down, forward], dim=-1)


def spin(keys: Cameras, num_frames: int, *, elevation_deg: float, radius: float) -> Cameras:
    """Once around the world's y axis at a fixed distance, looking at the origin, with y up in the pictures.

    Args:
        keys: give the number of samples, the picture size, and (the mean of each sample) the intrinsics.
        num_frames: frames of the whole turn.
        elevation_deg: angle above the plane of the circle.
        radius: distance from the origin, scene units.

    Returns:
        [b, num_frames] cameras: frame i is Ry(2 pi i / num_frames) Rx(elevation) [diag(-1, -1, 1), (0, 0, -radius)].

    Source: KaiHelli/lvsm (after pixelSplat), generate_spin.
    """
    at_least_one_frame("spin", num_frames)
    turn = 2 * math.pi * torch.arange(num_frames, dtype=torch.float64, device=keys.c2w.device) / num_frames
    tilt = rotation_x(turn.new_tensor(math.radians(elevation_deg)))
    start = torch.diag(turn.new_tensor([-1.0, -1.0, 1.0]))
    rotation = rotation_y(turn) @ tilt @ start  # [f, 3, 3]
    c2w = rigid(rotation, -radius * rotation[..., 2])  # column 2 is the view direction
    fxfycxcy = keys.fxfycxcy.double().mean(dim=1, keepdim=True).expand(-1, num_frames, -1)
    return _for_every_sample(c2w, fxfycxcy, keys)


def _for_every_sample(c2w: Tensor, fxfycxcy: Tensor, keys: Cameras) -> Cameras:
    """[f, 4, 4] and [f, 4] or [b, f, 4] -> cameras [b, f] in the dtype of the keys."""
    b = len(keys.c2w)
    return Cameras(
        c2w.expand(b, *c2w.shape).to(keys.c2w.dtype),
        fxfycxcy.expand(b, len(c2w), 4).to(keys.fxfycxcy.dtype),
        keys.height,
        keys.width,
    )


def rotation_x(angle_rad: Tensor) -> Tensor:
    """Rotation about x, right-handed. [...] -> [..., 3, 3]"""
    cos, sin, zero, one = (
        angle_rad.cos(),
        angle_rad.sin(),
        torch.zeros_like(angle_rad),
        torch.ones_like(angle_rad),
    )
    return torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=-1).unflatten(-1, (3, 3))


def rotation_y(angle_rad: Tensor) -> Tensor:
    """Rotation about y, right-handed. [...] -> [..., 3, 3]"""
    cos, sin, zero, one = (
        angle_rad.cos(),
        angle_rad.sin(),
        torch.zeros_like(angle_rad),
        torch.ones_like(angle_rad),
    )
    return torch.stack([cos, zero, sin, zero, one, zero, -sin, zero, cos], dim=-1).unflatten(-1, (3, 3))
