"""Chunks to folders: layout, restarts, and what goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import zlib

import cv2
import numpy as np
import pytest
import torch
from raw_chunks import assert_same, config, encoded, picture, scene, write_chunks

from src.config import ConfigError
from src.data.convert import Options, convert
from src.data.dataset import SceneDataset
from src.data.view_settings import ViewSettings
from src.files import exclusive


@pytest.fixture
def raw(tmp_path):
    return write_chunks(tmp_path / "raw", [scene("a", seed=1), scene("b", seed=2)], [scene("c", seed=3)])


def run(raw, out, processes=1, **options):
    return convert(Options(raw, out, **options), processes, 2)


def tree(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def dataset(path):
    return SceneDataset(str(path), ViewSettings.of(config(path)))


@pytest.mark.parametrize("processes", [1, 3])
def test_layout_and_contents(raw, tmp_path, processes):
    report = run(raw, tmp_path / "out", processes)
    assert (report.written, report.kept, report.failed) == (3, 0, False)
    stored = scene("b", seed=2)
    out = tmp_path / "out"
    assert (out / "full_list.txt").read_text() == "metadata/a.json\nmetadata/b.json\nmetadata/c.json\n"
    assert (out / "images/b/00007.jpg").read_bytes() == stored["images"][7].numpy().tobytes()
    text = (out / "metadata/b.json").read_text()
    assert text == json.dumps(json.loads(text), indent=4)
    metadata = json.loads(text)
    assert metadata["scene_name"] == "b" and len(metadata["frames"]) == 12
    frame, numbers = metadata["frames"][7], stored["cameras"][7].double().tolist()
    assert frame["image_path"] == "../images/b/00007.jpg"
    assert frame["fxfycxcy"] == [numbers[0] * 64, numbers[1] * 36, numbers[2] * 64, numbers[3] * 36]
    assert frame["w2c"] == [numbers[6:10], numbers[10:14], numbers[14:18], [0, 0, 0, 1]]


def test_png_holds_the_decoded_pixels(raw, tmp_path):
    run(raw, tmp_path / "out", image_format="png")
    data = scene("a", seed=1)["images"][3].numpy()
    written = cv2.imread(str(tmp_path / "out/images/a/00003.png"), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(written, cv2.imdecode(data, cv2.IMREAD_COLOR))


def test_second_run_keeps_everything(raw, tmp_path):
    run(raw, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/images").rglob("*.jpg")}
    report = run(raw, tmp_path / "out")
    assert (report.written, report.kept) == (0, 3)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out/images").rglob("*.jpg")}


def _half_metadata(out):
    path = out / "metadata/a.json"
    path.write_bytes(path.read_bytes()[:200])


def _empty_picture(out):
    (out / "images/a/00002.jpg").write_bytes(b"")


def _lost_picture(out):
    (out / "images/a/00011.jpg").unlink()


def _no_metadata(out):
    (out / "metadata/a.json").unlink()


def _left_behind(out):
    _no_metadata(out)
    shutil.move(out / "images/a", out / "images/.a.partial")


@pytest.mark.parametrize(
    "damage", [_half_metadata, _empty_picture, _lost_picture, _no_metadata, _left_behind]
)
def test_half_written_scene_is_done_again(raw, tmp_path, damage):
    run(raw, tmp_path / "out")
    whole = tree(tmp_path / "out")
    damage(tmp_path / "out")
    report = run(raw, tmp_path / "out")
    assert (report.written, report.kept) == (1, 2)
    assert tree(tmp_path / "out") == whole


def test_changing_the_format_redoes_the_scenes(raw, tmp_path):
    run(raw, tmp_path / "out")
    assert run(raw, tmp_path / "out", image_format="png").written == 3
    assert not list((tmp_path / "out").rglob("*.jpg"))


def test_unusable_frames_keep_their_place(tmp_path):
    bad = scene("bad", frames=8)
    bad["images"][1] = encoded(picture(64, 36, 5)[:-150])
    bad["images"][2] = encoded(b"rubbish")
    bad["cameras"][4, 6] = float("nan")
    bad["cameras"][5, 6:9] = 0
    raw = write_chunks(tmp_path / "raw", [bad])
    report = run(raw, tmp_path / "out")
    assert report.failed and report.written == 1
    assert [where for where, _ in report.bad_frames] == [f"bad frame {n}" for n in (1, 2, 4, 5)]
    frames = json.loads((tmp_path / "out/metadata/bad.json").read_text())["frames"]
    assert [n for n, frame in enumerate(frames) if frame.get("missing")] == [1, 2, 4, 5]
    assert frames[1]["image_path"] is None and "decoded" in frames[1]["reason"]
    assert frames[3]["image_path"] == "../images/bad/00003.jpg"
    again = run(raw, tmp_path / "out")
    assert again.kept == 1 and again.bad_frames == report.bad_frames
    header = run(raw, tmp_path / "header", verify="header")
    assert len(header.bad_frames) == 3  # the cut picture has a header


def test_hostile_repeated_and_broken_scenes_are_refused_and_counted(tmp_path):
    broken = {**scene("short", frames=4), "cameras": torch.zeros(3, 18)}
    empty = {**scene("void", frames=2), "images": [encoded(b"x"), encoded(b"y")]}
    chunk = [
        scene("../../evil", 2),
        scene("", 2),
        scene("a/b", 2),
        broken,
        empty,
        "text",
        scene("a", 3, seed=1),
    ]
    raw = write_chunks(tmp_path / "deep/raw", chunk, [scene("a", 3, seed=2)])
    report = run(raw, tmp_path / "deep/out", processes=2)
    assert report.written == 1 and len(report.bad_scenes) == 7
    assert (tmp_path / "deep/out/full_list.txt").read_text() == "metadata/a.json\n"
    assert not list(tmp_path.rglob("*evil*"))
    first = scene("a", 3, seed=1)["images"][0].numpy().tobytes()
    assert (tmp_path / "deep/out/images/a/00000.jpg").read_bytes() == first


def test_damaged_chunk_is_counted_and_old_form_is_read(raw, tmp_path):
    whole = (raw / "000000.torch").read_bytes()
    (raw / "000002.torch").write_bytes(whole[:-1000])
    torch.save([scene("old", seed=8)], raw / "000003.torch", _use_new_zipfile_serialization=False)
    report = run(raw, tmp_path / "out")
    assert report.written == 4 and [where for where, _ in report.bad_chunks] == ["000002.torch"]
    assert "\n" not in report.bad_chunks[0][1]


def test_scenes_of_earlier_runs_stay_listed(raw, tmp_path):
    run(raw, tmp_path / "out")
    other = write_chunks(tmp_path / "other", [scene("d", seed=4)])
    run(other, tmp_path / "out")
    assert (tmp_path / "out/full_list.txt").read_text().split() == [f"metadata/{n}.json" for n in "abcd"]


def test_two_conversions_into_one_folder_are_refused(raw, tmp_path):
    (tmp_path / "out").mkdir()
    with exclusive(tmp_path / "out/.lock", wait=True), pytest.raises(ConfigError, match="another conversion"):
        run(raw, tmp_path / "out")


def test_moved_data_set_still_reads(raw, tmp_path):
    run(raw, tmp_path / "out")
    before = dataset(tmp_path / "out/full_list.txt").evaluation_sample(1, (0, 5), (2,))
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    assert_same(dataset(tmp_path / "elsewhere/full_list.txt").evaluation_sample(1, (0, 5), (2,)), before)


@pytest.mark.parametrize("relative", [False, True])
def test_published_form_reads_alike(raw, tmp_path, monkeypatch, relative):
    """There, lines are absolute, and image_path is absolute or relative to the working folder."""
    run(raw, tmp_path / "out")
    ours = dataset(tmp_path / "out/full_list.txt").evaluation_sample(1, (0, 5), (2,))
    monkeypatch.chdir(tmp_path)
    root = "out" if relative else str(tmp_path / "out")
    lines = []
    for path in sorted((tmp_path / "out/metadata").glob("*.json")):
        path.write_text(path.read_text().replace("../images", f"{root}/images"))
        lines.append(str(path))
    (tmp_path / "out/full_list.txt").write_text("\n".join(lines))
    assert_same(dataset(tmp_path / "out/full_list.txt").evaluation_sample(1, (0, 5), (2,)), ours)


class Hostile:
    """Opened with the plain unpickler, it would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_odd_tensors_hostile_pickles_and_bombs_cost_no_more_than_themselves(tmp_path):
    sparse, gradient, complex_ = (scene(name, frames=6) for name in ("sparse", "gradient", "complex"))
    sparse["cameras"] = sparse["cameras"].to_sparse()
    gradient["cameras"].requires_grad_()
    complex_["cameras"] = complex_["cameras"].to(torch.complex64)
    bomb = scene("bomb", frames=6)
    header = b"IHDR" + (60000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    png = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")
    bomb["images"][2] = encoded(png + b"\0\0\0\0IEND\xaeB`\x82")
    hostile = {**scene("hostile"), "more": Hostile(tmp_path / "ran")}
    raw = write_chunks(tmp_path / "raw", [gradient, complex_], [hostile], [], [bomb], [sparse])
    report = run(raw, tmp_path / "out")
    assert (tmp_path / "out/full_list.txt").read_text() == "metadata/bomb.json\nmetadata/gradient.json\n"
    assert [why.partition(":")[0] for _, why in report.bad_scenes] == ["scene complex", "scene sparse"]
    assert [why for _, why in report.bad_frames] == ["more than 89 million pixels"]
    ((where, why),) = report.bad_chunks
    assert where == "000001.torch" and "mkdir" in why and "can run code" in why
    assert not (tmp_path / "ran").exists()
    assert sorted(dataset(raw).scenes.names) == ["bomb", "gradient"]  # indexed directly, empty chunk included
