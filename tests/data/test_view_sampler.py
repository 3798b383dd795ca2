"""Which frames are drawn, and when a scene is declined."""

from __future__ import annotations

import random

import pytest

from src.config import ConfigError
from src.data.view_sampler import bounded_frames, view_sampler
from src.settings_views import ViewSelector


@pytest.mark.parametrize(
    "num_frames,low,high,views", [(30, 25, 192, 8), (300, 25, 192, 8), (12, 6, 9, 4), (9, 1, 8, 2)]
)
def test_bounds_hold_over_many_seeds(num_frames, low, high, views):
    """Ends in order at an allowed distance; inner frames distinct and strictly between; all distances occur."""
    distances = set()
    for seed in range(2000):
        frames = bounded_frames(
            num_frames, views, ViewSelector(min_frame_dist=low, max_frame_dist=high), random.Random(seed)
        )
        first, last, *inner = frames
        assert len(frames) == views and len(set(inner)) == views - 2
        assert 0 <= first < last < num_frames and low <= last - first <= high
        assert all(first < frame < last for frame in inner)
        distances.add(last - first)
    assert min(distances) == max(low, views - 1)
    assert max(distances) == min(high, num_frames - 1)


@pytest.mark.parametrize("num_frames,declined", [(7, True), (20, True), (26, True), (27, False)])
def test_scenes_that_are_too_short_are_declined(num_frames, declined):
    """Published rule: declined unless min(frames - 1, max) exceeds min."""
    selector = ViewSelector(min_frame_dist=25, max_frame_dist=192)
    assert (bounded_frames(num_frames, 8, selector, random.Random(0)) is None) == declined


def test_distance_leaves_room_for_the_inner_frames():
    """The original raises where min_frame_dist is below num_views - 1."""
    selector = ViewSelector(min_frame_dist=2, max_frame_dist=100)
    assert bounded_frames(8, 8, selector, random.Random(0))[:2] == [0, 7]


def test_same_seed_same_frames():
    selector = ViewSelector(min_frame_dist=5, max_frame_dist=50)
    assert bounded_frames(99, 6, selector, random.Random(3)) == bounded_frames(
        99, 6, selector, random.Random(3)
    )


def test_unknown_sampler_lists_the_known():
    with pytest.raises(ConfigError, match="bounded"):
        view_sampler("uniform")
