"""Every scene of an index exactly once, or listed with the reason."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from raw_chunks import config, encoded, picture, scene, write_chunks

from src.config import ConfigError
from src.data.convert import Options, convert
from src.data.eval_index import evaluation_loader, read_index
from src.geometry.frames import normalize_cameras


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    return write_chunks(folder, [scene(f"s{n}", frames=11, seed=n) for n in range(7)])


def write_index(tmp_path, tree):
    path = tmp_path / "index.json"
    path.write_text(json.dumps(tree))
    return path


def entry(context=(0, 8), target=(2, 4, 6)):
    return {"context": list(context), "target": list(target)}


def open_loader(raw, index, rank=0, world=1, max_scenes=0, **training):
    settings = config("", index, **training)
    settings.inference.max_scenes = max_scenes
    return evaluation_loader(settings, str(raw), rank=rank, world=world)


def test_scenes_are_grouped_by_equal_counts(raw, tmp_path):
    tree = {
        "s5": entry(),
        "s0": entry(target=[1]),
        "s1": None,
        "s2": entry((0, 4, 8), range(9)),
        "s3": {**entry(), "overlap": 0.3},
        "s4": entry(),
    }
    loader = open_loader(raw, write_index(tmp_path, tree), num_workers=1)
    assert (loader.num_in_index, loader.num_null, loader.num_scenes, loader.missing) == (6, 1, 5, [])
    assert loader.index_sha256 == hashlib.sha256((tmp_path / "index.json").read_bytes()).hexdigest()
    batches = list(loader)
    shapes = [(batch.scene_name, batch.num_input, tuple(batch.target_idx.shape)) for batch in batches]
    assert shapes == [
        (["s0"], 2, (1, 1)),
        (["s3", "s4"], 2, (2, 3)),
        (["s5"], 2, (1, 3)),
        (["s2"], 3, (1, 9)),
    ]
    assert batches[1].index[0, :, 0].tolist() == [0, 8, 2, 4, 6]
    assert batches[1].target_idx.tolist() == [[2, 3, 4]] * 2
    assert [b.index[:, 0, 1].tolist() for b in batches] == [
        [0],
        [2, 3],
        [4],
        [1],
    ]  # place among the usable scenes
    assert len(list(loader)) == 4  # can be gone through again


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_each_scene_is_on_exactly_one_rank(raw, tmp_path, world):
    path = write_index(tmp_path, {f"s{n}": entry(target=[1, 2][: 1 + n % 2]) for n in range(7)})
    names = [
        name
        for rank in range(world)
        for batch in open_loader(raw, path, rank, world)
        for name in batch.scene_name
    ]
    assert sorted(names) == [f"s{n}" for n in range(7)]


def test_max_scenes_takes_the_first_of_the_index(raw, tmp_path):
    path = write_index(tmp_path, {"s4": entry(), "s6": None, "s3": entry(), "s0": entry()})
    names = [name for batch in open_loader(raw, path, max_scenes=2) for name in batch.scene_name]
    assert names == ["s3", "s4"]


def test_what_cannot_be_scored_is_listed(tmp_path):
    broken, missing = scene("broken", 11, seed=1), scene("missing", 11, seed=2)
    broken["images"][4] = encoded(picture(64, 36, 1)[:-150])
    missing["cameras"][2] = float("nan")
    raw = write_chunks(tmp_path / "raw", [broken, missing, scene("good", 11), scene("long", 10)])
    tree = {
        "long": entry(target=[2, 10]),
        "absent": entry(),
        "good": entry(),
        "broken": entry(),
        "missing": entry(),
    }
    loader = open_loader(raw, write_index(tmp_path, tree))
    assert loader.num_scenes == 2  # that a picture is damaged shows when it is read
    assert dict(loader.missing) == {
        "absent": "not in the data set",
        "long": "target frame 10 in index.json, but the scene has 10 frames. Was it made with --mode test?",
        "missing": "target frame 2 is missing: camera is not finite",
    }
    for _ in range(2):
        assert [batch.scene_name for batch in loader] == [["good"]]
        assert len(loader.missing) == 4 and "frame 4" in dict(loader.missing)["broken"]


def test_converted_data_gives_the_same_scenes(raw, tmp_path):
    convert(Options(raw, tmp_path / "out"), 1, 1)
    path = write_index(tmp_path, {"s1": entry(), "s5": entry((0, 3, 9), [1])})
    for ours, theirs in zip(open_loader(raw, path), open_loader(tmp_path / "out/full_list.txt", path)):
        assert torch.equal(ours.image, theirs.image) and torch.equal(ours.c2w, theirs.c2w)
        assert torch.equal(ours.fxfycxcy, theirs.fxfycxcy) and torch.equal(ours.index, theirs.index)


def test_pose_norm_is_that_of_training(raw, tmp_path):
    path = write_index(tmp_path, {"s1": entry()})
    (published,), (context,) = open_loader(raw, path), open_loader(raw, path, pose_norm="context")
    torch.testing.assert_close(published.c2w[0, :, :3, 3].mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    again = normalize_cameras(published.c2w[0], 1.35, slice(2))
    torch.testing.assert_close(context.c2w[0], again, atol=1e-5, rtol=0)


def test_pictures_of_different_sizes_make_batches_of_their_own(tmp_path):
    raw = write_chunks(tmp_path / "raw", [scene("a", 11), scene("b", 11, size=(48, 36))])
    path = write_index(tmp_path, {"a": entry(), "b": entry()})
    widths = [batch.image.shape[-1] for batch in open_loader(raw, path, square_crop=False)]
    assert sorted(widths) == [42, 56]


def test_large_scenes_do_not_exceed_the_memory_limit(raw, tmp_path):
    path = write_index(tmp_path, {f"s{n}": entry(target=range(9)) for n in range(4)})
    scene_bytes = 11 * 3 * 28 * 28
    loader = open_loader(raw, path, batch_size_per_gpu=4, prefetch_bytes=4 * 2 * scene_bytes)
    assert [len(batch.scene_name) for batch in loader] == [2, 2]


def test_small_pictures_are_counted(tmp_path):
    raw = write_chunks(tmp_path / "raw", [scene("tiny", 11, size=(32, 18))])
    loader = open_loader(raw, write_index(tmp_path, {"tiny": entry()}))
    assert next(iter(loader)).image.shape[-1] == 28 and loader.enlarged == 5


@pytest.mark.parametrize(
    "content,message",
    [
        ("{", "not JSON"),
        ("[]", "found a list"),
        ('{"a": [{"context": [0], "target": [1]}]}', "list of entries"),
        ('{"a": {"context": [0]}}', "target must be a list"),
        ('{"a": {"context": [0], "target": []}}', "target must be a list"),
        ('{"a": {"context": [-1], "target": [1]}}', "context must be a list"),
        ('{"a": {"context": [true], "target": [1]}}', "context must be a list"),
    ],
)
def test_other_forms_are_refused(tmp_path, content, message):
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_index(str(tmp_path / "index.json"))


def test_missing_index_and_no_usable_scene_are_errors(raw, tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        open_loader(raw, tmp_path / "absent.json")
    with pytest.raises(ConfigError, match="view_idx_file_path is empty"):
        open_loader(raw, "")
    with pytest.raises(ConfigError, match="none of its 1 scenes is usable; first zz: not in the data set"):
        open_loader(raw, write_index(tmp_path, {"zz": entry(), "s1": None}))


@pytest.mark.parametrize(
    "name,scenes,usable,targets",
    [
        ("evaluation_index_re10k", 7194, 6474, {3}),
        ("re10k_num_src_8", 41, 33, {3}),
        ("evaluation_index_re10k_video", 7194, 6474, set(range(46, 138))),
        ("overlap_small", 1403, 1403, {3}),
    ],
)
def test_published_indices_are_read_whole(shared, name, scenes, usable, targets):
    index = read_index(str(shared / f"published/indices/{name}.json"))
    assert len(index.entries) + index.num_null == scenes and len(index.entries) == usable
    assert {len(e.target) for e in index.entries.values()} <= targets


def test_index_of_several_rounds_is_refused(shared):
    with pytest.raises(ConfigError, match="list of entries"):
        read_index(str(shared / "published/indices/mvldm_re10k_video.json"))
