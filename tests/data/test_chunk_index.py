"""Raw chunks read directly equal the converted form."""

from __future__ import annotations

import multiprocessing
import os
import pickle

import pytest
import torch
from raw_chunks import assert_same, config, encoded, picture, scene, write_chunks

from src.config import ConfigError
from src.data.chunk_index import ChunkScenes
from src.data.chunks import ChunkError
from src.data.convert import Options, convert
from src.data.dataset import open_scenes
from src.data.loader import training_loader
from src.data.scene import FrameError


@pytest.fixture
def raw(tmp_path):
    first = [scene("scene_b", seed=1), scene("scene", seed=2)]
    return write_chunks(tmp_path / "raw", first, [scene("scene-a", frames=9, seed=3)])


def first_batches(path, count=4, **training):
    loader = training_loader(config(path, **training), rank=0, world=1)
    return [next(loader) for _ in range(count)]


def test_scenes_equal_the_chunk(raw):
    """Names sorted as metadata files are, bytes and intrinsics as stored."""
    scenes = ChunkScenes(raw)
    assert list(scenes.names) == ["scene-a", "scene", "scene_b"]
    stored = scene("scene_b", seed=1)
    found = scenes[2]
    assert found.num_frames == 12
    for frame in (0, 5, 11):
        assert found.encoded(frame) == stored["images"][frame].numpy().tobytes()
        fxfycxcy, w2c = found.camera(frame)
        numbers = stored["cameras"][frame].double()
        assert fxfycxcy.tolist() == (numbers[:4] * torch.tensor([64, 36, 64, 36])).tolist()
        assert w2c[:3].flatten().tolist() == numbers[6:].tolist() and w2c[3].tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("image_format", ["jpeg", "png"])
def test_same_batches_as_from_the_converted_form(raw, tmp_path, image_format):
    """Bit for bit, all fields; also with damaged frames, which the converter alone can know beforehand."""
    chunk = torch.load(raw / "000000.torch", weights_only=True)
    chunk[0]["images"][4] = encoded(picture(64, 36, 7)[:-150])  # readable header, damaged body
    chunk[1]["images"][6] = encoded(b"no picture")
    chunk[1]["cameras"][2, 8] = float("nan")
    torch.save(chunk, raw / "000000.torch")
    report = convert(Options(raw, tmp_path / "out", image_format), num_processes=1, chunk_size=1)
    assert len(report.bad_frames) == 3
    converted = first_batches(tmp_path / "out" / "full_list.txt", 12)
    for ours, theirs in zip(first_batches(raw, 12), converted):
        assert_same(ours, theirs)


def test_index_is_built_once_and_again_when_a_chunk_changes(raw):
    index = ChunkScenes(raw).index
    before = (index / "frames.npy").stat().st_mtime_ns
    assert ChunkScenes(raw).index == index and (index / "frames.npy").stat().st_mtime_ns == before
    torch.save([scene("new", seed=5)], raw / "000001.torch")
    scenes = ChunkScenes(raw)
    assert scenes.index != index and list(scenes.names) == ["new", "scene", "scene_b"]
    assert not index.exists()


def test_a_chunk_that_changes_under_an_open_index_is_noticed(raw):
    scenes = ChunkScenes(raw)
    torch.save([scene("other", seed=9)], raw / "000000.torch")
    for _ in range(2):
        with pytest.raises(FrameError, match="changed since"):
            scenes[1].encoded(0)


def test_read_only_folder_is_indexed_in_the_cache(raw, tmp_path, monkeypatch):
    monkeypatch.setenv("PARALLAX_CACHE", str(tmp_path / "cache"))
    raw.chmod(0o555)
    try:
        assert len(ChunkScenes(raw)) == 3
        assert sorted(os.listdir(raw)) == ["000000.torch", "000001.torch"]
        assert list((tmp_path / "cache").rglob("frames.npy"))
    finally:
        raw.chmod(0o755)


