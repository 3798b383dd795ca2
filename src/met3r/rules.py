"""The rules of the score where an implementation has a choice, and the right ones.

`CORRECT` is what everything here uses unless it is told otherwise; `published.py` has those of the original code.

Public: Rules, Distance, CORRECT, masked_mean, cosine_map, squared_error_map, ssim_map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..metrics import PSNR_CAP
from .flow import warp_by_flow
from .points import PointMaps, estimate_camera

Map = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(first [b, c, h, w], second [b, c, h, w], mask bool [b, h, w]) -> a value of each pixel [b, h, w]."""

RADIUS = 1.28
"""Pixels: the published 0.01 NDC of a 256 x 256 picture, here at every size."""

DEPTH_TOLERANCE = 0.05
"""A second view whose surface lies this much of its depth behind the first's sees past an edge: it is hidden there."""


@dataclass(frozen=True)
class Distance:
    """How two warped views are compared.

    of_features: whether features are compared, otherwise colours in [0, 1].
    map: value of each pixel.
    finish: from the mean over the overlap to the score.
    """

    of_features: bool
    map: Map
    finish: Callable[[Tensor], Tensor] = lambda mean: mean


@dataclass(frozen=True)
class Rules:
    """What an implementation may choose.

    camera: of the first view, from the point maps and the size that is drawn. fxfycxcy [b, 4] pixels
    mean: of the pixel values over the mask.
    distances: by name.
    warp: view two moved by an optical flow, and where that is known; see `flow.py`.
    normalize: the weights of a pixel's points add up to 1.
    depth_tolerance: see DEPTH_TOLERANCE; None: pixels that the second view cannot see count all the same.
    """

    camera: Callable[[PointMaps, int, int], Tensor]
    mean: Callable[[Tensor, Tensor], Tensor]
    distances: dict[str, Distance]
    warp: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    normalize: bool
    depth_tolerance: float | None


# ----------------------------------------------------------------------------------------------- distances

_EPS = 1e-8


def cosine_map(first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
    """1 - cosine of the angle between feature vectors, 0 to 2. [b, h, w]"""
    lengths = first.norm(dim=1) * second.norm(dim=1)
    return 1 - (first * second).sum(dim=1) / lengths.clamp_min(_EPS)


def squared_error_map(first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
    """Mean over the channels of squared differences. [b, h, w]"""
    return (first - second).square().mean(dim=1)


def ssim_map(first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
    """Structural similarity around each pixel, from pixels of the mask alone, mean over the channels. [b, h, w]

    Gaussian window of 11 pixels and sigma 1.5, data range 1.
    """
    known = mask[:, None].to(first.dtype)
    share = _blurred(known).clamp_min(_EPS)

    def around(x: Tensor) -> Tensor:
        return _blurred(x * known) / share

    mean_x, mean_y = around(first), around(second)
    var_x = (around(first * first) - mean_x * mean_x).clamp_min(0)
    var_y = (around(second * second) - mean_y * mean_y).clamp_min(0)
    cov = around(first * second) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    return (luminance * (2 * cov + c2) / (var_x + var_y + c2)).mean(dim=1)


def _blurred(x: Tensor) -> Tensor:
    """Gaussian sums, zeros beyond the border. [b, c, h, w]"""
    weights = torch.exp(-0.5 * (torch.arange(-5, 6, device=x.device, dtype=x.dtype) / 1.5).square())
    weights = weights / weights.sum()
    for dim in (2, 3):
        pad = (5, 5, 0, 0) if dim == 3 else (0, 0, 5, 5)
        padded = F.pad(x, pad)
        x = sum(w * padded.narrow(dim, i, x.shape[dim]) for i, w in enumerate(weights))
    return x


def _root(mean: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0. NaN stays."""
    some = mean > 0
    return torch.where(some, torch.where(some, mean, 1.0).sqrt(), mean)


def _decibels(mean: Tensor) -> Tensor:
    return -10 * mean.clamp_min(10 ** (-PSNR_CAP / 10)).log10()


# ----------------------------------------------------------------------------------------------- the right rules


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the pixels of the mask; NaN where there are none, without spoiling gradients. [b, h, w] twice -> [b]"""
    count = mask.sum(dim=(-2, -1))
    total = torch.where(mask, values, 0.0).sum(dim=(-2, -1))
    return torch.where(count > 0, total / count.clamp_min(1), torch.nan)


def _camera(maps: PointMaps, height: int, width: int) -> Tensor:
    """The one that is known, or the estimate from the first view's own map; for a picture of another size, scaled."""
    fxfycxcy = estimate_camera(maps.points[:, 0]) if maps.fxfycxcy is None else maps.fxfycxcy
    own_height, own_width = maps.points.shape[2:4]
    return fxfycxcy * fxfycxcy.new_tensor([width / own_width, height / own_height] * 2)


CORRECT = Rules(
    camera=_camera,
    mean=masked_mean,
    distances={
        "cosine": Distance(True, cosine_map),
        "mse": Distance(False, squared_error_map),
        "rmse": Distance(False, squared_error_map, _root),
        "psnr": Distance(False, squared_error_map, _decibels),
        "ssim": Distance(False, ssim_map),
    },
    warp=warp_by_flow,
    normalize=True,
    depth_tolerance=DEPTH_TOLERANCE,
)
