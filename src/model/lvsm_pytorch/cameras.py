"""Models that take cameras instead of ray maps.

A camera is given as the library gives it: intrinsic matrix K, world-to-camera rotation R and translation t
(x_camera = R x_world + t), and homogeneous image points in the units of K, one for each pixel. The published arguments
call K and R "rotations". `camera_arguments` makes them from the c2w and fxfycxcy of this code base.

Public: to_plucker_rays, unit_plucker_rays, RAYS, camera_arguments, CameraWrapper, MAECameraWrapper.
Original: github.com/lucidrains/lvsm-pytorch 0.1.6.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...geometry.camera import Cameras, full_precision
from .lvsm import LVSM
from .mae import MAE


def to_plucker_rays(
    intrinsic_rotation: Tensor, extrinsic_rotation: Tensor, translation: Tensor, uniform_points: Tensor
) -> Tensor:
    """Parity: the published ray code [d, o x d], direction first and not of unit length.

    d = R^T K^-1 u, o = -R^T t; in float32 (float64 if given) with autocast off, whatever the types of the arguments.

    Args:
        intrinsic_rotation: K. [..., 3, 3]
        extrinsic_rotation: R, world to camera. [..., 3, 3]
        translation: t, world to camera. [..., 3]
        uniform_points: homogeneous image points in the units of K. [..., 3, h, w]

    Returns:
        [..., 6, h, w]
    """
    direction, moment = _rays(intrinsic_rotation, extrinsic_rotation, translation, uniform_points)
    return torch.cat([direction, moment], dim=-3)


def unit_plucker_rays(
    intrinsic_rotation: Tensor, extrinsic_rotation: Tensor, translation: Tensor, uniform_points: Tensor
) -> Tensor:
    """The ray code of this code base, `geometry.camera.plucker`: moment o x d, then d of unit length. [..., 6, h, w]

    Arguments as for `to_plucker_rays`.
    """
    direction, moment = _rays(intrinsic_rotation, extrinsic_rotation, translation, uniform_points)
    return torch.cat([moment, direction], dim=-3) / direction.norm(dim=-3, keepdim=True)


RAYS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "plucker": unit_plucker_rays,
    "published": to_plucker_rays,
}
"""Name of a ray code -> its function of K, R, t and image points."""


def _rays(k: Tensor, r: Tensor, t: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Direction d and moment o x d, each [..., 3, h, w]."""
    k, r, t, points = (x if x.dtype == torch.float64 else x.float() for x in (k, r, t, points))
    with full_precision(k.device):
        # Sums instead of matrix products, which may run in TF32.
        to_world = (r.mT[..., None] * torch.linalg.inv(k)[..., None, :, :]).sum(-2)  # R^T K^-1 [..., 3, 3]
        columns = to_world[..., None, None].unbind(-3)  # each [..., 3, 1, 1]
        direction = sum(column * points[..., j : j + 1, :, :] for j, column in enumerate(columns))
        origin = -(r * t[..., None]).sum(-2)[..., None, None]  # [..., 3, 1, 1]
        return direction, torch.linalg.cross(origin.expand_as(direction), direction, dim=-3)


def camera_arguments(cameras: Cameras) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """K, R, t and the pixel centres (x + 0.5, y + 0.5, 1) of posed cameras, as the wrappers take them.

    Returns:
        K [b, v, 3, 3] in pixels, R [b, v, 3, 3], t [b, v, 3], points [b, v, 3, h, w].
    """
    c2w, fxfycxcy = cameras.c2w.float(), cameras.fxfycxcy.float()
    with full_precision(c2w.device):
        w2c = torch.linalg.inv(c2w.double()).to(c2w.dtype)
    k = torch.diag_embed(torch.cat([fxfycxcy[..., :2], torch.ones_like(fxfycxcy[..., :1])], dim=-1))
    k[..., :2, 2] = fxfycxcy[..., 2:]
    y = torch.arange(cameras.height, device=c2w.device) + 0.5
    x = torch.arange(cameras.width, device=c2w.device) + 0.5
    y, x = torch.meshgrid(y, x, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)]).expand(*c2w.shape[:2], 3, -1, -1)
    return k, w2c[..., :3, :3], w2c[..., :3, 3], points


def ray_code(name: str) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Function of `RAYS`; raises ValueError for another name."""
    if name not in RAYS:
        raise ValueError(f"rays is {name!r}: expected {' or '.join(RAYS)}.")
    return RAYS[name]


class CameraWrapper(nn.Module):
    """LVSM that takes cameras.

    Args:
        rays: "plucker", unit-length Pluecker coordinates, moment first; or "published" (parity), `to_plucker_rays`.
    """

    def __init__(self, lvsm: LVSM, *, rays: str = "plucker") -> None:
        super().__init__()
        self.lvsm = lvsm
        self.rays = rays
        self.to_rays = ray_code(rays)

    def forward(
        self,
        input_intrinsic_rotation: Tensor,
        input_extrinsic_rotation: Tensor,
        input_translation: Tensor,
        input_uniform_points: Tensor,
        target_intrinsic_rotation: Tensor,
        target_extrinsic_rotation: Tensor,
        target_translation: Tensor,
        target_uniform_points: Tensor,
        input_images: Tensor,
        target_images: Tensor | None = None,
        num_input_images: Tensor | None = None,
        return_loss_breakdown: bool = False,
        return_embed: bool = False,
        **options: Tensor | torch.Generator | None,
    ) -> Tensor | tuple:
        """As LVSM.forward, whose further `options` it passes on.

        Inputs: K and R [b, i, 3, 3], t [b, i, 3], points [b, i, 3, h, w]; the target's without the axis i.
        """
        return self.lvsm(
            input_images=input_images,
            input_rays=self.to_rays(
                input_intrinsic_rotation, input_extrinsic_rotation, input_translation, input_uniform_points
            ),
            target_rays=self.to_rays(
                target_intrinsic_rotation,
                target_extrinsic_rotation,
                target_translation,
                target_uniform_points,
            ),
            target_images=target_images,
            num_input_images=num_input_images,
            return_loss_breakdown=return_loss_breakdown,
            return_embed=return_embed,
            **options,
        )


class MAECameraWrapper(nn.Module):
    """MAE that takes cameras. `rays` as for CameraWrapper."""

    def __init__(self, mae: MAE, *, rays: str = "plucker") -> None:
        super().__init__()
        self.mae = mae
        self.rays = rays
        self.to_rays = ray_code(rays)

    def forward(
        self,
        intrinsic_rotation: Tensor,
        extrinsic_rotation: Tensor,
        translation: Tensor,
        uniform_points: Tensor,
        images: Tensor,
        num_images: Tensor | None = None,
        **kwargs: Tensor | torch.Generator | bool | None,
    ) -> Tensor | tuple:
        """As MAE.forward. K and R [b, i, 3, 3], t [b, i, 3], points [b, i, 3, h, w], images [b, i, c, h, w]."""
        rays = self.to_rays(intrinsic_rotation, extrinsic_rotation, translation, uniform_points)
        return self.mae(images, rays, num_images=num_images, **kwargs)