def test_no_place_for_the_index_is_told_with_a_remedy(raw, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PARALLAX_CACHE", str(tmp_path / "file"))
    raw.chmod(0o555)
    try:
        with pytest.raises(ConfigError, match="set PARALLAX_CACHE"):
            ChunkScenes(raw)
    finally:
        raw.chmod(0o755)


def test_damaged_chunks_are_listed_and_the_others_used(raw):
    whole = (raw / "000000.torch").read_bytes()
    (raw / "000002.torch").write_bytes(whole[: len(whole) // 2])
    (raw / "000003.torch").write_bytes(b"not a chunk at all")
    torch.save({"a": 1}, raw / "000004.torch")
    torch.save([scene("old", seed=8)], raw / "000005.torch", _use_new_zipfile_serialization=False)
    scenes = ChunkScenes(raw)
    assert len(scenes) == 3
    assert [where for where, _ in scenes.problems] == [f"00000{n}.torch" for n in (2, 3, 4, 5)]
    assert all("\n" not in why for _, why in scenes.problems)
    assert "convert it with process_data.py" in scenes.problems[3][1]


def test_names_that_lead_elsewhere_and_repeated_names_are_refused(tmp_path):
    hostile = [scene(key, frames=2) for key in ("../../x", "/etc/x", "", "a/b", ".hidden", "a\nb", "x" * 300)]
    raw = write_chunks(tmp_path / "raw", [*hostile, scene("good", seed=1)], [scene("good", seed=2)])
    scenes = ChunkScenes(raw)
    assert list(scenes.names) == ["good"] and len(scenes.problems) == 8
    assert scenes[0].encoded(0) == scene("good", seed=1)["images"][0].numpy().tobytes()


def test_nothing_usable_is_an_error(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    with pytest.raises(ConfigError, match=r"holds no \.torch chunks"):
        ChunkScenes(raw)
    (raw / "000000.torch").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ChunkError, match="none of its 1 chunks"):
        ChunkScenes(raw)


def test_wrong_folder_hints_at_the_right_one(raw):
    with pytest.raises(ConfigError, match=r"Did you mean .*raw"):
        open_scenes(str(raw.parent))


def test_travels_to_other_processes_as_paths(raw):
    scenes = ChunkScenes(raw)
    copy = pickle.loads(pickle.dumps(scenes))
    assert len(pickle.dumps(scenes)) < 2000
    assert copy[1].encoded(3) == scenes[1].encoded(3)


def _open(folder, results):
    results.put(list(ChunkScenes(folder).names))


def test_two_processes_may_build_at_once(raw):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    builders = [context.Process(target=_open, args=(raw, results)) for _ in range(3)]
    for builder in builders:
        builder.start()
    names = [results.get(timeout=60) for _ in builders]
    for builder in builders:
        builder.join()
    assert names == [["scene-a", "scene", "scene_b"]] * 3
    assert len([path for path in (raw / ".parallax_index").iterdir() if path.is_dir()]) == 1


def test_many_chunks_are_indexed_in_parallel_as_alone(tmp_path):
    raw = write_chunks(tmp_path / "raw", *[[scene(f"s{n}", frames=2, seed=n)] for n in range(9)])
    assert list(ChunkScenes(raw, num_processes=2).names) == [f"s{n}" for n in range(9)]


def test_tensors_that_share_a_storage_are_found(tmp_path):
    """Pictures may be slices of one long tensor."""
    item = scene("s", frames=3)
    joined = torch.cat(item["images"])
    ends = torch.tensor([len(image) for image in item["images"]]).cumsum(0).tolist()
    parts = [joined[a:b] for a, b in zip([0, *ends], ends)]
    raw = write_chunks(tmp_path / "raw", [{**item, "images": parts}])
    found = ChunkScenes(raw)[0]
    assert [found.encoded(n) for n in range(3)] == [image.numpy().tobytes() for image in item["images"]]
