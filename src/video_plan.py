"""Which frames of a video a multi-view diffusion model samples in which call, and conditioned on what. Pure functions.

A model denoises a few views at once. `anchored` first makes frames spread over the video, then fills in the rest beside
the nearest of them; `autoregressive` goes on from the last frame that it made; `independent` samples each frame from the
context alone, for comparison. All of them plan every frame, and speak of places in lists: what a pose or a picture is, and
in which frame of coordinates, is not known here.

Source: mv-ldm (arXiv 2501.06336), whose last incomplete group was never made, and whose number of anchors could only be
four.

Public: Call, PLANS, anchored, autoregressive, independent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

FIRST = 4
"""Frames sampled together from the context alone."""

GROUP = 3
"""Frames sampled together from the context and a frame that was made before."""


@dataclass(frozen=True)
class Call:
    """One call of the sampler.

    made: frames made before that are context now, behind the given views. Places in the list of frames
    target: frames to make. Places in the list of frames
    """

    made: tuple[int, ...]
    target: tuple[int, ...]

    def reference(self, num_given: int) -> int:
        """The view whose camera becomes the identity, among the given ones and `made`: the last made, else the first."""
        return num_given + len(self.made) - 1 if self.made else 0


def anchored(frames: Sequence[int], num_anchors: int = 4, *, published: bool = False) -> list[Call]:
    """Anchors spread over the video first, then all other frames in groups of three.

    A group is conditioned on the anchor whose frame number is nearest to that of its last frame; a group that an anchor
    leaves incomplete is completed among the frames of the next. Anchors beyond four come in threes, conditioned on the
    last one before them.

    Args:
        frames: frame numbers in the order of the video.
        published: Parity: anchors at multiples of T // n below T: one less where n divides T, none at the end.

    Raises:
        ValueError: no frames, or not a single anchor.
    """
    _check(frames, num_anchors)
    total = len(frames)
    number = min(num_anchors, total)
    if published:
        spread = range(total // number, total, total // number)
        anchors = list(spread)[:number] or [total - 1]
    else:
        anchors = [(k * total - 1) // number for k in range(1, number + 1)]
    calls = [Call((), tuple(anchors[:FIRST]))]
    for first in range(FIRST, len(anchors), GROUP):
        calls.append(Call((anchors[first - 1],), tuple(anchors[first : first + GROUP])))

    nearest = {
        place: min(anchors, key=lambda a, place=place: abs(frames[a] - frames[place]))
        for place in range(total)
        if place not in anchors
    }
    group: list[int] = []
    for anchor in anchors:
        for place in (p for p, own in nearest.items() if own == anchor):
            group.append(place)
            if len(group) == GROUP:
                calls.append(Call((anchor,), tuple(group)))
                group = []
    return [*calls, Call((anchors[-1],), tuple(group))] if group else calls


def autoregressive(frames: Sequence[int], num_anchors: int = 4) -> list[Call]:
    """The first frames from the context, then groups of three, each conditioned on the last frame before it.

    Raises:
        ValueError: no frames.
    """
    _check(frames, num_anchors)
    calls = [Call((), tuple(range(min(num_anchors, len(frames)))))]
    for first in range(num_anchors, len(frames), GROUP):
        calls.append(Call((first - 1,), tuple(range(first, min(first + GROUP, len(frames))))))
    return calls


def independent(frames: Sequence[int], num_anchors: int = 4) -> list[Call]:
    """Each frame by itself, from the context alone: nothing makes the frames agree.

    Raises:
        ValueError: no frames.
    """
    _check(frames, num_anchors)
    return [Call((), (place,)) for place in range(len(frames))]


PLANS: dict[str, Callable[..., list[Call]]] = {
    "anchored": anchored,
    "autoregressive": autoregressive,
    "independent": independent,
}
"""`inference.sampling.mode` -> planner."""


def _check(frames: Sequence[int], num_anchors: int) -> None:
    if not frames:
        raise ValueError("there are no frames to sample.")
    if num_anchors < 1:
        raise ValueError(f"{num_anchors} anchors: at least 1 is needed.")
