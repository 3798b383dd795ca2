"""Camera rays as the channels that MV-LDM's denoiser sees, at the resolution of the latents.

A ray is (origin, direction) or (moment, direction), six numbers; raw, or each as sines and cosines of growing frequency in
one of two orders. With o and d octaves the encodings have

    raw          6 channels; published MV-LDM
    octaves      6 o + 6 d; a half with 0 octaves stays raw: 3 channels
    SRT          6 o + 6 d

Frame: that of the given poses. Directions have unit length in the camera's frame, before they are rotated.

Source: MEt3R, arXiv 2501.06336 (MV-LDM); Scene Representation Transformer, arXiv 2111.13152, appendix.

Public: RayEncoding (settings), encode_rays, view_rays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import ConfigError, key
from ..geometry.camera import Cameras, full_precision


@dataclass(kw_only=True)
class RayEncoding:
    """`model.ray_encodings`."""

    use_ray_encoding: bool = key("octaves instead of raw numbers; published MV-LDM: false", False)
    srt_ray_encoding: bool = key("octaves as in SRT; goes before use_ray_encoding", False)
    use_plucker: bool = key("the moment origin x direction takes the place of the origin", False)
    num_origin_octaves: int = key("octaves of the origin or moment", 10, least=0)
    num_direction_octaves: int = key("octaves of the direction", 8, least=0)

    def __post_init__(self) -> None:
        if self.srt_ray_encoding and not any(self.octaves):
            raise ConfigError(
                "model.ray_encodings.num_origin_octaves and num_direction_octaves are both 0: with srt_ray_encoding the "
                "denoiser would not see any camera."
            )

    @property
    def octaves(self) -> tuple[int, int]:
        """Of origin and direction, where octaves are asked for."""
        return self.num_origin_octaves, self.num_direction_octaves

    @property
    def channels(self) -> int:
        """Channels of the encoding of a ray."""
        if self.srt_ray_encoding:
            return sum(6 * octaves for octaves in self.octaves)
        if self.use_ray_encoding:
            return sum(6 * octaves or 3 for octaves in self.octaves)
        return 6


def encode_rays(cameras: Cameras, settings: RayEncoding) -> Tensor:
    """Encoded rays through the pixel centres of the cameras' images, which have the size of latents.

    [b, v, settings.channels, h, w], float32
    """
    origin, direction = view_rays(cameras)  # each [b, v, 3, h, w]
    if settings.use_plucker:
        origin = torch.linalg.cross(origin, direction, dim=2)
    halves = zip((origin, direction), settings.octaves)
    if settings.srt_ray_encoding:
        return torch.cat([_srt(x, octaves) for x, octaves in halves], dim=2)
    if settings.use_ray_encoding:
        return torch.cat([_octaves(x, octaves) if octaves else x for x, octaves in halves], dim=2)
    return torch.cat([origin, direction], dim=2)


def view_rays(cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Origin and unit direction of the ray through every pixel centre, in the frame of the poses. Each [b, v, 3, h, w]

    `geometry.camera.pixel_rays` gives the same but for roundings, and these grow with the frequencies of the encoding
    (to 1e-4 with 10 octaves). So the operations stand here in the original's order: normalised intrinsics, unit length
    in the camera's frame, then the rotation.
    """
    c2w = cameras.c2w if cameras.c2w.dtype == torch.float64 else cameras.c2w.float()
    with full_precision(c2w.device):
        sides = cameras.fxfycxcy.new_tensor([cameras.width, cameras.height] * 2)
        fx, fy, cx, cy = (
            (cameras.fxfycxcy / sides).to(c2w.dtype)[..., None, None].unbind(2)
        )  # each [b, v, 1, 1]
        row = (
            torch.arange(cameras.height, device=c2w.device, dtype=c2w.dtype)[:, None] + 0.5
        ) / cameras.height
        column = (torch.arange(cameras.width, device=c2w.device, dtype=c2w.dtype) + 0.5) / cameras.width
        x, y = column * (1 / fx) - cx * (1 / fx), row * (1 / fy) - cy * (1 / fy)  # camera frame, at depth 1
        own = torch.stack(torch.broadcast_tensors(x, y, torch.ones_like(fx)), dim=2)  # [b, v, 3, h, w]
        x, y, z = (own / own.norm(dim=2, keepdim=True)).split(1, dim=2)
        # Written out: as a matrix product it would run in TF32 where that is allowed.
        right, down, forward, centre = c2w[..., :3, :, None, None].unbind(3)  # each [b, v, 3, 1, 1]
        direction = x * right + y * down + z * forward
    return centre.expand_as(direction), direction


def _octaves(x: Tensor, octaves: int) -> Tensor:
    """sin(2 pi 2^k x_j) and cos(2 pi 2^k x_j); coordinate j outermost, the phase innermost. [b, v, 3, h, w] ->
    [b, v, 6 octaves, h, w]
    """
    frequency = 2 * math.pi * _powers_of_two(x, octaves)[:, None, None, None]  # [k, 1, 1, 1]
    phase = torch.tensor([0.0, math.pi / 2], dtype=x.dtype, device=x.device)[:, None, None]  # [2, 1, 1]
    angle = x[:, :, :, None, None] * frequency + phase  # [b, v, 3, k, 2, h, w]
    return angle.sin().flatten(2, 4)


def _srt(x: Tensor, octaves: int) -> Tensor:
    """All sin(2^k pi x_j), coordinate j outer and octave k inner, then all cosines. [b, v, 3, h, w] ->
    [b, v, 6 octaves, h, w]
    """
    frequency = math.pi * _powers_of_two(x, octaves)[:, None, None]
    angle = (x[:, :, :, None] * frequency).flatten(2, 3)  # [b, v, 3 k, h, w]
    return torch.cat([angle.sin(), angle.cos()], dim=2)


def _powers_of_two(x: Tensor, octaves: int) -> Tensor:
    return 2 ** torch.arange(octaves, dtype=x.dtype, device=x.device)
