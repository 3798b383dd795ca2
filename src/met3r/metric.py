"""MEt3R: how well two pictures of one place agree in space, from 0 (the same) upwards.

Both views' features are carried by their surfaces' points into the camera of the first view and compared where both are
seen. The networks of the original (point maps: DUSt3R or MASt3R; features: DINO and FeatUp) come from outside: see
`geometries.py` and `features.py`.

Paper: "MEt3R: Measuring Multi-View Consistency in Generated Images", arXiv 2501.06336.

Public: Options, PairScore, score_into_first, score_by_flow, symmetric, DISTANCES.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .points import PointMaps
from .rules import CORRECT, RADIUS, Distance, Rules
from .splat import splat

SpatialLpips = Callable[[Tensor, Tensor], Tensor]
"""(images in [0, 1] [b, 3, h, w], the same) -> distance of each pixel [b, h, w]."""

DISTANCES = (*CORRECT.distances, "lpips")
"""Of features: cosine; of colours in [0, 1]: the others. More is better for psnr (dB) and ssim alone."""


@dataclass(frozen=True)
class Options:
    """How to score.

    distance: one of DISTANCES.
    radius: of a point, pixels of the drawn picture.
    points_per_pixel: so many of the nearest points are blended.
    size: height and width that are drawn; None: those of the point maps.
    rules: `rules.CORRECT`, or those of `published.published()`.
    lpips: what `distance: lpips` calls.
    """

    distance: str = "cosine"
    radius: float = RADIUS
    points_per_pixel: int = 10
    size: tuple[int, int] | None = None
    rules: Rules = field(default=CORRECT)
    lpips: SpatialLpips | None = None

    def __post_init__(self) -> None:
        if self.distance not in DISTANCES:
            raise ValueError(f"{self.distance} is not a distance. Choose from {', '.join(DISTANCES)}.")
        if self.distance == "lpips" and self.lpips is None:
            raise ValueError("the distance lpips needs its network: pass Options(lpips=...).")

    def chosen(self) -> Distance:
        """The distance by the rules."""
        if self.distance == "lpips":
            return Distance(False, lambda a, b, mask: self.lpips(a * mask[:, None], b * mask[:, None]))
        return self.rules.distances[self.distance]


@dataclass(frozen=True)
class PairScore:
    """Scores of b pairs.

    score: mean over the overlap; NaN where there is none. [b]
    valid: pixels that count. int64 [b]
    overlap: their share of the picture. [b]
    score_map: value of each pixel, meaningful inside the mask. [b, h, w]
    mask: where both views were drawn and the second is not hidden. bool [b, h, w]
    projections: both views in the first camera, 0 where nothing was drawn. [b, 2, c, h, w]
    depth: of the nearest point, infinite where there is none. [b, 2, h, w]
    """

    score: Tensor
    valid: Tensor
    overlap: Tensor
    score_map: Tensor
    mask: Tensor
    projections: Tensor
    depth: Tensor | None = None


def score_into_first(features: Tensor, maps: PointMaps, options: Options) -> PairScore:
    """Both views drawn in the first view's camera and compared there.

    Args:
        features: at the size of the point maps; colours in [0, 1] unless the distance is cosine. [b, 2, c, h, w]

    Raises:
        ValueError: features and point maps of different sizes.
    """
    b, _, height, width, _ = maps.points.shape
    if features.ndim != 5 or features.shape[:2] != (b, 2) or features.shape[3:] != (height, width):
        raise ValueError(
            f"features {tuple(features.shape)} do not fit point maps {tuple(maps.points.shape)}: expected [{b}, 2, c, "
            f"{height}, {width}]."
        )
    rules = options.rules
    size = options.size or (height, width)
    camera = rules.camera(maps, *size).to(features.dtype)  # [b, 4]
    drawn = splat(
        maps.points.to(features.dtype).reshape(2 * b, -1, 3),
        features.flatten(0, 1).flatten(2),
        camera.repeat_interleave(2, dim=0),
        *size,
        radius=options.radius,
        points_per_pixel=options.points_per_pixel,
        normalize=rules.normalize,
    )
    depth, hit = drawn.depth.unflatten(0, (b, 2)), drawn.hit.unflatten(0, (b, 2))
    mask = hit.all(dim=1)
    if rules.depth_tolerance is not None:
        mask = mask & (depth[:, 1] <= depth[:, 0] * (1 + rules.depth_tolerance))
    return _compared(drawn.image.unflatten(0, (b, 2)), mask, options, depth)


def score_by_flow(features: Tensor, flow: Tensor, options: Options) -> PairScore:
    """The second view moved onto the first by an optical flow and compared there.

    Args:
        features: as in `score_into_first`. [b, 2, c, h, w]
        flow: from the first view's pixels to the second's, pixels, (right, down). [b, 2, h, w]
    """
    warped, mask = options.rules.warp(features[:, 1], flow)
    return _compared(torch.stack([features[:, 0], warped], dim=1), mask, options)


def _compared(projections: Tensor, mask: Tensor, options: Options, depth: Tensor | None = None) -> PairScore:
    """mask: [b, h, w]; by the published rules a flow's has an axis more."""
    distance = options.chosen()
    seen = mask if mask.ndim == 3 else mask[:, 0]  # [b, h, w]
    score_map = distance.map(projections[:, 0], projections[:, 1], seen)
    score = distance.finish(options.rules.mean(score_map, mask))
    valid = seen.sum(dim=(-2, -1))
    return PairScore(score, valid, valid / seen[0].numel(), score_map, seen, projections, depth)


def symmetric(there: PairScore, back: PairScore) -> Tensor:
    """Mean of both directions' scores; of one where the other has no overlap, NaN where neither has. [b]"""
    return torch.stack([there.score, back.score]).nanmean(dim=0)
