"""MEt3R of whole videos: pairs of their frames, in both directions.

Public: Scorer, PairResult, ClipResult, chosen_pairs, score_clip, truths_of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..output_folders import Outputs, Picture
from .features import Features, colours
from .geometries import Geometry, Pair
from .metric import Options, PairScore, score_into_first, symmetric

MULTIPLE = 16
"""Sides of resized pictures: what vision transformers of the networks divide into patches."""


@dataclass(frozen=True)
class Scorer:
    """How pairs are scored.

    both_ways: mean of both directions; otherwise into the first view alone, as published.
    resize: pictures are brought to this long side first, both sides rounded to multiples of 16; 0: left alone.
    """

    geometry: Geometry
    features: Features
    options: Options
    device: torch.device
    both_ways: bool = True
    resize: int = 0

    @torch.no_grad()
    def __call__(self, pair: Pair) -> tuple[float, list[PairScore]]:
        """The score, NaN without overlap, and the directions behind it."""
        features = (
            self.features(pair.images[0]) if self.options.chosen().of_features else colours(pair.images[0])
        )
        there, back = self.geometry(pair)
        features = features[None]  # [1, 2, c, h, w]
        scores = [score_into_first(features, there, self.options)]
        if not self.both_ways:
            return float(scores[0].score), scores
        scores.append(score_into_first(features.flip(1), back, self.options))
        return float(symmetric(*scores)), scores

    def load(self, pictures: Mapping[int, Picture], scene: str, frames: tuple[int, int]) -> Pair:
        """Raises ValueError for pictures of two sizes."""
        images = [pictures[frame].load() for frame in frames]
        if images[0].shape != images[1].shape:
            raise ValueError(f"scene {scene}: frames {frames[0]} and {frames[1]} have different sizes.")
        return Pair(scene, frames, self._resized(torch.stack(images)).to(self.device)[None])

    def _resized(self, images: Tensor) -> Tensor:
        if not self.resize:
            return images
        long = max(images.shape[-2:])
        size = [max(1, round(side * self.resize / long / MULTIPLE)) * MULTIPLE for side in images.shape[-2:]]
        return F.interpolate(images, size=size, mode="bicubic", antialias=True).clamp(0, 1)


@dataclass(frozen=True)
class PairResult:
    """Score of a pair, NaN without overlap; of each direction: score, valid pixels and their share."""

    frames: tuple[int, int]
    score: float
    directions: list[float]
    valid: list[int]
    overlap: list[float]


@dataclass(frozen=True)
class ClipResult:
    """All pairs of one video."""

    pairs: list[PairResult]

    @property
    def scored(self) -> list[PairResult]:
        return [pair for pair in self.pairs if not math.isnan(pair.score)]

    @property
    def mean(self) -> float:
        """Over the pairs with overlap; NaN without any."""
        return math.fsum(pair.score for pair in self.scored) / len(self.scored) if self.scored else math.nan

    @property
    def overlap(self) -> float:
        shares = [share for pair in self.pairs for share in pair.overlap]
        return math.fsum(shares) / len(shares)

    @property
    def worst(self) -> PairResult | None:
        return max(self.scored, key=lambda pair: pair.score, default=None)


def chosen_pairs(frames: list[int], gap: int, most: int = 0) -> list[tuple[int, int]]:
    """Each frame and the one `gap` places on in the order of their numbers; `most` of them, evenly spread (0: all).

    Raises:
        ValueError: the video has no such pair.
    """
    frames = sorted(frames)
    if gap < 1 or len(frames) <= gap:
        raise ValueError(f"{len(frames)} frames have no pairs {gap} apart.")
    pairs = list(zip(frames, frames[gap:]))
    if not most or most >= len(pairs):
        return pairs
    step = (len(pairs) - 1) / max(most - 1, 1)
    return [pairs[round(k * step)] for k in range(most)]


def score_clip(
    pictures: Mapping[int, Picture],
    scene: str,
    pairs: list[tuple[int, int]],
    scorer: Scorer,
    *,
    label: str = "",
) -> ClipResult:
    """Score the given pairs of one video."""
    results = []
    for frames in tqdm(pairs, desc=label or scene, unit="pair", leave=False):
        score, directions = scorer(scorer.load(pictures, scene, frames))
        results.append(
            PairResult(
                frames=frames,
                score=score,
                directions=[float(d.score) for d in directions],
                valid=[int(d.valid) for d in directions],
                overlap=[float(d.overlap) for d in directions],
            )
        )
    return ClipResult(results)


def truths_of(outputs: Outputs) -> dict[str, dict[int, Picture]]:
    """Scenes of which a method saved the truth of every frame."""
    return {
        scene: {frame: view.truth for frame, view in views.items() if view.truth}
        for scene, views in outputs.scenes.items()
        if all(view.truth for view in views.values())
    }
