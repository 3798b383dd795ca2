"""Chunks packed with blosc2: the same frames, any part alone, nothing unsafe."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from raw_chunks import scene, write_chunks

from scripts.chunks import main
from src.config import ConfigError
from src.data.chunk_index import ChunkScenes
from src.data.chunks import ChunkError, find_chunks, open_chunk
from src.data.convert import Options, convert
from src.data.dataset import open_scenes
from src.data.meta import expected_shape
from src.data.packed import Packed
from src.data.scene import FrameError

blosc2 = pytest.importorskip("blosc2", reason="packed chunks need the package blosc2")


@pytest.fixture
def raw(tmp_path):
    """A root with two stages; the second chunk of `train` has an entry that is no scene."""
    scenes = [scene(f"s{n}", frames=5, seed=n) for n in range(3)]
    write_chunks(tmp_path / "raw" / "train", scenes[:2], [scenes[2], {"key": "broken"}])
    write_chunks(tmp_path / "raw" / "test", [scene("t0", frames=4, seed=9)])
    return tmp_path / "raw"


def run(*arguments) -> int:
    return main([*map(str, arguments), "--num_processes", "1"])


def test_packed_chunks_give_the_same_frames(raw, tmp_path):
    run("rescale", "--input", raw, "--output", tmp_path / "plain", "--min_size", 36)
    assert run("compress", "--input", tmp_path / "plain", "--output", tmp_path / "packed") == 0
    assert json.loads((tmp_path / "packed" / "test" / "index.json").read_text()) == {"t0": "000000.bl2"}
    assert expected_shape(tmp_path / "packed" / "test") == (36, 64)
    plain, packed = (open_scenes(str(tmp_path / kind / "train")) for kind in ("plain", "packed"))
    assert list(packed.names) == list(plain.names) == ["s0", "s1", "s2"]
    for position in range(3):
        for frame in (0, 1, 4):
            assert packed[position].encoded(frame) == plain[position].encoded(frame)
            np.testing.assert_array_equal(packed[position].camera(frame)[0], plain[position].camera(frame)[0])
    assert run("decompress", "--input", tmp_path / "packed", "--output", tmp_path / "back") == 0
    for stage, name in (("train", "000001.torch"), ("test", "000000.torch")):
        assert (tmp_path / "back" / stage / name).read_bytes() == (
            tmp_path / "plain" / stage / name
        ).read_bytes()


def test_any_part_of_a_packed_file_is_read_alone(tmp_path):
    content = os.urandom(2**21) + bytes(2**21)
    (tmp_path / "a.torch").write_bytes(content)
    run("compress", "--input", tmp_path, "--output", tmp_path / "out")
    packed = Packed(tmp_path / "out" / "a.bl2")
    assert packed.nbytes == 2**22 and (tmp_path / "out" / "a.bl2").stat().st_size < 2**21 + 10_000
    for offset, size in ((0, 10), (2**20 - 5, 10), (2**21 - 3, 2**20), (2**22 - 4, 100), (2**23, 5)):
        assert packed.read(size, offset) == content[offset : offset + size]


def test_buffers_without_a_frame_are_read_too(raw, tmp_path):
    (tmp_path / "foreign").mkdir()
    data = (raw / "test" / "000000.torch").read_bytes()
    (tmp_path / "foreign" / "000000.bl2").write_bytes(blosc2.compress2(data, typesize=1))
    ours, theirs = open_scenes(str(tmp_path / "foreign"))[0], open_scenes(str(raw / "test"))[0]
    assert [ours.encoded(n) for n in range(4)] == [theirs.encoded(n) for n in range(4)]


class _Hostile:
    def __reduce__(self):
        return os.system, ("true",)


def test_packed_code_is_refused(tmp_path):
    torch.save([_Hostile()], tmp_path / "000000.torch")
    run("compress", "--input", tmp_path, "--output", tmp_path / "out")
    with pytest.raises(ChunkError, match=r"out/000000.bl2 is refused: it holds \w+.system"):
        open_chunk(tmp_path / "out" / "000000.bl2")


def test_damaged_packed_chunks_are_reported_by_name(raw, tmp_path):
    run("compress", "--input", raw / "train", "--output", tmp_path / "out")
    first = tmp_path / "out" / "000000.bl2"
    first.write_bytes(first.read_bytes()[:3000])
    scenes = ChunkScenes(tmp_path / "out")
    assert list(scenes.names) == ["s2"] and any("000000.bl2 is damaged" in why for _, why in scenes.problems)
    assert run("decompress", "--input", tmp_path / "out", "--output", tmp_path / "back") == 2
    (tmp_path / "out" / "000001.bl2").unlink()
    with pytest.raises(FrameError, match=r"000001\.bl2"):
        scenes[0].encoded(0)


def test_packed_chunks_are_converted_like_plain_ones(raw, tmp_path):
    run("compress", "--input", raw / "train", "--output", tmp_path / "packed")
    for source, name in ((raw / "train", "a"), (tmp_path / "packed", "b")):
        assert convert(Options(source, tmp_path / name), num_processes=1, chunk_size=1).written == 3
    files = sorted((tmp_path / "a").rglob("*.*"))
    for file in (file for file in files if file.is_file()):
        assert (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes() == file.read_bytes()


def test_both_kinds_in_one_folder_are_refused(raw, tmp_path):
    run("compress", "--input", raw / "test", "--output", raw / "test")
    with pytest.raises(ConfigError, match="keep one kind"):
        find_chunks(raw / "test")


def test_without_the_package_the_message_says_what_to_do(raw, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "blosc2", None)
    assert run("compress", "--input", raw / "test", "--output", tmp_path / "out") == 2
    assert "pip install blosc2" in capsys.readouterr().err
