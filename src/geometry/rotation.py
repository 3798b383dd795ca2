"""Rotations as unit quaternions, and poses as seven numbers.

Quaternions are (x, y, z, w), scalar last; q and -q are one rotation, and `matrix_to_quat_xyzw` returns the
one with w >= 0. A pose code is (tx, ty, tz, qx, qy, qz, qw) of a camera-to-world matrix.

Public: matrix_to_quat_xyzw, quat_xyzw_to_matrix, encode_pose, decode_pose, slerp.
"""

from __future__ import annotations

import torch
from torch import Tensor


def matrix_to_quat_xyzw(rotation: Tensor) -> Tensor:
    """Unit quaternion of a rotation matrix, w >= 0. [..., 3, 3] -> [..., 4]

    Each row of the outer product q q^T (up to a factor) follows from the matrix; the one divided by the
    largest component is exact to rounding everywhere, half turns included. Not meant to be differentiated.

    Source: Bar-Itzhack, "New method for extracting the quaternion from a rotation matrix" (2000).
    """
    r = rotation
    xx, yy, zz = r[..., 0, 0], r[..., 1, 1], r[..., 2, 2]
    xy, xz, yz = r[..., 0, 1] + r[..., 1, 0], r[..., 0, 2] + r[..., 2, 0], r[..., 1, 2] + r[..., 2, 1]
    wx, wy, wz = r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]
    ww = 1 + xx + yy + zz
    rows = [  # 4 q q^T, rows in the order w, x, y, z and columns in the order x, y, z, w
        [wx, wy, wz, ww],
        [1 + xx - yy - zz, xy, xz, wx],
        [xy, 1 - xx + yy - zz, yz, wy],
        [xz, yz, 1 - xx - yy + zz, wz],
    ]
    outer = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)  # [..., 4, 4]
    diagonal = torch.stack([rows[0][3], rows[1][0], rows[2][1], rows[3][2]], dim=-1)
    best = diagonal.argmax(dim=-1, keepdim=True)
    largest = diagonal.gather(-1, best).clamp_min(0).sqrt()  # twice the largest component, at least 1
    row = outer.take_along_dim(best[..., None], dim=-2).squeeze(-2)
    quat = row / (2 * largest.clamp_min(0.1))
    return torch.where(quat[..., 3:] < 0, -quat, quat)


def quat_xyzw_to_matrix(quat: Tensor) -> Tensor:
    """Rotation matrix of a quaternion of any length but 0 (factor 2 / |q|^2). [..., 4] -> [..., 3, 3]"""
    x, y, z, w = quat.unbind(-1)
    s = 2.0 / (quat * quat).sum(-1)
    entries = [
        *(1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)),
        *(s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)),
        *(s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)),
    ]
    return torch.stack(entries, dim=-1).unflatten(-1, (3, 3))


def encode_pose(c2w: Tensor) -> Tensor:
    """Pose code of camera-to-world matrices. [..., 4, 4] (or [..., 3, 4]) -> [..., 7]"""
    return torch.cat([c2w[..., :3, 3], matrix_to_quat_xyzw(c2w[..., :3, :3])], dim=-1)


def decode_pose(code: Tensor) -> Tensor:
    """Camera-to-world matrices of pose codes, quaternions of any length but 0. [..., 7] -> [..., 4, 4]"""
    rotation = quat_xyzw_to_matrix(code[..., 3:])
    top = torch.cat([rotation, code[..., :3, None]], dim=-1)  # [..., 3, 4]
    bottom = torch.zeros_like(top[..., :1, :])
    bottom[..., 3] = 1
    return torch.cat([top, bottom], dim=-2)


def slerp(start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """Unit quaternions on the shorter arc between two, at constant angular speed; float64.

    Args:
        start, end: unit quaternions, any component order. [..., 4]
        t: position on the arc, 0 is start and 1 is end. Broadcasts against [...].
    """
    start, end, t = start.double(), end.double(), t.double()[..., None]
    cosine = (start * end).sum(-1, keepdim=True)
    end = torch.where(cosine < 0, -end, end)
    angle = cosine.abs().clamp_max(1).acos()
    near = angle < 1e-6  # there the arc is its chord, and sin(angle) would divide zero by zero
    sine = torch.where(near, 1.0, angle.sin())
    from_start = torch.where(near, 1 - t, ((1 - t) * angle).sin() / sine)
    from_end = torch.where(near, t, (t * angle).sin() / sine)
    quat = from_start * start + from_end * end
    return quat / quat.norm(dim=-1, keepdim=True)
