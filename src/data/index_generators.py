"""Evaluation indices for any data set: which frames are context and target, by overlap and distance.

Everything random comes from a generator of the scene: its draws do not depend on other scenes, processes or restarts.
Where no frames fit, the scene has no entry; nothing searches for ever.

Source: pixelSplat (`around_one_frame`, v1) and KaiHelli/lvsm (`between_two_frames`, v2), generate_evaluation_index.

Public: PairRules, around_one_frame, between_two_frames, nested_contexts, every_frame_between, METHODS.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .bounded_views import Chosen
from .overlap import Pinholes, overlaps

BATCH = 16
"""Frames whose overlap with another is computed at once."""

Method = Callable[[Pinholes, list[bool], "PairRules", random.Random], Chosen | None]


@dataclass(frozen=True, kw_only=True)
class PairRules:
    """What is asked of the frames of a scene.

    min_distance, max_distance: between the outer context views, frames.
    min_overlap, max_overlap: of the outer context views.
    num_context, num_target: frames per scene.
    min_target_distance: of a target from every context view, frames (v2).
    as_published: v1 as it made the index in use: targets may be context views (in 575 of its scenes), and context views
        may be one frame farther apart than max_distance.
    grid: rows and columns of rays.
    """

    min_distance: int
    max_distance: int
    min_overlap: float
    max_overlap: float
    num_context: int = 2
    num_target: int = 3
    min_target_distance: int = 1
    as_published: bool = False
    grid: tuple[int, int] = (64, 64)

    def __post_init__(self) -> None:
        """Raises ValueError for numbers that no frames can meet."""
        if not 1 <= self.min_distance <= self.max_distance:
            raise ValueError(
                f"min_distance {self.min_distance} must lie between 1 and max_distance {self.max_distance}."
            )
        if not 0 <= self.min_overlap <= self.max_overlap or self.min_overlap > 1:
            raise ValueError(
                f"min_overlap {self.min_overlap} must lie between 0 and max_overlap {self.max_overlap}, at most 1."
            )
        if self.num_context < 2 or self.num_target < 1 or min(self.grid) < 1:
            raise ValueError("expected at least 2 context views, 1 target, and a positive grid.")


def around_one_frame(
    cameras: Pinholes, usable: list[bool], rules: PairRules, rng: random.Random
) -> Chosen | None:
    """v1: from a random frame outwards on both sides as long as the views overlap; one of the frames that fit, at random.

    Args:
        usable: frames that may be chosen. [f]

    Returns:
        two context views and targets between them, both sorted; None if no frame has a partner.
    """
    frames = range(len(cameras))
    for one in rng.sample(frames, len(frames)):
        if not usable[one]:
            continue
        partners = [p for step in (1, -1) for p in _walk(cameras, one, step, rules) if usable[p]]
        if not partners:
            continue
        other = partners[rng.randint(0, len(partners) - 1)]
        left, right = sorted((one, other))
        inset = 0 if rules.as_published else 1
        inner = [frame for frame in range(left + inset, right + 1 - inset) if usable[frame]]
        if len(inner) >= rules.num_target:
            return Chosen([left, right], sorted(rng.sample(inner, rules.num_target)))
    return None


def _walk(cameras: Pinholes, one: int, step: int, rules: PairRules) -> list[int]:
    """Frames on one side of `one` with a fitting overlap, up to the first that overlaps too little."""
    # Parity: the original looks at the distance only after it has taken a frame.
    farthest = rules.max_distance + rules.as_published
    path = range(one + step * rules.min_distance, one + step * (farthest + 1), step)
    path = [frame for frame in path if 0 <= frame < len(cameras)]
    found = []
    for place in range(0, len(path), BATCH):
        some = path[place : place + BATCH]
        for frame, overlap in zip(some, overlaps(cameras, one, some, rules.grid)):
            if overlap < rules.min_overlap:
                return found
            if overlap <= rules.max_overlap:
                found.append(frame)
    return found


def between_two_frames(
    cameras: Pinholes, usable: list[bool], rules: PairRules, rng: random.Random
) -> Chosen | None:
    """v2: the first pair in a random order that fits, further context views and targets at random between them.

    Args:
        usable: frames that may be chosen. [f]

    Returns:
        context in the order left, right, further ones (`nested_contexts` takes the first so many); targets sorted, no
        context views and away from them; None if no pair leaves room for them.
    """
    frames = [frame for frame in range(len(cameras)) if usable[frame]]
    for left in rng.sample(frames, len(frames)):
        reach = range(left + rules.min_distance, left + rules.max_distance + 1)
        rights = [frame for frame in reach if frame < len(cameras) and usable[frame]]
        for right in _fitting(cameras, left, rng.sample(rights, len(rights)), rules):
            inner = [frame for frame in range(left + 1, right) if usable[frame]]
            extra = rules.num_context - 2
            if len(inner) < extra:
                continue
            context = [left, right, *rng.sample(inner, extra)]
            free = [
                frame
                for frame in inner
                if all(abs(frame - c) >= max(1, rules.min_target_distance) for c in context)
            ]
            if len(free) >= rules.num_target:
                return Chosen(context, sorted(rng.sample(free, rules.num_target)))
    return None


def _fitting(cameras: Pinholes, left: int, rights: list[int], rules: PairRules) -> Iterator[int]:
    """Those of some frames that overlap with `left` as asked, in their order, computed as they are needed."""
    for place in range(0, len(rights), BATCH):
        some = rights[place : place + BATCH]
        for frame, overlap in zip(some, overlaps(cameras, left, some, rules.grid)):
            if rules.min_overlap <= overlap <= rules.max_overlap:
                yield frame


def nested_contexts(chosen: Chosen) -> dict[int, Chosen]:
    """Number of context views -> the same targets with so many of them: the two ends, then one more at a time."""
    counts = range(2, len(chosen.context) + 1)
    return {count: Chosen(sorted(chosen.context[:count]), chosen.target) for count in counts}


def every_frame_between(context: tuple[int, ...], usable: list[bool]) -> Chosen:
    """Index of a video: every frame that can be used from the first context view to the last, both included."""
    between = range(min(context), max(context) + 1)
    return Chosen(list(context), [frame for frame in between if usable[frame]])


METHODS: dict[str, Method] = {"v1": around_one_frame, "v2": between_two_frames}
"""`--method` of the command -> function (cameras, usable, rules, rng) -> Chosen or None."""
