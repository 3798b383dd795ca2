"""Batches for training: order, restarts, replacements, memory."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from raw_chunks import assert_same, config, encoded, picture, scene, write_chunks

from src.config import ConfigError
from src.data.batch import split_views, to_device
from src.data.loader import BatchNumbers, ContextCounts, plan_prefetch, training_loader
from src.data.scene import SceneError
from src.geometry.frames import normalize_cameras
from src.settings_views import ViewSelector


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loader")
    return write_chunks(folder, [scene(f"s{n}", frames=11, seed=n) for n in range(5)])


def take(loader, count):
    return [next(loader) for _ in range(count)]


def open_loader(raw, rank=0, world=1, samples_seen=0, **training):
    return training_loader(config(raw, **training), rank=rank, world=world, samples_seen=samples_seen)


def test_fields_of_a_batch(raw):
    batch = next(open_loader(raw))
    assert batch.image.dtype == torch.uint8 and batch.image.shape == (2, 4, 3, 28, 28)
    assert batch.c2w.dtype == torch.float32 and batch.c2w.shape == (2, 4, 4, 4)
    assert batch.fxfycxcy.dtype == torch.float32 and batch.fxfycxcy.shape == (2, 4, 4)
    assert batch.index.dtype == torch.int64 and batch.index.shape == (2, 4, 2)
    assert batch.target_idx.dtype == torch.int64 and batch.target_idx.shape == (2, 2)
    assert batch.num_input == 2
    assert [f"s{position}" for position in batch.index[:, 0, 1].tolist()] == batch.scene_name


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("num_workers", [1, 3])
def test_same_samples_whatever_the_number_of_workers(raw, num_workers):
    alone = take(open_loader(raw), 7)
    for ours, theirs in zip(take(open_loader(raw, num_workers=num_workers), 7), alone):
        assert_same(ours, theirs)


def test_resumes_in_the_middle_of_an_epoch(raw):
    straight = take(open_loader(raw), 9)
    resumed = take(open_loader(raw, samples_seen=2 * 4, num_workers=1), 5)
    for ours, theirs in zip(resumed, straight[4:]):
        assert_same(ours, theirs)


def test_global_order_does_not_depend_on_ranks_or_accumulation(raw):
    """One rank with 4, two with 2, and two accumulated batches of 2 see the same four samples per update."""
    whole = take(open_loader(raw, batch_size_per_gpu=4), 3)
    ranks = [take(open_loader(raw, rank, 2), 3) for rank in range(2)]
    accumulated = take(open_loader(raw, grad_accum_steps=2), 6)
    for update, batch in enumerate(whole):
        for halves in ([ranks[0][update], ranks[1][update]], accumulated[2 * update : 2 * update + 2]):
            assert torch.equal(torch.cat([half.image for half in halves]), batch.image)
            assert torch.equal(torch.cat([half.target_idx for half in halves]), batch.target_idx)


def test_another_seed_gives_other_samples(raw):
    assert not torch.equal(next(open_loader(raw)).index, next(open_loader(raw, seed=5)).index)


def test_dynamic_context_is_the_same_on_all_ranks_of_an_update(raw):
    def sizes(rank, world, accum):
        training = config(
            raw, dynamic_input_view_num=True, num_views=6, num_target_views=2, grad_accum_steps=accum
        ).training
        numbers = BatchNumbers(training, ContextCounts(training), rank, world, 0)
        return [batch[0][1] for batch in itertools.islice(numbers, 40 * accum)]

    assert set(sizes(0, 2, 1)) == {2, 3, 4}
    assert sizes(0, 2, 1) == sizes(1, 2, 1) == sizes(0, 1, 2)[::2] == sizes(0, 1, 2)[1::2]


def test_dynamic_context_leaves_room_for_the_targets(raw):
    loader = open_loader(
        raw, dynamic_input_view_num=True, target_has_input=False, num_views=5, num_target_views=2
    )
    for batch in take(loader, 8):
        assert batch.num_input in (2, 3) and batch.target_idx.tolist() == [[3, 4]] * 2
    tight = {"num_views": 3, "num_target_views": 2, "num_input_views": 1, "target_has_input": False}
    with pytest.raises(ConfigError, match="dynamic_input_view_num"):
        open_loader(raw, dynamic_input_view_num=True, **tight)


def test_too_short_and_broken_scenes_are_replaced_and_counted(tmp_path):
    broken = scene("broken", frames=11)
    broken["images"] = [encoded(picture(64, 36, n)[:-150]) for n in range(11)]
    raw = write_chunks(tmp_path, [scene("good", 11, seed=1), scene("short", 3), broken])
    loader = open_loader(raw)
    assert {name for batch in take(loader, 6) for name in batch.scene_name} == {"good"}
    report = loader.report()
    assert report["samples"] == 12 and report["replaced_scenes"] >= 8
    assert any("short: 3 frames are too few" in line for line in report["first_replaced"])
    assert any("broken: frame" in line for line in report["first_replaced"])
    again = open_loader(raw, num_workers=2)
    for ours, theirs in zip(take(again, 6), take(open_loader(raw), 6)):
        assert_same(ours, theirs)


def test_no_scene_qualifies_is_an_error_not_a_search_without_end(tmp_path):
    raw = write_chunks(tmp_path, [scene("x", 3), scene("y", 4)])
    with pytest.raises(SceneError, match="none of its 2 scenes gives a sample of 4 views"):
        open_loader(raw)


def test_one_damaged_frame_does_not_cost_the_scene(tmp_path):
    item = scene("only", frames=11)
    item["images"][5] = encoded(b"rubbish")
    loader = open_loader(write_chunks(tmp_path, [item]))
    assert all(5 not in batch.index[..., 0] for batch in take(loader, 6))


def test_small_pictures_are_enlarged_and_counted(tmp_path):
    loader = open_loader(write_chunks(tmp_path, [scene("tiny", 11, size=(32, 18))]))
    assert next(loader).image.shape[-2:] == (28, 28)
    assert loader.report()["enlarged_pictures"] == 8


def test_coincident_cameras_give_finite_poses(tmp_path):
    item = scene("fixed", 11)
    item["cameras"][:] = item["cameras"][0]
    batch = next(open_loader(write_chunks(tmp_path, [item])))
    assert torch.isfinite(batch.c2w).all()


def test_portrait_pictures_batch_with_landscape_ones(tmp_path):
    raw = write_chunks(tmp_path, [scene("tall", 11, size=(36, 64), seed=1), scene("wide", 11, seed=2)])
    batch = next(open_loader(raw))
    assert set(batch.scene_name) == {"tall", "wide"} and batch.image.shape[-2:] == (28, 28)
    with pytest.raises(SceneError, match="do not fit in one batch"):
        next(open_loader(raw, square_crop=False))


def test_pose_norm_context_does_not_depend_on_the_targets(raw):
    batch = next(open_loader(raw, pose_norm="context"))
    everywhere = next(open_loader(raw))
    assert torch.equal(batch.index, everywhere.index)
    again = normalize_cameras(everywhere.c2w[0], 1.35, slice(2))
    torch.testing.assert_close(batch.c2w[0], again, atol=1e-5, rtol=0)
    torch.testing.assert_close(batch.c2w[0, :2, :3, 3].mean(0), torch.zeros(3), atol=1e-6, rtol=0)


def test_weighted_data_sets(raw, tmp_path):
    other = write_chunks(tmp_path, [scene("other", 11, seed=9)])
    loader = open_loader([{"path": str(raw), "weight": 1}, {"path": str(other), "weight": "2"}])
    assert loader.num_scenes == 6
    names = [name for batch in take(loader, 6) for name in batch.scene_name]
    assert names.count("other") == 8  # two thirds of two epochs
    batch = next(loader)
    positions = [5 if name == "other" else int(name[1]) for name in batch.scene_name]
    assert batch.index[:, 0, 1].tolist() == positions


@pytest.mark.parametrize(
    "entry",
    [
        "text",
        {"path": "x"},
        {"path": "x", "weight": 0},
        {"path": "x", "weight": "much"},
        {"path": "x", "weight": 1, "w": 1},
    ],
)
def test_wrong_mixtures_are_refused(entry):
    with pytest.raises(ConfigError, match=r"dataset_path\[0\]"):
        open_loader([entry])


@pytest.mark.parametrize("name, why", [("000000.torch", "name its folder"), ("a.json", "expected a list")])
def test_a_file_that_is_no_list_is_refused(raw, name, why):
    (raw / "a.json").write_text('{"scene_name": "a", "frames": []}')
    with pytest.raises(ConfigError, match=why):
        open_loader(raw / name)


@pytest.mark.parametrize("path", ["", "nowhere/full_list.txt", "nowhere"])
def test_missing_data_is_refused(path):
    with pytest.raises(ConfigError, match=r"full_list\.txt|no such file"):
        open_loader(path)


@pytest.mark.parametrize(
    "batch_bytes,planned",
    [(1, (4, 32)), (10, (4, 25)), (100, (4, 2)), (300, (3, 1)), (1000, (1, 1)), (1001, (0, 1))],
)
def test_ready_batches_stay_under_the_limit(batch_bytes, planned):
    workers, factor = plan_prefetch(batch_bytes, num_workers=4, prefetch_factor=32, limit=1000)
    assert (workers, factor) == planned
    assert workers * factor * batch_bytes <= 1000


def test_limit_reaches_the_loader(raw):
    size = 2 * 4 * 3 * 28 * 28
    loader = open_loader(raw, num_workers=2, prefetch_bytes=size * 8)  # three quarters of it for training
    assert (loader.batch_bytes, loader.num_workers, loader.prefetch_factor) == (size, 2, 3)


def test_split_views_takes_context_columns_and_target_columns(raw):
    batch = next(open_loader(raw))
    moved = to_device(batch, torch.device("cpu"))
    context, target = split_views(moved, batch.num_input)
    assert context.image.dtype == torch.float32 and context.image.max() <= 1
    assert torch.equal(context.image * 255, batch.image[:, :2].float())
    for sample, columns in enumerate(batch.target_idx.tolist()):
        assert torch.equal(target.image[sample], moved.image[sample, columns])
        assert torch.equal(target.cameras.c2w[sample], batch.c2w[sample, columns])
        assert torch.equal(target.cameras.fxfycxcy[sample], batch.fxfycxcy[sample, columns])


def test_selector_settings_reach_the_sampler(raw):
    loader = open_loader(raw, view_selector=ViewSelector(min_frame_dist=7, max_frame_dist=8))
    for batch in take(loader, 4):
        distance = batch.index[:, 1, 0] - batch.index[:, 0, 0]
        assert ((distance == 7) | (distance == 8)).all()


def test_a_loader_process_that_dies_is_told_with_the_scenes_of_its_batch(raw, caplog):
    """And the batch comes all the same. (What else may happen: tests/data/test_workers.py.)"""
    expected = take(open_loader(raw), 6)
    loader = open_loader(raw, num_workers=1, prefetch_factor=2)
    found = [next(loader)]
    end = time.monotonic() + 60
    while loader.batches._items.begun[0] == 0 and time.monotonic() < end:
        time.sleep(0.01)  # until it reads what comes next
    os.kill(loader.batches._loader._workers[0].pid, signal.SIGKILL)
    found += take(loader, 5)
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs)
    (told,) = [message for message in caplog.messages if "died (SIGKILL)" in message]
    assert any(", ".join(batch.scene_name) in told for batch in expected[1:4])


def test_a_program_that_fails_while_loading_ends(raw, repo_root, cli_env):
    """Workers ignore signals, so that a stopped run can save; they must not outlive it."""
    code = (
        "import sys; sys.path.insert(0, 'tests'); from raw_chunks import config\n"
        "from src.data.loader import training_loader\n"
        f"loader = training_loader(config({str(raw)!r}, num_workers=2), rank=0, world=1)\n"
        "next(loader); raise KeyError('a mistake')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=cli_env, cwd=repo_root, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "a mistake" in done.stderr and "DataLoader worker" not in done.stderr


def test_pictures_take_the_asked_shape_and_cameras_the_asked_frame(raw):
    """64 x 36 pictures cut to 28 wide and 14 high; poses as in the files."""
    shaped = next(open_loader(raw, image_shape=[14, 28], pose_frame="none"))
    framed = next(open_loader(raw, image_shape=[14, 28]))
    assert shaped.image.shape[-2:] == (14, 28)
    assert torch.equal(shaped.image, framed.image) and not torch.equal(shaped.c2w, framed.c2w)
    torch.testing.assert_close(normalize_cameras(shaped.c2w[0], 1.35), framed.c2w[0], atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match="multiples of the model's patch size 14"):
        open_loader(raw, image_shape=[20, 28])
