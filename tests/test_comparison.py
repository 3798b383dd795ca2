"""One table over the output folders of several methods, in whichever layout they were written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from scripts.compare_outputs import main
from src.metrics import psnr, ssim
from src.output_folders import read_outputs
from src.visualize import save_image, save_video, sheet

SCENES = {"a/b": [3, 7], "c": [12]}
SIZE = (16, 20)


@pytest.fixture
def truths() -> dict[str, dict[int, Tensor]]:
    return {s: {f: levels(torch.rand(3, *SIZE)) for f in frames} for s, frames in SCENES.items()}


def levels(image: Tensor) -> Tensor:
    """As it comes back from an 8-bit file."""
    return (image.clamp(0, 1) * 255).round() / 255


def noisy(truths: dict, size: float) -> dict:
    return {s: {f: levels(t + size * torch.randn_like(t)) for f, t in v.items()} for s, v in truths.items()}


def write_scores(folder: Path, truths: dict) -> None:
    scenes = [{"position": i, "scene": s, "frames": list(v)} for i, (s, v) in enumerate(truths.items())]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scores.json").write_text(json.dumps({"scenes": scenes}))


def write_own(folder: Path, truths: dict, renders: dict) -> Path:
    write_scores(folder, truths)
    for i, scene in enumerate(truths):
        for frame, truth in truths[scene].items():
            save_image(folder / f"{i:06d}" / "target" / f"{frame:06d}.png", truth)
            save_image(folder / f"{i:06d}" / "render" / f"{frame:06d}.png", renders[scene][frame])
    return folder


def write_sheets(folder: Path, truths: dict, renders: dict) -> Path:
    write_scores(folder, truths)
    for i, scene in enumerate(truths):
        rows = [torch.stack(list(images[scene].values())) for images in (truths, renders)]
        save_image(folder / f"{i:06d}" / "gt_vs_pred.png", sheet(rows))
    return folder


def write_published(folder: Path, truths: dict, renders: dict) -> Path:
    """Scenes are folders by their own names here, so these hold no slash."""
    for scene in truths:
        for frame, truth in truths[scene].items():
            save_image(folder / scene / "color" / f"gt_{frame:06d}.png", truth)
            save_image(folder / scene / "color" / f"tgt_{frame:06d}.png", renders[scene][frame])
            save_image(folder / scene / "color" / "src_000000.png", truth)
    return folder


def run(*arguments: object) -> int:
    return main([*map(str, arguments), "--metrics", "psnr", "ssim"])


@pytest.mark.parametrize("write", [write_own, write_sheets])
def test_our_layouts_give_the_saved_pictures(write, tmp_path: Path, truths: dict) -> None:
    renders = noisy(truths, 0.1)
    found = read_outputs("A", write(tmp_path / "a", truths, renders))
    assert found.frames() == {("a/b", 3), ("a/b", 7), ("c", 12)}
    for scene, frame in found.frames():
        torch.testing.assert_close(found.scenes[scene][frame].render.load(), renders[scene][frame])
        torch.testing.assert_close(found.scenes[scene][frame].truth.load(), truths[scene][frame])


def test_the_table_holds_the_means_of_scene_means(tmp_path: Path, truths: dict, capsys) -> None:
    fine, coarse = noisy(truths, 0.05), noisy(truths, 0.2)
    a, b = write_own(tmp_path / "a", truths, fine), write_sheets(tmp_path / "b", truths, coarse)
    assert run("--name", f"FINE={a}", "--name", f"COARSE={b}", "--output", tmp_path / "out") == 0
    shown = capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "comparison.json").read_text())
    for name, renders in (("FINE", fine), ("COARSE", coarse)):
        scenes = []
        for scene, frames in truths.items():
            pairs = [(renders[scene][f][None], t[None]) for f, t in frames.items()]
            scenes.append([np.mean([float(metric(*pair)) for pair in pairs]) for metric in (psnr, ssim)])
        expected = np.mean(scenes, axis=0)
        mean = result["methods"][name]["mean_over_scenes"]
        assert [mean["psnr"], mean["ssim"]] == pytest.approx(expected, abs=1e-4)
        assert re.search(rf"{name} +{expected[0]:.3f} +{expected[1]:.3f}", shown)
    assert "| FINE |" in (tmp_path / "out" / "comparison.md").read_text()
    assert result["frames"] == SCENES


def test_the_published_layout_is_read_beside_ours(tmp_path: Path, capsys) -> None:
    truths = {"x": {1: levels(torch.rand(3, *SIZE))}, "y": {2: levels(torch.rand(3, *SIZE))}}
    a = write_own(tmp_path / "a", truths, truths)
    b = write_published(tmp_path / "b", truths, noisy(truths, 0.1))
    save_video(b / "video" / "x_frame_0_5.mp4", [np.zeros((*SIZE, 3), np.uint8)])
    assert read_outputs("B", b).videos == {"x": b / "video" / "x_frame_0_5.mp4"}
    assert run("-n", f"A={a}", "-n", f"B={b}", "--output", tmp_path / "out") == 0
    result = json.loads((tmp_path / "out" / "comparison.json").read_text())["methods"]
    assert result["A"]["mean_over_scenes"]["psnr"] == 100
    assert 15 < result["B"]["mean_over_scenes"]["psnr"] < 25


def test_other_scenes_and_frames_are_listed_and_refused(tmp_path: Path, truths: dict, capsys) -> None:
    a = write_own(tmp_path / "a", truths, truths)
    less = {"a/b": {3: truths["a/b"][3]}}
    b = write_own(tmp_path / "b", less, less)
    assert run("-n", f"A={a}", "-n", f"B={b}", "--output", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "B (" in error and "lacks 1 scenes (c) and 1 frames (7 of a/b)" in error
    assert not (tmp_path / "out").exists()


def test_an_index_chooses_the_views_and_must_be_covered(tmp_path: Path, truths: dict, capsys) -> None:
    a = write_own(tmp_path / "a", truths, truths)
    less = {"a/b": {3: truths["a/b"][3]}}
    b = write_own(tmp_path / "b", less, noisy(less, 0.1))
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"a/b": {"context": [0, 1], "target": [3]}, "c": None}))
    names = ["-n", f"A={a}", "-n", f"B={b}", "--output", tmp_path / "out"]
    assert run(*names, "--index", index) == 0
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["frames"] == {"a/b": [3]}
    index.write_text(json.dumps({"c": {"context": [0, 1], "target": [12]}}))
    assert run(*names, "--index", index) == 2
    assert "B (" in (error := capsys.readouterr().err) and "1 scenes (c)" in error


def test_other_truths_and_sizes_are_refused(tmp_path: Path, truths: dict, capsys) -> None:
    a = write_own(tmp_path / "a", truths, truths)
    moved = {s: {f: t.roll(3, dims=2) for f, t in v.items()} for s, v in truths.items()}
    b = write_own(tmp_path / "b", moved, moved)
    assert run("-n", f"A={a}", "-n", f"B={b}", "--output", tmp_path / "out") == 2
    assert re.search(r"scene a/b, frame [37]: the truths of A and B differ", capsys.readouterr().err)
    small = {s: {f: t[:, :, :-1] for f, t in v.items()} for s, v in truths.items()}
    c = write_own(tmp_path / "c", small, small)
    assert run("-n", f"A={a}", "-n", f"C={c}", "--output", tmp_path / "out") == 2
    assert "20 x 16 pixels, those of C 19 x 16" in capsys.readouterr().err


def test_scene_folders_of_an_older_run_do_not_count(tmp_path: Path, truths: dict) -> None:
    folder = write_own(tmp_path / "a", truths, truths)
    save_image(folder / "000042" / "render" / "000001.png", truths["c"][12])
    assert set(read_outputs("A", folder).scenes) == set(SCENES)


@pytest.mark.parametrize("content", [None, "no pictures"])
def test_a_folder_without_renders_says_what_was_expected(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    if content:
        (tmp_path / "a").mkdir()
    assert run("-n", f"A={tmp_path / 'a'}") == 2
    assert ("holds no renders" if content else "is no folder") in capsys.readouterr().err


@pytest.mark.parametrize("name", ["A", "=x", "A="])
def test_a_name_without_a_folder_is_refused(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("-n", name)
    assert stopped.value.code == 2 and "NAME=FOLDER" in capsys.readouterr().err


def test_pictures_and_videos_stand_side_by_side(tmp_path: Path, truths: dict, capsys) -> None:
    a, b = (write_own(tmp_path / name, truths, noisy(truths, 0.1)) for name in ("a", "b"))
    for folder, level, count in ((a, 40, 5), (b, 200, 5)):
        frames = [np.full((*SIZE, 3), level, dtype=np.uint8)] * count
        save_video(folder / "000000" / "rendered_video.mp4", frames)
    out = tmp_path / "out"
    assert run("-n", f"A={a}", "-n", f"B={b}", "--output", out, "--pictures", "--videos") == 0
    assert "c: no video of A, B" in capsys.readouterr().err
    assert sorted(p.name for p in (out / "pictures").iterdir()) == ["000000_a_b.png", "000001_c.png"]
    with Image.open(out / "pictures" / "000000_a_b.png") as picture:
        assert picture.width == 2 * 20 * 8 and picture.height > 3 * 16 * 8
    with imageio.get_reader(out / "videos" / "000000_a_b.mp4") as reader:
        played = [np.asarray(frame) for frame in reader]
    assert len(played) == 5 and played[0].shape == (16, 40, 3)
    assert abs(played[2][:, :18].mean() - 40) < 4 and abs(played[2][:, 22:].mean() - 200) < 4


def test_names_of_methods_and_scenes_are_shown_as_text(tmp_path: Path, capsys) -> None:
    truths = {"<script>s</script>|": {1: levels(torch.rand(3, *SIZE))}}
    a = write_own(tmp_path / "a", truths, truths)
    assert run("-n", f"<b>A|B</b>={a}", "--output", tmp_path / "out", "--pictures") == 0
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "<script>" not in page and "<b>" not in page and "&lt;script&gt;" in page
    assert "A\\|B" in (tmp_path / "out" / "comparison.md").read_text()
