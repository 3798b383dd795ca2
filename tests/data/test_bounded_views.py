"""View samplers with windows and warm-ups: bounds, step by step, and what they decline."""

from __future__ import annotations

import itertools
import random
from types import SimpleNamespace

import numpy as np
import pytest
from raw_chunks import assert_same, config, scene, write_chunks

from src.config import ConfigError, read_yaml
from src.data.bounded_views import choose_bounded, choose_gap, context_counts, farthest_points, warmed
from src.data.loader import BatchNumbers, ContextCounts, training_loader
from src.data.view_sampler import Wanted, view_sampler
from src.model import family_config
from src.settings import Training, config_from_tree
from src.settings_views import ViewSelector

WARM = {
    "min_frame_dist": 20,
    "max_frame_dist": 60,
    "initial_min_distance_between_context_views": 10,
    "initial_max_distance_between_context_views": 20,
    "context_gap_warm_up_steps": 100,
}


def path(num_frames: int, seed: int = 0, missing: tuple[int, ...] = ()) -> SimpleNamespace:
    """A scene of random camera centres, identity rotations."""
    centres = np.random.default_rng(seed).normal(size=(num_frames, 3))

    def camera(frame: int) -> tuple[np.ndarray, np.ndarray]:
        assert frame not in missing, "the camera of a missing frame must not be asked for"
        w2c = np.eye(4)
        w2c[:3, 3] = -centres[frame]
        return np.ones(4), w2c

    return SimpleNamespace(
        num_frames=num_frames,
        camera=camera,
        missing=lambda frame: "damaged" if frame in missing else "",
        centres=centres,
    )


@pytest.mark.parametrize(
    "initial,final,step,value",
    [(25, 45, 0, 25), (25, 45, 24_999, 34), (25, 45, 25_000, 35), (25, 45, 50_000, 45), (5, 45, 10**9, 45)]
    + [(45, 25, 25_000, 35), (45, 25, 50_000, 25), (7, 7, 3, 7)],
)
def test_a_warm_up_moves_in_equal_parts_up_or_down(initial, final, step, value):
    assert warmed(initial, final, step, 50_000) == value


def test_without_warm_up_the_final_value_holds_from_the_start():
    assert warmed(1, 9, 0, 0) == 9


@pytest.mark.parametrize("step,gaps", [(0, (10, 20)), (50, (15, 40)), (100, (20, 60)), (5000, (20, 60))])
@pytest.mark.parametrize("kind", ["bounded_gap", "boundedv2"])
def test_the_distance_of_the_outer_views_warms_up(kind, step, gaps):
    """Limits at half the way: 10 + 10/2 and 20 + 40/2."""
    wanted = Wanted(num_views=5, num_input=2, selector=ViewSelector(**WARM), step=step)
    seen = set()
    for seed in range(1500):
        left, right, *targets = view_sampler(kind)(path(200), wanted, random.Random(seed))
        assert len(targets) == 3 and all(left <= frame <= right for frame in targets)
        seen.add(right - left)
    assert (min(seen), max(seen)) == gaps


@pytest.mark.parametrize("step,margin", [(0, 1), (5, 4), (10, 7)])
def test_targets_lie_ever_farther_outside(step, margin):
    selector = ViewSelector(
        min_frame_dist=10,
        max_frame_dist=12,
        max_distance_to_context_views=7,
        initial_max_distance_to_context_views=1,
        target_gap_warm_up_steps=10,
    )
    wanted = Wanted(num_views=8, num_input=2, selector=selector, step=step)
    outside = 0
    for seed in range(800):
        left, right, *targets = view_sampler("boundedv2")(path(60), wanted, random.Random(seed))
        assert len(set(targets)) == 6 and min(targets) >= 0 and max(targets) < 60
        outside = max(outside, left - min(targets), max(targets) - right)
    assert outside == margin


@pytest.mark.parametrize("strategy", ["farthest_point", "random"])
def test_context_views_are_distinct_in_order_and_end_the_window(strategy):
    selector = ViewSelector(min_frame_dist=8, max_frame_dist=30, extra_views_sampling_strategy=strategy)
    for seed in range(200):
        chosen = choose_bounded(path(50, seed), 6, 4, selector, 0, random.Random(seed))
        assert chosen.context == sorted(set(chosen.context)) and len(chosen.context) == 6
        assert 8 <= chosen.context[-1] - chosen.context[0] <= 30


def test_the_published_rule_may_leave_out_the_ends_of_the_window():
    selector = ViewSelector(min_frame_dist=30, max_frame_dist=30, keep_window_ends=False)
    spans = set()
    for seed in range(30):
        context = choose_bounded(path(50, seed), 4, 4, selector, 0, random.Random(seed)).context
        assert context[1:-1] == sorted(context[1:-1])
        spans.add(max(context) - min(context))
    assert min(spans) < 30


def test_farthest_points_maximise_the_distance_to_those_before():
    points = np.random.default_rng(3).normal(size=(40, 3))
    picked = farthest_points(points, 7)
    assert picked[0] == max(range(40), key=lambda n: np.linalg.norm(points[n] - points.mean(0)))
    for count in range(1, 7):
        gaps = [min(np.linalg.norm(points[n] - points[p]) for p in picked[:count]) for n in range(40)]
        assert picked[count] == int(np.argmax(gaps))


