"""Chunks behind a URL give the same samples as on a disk, whatever the server does."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import random
import time
import zipfile

import cv2
import numpy as np
import pytest
import torch
from range_server import RangeServer
from raw_chunks import assert_same, config, encoded, picture, scene, write_chunks

from src.config import ConfigError
from src.data.chunk_index import ChunkScenes
from src.data.dataset import open_scenes
from src.data.loader import training_loader
from src.data.remote import scenes as remote_scenes
from src.data.remote.folder import RemoteFolder
from src.data.remote.scenes import RemoteScenes
from src.data.remote.source import SourceLost
from src.data.scene import FrameError, SceneError
from src.settings_remote import Remote

QUICK = Remote(cache_bytes=0, timeout_s=0.5, attempts=3)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PARALLAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def raw(tmp_path):
    """Two chunks: frames of two sizes in one scene, one that is no picture, a camera that is none."""
    first = [scene("scene_b", seed=1), scene("scene", seed=2)]
    first[0]["images"][5] = encoded(picture(80, 45, 7))
    first[0]["images"][6] = encoded(b"no picture")
    first[1]["cameras"][2, 8] = float("nan")
    return write_chunks(tmp_path / "raw", first, [scene("scene-a", frames=9, seed=3)])


@pytest.fixture
def server(raw):
    with RangeServer(raw) as served:
        yield served


def first_batches(path, count=5, **training):
    loader = training_loader(config(path, **training), rank=0, world=1)
    batches = [next(loader) for _ in range(count)]
    loader.close()
    return batches, loader.report()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_same_batches_as_from_a_folder(raw, server, num_workers):
    """Bit for bit; frames of other sizes, damaged ones and bad cameras included. Workers are forked after the first read."""
    local, _ = first_batches(raw)
    remote, report = first_batches(server.url, num_workers=num_workers)
    for ours, theirs in zip(remote, local):
        assert_same(ours, theirs)
    assert report["unusable_files_or_scenes"] == 0


def test_the_index_equals_that_of_the_folder_and_fetches_little(tmp_path):
    """Of a chunk of 6 MB: its directory, its pickle, its cameras and one header for each scene."""
    scenes = [scene(f"s{n}", frames=20, seed=n) for n in range(3)]
    for entry in scenes:
        noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
        entry["images"] = [encoded(cv2.imencode(".png", noise)[1].tobytes())] * 2 + entry["images"][2:]
        entry["images"] = [image.clone() for image in entry["images"]]
    big = torch.zeros(5_000_000, dtype=torch.uint8)
    raw = write_chunks(tmp_path / "raw", [*scenes[:2], {**scenes[2], "extra": big}])
    with RangeServer(raw) as served:
        remote = RemoteScenes(served.url, QUICK)
        assert served.bytes_sent < 0.15 * (raw / "000000.torch").stat().st_size
    local = ChunkScenes(raw)
    assert list(remote.names) == list(local.names) and (remote.first == local.first).all()
    for field in ("offset", "size", "status", "camera"):
        assert (remote.frames[field] == local.frames[field]).all(), field


def test_a_chunk_that_torch_did_not_lay_out_is_read_by_its_own_headers(tmp_path):
    """Rewritten by a zip tool, without padding: torch still opens it, and so do we."""
    raw = write_chunks(tmp_path / "raw", [scene("a", seed=1)])
    with zipfile.ZipFile(raw / "000000.torch") as old, zipfile.ZipFile(tmp_path / "new", "w") as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))
    (tmp_path / "new").replace(raw / "000000.torch")
    with RangeServer(raw) as served:
        remote, local = RemoteScenes(served.url, QUICK), ChunkScenes(raw)
        assert (remote.frames["offset"] == local.frames["offset"]).all()
        assert remote[0].encoded(3) == local[0].encoded(3)


def test_damaged_chunks_and_hostile_pickles_are_listed_and_the_others_used(raw):
    whole = (raw / "000000.torch").read_bytes()
    (raw / "000002.torch").write_bytes(whole[: len(whole) // 2])
    (raw / "000003.torch").write_bytes(b"not a chunk at all")
    torch.save([scene("old", seed=8)], raw / "000005.torch", _use_new_zipfile_serialization=False)
    torch.save([{"key": print}], raw / "000006.torch")
    (raw / "000007.torch").touch()
    with RangeServer(raw) as served:
        scenes = RemoteScenes(served.url, QUICK)
    assert len(scenes) == 3
    assert [where for where, _ in scenes.problems] == [f"00000{n}.torch" for n in (2, 3, 5, 6, 7)]
    assert all("\n" not in why and "/parallax-" not in why for _, why in scenes.problems)
    assert "print" in scenes.problems[3][1]


def test_no_damage_of_a_directory_does_more_than_lose_the_chunk(tmp_path):
    """Whatever places, sizes and counts it claims."""
    raw = write_chunks(tmp_path / "raw", [scene("a", frames=2)], [scene("b", frames=2)])
    whole, rng = (raw / "000000.torch").read_bytes(), random.Random(0)
    for _ in range(40):
        spoilt = bytearray(whole)
        place = len(whole) - rng.choice([rng.randrange(22), rng.randrange(900)]) - 1
        spoilt[place : place + 1] = bytes([rng.randrange(256)])
        (raw / "000000.torch").write_bytes(spoilt)
        scenes = RemoteScenes(raw.as_uri(), QUICK)
        assert "b" in scenes.names and all("\n" not in why for _, why in scenes.problems)


def test_cameras_follow_pictures_of_other_sizes(raw, server):
    remote, local = RemoteScenes(server.url, QUICK), ChunkScenes(raw)
    shown, stored = remote[2], local[2]
    assert shown.name == "scene_b"
    for frame in (4, 5, 4):
        assert shown.encoded(frame) == stored.encoded(frame)
        for ours, theirs in zip(shown.camera(frame), stored.camera(frame)):
            assert ours.tolist() == theirs.tolist()


def test_a_forked_process_has_connections_of_its_own(server):
    scenes = RemoteScenes(server.url, QUICK)
    scenes[0].encoded(0)
    before = set(server.connections)
    child = multiprocessing.get_context("fork").Process(target=scenes[0].encoded, args=(1,))
    child.start()
    child.join()
    assert child.exitcode == 0 and len(server.connections - before) == 1


def test_travels_to_other_processes_as_an_address(server):
    scenes = RemoteScenes(server.url, QUICK)
    copy = pickle.loads(pickle.dumps(scenes))
    assert len(pickle.dumps(scenes)) < 2000 and copy[1].encoded(3) == scenes[1].encoded(3)


# ----------------------------------------------------------------------------------------------- where the chunks are


def test_without_a_directory_page_index_json_names_the_chunks(raw):
    names = {"scene": "000000.torch", "b": "000001.torch", "x": "../../etc.torch", "y": "gone.torch", "z": 3}
    (raw / "index.json").write_text(json.dumps(names))
    with RangeServer(raw, listing=False) as served:
        scenes = RemoteScenes(served.url, QUICK)
        assert len(scenes) == 3 and not served.count("etc")
    assert [where for where, _ in scenes.problems] == ["gone.torch"]


def test_without_both_it_is_told_what_to_put_where(raw):
    with (
        RangeServer(raw, listing=False) as served,
        pytest.raises(ConfigError, match=r"beside the chunks the folder .parallax_index"),
    ):
        open_scenes(served.url, QUICK)


def test_file_urls_go_through_fsspec(raw):
    remote, local = RemoteScenes(f"file://{raw}", QUICK), ChunkScenes(raw)
    assert remote[0].encoded(4) == local[0].encoded(4)
    torch.save([scene("other", seed=9)], raw / "000001.torch")
    with pytest.raises(FrameError, match="changed since"):
        pickle.loads(pickle.dumps(remote))[0].encoded(4)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://me:secret@host/dir", "user name or password"),
        ("https://host/dir?token=1", r"without \? and #"),
        ("https://host/train/full_list.txt", "only folders"),
        ("simplecache::s3://bucket/dir", "chained"),
        ("nowhere://bucket/dir", "Known: http"),
        ("gdrive://bucket/dir", "pip install gdrive_fsspec"),
    ],
)
def test_addresses_that_are_not_read(url, told):
    with pytest.raises(ConfigError, match=told) as caught:
        open_scenes(url, QUICK)
    assert "secret" not in str(caught.value) and "token=1" not in str(caught.value)


# ----------------------------------------------------------------------------------------------- bad servers


@pytest.mark.parametrize("how", ["500", "cut", "slow", "drip", "drip_head", "other"])
def test_a_failure_that_passes_is_repeated(raw, server, how):
    scenes = RemoteScenes(server.url, QUICK)
    server.asked = []
    server.misbehave("torch", how, "fine")
    assert scenes[2].encoded(8) == ChunkScenes(raw)[2].encoded(8)
    assert server.count("torch") == 2


@pytest.mark.parametrize(
    ("how", "told"), [("500", "HTTP 500"), ("cut", "broke off"), ("slow", "no answer for 0.5 s")]
)
def test_a_failure_that_stays_is_a_frame_error_in_bounded_time(server, how, told):
    scenes = RemoteScenes(server.url, QUICK)
    server.asked = []
    server.misbehave("torch", how)
    begin = time.monotonic()
    with pytest.raises(FrameError, match=told):
        scenes[2].encoded(8)
    assert server.count("torch") == 3 and time.monotonic() - begin < 4


@pytest.mark.parametrize(("how", "told"), [("403", "netrc"), ("whole", "does not know byte ranges")])
def test_what_does_not_pass_is_not_repeated(server, how, told):
    scenes = RemoteScenes(server.url, QUICK)
    server.asked = []
    server.misbehave("torch", how)
    with pytest.raises(FrameError, match=told):
        scenes[2].encoded(8)
    assert server.count("torch") == 1


def test_redirects_are_followed_but_neither_without_end_nor_read(raw, server):
    scenes = RemoteScenes(server.url, QUICK)
    server.misbehave("torch", "moved")
    assert scenes[2].encoded(8) == ChunkScenes(raw)[2].encoded(8)
    server.misbehave("torch", "loop")
    with pytest.raises(FrameError, match="redirected more than 5 times"):
        scenes[2].encoded(7)


@pytest.mark.parametrize(
    ("url", "good"),
    [("http://[::1]:8000/x", True), ("simplecache::http://host/x", False), ("s3://a::http://b/x", False)],
)
def test_chained_addresses_are_told_from_those_of_ipv6(url, good):
    if good:
        assert RemoteFolder(url).url == url
    else:
        with pytest.raises(ConfigError, match="chained"):
            RemoteFolder(url)


def test_a_chunk_that_is_gone_or_changed_is_noticed(raw, server):
    scenes = RemoteScenes(server.url, QUICK)
    content = (raw / "000000.torch").read_bytes()
    (raw / "000000.torch").write_bytes(content)  # the same bytes, at another time
    with pytest.raises(FrameError, match="changed since"):
        scenes[2].encoded(8)
    (raw / "000000.torch").unlink()
    with pytest.raises(FrameError, match="not there"):
        scenes[2].encoded(8)


def test_a_server_that_fails_while_indexing_leaves_no_index_behind(server, own_cache):
    server.misbehave("000001.torch", "fine", "500")
    with pytest.raises(ConfigError, match=r"000001.torch gave HTTP 500"):
        RemoteScenes(server.url, QUICK)
    server.misbehave("none")
    assert len(RemoteScenes(server.url, QUICK)) == 3


def test_frames_that_do_not_come_are_replaced_and_counted(raw, server):
    training = {"remote": QUICK, "batch_size_per_gpu": 1}
    RemoteScenes(server.url, QUICK)
    server.asked = []
    server.misbehave("000001.torch", "fine", "cut")  # its size, its frames
    batches, report = first_batches(server.url, 8, **training)
    names = {name for batch in batches for name in batch["scene_name"]}
    assert names == {"scene", "scene_b"} and report["replaced_scenes"] > 0
    assert "broke off" in report["first_replaced"][0] and "000001.torch" in report["first_replaced"][0]


def test_a_server_that_is_gone_ends_the_run_instead_of_trying_all_scenes(tmp_path):
    raw = write_chunks(tmp_path / "raw", [scene(f"s{n}", seed=n) for n in range(20)])
    impatient = Remote(cache_bytes=0, timeout_s=0.3, attempts=1, patience_s=0.3)
    with RangeServer(raw) as served:
        scenes = RemoteScenes(served.url, impatient)
        loader = training_loader(config(served.url, remote=impatient), rank=0, world=1)
        served.misbehave("torch", "slow")
        with pytest.raises(SceneError, match="all that was asked for failed"):
            next(loader)
        assert served.count("torch") < 60
        with pytest.raises(FrameError):
            scenes[0].encoded(0)
        time.sleep(0.35)
        with pytest.raises(SourceLost):
            scenes[0].encoded(1)


def test_a_folder_can_be_asked_again_after_a_success(server):
    """Patience counts from the last thing that went well."""
    folder = RemoteFolder(server.url, Remote(timeout_s=0.3, attempts=1, patience_s=0.2))
    file = folder.stat("000000.torch")
    for _ in range(3):
        server.misbehave("torch", "500")
        with pytest.raises(ValueError, match="HTTP 500"):
            folder.read(file, 0, 4)
        time.sleep(0.15)
        server.misbehave("none")
        assert folder.read(file, 0, 4) == b"PK\x03\x04"


# ----------------------------------------------------------------------------------------------- the cache


def test_what_was_read_once_is_not_fetched_again(raw, server, own_cache):
    kept = Remote(timeout_s=0.5, cache_bytes=2**26)
    first, _ = first_batches(server.url, 3, remote=kept)
    server.asked = []
    again, _ = first_batches(server.url, 3, remote=kept)
    assert server.count("torch") == 2  # both sizes, as the index was listed anew
    for ours, theirs in zip(again, first):
        assert_same(ours, theirs)


def test_requests_for_neighbours_stay_small(server, monkeypatch):
    """All of them together would be one request, which a slow line could not answer in time."""
    monkeypatch.setattr(remote_scenes, "PIECE_BYTES", 1)
    shown = RemoteScenes(server.url, QUICK)[1]
    server.asked = []
    shown.announce([0, 1, 2])
    assert server.count("torch") == 3


def test_frames_of_a_sample_come_together(raw, server):
    """Neighbours in one request, and equal to what single reads give."""
    scenes = RemoteScenes(server.url, QUICK)
    shown = scenes[1]
    server.asked = []
    shown.announce([0, 1, 2, 3])
    assert server.count("torch") == 1
    assert [shown.encoded(frame) for frame in range(4)] == [scenes[1].encoded(frame) for frame in range(4)]
    assert server.count("torch") == 1 + 4
