"""An index that lies ready beside remote chunks: used if it fits, refused if it is damaged or hostile."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from range_server import RangeServer
from raw_chunks import scene, write_chunks

from src.config import ConfigError
from src.data.chunk_index import ChunkScenes
from src.data.remote.scenes import RemoteScenes
from src.data.scene import FrameError
from src.settings_remote import Remote

QUICK = Remote(cache_bytes=0, timeout_s=0.5, attempts=2)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PARALLAX_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def copied(tmp_path):
    """A folder that was opened on a disk and copied to a server, times changed, without directory pages."""
    raw = write_chunks(tmp_path / "raw", [scene("b", seed=1), scene("a", seed=2)], [scene("c", seed=3)])
    ChunkScenes(raw)
    shutil.copytree(raw, tmp_path / "copy", copy_function=shutil.copy)
    return tmp_path / "copy"


def index_of(folder):
    return next(path for path in (folder / ".parallax_index").iterdir() if path.is_dir())


def test_it_is_fetched_and_no_chunk_is_opened_or_listed(copied, tmp_path):
    with RangeServer(copied, listing=False) as served:
        remote = RemoteScenes(served.url, QUICK)
        assert served.count("torch") == 2 and not served.count("/$")  # the sizes of both
        local = ChunkScenes(tmp_path / "raw")
        assert list(remote.names) == list(local.names) and (remote.frames[:] == local.frames[:]).all()
        assert remote[2].encoded(5) == local[2].encoded(5)
        served.asked = []
        assert len(RemoteScenes(served.url, QUICK)) == 3 and not served.count("npy")


def test_one_of_other_chunks_is_not_used(copied, caplog):
    torch.save([scene("new", seed=5)], copied / "000001.torch")
    with RangeServer(copied) as served:
        assert list(RemoteScenes(served.url, QUICK).names) == ["a", "b", "new"]
    assert "another index is made" in caplog.text


def test_a_chunk_that_grows_later_is_noticed_when_it_is_read(copied):
    with RangeServer(copied) as served:
        remote = RemoteScenes(served.url, QUICK)
        with (copied / "000001.torch").open("ab") as file:
            file.write(b"more")
        with pytest.raises(FrameError, match="changed since"):
            remote[2].encoded(5)


def spoil(folder, name, change):
    array = np.load(index_of(folder) / f"{name}.npy")
    changed = change(array)
    np.save(index_of(folder) / f"{name}.npy", array if changed is None else changed)


def beyond(frames):
    frames["offset"][3] = 2**40


def huge(frames):
    frames["size"][3] = 2**63 - 1


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("frames", beyond),
        ("frames", huge),
        ("frames", lambda frames: frames["status"].__setitem__(1, 9)),
        ("frames", lambda frames: frames["offset"].copy()),
        ("frames", lambda frames: frames[:-1]),
        ("first", lambda first: first.__setitem__(1, -1)),
        ("chunk", lambda chunk: chunk.__setitem__(0, 7)),
        ("names", lambda names: np.array(["../../x", "b", "c"])),
        ("names", lambda names: np.array(["a", "a", "c"])),
        ("names", lambda names: np.array([1, 2, 3])),
    ],
)
def test_one_that_leads_elsewhere_is_refused(copied, name, change):
    spoil(copied, name, change)
    with RangeServer(copied) as served, pytest.raises(ConfigError, match="is damaged"):
        RemoteScenes(served.url, QUICK)


def test_a_header_of_an_array_that_is_cut_off_is_refused(copied):
    path = index_of(copied) / "first.npy"
    path.write_bytes(path.read_bytes().replace(b"), }", b"   }"))
    with RangeServer(copied) as served, pytest.raises(ConfigError, match="is damaged") as caught:
        RemoteScenes(served.url, QUICK)
    assert "\n" not in str(caught.value)


def test_arrays_of_objects_are_refused(copied):
    np.save(index_of(copied) / "names.npy", np.array(["a", {}, "c"], dtype=object), allow_pickle=True)
    with RangeServer(copied) as served, pytest.raises(ConfigError, match="is damaged"):
        RemoteScenes(served.url, QUICK)


@pytest.mark.parametrize(
    "change",
    [
        {"chunks": [["../x.torch", 5]]},
        {"chunks": []},
        {"chunks": [["000000.torch", -1]]},
        {"index": "../../0123456789"},
        {"format": 99},
    ],
)
def test_a_chunk_list_of_another_form_is_passed_over(copied, change):
    path = copied / ".parallax_index" / "chunks.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with RangeServer(copied) as served:
        assert len(RemoteScenes(served.url, QUICK)) == 3
        assert not served.count("npy")
