"""Which frames of a scene make a training sample.

A sampler is a function (scene, wanted, rng) -> frame numbers, or None where the scene has too few frames. The first
`wanted.num_input` frames of the list become the context. The others are the targets for samplers in
`settings_views.OWN_TARGETS`; else the data set chooses target columns itself. Samplers with windows and warm-ups are in
`bounded_views.py`, k-means is in `view_clusters.py`.

Public: Wanted, VIEW_SAMPLERS, view_sampler, bounded_frames.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from ..config import ConfigError
from ..settings_views import ViewSelector
from .bounded_views import Chosen, choose_bounded, choose_gap
from .scene import Scene
from .view_clusters import camera_features, kmeans_frames


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


def bounded_gap(scene: Scene, wanted: Wanted, rng: random.Random) -> list[int] | None:
    """Two context views at a distance that warms up, targets between them (pixelSplat)."""
    targets = wanted.num_views - wanted.num_input
    return _frames(choose_gap(scene.num_frames, targets, wanted.selector, wanted.step, rng), wanted)


def boundedv2(scene: Scene, wanted: Wanted, rng: random.Random) -> list[int] | None:
    """Any number of context views in a window that warms up, targets in and around it (DepthSplat)."""
    targets = wanted.num_views - wanted.num_input
    return _frames(
        choose_bounded(scene, wanted.num_input, targets, wanted.selector, wanted.step, rng), wanted
    )


def arbitrary(scene: Scene, wanted: Wanted, rng: random.Random) -> list[int] | None:
    """The frames that the settings list, or random ones: distinct context views and, apart from them, distinct targets."""
    targets = wanted.num_views - wanted.num_input
    fixed = [*wanted.selector.context_views, *wanted.selector.target_views]
    if max(wanted.num_input, targets, *(frame + 1 for frame in fixed)) > scene.num_frames:
        return None
    frames = range(scene.num_frames)
    context = wanted.selector.context_views or rng.sample(frames, wanted.num_input)
    return [*context, *(wanted.selector.target_views or rng.sample(frames, targets))]


def every_frame(scene: Scene, wanted: Wanted, rng: random.Random) -> list[int] | None:
    """All frames that can be used, in order."""
    return _usable(scene) or None


def random_frames(scene: Scene, wanted: Wanted, rng: random.Random) -> list[int] | None:
    """Distinct frames from anywhere in the scene, in random order (LaCT)."""
    usable = _usable(scene)
    return rng.sample(usable, wanted.num_views) if len(usable) >= wanted.num_views else None


def kmeans(scene: Scene, wanted: Wanted, rng: random.Random) -> list[int] | None:
    """Context views that cover all cameras, k-means with a random start; the others from anywhere in the scene."""
    usable = _usable(scene)
    if len(usable) < wanted.num_views:
        return None
    rows = kmeans_frames(camera_features(scene, usable), wanted.num_input, list(range(len(usable))), rng)
    context = [usable[row] for row in rows]
    rest = [frame for frame in usable if frame not in set(context)]
    return [*context, *rng.sample(rest, wanted.num_views - wanted.num_input)]


def _usable(scene: Scene) -> list[int]:
    return [frame for frame in range(scene.num_frames) if not scene.missing(frame)]


def _frames(chosen: Chosen | None, wanted: Wanted) -> list[int] | None:
    """Context, then targets; None where the window was too small for them."""
    frames = [*chosen.context, *chosen.target] if chosen else []
    return frames if len(frames) == wanted.num_views else None


VIEW_SAMPLERS: dict[str, Sampler] = {
    "bounded": bounded,
    "bounded_gap": bounded_gap,
    "boundedv2": boundedv2,
    "arbitrary": arbitrary,
    "all": every_frame,
    "random": random_frames,
    "kmeans": kmeans,
}
"""`training.view_sampler` -> function."""


def view_sampler(name: str) -> Sampler:
    """The sampler of that name; ConfigError if there is none."""
    if name not in VIEW_SAMPLERS:
        raise ConfigError(f"training.view_sampler {name} is unknown. Known: {', '.join(VIEW_SAMPLERS)}.")
    return VIEW_SAMPLERS[name]
