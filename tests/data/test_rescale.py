"""Rescaled and cropped copies of data sets."""

from __future__ import annotations

import json

import numpy as np
import pytest
from raw_chunks import encoded, picture, scene, write_chunks

from scripts.chunks import main
from src.data.chunks import open_chunk
from src.data.convert import Options, convert
from src.data.dataset import open_scenes
from src.data.meta import expected_shape
from src.data.transforms import cover_and_crop, decode_image


@pytest.fixture
def raw(tmp_path):
    """A root with two stages; frame 2 of s0 is no picture, frame 3 is too small, pictures are 64x36."""
    scenes = [scene(f"s{n}", frames=5, seed=n) for n in range(3)]
    scenes[0]["images"][2] = encoded(b"not a picture")
    scenes[0]["images"][3] = encoded(picture(20, 12, 1))
    write_chunks(tmp_path / "raw" / "train", scenes[:2], [scenes[2], {"key": "broken"}])
    write_chunks(tmp_path / "raw" / "test", [scene("t0", frames=4, seed=9)])
    return tmp_path / "raw"


def run(*arguments) -> int:
    return main([*map(str, arguments), "--num_processes", "1"])


def test_shorter_side_goes_to_a_size_and_frames_keep_their_places(raw, tmp_path, capsys):
    out = tmp_path / "small"
    assert run("rescale", "--input", raw, "--output", out, "--min_size", 18) == 1
    told = capsys.readouterr().out
    assert "17 pictures written" in told and "s0 frame 2: not a JPEG" in told and "enlarged" in told
    assert json.loads((out / "train" / "index.json").read_text()) == {
        "s0": "000000.torch", "s1": "000000.torch", "s2": "000001.torch"
    }  # fmt: skip
    assert expected_shape(out / "train") == expected_shape(out / "test") == (18, 32)
    before, after = open_scenes(str(raw / "train")), open_scenes(str(out / "train"))
    assert [bool(after[0].missing(frame)) for frame in range(5)] == [False, False, True, True, False]
    for frame in (0, 4):
        (old, old_pose), (new, new_pose) = before[0].camera(frame), after[0].camera(frame)
        np.testing.assert_allclose(new, old / 2, rtol=1e-6)
        np.testing.assert_array_equal(new_pose, old_pose)
    image, _ = cover_and_crop(decode_image(before[1].encoded(1)), np.ones(4), 18, 32)
    difference = np.abs(decode_image(after[1].encoded(1)).astype(int) - image)
    assert difference.mean() < 2  # JPEG of quality 95
    assert open_chunk(out / "train" / "000000.torch")[0]["url"] == "https://example.org/s0"


def test_pictures_that_fit_keep_their_bytes(raw, tmp_path):
    run("rescale", "--input", raw, "--output", tmp_path / "same", "--min_size", 36)
    before, after = open_scenes(str(raw / "test"))[0], open_scenes(str(tmp_path / "same" / "test"))[0]
    assert [after.encoded(frame) for frame in range(4)] == [before.encoded(frame) for frame in range(4)]


@pytest.mark.parametrize("shape", [(24, 24), (20, 36), (36, 30)])
def test_a_crop_moves_the_principal_point_to_where_its_pixel_is(raw, tmp_path, shape):
    """Scale by the larger ratio of the sides, then cut (offsets rounded down)."""
    out = tmp_path / "crop"
    run("crop", "--input", raw / "test", "--output", out, "--shape", *shape, "--format", "png")
    scale = max(shape[0] / 36, shape[1] / 64)
    width, height = round(64 * scale), round(36 * scale)
    left, top = (width - shape[1]) // 2, (height - shape[0]) // 2
    fx, fy, cx, cy = open_scenes(str(raw / "test"))[0].camera(1)[0]
    expected = [fx * width / 64, fy * height / 36, cx * width / 64 - left, cy * height / 36 - top]
    scene = open_scenes(str(out))[0]
    np.testing.assert_allclose(scene.camera(1)[0], expected, rtol=1e-6)
    assert decode_image(scene.encoded(1)).shape[:2] == shape == expected_shape(out)


def test_a_converted_data_set_becomes_the_same_as_its_chunks(raw, tmp_path):
    convert(Options(raw / "test", tmp_path / "converted"), num_processes=1, chunk_size=1)
    listed = tmp_path / "converted" / "full_list.txt"
    arguments = ("--shape", 20, 28, "--format", "png")
    assert run("crop", "--input", listed, "--output", tmp_path / "a", *arguments) == 0
    assert run("crop", "--input", raw / "test", "--output", tmp_path / "b", *arguments) == 0
    ours, theirs = open_scenes(str(tmp_path / "a" / "full_list.txt"))[0], open_scenes(str(tmp_path / "b"))[0]
    for frame in range(4):
        assert ours.encoded(frame) == theirs.encoded(frame)
        np.testing.assert_allclose(ours.camera(frame)[0], theirs.camera(frame)[0], rtol=1e-6)
        np.testing.assert_allclose(ours.camera(frame)[1], theirs.camera(frame)[1])


def test_a_second_run_does_what_is_left_and_another_recipe_is_refused(raw, tmp_path, capsys):
    out, size = tmp_path / "out", ("--min_size", 18)
    run("rescale", "--input", raw, "--output", out, *size)
    whole = (out / "train" / "000001.torch").read_bytes()
    (out / "train" / "000001.torch").unlink()
    kept = (out / "train" / "000000.torch").stat().st_mtime_ns
    run("rescale", "--input", raw, "--output", out, *size)
    assert (out / "train" / "000001.torch").read_bytes() == whole
    assert (out / "train" / "000000.torch").stat().st_mtime_ns == kept
    assert "5 pictures written, 2 chunks were there already" in capsys.readouterr().out
    assert run("rescale", "--input", raw, "--output", out, "--min_size", 12) == 2
    assert "made in another way" in capsys.readouterr().err
    assert run("rescale", "--input", out / "test", "--output", out / "test", *size) == 2
    assert "is the data set itself" in capsys.readouterr().err
