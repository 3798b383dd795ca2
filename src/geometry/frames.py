"""World frames: where a sample's cameras are put before a model sees them.

Each function of `POSE_FRAMES` takes poses, a scale factor and the reference views, and returns the same cameras in
another world, in float64 inside. If the reference is the context alone, the frame does not depend on what is to be
rendered.

Public: POSE_FRAMES, normalize_cameras, mean_rotation_frame, as_given, WorldFrame, context_frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .camera import Cameras, full_precision
from .rotation import matrix_to_quat_xyzw, quat_xyzw_to_matrix

_RESOLUTION = 1e-6
"""Below the resolution of float32 coordinates a distance between camera centres is rounding, not geometry."""


def normalize_cameras(c2w: Tensor, scale_factor: float, reference: slice = slice(None)) -> Tensor:
    """Move the world frame to the average camera and scale the scene, as LVSM does for each sample.

    The average camera has the mean centre, looks along the mean z axis and keeps its y axis near the mean
    one. Positions are divided by `scale_factor` times the largest absolute coordinate of a camera centre.

    Args:
        c2w: [v, 4, 4]
        scale_factor: `training.scene_scale_factor`.
        reference: the views that define frame and scale. All views: the published frame; the context views
            only: a frame that does not depend on what is to be rendered.

    Returns:
        Poses in the new frame, in the dtype of c2w. [v, 4, 4]

    Cameras that stand in one place have no extent: their scale stays. If the mean axes do not span a frame
    (cameras that face opposite ways), the axes of the first reference camera are used.
    """
    poses = c2w.double()
    chosen = poses[reference]
    average = torch.eye(4, dtype=poses.dtype, device=poses.device)
    average[:3, :3] = _mean_axes(chosen)
    average[:3, 3] = chosen[:, :3, 3].mean(0)
    poses = torch.linalg.inv(average) @ poses

    extent = poses[reference][:, :3, 3].abs().max()
    if extent > _RESOLUTION * chosen[:, :3, 3].abs().max():
        poses[:, :3, 3] /= scale_factor * extent
    return poses.to(c2w.dtype)


def _mean_axes(c2w: Tensor) -> Tensor:
    """Rotation of the average camera, columns right, down, forward. [v, 4, 4] -> [3, 3]"""
    forward = c2w[:, :3, 2].mean(0)
    right = torch.linalg.cross(c2w[:, :3, 1].mean(0), forward)
    if forward.norm() < 1e-6 or right.norm() < 1e-6:
        return c2w[0, :3, :3]
    forward, right = forward / forward.norm(), right / right.norm()
    return torch.stack([right, torch.linalg.cross(forward, right), forward], dim=1)


@dataclass(frozen=True)
class WorldFrame:
    """Another world for cameras: turned and moved, then scaled. Kept with a scene, so that cameras that come later go
    where the first ones went.

    rigid: old world to new. [b, 4, 4] float64
    scale: lengths of the new world for one of the old. [b] float64
    """

    rigid: Tensor
    scale: Tensor

    def apply(self, cameras: Cameras) -> Cameras:
        """The same cameras in the new world, in the dtype of their poses."""
        with full_precision(cameras.c2w.device):
            c2w = self.rigid[:, None] @ cameras.c2w.double()
            scaled = c2w[..., :3, 3:] * self.scale[:, None, None, None]
            c2w = torch.cat([torch.cat([c2w[..., :3, :3], scaled], dim=-1), c2w[..., 3:, :]], dim=-2)
        return cameras.at(c2w.to(cameras.c2w.dtype))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> WorldFrame:
        """With `change` applied to both tensors: samples of the batch, or another device."""
        return WorldFrame(change(self.rigid), change(self.scale))


def context_frame(c2w: Tensor, scale_factor: float = 1.35, pose_frame: str = "mean_axes") -> WorldFrame:
    """The frame that a function of `POSE_FRAMES` makes of these views alone: `training.pose_norm: context`.

    Args:
        c2w: poses of the context. [b, v, 4, 4]
        scale_factor: `training.scene_scale_factor`.
        pose_frame: `training.pose_frame`.
    """
    # What becomes of the old world's origin, and of a point at distance 1 from it, says all of a similarity.
    probe = torch.eye(4, dtype=torch.float64, device=c2w.device).repeat(2, 1, 1)
    probe[1, 0, 3] = 1.0
    rigid, scale = [], []
    for poses in c2w.double():
        moved = POSE_FRAMES[pose_frame](torch.cat([poses, probe]), scale_factor, slice(len(poses)))[-2:]
        scale.append((moved[1, :3, 3] - moved[0, :3, 3]).norm())
        moved[0, :3, 3] /= scale[-1]
        rigid.append(moved[0])
    return WorldFrame(torch.stack(rigid), torch.stack(scale))


def mean_rotation_frame(c2w: Tensor, scale_factor: float, reference: slice = slice(None)) -> Tensor:
    """Move the world frame to the mean of the reference cameras; their centres fill a centred box.

    The mean rotation is the principal eigenvector of the sum of q q^T over the quaternions, which does not depend on
    their signs. The box around the reference centres is centred afterwards, so the mean camera is not at the origin
    in general. A single reference camera becomes the identity and nothing is scaled; likewise cameras in one place.

    Args:
        c2w: [v, 4, 4]
        scale_factor: the longest side of the box reaches from -1 / scale_factor to 1 / scale_factor; 1 as published.
        reference: the views that define frame and scale.

    Source: KaiHelli/lvsm, relative poses ("average camera").
    """
    poses = c2w.double()
    chosen = poses[reference]
    quaternions = matrix_to_quat_xyzw(chosen[:, :3, :3])  # [r, 4]
    spread = torch.einsum("ri,rj->ij", quaternions, quaternions)
    average = torch.eye(4, dtype=poses.dtype, device=poses.device)
    average[:3, :3] = quat_xyzw_to_matrix(torch.linalg.eigh(spread).eigenvectors[:, -1])
    average[:3, 3] = chosen[:, :3, 3].mean(0)
    poses = torch.linalg.inv(average) @ poses

    centres = poses[reference][:, :3, 3]
    low, high = centres.amin(0), centres.amax(0)
    if len(chosen) > 1 and (high - low).max() > _RESOLUTION * chosen[:, :3, 3].abs().max():
        poses[:, :3, 3] = (2 * poses[:, :3, 3] - low - high) / (scale_factor * (high - low).max())
    return poses.to(c2w.dtype)


def as_given(c2w: Tensor, scale_factor: float, reference: slice = slice(None)) -> Tensor:
    """The cameras as they are: objects that are centred and scaled already."""
    return c2w


POSE_FRAMES: dict[str, Callable[[Tensor, float, slice], Tensor]] = {
    "mean_axes": normalize_cameras,
    "mean_rotation": mean_rotation_frame,
    "none": as_given,
}
"""`training.pose_frame` -> function."""
