"""What `src.inference` writes of a scene besides scores: videos of all kinds, views, cameras and rays."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
from PIL import Image
from tiny_run import write_config, write_scenes

from scripts import compare_outputs
from src import inference


@pytest.fixture(autouse=True)
def quiet_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    data = write_scenes(folder / "data", num_scenes=2)
    return write_config(folder / "config.yaml", data, folder / "checkpoints")


def run(config: Path, out: Path, *overrides: str) -> int:
    fixed = ["inference.checkpoint=random", f"inference.inference_out_dir={out}", "inference.max_scenes=1"]
    return inference.main(["-c", str(config), *fixed, *overrides])


@pytest.mark.parametrize(
    ("path", "frames"),
    [
        ("traj_type: turntable, num_frames: 9, turntable: {radius: [1, 2]}", 9),
        ("traj_type: interpolate, num_frames: 4", 4),
        ("traj_type: linear, num_frames: 3", 4),
        ("traj_type: pivot, num_frames: 5, loop_video: true", 10),
        ("traj_type: wobble, num_frames: 1", 1),
    ],
)
def test_every_kind_of_path_becomes_an_mp4_and_a_gif(
    config: Path, tmp_path: Path, path: str, frames: int
) -> None:
    video = f"inference.render_video_config={{{path}, format: both}}"
    assert run(config, tmp_path, "inference.render_video=true", video) == 0
    with imageio.get_reader(tmp_path / "000000" / "rendered_video.mp4") as reader:
        assert reader.count_frames() == frames
        assert reader.get_meta_data()["size"] == (16, 16)
    with Image.open(tmp_path / "000000" / "rendered_video.gif") as gif:
        assert (gif.n_frames, gif.size) == (frames, (16, 16))


def test_a_path_that_cannot_be_is_refused_before_any_work(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    wrong = "inference.render_video_config={traj_type: turntable, loop_video: true}"
    assert run(config, tmp_path / "out", "inference.render_video=true", wrong) == 2
    assert "loop_video means nothing for traj_type turntable" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_views_cameras_and_rays_are_saved_shown_and_compared(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    wanted = [f"inference.{name}=true" for name in ("save_targets", "render_scene_view", "render_rays")]
    assert run(config, tmp_path / "a", *wanted) == 0
    scene = tmp_path / "a" / "000000"
    for name, frames in (("input", (0, 5)), ("target", (1, 2, 3)), ("render", (1, 2, 3))):
        assert sorted(p.name for p in (scene / name).iterdir()) == [f"{frame:06d}.png" for frame in frames]
    both = np.asarray(Image.open(scene / "gt_vs_pred.png"))
    assert np.array_equal(np.asarray(Image.open(scene / "target" / "000002.png")), both[:16, 16:32])
    assert np.array_equal(np.asarray(Image.open(scene / "render" / "000002.png")), both[16:, 16:32])
    page = (tmp_path / "a" / "index.html").read_text(encoding="utf-8")
    assert '"cameras":{"file":"000000/scene_view.png","uri":"data:image/png' in page
    assert '"rays":{"file":"000000/rays.png","uri":"data:image/png' in page

    assert run(config, tmp_path / "b", "inference.compute_metrics=false") == 0
    names = ["-n", f"VIEWS={tmp_path / 'a'}", "-n", f"SHEETS={tmp_path / 'b'}"]
    out = ["--metrics", "psnr", "--output", str(tmp_path / "c")]
    assert compare_outputs.main([*names, *out]) == 0
    means = json.loads((tmp_path / "c" / "comparison.json").read_text())["methods"]
    assert means["VIEWS"]["mean_over_scenes"] == means["SHEETS"]["mean_over_scenes"]
    scored = json.loads((tmp_path / "a" / "scores.json").read_text())["headline"]["psnr"]
    assert means["VIEWS"]["mean_over_scenes"]["psnr"] == pytest.approx(scored, abs=0.02)  # rounded to 8 bits

    assert run(config, tmp_path / "a") == 0
    assert not (scene / "scene_view.png").exists() and not list((scene / "render").iterdir())
