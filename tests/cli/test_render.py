"""src.render and src.fit_pose_mapper as commands."""

from __future__ import annotations

import json
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from photo_folder import LVSM, UP_LVSM, write_config, write_data_set, write_photos
from PIL import Image

from src import fit_pose_mapper, render
from src.runtime import stop


@pytest.fixture(autouse=True)
def no_process_group():
    yield
    stop()


def test_from_photos_with_cameras_to_a_video_and_again_from_its_path(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "room")
    config = write_config(tmp_path / "c.yaml", LVSM)
    scene = str(tmp_path / "room/opencv_cameras.json")
    arguments = ["--config", str(config), "--scene", scene, "--images", photos[0].name, photos[3].name]
    assert (
        render.main(
            [*arguments, "--trajectory", "spiral", "--frames", "5", "--out", str(tmp_path / "a/out.mp4")]
        )
        == 0
    )
    assert iio.imread(tmp_path / "a/out.mp4").shape == (5, 24, 24, 3)
    assert (
        render.main([*arguments, "--trajectory", "spiral", "--frames", "5", "--out", str(tmp_path / "one")])
        == 0
    )
    again = [*arguments, "--trajectory", str(tmp_path / "a/out.path.json"), "--out", str(tmp_path / "two")]
    assert render.main(again) == 0
    for number in range(5):
        one, two = (
            np.asarray(Image.open(tmp_path / f / f"{number:06d}.png")).astype(int) for f in ("one", "two")
        )
        assert np.abs(one - two).max() <= 1


@pytest.mark.parametrize(
    "extra,words",
    [
        (["--trajectory", "zigzag"], "zigzag is unknown"),
        (["--out", "x.avi"], ".mp4, .gif or a folder"),
        (["--views", "77"], "view 77"),
        (["--scene", "nothing.json"], "no such scene"),
        (["--frames", "-1"], "negative"),
        (["--pose_mapper", "m.pt"], "families that estimate poses"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path: Path, capsys, extra, words) -> None:
    write_photos(tmp_path / "room")
    config = write_config(tmp_path / "c.yaml", LVSM)
    scene = str(tmp_path / "room/opencv_cameras.json")
    usual = ["--config", str(config), "--scene", scene, "--out", str(tmp_path / "o.gif")]
    assert render.main([*usual, *extra]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error:") and words in said


def test_unposed_photos_are_rendered_and_steered(tmp_path: Path, capsys) -> None:
    """A model of random weights: the pose mapper is fitted, saved beside the weights, found and used."""
    listed = write_data_set(tmp_path, num=6)
    config = write_config(
        tmp_path / "u.yaml", UP_LVSM, dataset_path=str(listed), eval_dataset_path=str(listed),
        view_selector={"min_frame_dist": 3, "max_frame_dist": 5},
    )  # fmt: skip
    settings = ["pretrained.dinov2=random", f"inference.view_idx_file_path={tmp_path / 'index.json'}"]
    mapper = tmp_path / "pose_mapper.pt"
    fitting = ["--config", str(config), "--samples", "6", "--steps", "20", "--out", str(mapper), *settings]
    assert fit_pose_mapper.main(fitting) == 0
    report = json.loads(mapper.with_suffix(".json").read_text())["held_out"]
    assert {"camera_controlled_psnr", "target_aware_psnr", "to_model_rotation_deg"} <= report.keys()
    stop()
    photos = [str(path) for path in sorted((tmp_path / "raw/room").glob("*.png"))[:3]]
    drawing = ["--config", str(config), "--images", *photos, "--trajectory", "orbit", "--frames", "3"]
    for extra, out in (([], "own.gif"), (["--pose_mapper", str(mapper)], "mapped.gif")):
        assert render.main([*drawing, *extra, "--out", str(tmp_path / out), "pretrained.dinov2=random"]) == 0
        stop()
    own, mapped = (json.loads((tmp_path / f"{n}.path.json").read_text())["frames"] for n in ("own", "mapped"))
    assert np.abs(np.array(own[0]["c2w"]) - np.array(mapped[0]["c2w"])).max() > 1e-4