def test_frames_that_cannot_be_used_are_no_extra_context():
    missing = tuple(range(5, 15))
    selector = ViewSelector(min_frame_dist=19, max_frame_dist=19)
    chosen = choose_bounded(path(20, missing=missing), 8, 2, selector, 0, random.Random(0))
    assert len(chosen.context) == 8 and not set(chosen.context) & set(missing)


@pytest.mark.parametrize("strategy", ["farthest_point", "random"])
def test_a_window_with_too_few_frames_is_declined_at_once(strategy):
    """The original searches for distinct frames for ever."""
    selector = ViewSelector(min_frame_dist=3, max_frame_dist=3, extra_views_sampling_strategy=strategy)
    assert choose_bounded(path(20), 5, 2, selector, 0, random.Random(0)) is None
    assert choose_bounded(path(20), 4, 2, selector, 0, random.Random(0)).context[-1] <= 19
    wanted = Wanted(num_views=2 + 6, num_input=2, selector=selector, step=0)
    assert view_sampler("boundedv2")(path(20), wanted, random.Random(0)) is None  # 4 frames for 6 targets


def test_scenes_shorter_than_the_smallest_window_are_declined():
    selector = ViewSelector(min_frame_dist=10, max_frame_dist=20)
    assert choose_gap(10, 3, selector, 0, random.Random(0)) is None
    assert choose_gap(11, 3, selector, 0, random.Random(0)).context == [0, 10]


def test_the_window_shrinks_with_the_number_of_context_views():
    """8 at most: with 2 the limits are a fourth, with 3 and 4 a half, from 5 on whole."""
    selector = ViewSelector(
        min_frame_dist=40,
        max_frame_dist=80,
        random_num_context_views=True,
        extra_views_sampling_strategy="random",
    )
    for count, limits in ((2, (10, 20)), (3, (20, 40)), (4, (20, 40)), (5, (40, 80)), (8, (40, 80))):
        gaps = set()
        for seed in range(600):
            context = choose_bounded(path(120), count, 3, selector, 0, random.Random(seed)).context
            gaps.add(context[-1] - context[0])
        assert (min(gaps), max(gaps)) == limits, count


def test_targets_need_not_be_context_views():
    """As published they may be; a distance of 1 keeps them out, of 4 also their neighbours."""
    for inset, allowed in ((0, range(21)), (1, range(1, 20)), (4, range(4, 17))):
        selector = ViewSelector(min_frame_dist=20, max_frame_dist=20, min_distance_to_context_views=inset)
        drawn = [choose_bounded(path(21), 2, 3, selector, 0, random.Random(seed)) for seed in range(200)]
        assert {frame for chosen in drawn for frame in chosen.target} == set(allowed)
    outside = ViewSelector(
        min_frame_dist=4, max_frame_dist=4, min_distance_to_context_views=2, max_distance_to_context_views=3
    )
    for seed in range(100):
        chosen = choose_bounded(path(30), 2, 3, outside, 0, random.Random(seed))
        assert all(min(abs(f - c) for c in chosen.context) >= 2 for f in chosen.target)


def test_targets_keep_their_distance_from_the_context():
    selector = ViewSelector(min_frame_dist=8, max_frame_dist=20, min_distance_to_context_views=3)
    for seed in range(300):
        chosen = choose_gap(40, 5, selector, 0, random.Random(seed))
        left, right = chosen.context
        assert all(left + 3 <= frame <= right - 3 for frame in chosen.target)


def test_the_whole_window_takes_nothing_at_random():
    selector = ViewSelector(min_frame_dist=5, max_frame_dist=9, max_distance_to_context_views=2)
    chosen = choose_bounded(path(30), 2, 3, selector, 0, random.Random(1), whole=True)
    assert chosen.context == [0, 9] and chosen.target == list(range(12))
    assert choose_gap(30, 3, selector, 0, random.Random(1), whole=True).target == list(range(10))
    assert choose_gap(9, 3, selector, 0, random.Random(1), whole=True) is None


def test_arbitrary_frames_are_those_listed_or_random_ones():
    sampler, rng = view_sampler("arbitrary"), random.Random(0)
    fixed = ViewSelector(context_views=[7, 1], target_views=[3])
    assert sampler(path(9), Wanted(num_views=3, num_input=2, selector=fixed, step=0), rng) == [7, 1, 3]
    assert sampler(path(7), Wanted(num_views=3, num_input=2, selector=fixed, step=0), rng) is None
    free = Wanted(num_views=7, num_input=3, selector=ViewSelector(), step=0)
    drawn = [sampler(path(9), free, rng) for _ in range(300)]
    assert all(len(set(frames[:3])) == 3 and len(set(frames[3:])) == 4 for frames in drawn)
    assert {frame for frames in drawn for frame in frames[:3]} == set(range(9))


# ----------------------------------------------------------------------------------------------- in a run


