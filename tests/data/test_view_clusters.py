"""Views that cover the cameras, and sets of inputs and targets that never share a frame."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
from object_list import ring

from src.data.scene import SceneError
from src.data.view_choice import choose_frames
from src.data.view_clusters import camera_features, kmeans_frames
from src.data.view_sampler import Wanted, view_sampler
from src.settings_views import ViewSelector


def scene(w2c, missing=()):
    return SimpleNamespace(
        num_frames=len(w2c),
        camera=lambda frame: (np.ones(4), w2c[frame]),
        missing=lambda frame: "lost" if frame in missing else "",
    )


def test_separate_groups_of_points_get_one_view_each():
    """Five groups of unequal size, far apart: whatever the start, each gives exactly one row, near its middle."""
    middles = np.array([[0, 0], [10, 0], [0, 10], [10, 10], [5, 30]])
    sizes = [2, 9, 3, 14, 5]
    labels = np.repeat(np.arange(5), sizes)
    points = middles[labels] + np.random.default_rng(0).normal(0, 0.1, (33, 2))
    for seed in range(20):
        rows = kmeans_frames(points, 5, list(range(33)), random.Random(seed))
        assert sorted(labels[rows]) == [0, 1, 2, 3, 4]
        for row in rows:
            group = points[labels == labels[row]]
            distances = np.linalg.norm(group - group.mean(axis=0), axis=1)
            assert np.linalg.norm(points[row] - group.mean(axis=0)) == pytest.approx(distances.min())


@pytest.mark.parametrize("num", [1, 4, 11, 24])
def test_rows_differ_and_are_allowed_even_where_points_coincide(num):
    points = np.repeat(np.random.default_rng(1).normal(size=(5, 6)), 6, axis=0)  # [30, 6], five places
    allowed = [row for row in range(30) if row % 5]
    rows = kmeans_frames(points, num, allowed, random.Random(0))
    assert len(set(rows)) == num and set(rows) <= set(allowed) and rows == sorted(rows)


def test_all_cameras_shape_the_clusters_and_no_scale_matters():
    w2c = np.concatenate([ring(16, elevation_deg=e) for e in (0, 20, 40, 60)])
    larger = w2c.copy()
    larger[:, :3, 3] *= 1000
    ours, theirs = (camera_features(scene(poses), list(range(64))) for poses in (w2c, larger))
    np.testing.assert_allclose(ours, theirs, atol=1e-9)
    assert ours.shape == (64, 6)
    np.testing.assert_allclose(np.linalg.norm(ours[:, 3:], axis=1), 1)


def test_cameras_in_one_place_are_told_apart_by_direction():
    w2c = ring(8)
    w2c[:, :3, 3] = 0
    rows = kmeans_frames(camera_features(scene(w2c), list(range(8))), 4, list(range(8)), random.Random(0))
    assert len(set(rows)) == 4


def test_on_a_ring_views_are_spread():
    """12 of 48 cameras: no gap is more than three times the even one."""
    for seed in range(5):
        chosen = choose_frames(scene(ring(48)), "kmeans", 12, 0, random.Random(seed))
        gaps = np.diff([*chosen.context, chosen.context[0] + 48])
        assert chosen.target == [0, 8, 16, 24, 32, 40] and gaps.max() <= 12


@pytest.mark.parametrize("selection", ["kmeans", "random", "uniform"])
@pytest.mark.parametrize("targets", [0, 3])
def test_inputs_and_targets_share_no_frame_and_lost_frames_are_left_out(selection, targets):
    lost = {0, 7, 8, 30}
    given = scene(ring(40), lost)
    for seed in range(5):
        chosen = choose_frames(given, selection, 9, targets, random.Random(seed))
        again = choose_frames(given, selection, 9, targets, random.Random(seed))
        assert chosen == again
        assert len(chosen.context) == 9 and not set(chosen.context) & set(chosen.target)
        assert not (set(chosen.context) | set(chosen.target)) & lost
        assert len(set(chosen.target)) == len(chosen.target) == (targets or len(chosen.target)) > 0


@pytest.mark.parametrize(
    "selection,frames,inputs,targets",
    [
        ("kmeans", 16, 15, 0),
        ("kmeans", 16, 4, 3),
        ("random", 10, 10, 0),
        ("uniform", 10, 8, 3),
        ("random", 10, 8, 3),
    ],
)
def test_a_scene_with_too_few_frames_is_refused_instead_of_sharing_them(selection, frames, inputs, targets):
    with pytest.raises(SceneError, match=f"{frames} usable frames"):
        choose_frames(scene(ring(frames)), selection, inputs, targets, random.Random(0))


@pytest.mark.parametrize("name", ["random", "kmeans"])
def test_training_samplers_draw_distinct_usable_frames(name):
    wanted = Wanted(num_views=7, num_input=4, selector=ViewSelector(), step=0)
    seen = set()
    for seed in range(30):
        frames = view_sampler(name)(scene(ring(12), {3}), wanted, random.Random(seed))
        assert len(set(frames)) == 7 and 3 not in frames
        seen |= set(frames)
    assert seen == set(range(12)) - {3}
    assert view_sampler(name)(scene(ring(7), {3}), wanted, random.Random(0)) is None
