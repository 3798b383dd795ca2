"""Parity: the rules of the original MEt3R code, which are behind its published numbers. Not the right ones.

Source: mohammadasim98/met3r (arXiv 2501.06336), met3r/met3r.py, on PyTorch3D 0.7.9.

Public: published, ndc_radius, ssim_channels.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .flow import flow_ends, sample_at
from .points import PointMaps
from .rules import Distance, Rules, squared_error_map


def published(eps: float = 1e-5) -> Rules:
    """What the original does; everything but cosine, mse and the drawing of points differs from `rules.CORRECT`."""
    return Rules(
        camera=_camera,
        mean=partial(_mean, eps=eps),
        distances={
            "cosine": Distance(True, partial(_cosine_map, eps=eps)),
            "mse": Distance(False, squared_error_map),
            "rmse": Distance(False, lambda a, b, mask: squared_error_map(a, b, mask).sqrt()),
            "psnr": Distance(False, partial(_psnr_map, eps=eps)),
            "ssim": Distance(False, lambda a, b, mask: ssim_channels(a, b).mean(dim=1)),
        },
        warp=_warp,
        normalize=False,  # pixels that points cover thinly are dark
        depth_tolerance=None,
    )


def ndc_radius(radius: float, height: int, width: int) -> float:
    """A radius in PyTorch3D's units, pixels: the shorter side of the picture is 2 long."""
    return radius * min(height, width) / 2


def _camera(maps: PointMaps, height: int, width: int) -> Tensor:
    """Parity: the mean of *both* views' maps, weighted by confidence, is taken for what the first view sees; whole numbers
    for pixel centres; and 1 + f / width as focal length in NDC, where 2 f / min(height, width) would be right.
    """
    weight = (maps.confidence - 0.999)[..., None]
    x, y, z = ((maps.points * weight).sum(dim=1) / weight.sum(dim=1)).unbind(-1)  # each [b, h, w]
    own_height, own_width = x.shape[-2:]
    column = torch.arange(own_width, device=x.device) - own_width / 2
    row = (torch.arange(own_height, device=x.device) - own_height / 2)[:, None]
    fx, fy = (
        (offset * z / across).flatten(1).nanmedian(dim=1).values for offset, across in ((column, x), (row, y))
    )
    ndc = torch.stack([1 + fx / own_width, 1 + fy / own_height], dim=-1)
    centre = ndc.new_tensor([width / 2, height / 2]).expand_as(ndc)
    return torch.cat([ndc * min(height, width) / 2, centre], dim=-1)


def _mean(values: Tensor, mask: Tensor, *, eps: float) -> Tensor:
    """Parity: an empty overlap scores 0, the best. With an axis too many on either side, as optical flow and LPIPS bring,
    all items of the batch are mixed, and the result is [b, 1].
    """
    mask = mask.to(values.dtype)
    ratio = (values * mask).sum(dim=(-2, -1)) / (mask.sum(dim=(-2, -1)) + eps)
    return ratio.mean(dim=1, keepdim=True) if ratio.ndim == 2 else ratio


def _cosine_map(first: Tensor, second: Tensor, mask: Tensor, *, eps: float) -> Tensor:
    return 1 - (first * second).sum(dim=1) / (first.norm(dim=1) * second.norm(dim=1) + eps)


def _psnr_map(first: Tensor, second: Tensor, mask: Tensor, *, eps: float) -> Tensor:
    """Parity: of absolute differences, and as if colours ran to 255."""
    return 20 * torch.log10(255 / ((first - second).abs().mean(dim=1) + eps))


def ssim_channels(first: Tensor, second: Tensor) -> Tensor:
    """Parity: torchmetrics' map with the range of whatever is in the batch, unseen pixels as black ones. The score is the
    mean over its channels; the map that the original returns beside it is the first channel. [b, c, h, w]
    """
    data_range = torch.maximum(first.max() - first.min(), second.max() - second.min())
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    channels = first.shape[1]
    weights = torch.exp(-0.5 * (torch.arange(-5.0, 6.0, device=first.device) / 1.5).square())
    weights = weights / weights.sum()
    kernel = torch.outer(weights, weights).expand(channels, 1, 11, 11)
    padded = [F.pad(x, (5, 5, 5, 5), mode="reflect") for x in (first, second)]
    products = [padded[0], padded[1], padded[0] ** 2, padded[1] ** 2, padded[0] * padded[1]]
    mean_x, mean_y, xx, yy, xy = (F.conv2d(x, kernel, groups=channels) for x in products)
    var_x, var_y = (xx - mean_x**2).clamp_min(0), (yy - mean_y**2).clamp_min(0)
    cov = xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance * (2 * cov + c2) / (var_x + var_y + c2)


def _warp(features: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """Parity: places outside are moved to the border before they are tested, so that the mask is 1 everywhere.

    Returns:
        features [b, c, h, w] and mask [b, 1, h, w]: the axis too many of `_mean`.
    """
    ends = flow_ends(flow)
    last = ends.new_tensor([flow.shape[-1] - 1, flow.shape[-2] - 1])
    ends = torch.minimum(ends.clamp_min(0), last)
    mask = sample_at(torch.ones_like(features[:, :1]), ends) > 0.999
    return sample_at(features, ends), mask
