"""Which frames of a scene make a training sample.

A sampler is a function (scene, wanted, rng) -> frame numbers, or None where the scene has too few frames. The first
`wanted.num_input` frames of the list become the context.

Public: Wanted, VIEW_SAMPLERS, view_sampler, bounded_frames.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from ..config import ConfigError
from ..settings import ViewSelector
from .scene import Scene


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a sample asks of its scene.

    num_views: frames in all, at least 2; num_input: how many of them are context.
    selector: `training.view_selector`.
    step: optimiser step the sample belongs to, for choices that change over a run.
    """

    num_views: int
    num_input: int
    selector: ViewSelector
    step: int


Sampler = Callable[[Scene, Wanted, random.Random], "list[int] | None"]


def bounded(scene: Scene, wanted: Wanted, rng: random.Random) -> list[int] | None:
    """`bounded_frames` of the scene."""
    return bounded_frames(scene.num_frames, wanted.num_views, wanted.selector, rng)


def bounded_frames(
    num_frames: int, num_views: int, selector: ViewSelector, rng: random.Random
) -> list[int] | None:
    """Two outer frames at a random distance within bounds, then distinct frames between them in random order.

    Source: LVSM and Less3Depend, dataset_scene.py `view_selector`; same draws from the same generator. They raise
    where the distance leaves no room for the inner frames; here the distance is at least `num_views - 1`.

    Args:
        num_frames: frames of the scene.
        num_views: frames wanted, at least 2.
        selector: smallest and largest distance of the outer frames.

    Returns:
        [first, last, inner frames ...], or None: the scene is too short.
    """
    low = max(selector.min_frame_dist, num_views - 1)
    high = min(num_frames - 1, selector.max_frame_dist)
    if num_frames < num_views or high <= selector.min_frame_dist or high < low:
        return None
    distance = rng.randint(low, high)
    first = rng.randint(0, num_frames - distance - 1)
    last = first + distance
    return [first, last, *rng.sample(range(first + 1, last), num_views - 2)]


VIEW_SAMPLERS: dict[str, Sampler] = {"bounded": bounded}
"""`training.view_sampler` -> function."""


def view_sampler(name: str) -> Sampler:
    """The sampler of that name; ConfigError if there is none."""
    if name not in VIEW_SAMPLERS:
        raise ConfigError(f"training.view_sampler {name} is unknown. Known: {', '.join(VIEW_SAMPLERS)}.")
    return VIEW_SAMPLERS[name]
