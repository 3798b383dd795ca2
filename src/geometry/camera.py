"""Cameras and rays, for every model family.

Frames: OpenCV axes (x right, y down, z forward); `c2w` is camera to world. Intrinsics `fxfycxcy` are in
pixels of the image they travel with; the centre of pixel (column i, row j) is at (i + 0.5, j + 0.5).

Everything here runs in float32 (or float64 if given), with autocast off and without matrix kernels that may
round to TF32: in bf16 a ray is wrong by up to a pixel.

Public: Cameras, Views, full_precision, pixel_rays, plucker, RAY_ORDERS, rebase.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Cameras:
    """Posed pinhole cameras of images that all have the same size.

    c2w: camera to world, OpenCV axes. [b, v, 4, 4] float
    fxfycxcy: focal lengths and principal point, pixels of the height x width image. [b, v, 4] float
    height, width: image size, pixels.
    """

    c2w: Tensor
    fxfycxcy: Tensor
    height: int
    width: int

    def __post_init__(self) -> None:
        if (
            self.fxfycxcy.ndim != 3
            or self.fxfycxcy.shape[2] != 4
            or self.c2w.shape != (*self.fxfycxcy.shape[:2], 4, 4)
        ):
            raise ValueError(
                f"Cameras: c2w {tuple(self.c2w.shape)} and fxfycxcy {tuple(self.fxfycxcy.shape)} "
                "must be [b, v, 4, 4] and [b, v, 4]."
            )

    @property
    def num_views(self) -> int:
        return self.c2w.shape[1]

    def views(self, index: slice | list[int] | Tensor) -> Cameras:
        """The same views of every sample, e.g. `cameras.views(slice(0, 4))`."""
        return Cameras(self.c2w[:, index], self.fxfycxcy[:, index], self.height, self.width)

    def at(self, c2w: Tensor) -> Cameras:
        """The same intrinsics at other poses. c2w: [b, v, 4, 4]"""
        return Cameras(c2w, self.fxfycxcy, self.height, self.width)


@dataclass
class Views:
    """Images with their cameras.

    image: [b, v, 3, h, w] in [0, 1]
    posterior: what an image codec said of these images beforehand, mean and deviation. [b, v, 2, c, h', w']
    draws: for each sample the seed of whatever a family draws at random for it; none: the global generator. [b]
    """

    image: Tensor
    cameras: Cameras
    posterior: Tensor | None = None
    draws: list[int] | None = None

    def __post_init__(self) -> None:
        expected = (*self.cameras.c2w.shape[:2], 3, self.cameras.height, self.cameras.width)
        if self.image.shape != expected:
            raise ValueError(
                f"Views: image is {tuple(self.image.shape)}, but its cameras belong to {expected} "
                "[b, v, 3, h, w]: whoever resizes or crops must return both."
            )


def full_precision(device: torch.device) -> AbstractContextManager:
    """Context in which autocast is off on `device`; for one without autocast, as meta, that of the CPU stands in."""
    kind = device.type if torch.amp.is_autocast_available(device.type) else "cpu"
    return torch.autocast(kind, enabled=False)


def pixel_rays(cameras: Cameras, *, norm_floor: float = 0.0) -> tuple[Tensor, Tensor]:
    """Rays through the pixel centres, in world coordinates.

    Args:
        cameras: [b, v] cameras of h x w images.
        norm_floor: directions are divided by max(length, norm_floor). UP-LVSM and PT-LVSM use 1e-3, LVSM
            none; it only matters for matrices that are no rotations.

    Returns:
        ray_o: camera centre, scene units. [b, v, 3, h, w]
        ray_d: unit direction. [b, v, 3, h, w]

    Source: LVSM, arXiv 2410.17242 (Pluecker conditioning); normalised after the rotation.
    """
    c2w, fxfycxcy = _at_least_float32(cameras.c2w), _at_least_float32(cameras.fxfycxcy)
    with full_precision(c2w.device):
        fx, fy, cx, cy = fxfycxcy[..., None, None].unbind(2)  # each [b, v, 1, 1]
        row = torch.arange(cameras.height, device=c2w.device, dtype=c2w.dtype)[:, None] + 0.5
        column = torch.arange(cameras.width, device=c2w.device, dtype=c2w.dtype)[None, :] + 0.5
        x = ((column - cx) / fx).unsqueeze(2)  # [b, v, 1, 1, w], camera frame, at depth 1
        y = ((row - cy) / fy).unsqueeze(2)  # [b, v, 1, h, 1]
        # Written out: as a matrix product it would run in TF32 where that is allowed.
        right, down, forward, centre = c2w[..., :3, :, None, None].unbind(3)  # each [b, v, 3, 1, 1]
        ray_d = x * right + y * down + forward  # [b, v, 3, h, w], world frame
        ray_d = ray_d / ray_d.norm(dim=2, keepdim=True).clamp_min(norm_floor)
    return centre.expand_as(ray_d), ray_d


RAY_ORDERS = ("moment_first", "direction_first")


def plucker(cameras: Cameras, *, norm_floor: float = 0.0, order: str = "moment_first") -> Tensor:
    """Pluecker map of every pixel's ray: moment o x d and unit direction d, in one of RAY_ORDERS. [b, v, 6, h, w]"""
    ray_o, ray_d = pixel_rays(cameras, norm_floor=norm_floor)
    moment = torch.linalg.cross(ray_o, ray_d, dim=2)
    return torch.cat([moment, ray_d] if order == "moment_first" else [ray_d, moment], dim=2)


def rebase(c2w: Tensor, reference: Tensor) -> Tensor:
    """Poses as seen from the camera `reference`, in float64 inside.

    Args:
        c2w: [b, v, 4, 4]
        reference: camera to world of the camera that becomes the identity. [b, 4, 4]

    Returns:
        inverse(reference) c2w, in the dtype of c2w. [b, v, 4, 4]
    """
    with full_precision(c2w.device):
        w2c = torch.linalg.inv_ex(reference.double()).inverse  # unlike `inv`, it does not wait for the device
        return (w2c[:, None] @ c2w.double()).to(c2w.dtype)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