VARIABLE = {
    "view_sampler": "boundedv2",
    "num_views": 7,
    "num_target_views": 2,
    "view_selector": ViewSelector(
        min_frame_dist=5,
        max_frame_dist=9,
        initial_min_distance_between_context_views=5,
        initial_max_distance_between_context_views=6,
        context_gap_warm_up_steps=8,
        random_num_context_views=True,
        max_context_views=5,
        max_context_views_warm_up_steps=6,
    ),
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bounded")
    return write_chunks(folder, [scene(f"s{n}", frames=11, seed=n) for n in range(4)])


def open_loader(raw, samples_seen=0, **training):
    return training_loader(
        config(raw, **{**VARIABLE, **training}), rank=0, world=1, samples_seen=samples_seen
    )


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_resumed_runs_and_other_numbers_of_workers_draw_the_same(raw):
    straight = list(itertools.islice(open_loader(raw), 12))
    resumed = itertools.islice(open_loader(raw, samples_seen=2 * 5, num_workers=2), 7)
    for ours, theirs in zip(resumed, straight[5:]):
        assert_same(ours, theirs)
    assert len({batch.num_input for batch in straight}) >= 3
    for batch in straight:
        assert batch.image.shape[1] == batch.num_input + 2
        assert batch.target_idx.tolist() == [[batch.num_input, batch.num_input + 1]] * 2


def test_the_number_of_context_views_is_that_of_the_step_on_all_ranks(raw):
    def sizes(rank, world, accum):
        training = config(raw, grad_accum_steps=accum, **VARIABLE).training
        numbers = BatchNumbers(training, ContextCounts(training), rank, world, 0)
        return [batch[0][1] for batch in itertools.islice(numbers, 60 * accum)]

    assert sizes(0, 2, 1) == sizes(1, 2, 1) == sizes(0, 1, 2)[::2] == sizes(0, 1, 2)[1::2]
    assert max(sizes(0, 1, 1)[:2]) == 2 and set(sizes(0, 1, 1)[6:]) == {2, 3, 4, 5}


def test_the_largest_number_of_context_views_warms_up():
    selector = ViewSelector(max_context_views=8, max_context_views_warm_up_steps=60)
    assert [context_counts(selector, step)[-1] for step in (0, 9, 10, 59, 60, 99)] == [2, 2, 3, 7, 8, 8]


def test_every_frame_is_context_and_target(raw):
    batch = next(open_loader(raw, view_sampler="all", view_selector=ViewSelector(), batch_size_per_gpu=1))
    assert batch.num_input == 11 and batch.index[0, :, 0].tolist() == list(range(11))
    assert batch.target_idx.tolist() == [list(range(11))]


# ----------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "training,message",
    [
        ({"view_selector": ViewSelector(max_distance_to_context_views=3)}, "bounded does not read it"),
        ({"view_sampler": "boundedv2", "num_views": 9}, "set it to 8"),
        ({"view_sampler": "boundedv2", "dynamic_input_view_num": True}, "random_num_context_views"),
        ({"view_sampler": "bounded_gap", "num_views": 9, "num_input_views": 3}, "use boundedv2"),
        ({"view_sampler": "boundedv2", "num_views": 7, "num_input_views": 1}, "at least 2"),
        ({"view_sampler": "all"}, "batch_size_per_gpu: 1"),
        ({"view_sampler": "arbitrary", "view_selector": ViewSelector(context_views=[1])}, "lists 1 frames"),
        ({"augment": True, "vae_latents": "vae_latents"}, "unchanged"),
        ({"make_baseline_1": True}, "pose_frame: none"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_numbers_that_do_not_fit_and_keys_that_are_not_read_are_refused(training, message):
    with pytest.raises(ConfigError, match=message):
        Training(**training)


@pytest.mark.parametrize(
    "selector", [{"min_frame_dist": 9, "max_frame_dist": 8}, {"min_context_views": 9}, {"target_views": [-1]}]
)
def test_limits_in_the_wrong_order_are_refused(selector):
    with pytest.raises(ConfigError, match="view_selector"):
        Training(view_selector=ViewSelector(**selector))


def test_published_names_are_read(repo_root):
    published = {
        "name": "boundedv2",
        "num_context_views": 2,
        "num_target_views": 6,
        "min_distance_between_context_views": 45,
        "max_distance_between_context_views": 192,
        "max_distance_to_context_views": 45,
        "context_gap_warm_up_steps": 50000,
        "target_gap_warm_up_steps": 5000,
        "initial_max_distance_to_context_views": 5,
        "match_random_num_context_views_per_batch": True,
    }
    tree = read_yaml(repo_root / "config" / "debug.yaml")
    tree["training"] |= {"view_selector": published, "num_views": 8, "num_target_views": 6}
    for moved in ("num_input_views", "num_target_views"):
        tree["training"].pop(moved, None)
    training = config_from_tree(tree, family_config).training
    assert training.view_sampler == "boundedv2" and training.num_target_views == 6
    assert (training.view_selector.min_frame_dist, training.view_selector.max_frame_dist) == (45, 192)
