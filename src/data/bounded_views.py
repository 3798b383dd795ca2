"""View samplers that choose a window of a scene and draw context and targets in it, with warm-ups.

All sizes are functions of the optimiser step, so a resumed run and any number of processes draw the same.

Sources: `bounded_gap` is the bounded sampler of pixelSplat, `boundedv2` that of DepthSplat, both as KaiHelli/lvsm uses
them. Not as there: a scene is declined where a window has fewer frames than are wanted, instead of giving fewer or
searching for ever, and a warm-up may lead downwards.

Public: Chosen, choose_bounded, choose_gap, farthest_points, warmed, context_counts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..settings_views import ViewSelector
from .scene import Scene


@dataclass(frozen=True)
class Chosen:
    """Frames of one sample."""

    context: list[int]
    target: list[int]


def warmed(initial: int, final: int, step: int, steps: int) -> int:
    """A setting that moves in equal parts from `initial` to `final` over `steps` steps, rounded towards `initial`."""
    if step >= steps:
        return final
    return initial + int((final - initial) * (step / steps))


def context_counts(selector: ViewSelector, step: int) -> range:
    """Numbers of context views that `boundedv2` may draw at a step, with `random_num_context_views`."""
    low, high = selector.min_context_views, selector.max_context_views
    return range(low, warmed(low, high, step, selector.max_context_views_warm_up_steps) + 1)


def choose_gap(
    num_frames: int,
    num_targets: int,
    selector: ViewSelector,
    step: int,
    rng: random.Random,
    *,
    whole: bool = False,
) -> Chosen | None:
    """Two context views at a random distance, targets between them with replacement; None: the scene is too short.

    Args:
        whole: no random choice: the window of full size from the first frame on, and every frame between as a target.
    """
    low, high = _gap_limits(selector, step, whole)
    inset = selector.min_distance_to_context_views
    window = _window(num_frames, max(low, 2 * inset), high, rng, whole)
    if window is None:
        return None
    left, right = window
    if whole:
        return Chosen([left, right], list(range(left, right + 1)))
    return Chosen([left, right], rng.choices(range(left + inset, right + 1 - inset), k=num_targets))


def choose_bounded(
    scene: Scene,
    num_context: int,
    num_targets: int,
    selector: ViewSelector,
    step: int,
    rng: random.Random,
    *,
    whole: bool = False,
) -> Chosen | None:
    """`num_context` views within a random window, targets in and around it; None: the scene is too short.

    The fewer context views are drawn, the smaller the window, if their number is random.

    Args:
        whole: as in `choose_gap`; the targets are all frames in and around the window.

    Returns:
        Context in the order of `_context`, targets in the order drawn: fewer than `num_targets` where the window is
        smaller.
    """
    low, high = _gap_limits(selector, step, whole)
    if selector.random_num_context_views and not whole:
        share = max(selector.max_context_views // num_context, 1)
        low, high = low // share, high // share
    window = _window(scene.num_frames, low, high, rng, whole)
    if window is None:
        return None
    left, right = window
    margin = selector.max_distance_to_context_views
    if not whole:
        start = selector.initial_max_distance_to_context_views
        margin = warmed(start, margin, step, selector.target_gap_warm_up_steps)
    around = range(max(0, left - margin), min(scene.num_frames, right + margin + 1))
    if inset := selector.min_distance_to_context_views:
        around = [frame for frame in around if min(abs(frame - left), abs(frame - right)) >= inset]
    target = list(around) if whole else _targets(around, num_targets, selector, rng)
    context = _context(scene, left, right, num_context, selector, rng)
    return context and Chosen(context, target)


def _gap_limits(selector: ViewSelector, step: int, whole: bool) -> tuple[int, int]:
    """Smallest and largest distance of the outer views at a step."""
    low, high = selector.min_frame_dist, selector.max_frame_dist
    if whole:
        return high, high
    steps = selector.context_gap_warm_up_steps
    return (
        warmed(selector.initial_min_distance_between_context_views, low, step, steps),
        warmed(selector.initial_max_distance_between_context_views, high, step, steps),
    )


def _window(num_frames: int, low: int, high: int, rng: random.Random, whole: bool) -> tuple[int, int] | None:
    """First and last frame, at a distance within the limits."""
    high = min(high, num_frames - 1)
    if high < low:
        return None
    gap = rng.randint(low, high)
    left = rng.randint(0, num_frames - gap - 1)
    return (0, gap) if whole else (left, left + gap)


def _targets(
    around: Sequence[int], num_targets: int, selector: ViewSelector, rng: random.Random
) -> list[int]:
    if selector.target_views_replace_sample:
        return rng.choices(around, k=num_targets)
    return rng.sample(around, min(num_targets, len(around)))


def _context(
    scene: Scene, left: int, right: int, num_context: int, selector: ViewSelector, rng: random.Random
) -> list[int] | None:
    """Context views from left to right; None where the window has too few frames."""
    if num_context == 2:
        return [left, right]
    if selector.extra_views_sampling_strategy == "random":
        if right - left - 1 < num_context - 2:
            return None
        return [left, *sorted(rng.sample(range(left + 1, right), num_context - 2)), right]
    frames = [frame for frame in range(left, right + 1) if not scene.missing(frame)]
    if not frames:
        return None
    centres = np.stack([_centre(scene.camera(frame)[1]) for frame in frames])
    if not selector.keep_window_ends:
        # Parity: neither end of the window need be among them, and frames repeat where there are too few.
        first, *inner, last = [frames[place] for place in farthest_points(centres, num_context)]
        return [first, *sorted(inner), last]
    if len(frames) < num_context:
        return None
    ends = [0, len(frames) - 1]
    return sorted(frames[place] for place in farthest_points(centres, num_context, ends))


def _centre(w2c: np.ndarray) -> np.ndarray:
    """[4, 4] -> [3]"""
    return -np.linalg.inv(w2c[:3, :3]) @ w2c[:3, 3]


def farthest_points(points: np.ndarray, count: int, start: list[int] | None = None) -> list[int]:
    """Places of `count` points, each the farthest from all before it, in the order in which they are picked.

    Args:
        points: [n, 3]
        start: the first ones; by default the point farthest from the mean of all.
    """
    picked = list(start or [int(np.square(points - points.mean(0)).sum(1).argmax())])
    nearest = np.full(len(points), np.inf)
    for number in range(count):
        if number == len(picked):
            picked.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.square(points - points[picked[number]]).sum(1))
    return picked[:count]
