"""Drawing a cloud of points in a camera: each point is a small disc, the nearest discs of a pixel are blended.

A point at distance d pixels from a pixel's centre covers it with opacity 1 - d^2 / radius^2, and not at all from the
radius on. Of the points that cover a pixel the nearest in depth are kept and laid over one another, front to back.
Every point meets only the few pixels around it, so the work grows with points times radius squared, not with points
times pixels. Gradients reach features, points and intrinsics; which points are kept is a choice without gradient.

Source: PyTorch3D's point rasteriser and alpha compositor, whose 0.01 NDC are 1.28 pixels of a 256 x 256 picture.

Public: Splat, splat, project.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Splat:
    """What a camera sees of a cloud.

    image: blended features, 0 where no point is. [n, c, h, w]
    depth: of the nearest point that covers a pixel, along the optical axis; infinite where none does. [n, h, w]
    hit: whether any point covers the pixel. bool [n, h, w]
    """

    image: Tensor
    depth: Tensor
    hit: Tensor


def project(points: Tensor, fxfycxcy: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel coordinates (column, row; the first pixel's centre is at 0.5) and depths of points in the camera's frame.

    Args:
        points: OpenCV axes. [n, p, 3]
        fxfycxcy: pixels. [n, 4]

    Returns:
        [n, p, 2] and [n, p]; the depth of points that are not finite or not in front of the camera is not positive.
    """
    usable = points.isfinite().all(dim=-1, keepdim=True) & (points[..., 2:] > 0)
    x, y, z = torch.where(usable, points, -1.0).unbind(-1)  # without an infinity that would spoil gradients
    fx, fy, cx, cy = fxfycxcy[:, None].unbind(-1)  # each [n, 1]
    return torch.stack([fx * x / z + cx, fy * y / z + cy], dim=-1), z


def splat(
    points: Tensor,
    features: Tensor,
    fxfycxcy: Tensor,
    height: int,
    width: int,
    *,
    radius: float,
    points_per_pixel: int = 10,
    normalize: bool = True,
) -> Splat:
    """Draw clouds, each in its own camera.

    Args:
        points: in the frame of the camera, OpenCV axes. [n, p, 3]
        features: of each point. [n, c, p]
        fxfycxcy: pixels of the height x width picture. [n, 4]
        radius: of a disc, pixels.
        points_per_pixel: so many of the nearest discs are blended.
        normalize: the weights of a pixel add up to 1; otherwise what the discs leave open is black.

    Raises:
        ValueError: the shapes do not fit, or the radius is not positive.
    """
    n, p = points.shape[:2]
    if points.shape != (n, p, 3) or features.shape[::2] != (n, p) or fxfycxcy.shape != (n, 4):
        raise ValueError(
            f"splat: points {tuple(points.shape)}, features {tuple(features.shape)} and fxfycxcy "
            f"{tuple(fxfycxcy.shape)} must be [n, p, 3], [n, c, p] and [n, 4]."
        )
    if radius <= 0 or points_per_pixel < 1:
        raise ValueError(
            f"splat: radius {radius} and points_per_pixel {points_per_pixel}: expected both above 0."
        )
    # In float64: at column 200 float32 is off by 1e-5 pixels, ten times what the other operations add.
    pixels, depth = project(points.double(), fxfycxcy.double())
    drawn = []
    for i in range(n):
        index = _nearest(
            pixels[i].detach(), depth[i].detach(), height, width, radius, points_per_pixel
        )  # [h * w, k]
        alpha = _opacity(pixels[i], index, width, radius).to(features.dtype)
        weights = alpha * torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha[:, :-1]], 1), 1)
        if normalize:
            weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
        table = features[i].T.contiguous()  # [p, c]
        image = F.embedding_bag(index.clamp_min(0), table, per_sample_weights=weights, mode="sum")
        hit = index[:, 0] >= 0
        nearest = torch.where(hit, depth[i][index[:, 0].clamp_min(0)], torch.inf).to(features.dtype)
        drawn.append((image.T.unflatten(1, (height, width)), nearest, hit))
    images, depths, hits = (torch.stack(parts) for parts in zip(*drawn))
    return Splat(images, depths.unflatten(1, (height, width)), hits.unflatten(1, (height, width)))


@torch.no_grad()
def _nearest(pixels: Tensor, depth: Tensor, height: int, width: int, radius: float, most: int) -> Tensor:
    """The `most` nearest points that cover each pixel, nearest first; -1: no more. [p, 2], [p] -> [h * w, most]"""
    numbers = torch.nonzero((depth > 0) & pixels.isfinite().all(dim=1))[:, 0]
    numbers = numbers[depth[numbers].argsort(stable=True)]
    first = (pixels[numbers] - radius - 0.5).ceil()  # [m, 2], lowest column and row that may be covered
    size = torch.tensor([width, height], device=pixels.device)
    near = ((first > -2 * radius - 2) & (first < size)).all(dim=1)
    numbers, first = numbers[near], first[near].long()
    steps = torch.arange(int(2 * radius) + 2, device=pixels.device)
    window = torch.cartesian_prod(steps, steps)  # [k, 2]
    cell = first[:, None] + window  # [m, k, 2]
    apart = (cell + 0.5 - pixels[numbers][:, None]).square().sum(dim=-1)
    covered = (apart < radius**2) & ((cell >= 0) & (cell < size)).all(dim=-1)
    who, where = covered.nonzero().unbind(1)  # in the order of depth
    column, row = cell[who, where].unbind(1)
    place, order = (row * width + column).sort(stable=True)  # by pixel, then by depth
    counts = torch.bincount(place, minlength=height * width)
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(place), device=place.device) - starts[place]
    kept = rank < most
    index = torch.full((height * width, most), -1, device=pixels.device)
    index[place[kept], rank[kept]] = numbers[who[order[kept]]]
    return index


def _opacity(pixels: Tensor, index: Tensor, width: int, radius: float) -> Tensor:
    """1 - d^2 / radius^2 of the points kept for each pixel, 0 where there is none. [h * w, k]"""
    place = torch.arange(len(index), device=index.device)
    centre = torch.stack([place % width, place // width], dim=-1) + 0.5  # [h * w, 2]
    apart = (pixels[index.clamp_min(0)] - centre[:, None]).square().sum(dim=-1)
    return torch.where(index >= 0, 1 - apart / radius**2, 0.0)
