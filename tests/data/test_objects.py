"""Object lists: what is read, what is refused, and that every part of the program takes them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from object_list import rgba, write_list, write_object
from PIL import Image
from raw_chunks import config

from src.config import ConfigError
from src.data.dataset import SceneDataset, open_scenes
from src.data.eval_index import evaluation_loader
from src.data.loader import training_loader
from src.data.scene import FrameError, SceneError
from src.data.view_settings import ViewSettings
from src.settings_views import ViewSelector


@pytest.fixture
def objects(tmp_path):
    for name in ("toy", "box"):
        write_object(tmp_path, name)
    return write_list(tmp_path / "list.json", "toy", "box")


def settings(path, **training):
    given = {"square_crop": False, "image_shape": [14, 28], "pose_frame": "none", "target_has_input": False}
    return config(path, **{**given, "view_sampler": "random", "view_selector": ViewSelector(), **training})


def change(path, view, **values):
    entries = json.loads(path.read_text())
    entries[view].update(values)
    path.write_text(json.dumps(entries))


def test_scenes_are_named_by_their_folders_and_sorted(objects, tmp_path):
    assert open_scenes(str(objects)).names == ["box", "toy"]
    assert open_scenes(str(tmp_path / "toy/opencv_cameras.json")).names == ["toy"]
    write_object(tmp_path / "more", "toy")
    write_list(objects, "toy", "more/toy", "toy")
    scenes = open_scenes(str(objects))
    assert scenes.names == ["more_toy", "toy"] and "twice" in scenes.problems[0][1]


def test_pictures_are_scaled_with_weighted_colours_and_laid_over_white(objects):
    """The same in floating point: colours times alpha, each channel resized by itself, white added."""
    sample = SceneDataset(str(objects), ViewSettings.of(settings(objects))).evaluation_sample(1, (0, 2), (4,))
    pixels = rgba(40, 30, 2).astype(np.float64)
    weighted = [*np.moveaxis(pixels[..., :3] * pixels[..., 3:] / 255, 2, 0), pixels[..., 3]]
    resized = [
        Image.fromarray(x.astype(np.float32)).resize((28, 21), Image.Resampling.LANCZOS) for x in weighted
    ]
    red, green, blue, alpha = (
        np.clip(np.asarray(x)[3:17], 0, 255) for x in resized
    )  # (21 - 14) // 2 rows off
    expected = np.stack([np.minimum(x, alpha) for x in (red, green, blue)]) + 255 - alpha
    assert sample["image"].shape == (3, 3, 14, 28)
    assert np.abs(sample["image"][1].numpy() - expected).max() <= 3
    assert (sample["image"][:, :, 0, 0] == 255).all()
    ratio = [28 / 40, 21 / 30]
    expected = torch.tensor([50 * ratio[0], 51 * ratio[1], 21 * ratio[0], 15 * ratio[1] - 3])
    torch.testing.assert_close(sample["fxfycxcy"][0], expected)
    distance = sample["c2w"][:, :3, 3].norm(dim=1)  # pose_frame none: as given
    torch.testing.assert_close(distance, torch.full((3,), 2.7))


def test_lvsm_resizing_takes_them_too(objects):
    sample = SceneDataset(str(objects), ViewSettings.of(config(objects))).evaluation_sample(0, (0,), (1,))
    assert sample["image"].shape == (2, 3, 28, 28) and (sample["image"][..., 0, 0] == 255).all()


def test_a_picture_resized_after_its_entry_was_written_keeps_its_camera(tmp_path):
    path = write_object(tmp_path)
    Image.fromarray(rgba(20, 15, 0)).save(tmp_path / "toy/renderings/000.png")
    Image.fromarray(rgba(30, 40, 0)).save(tmp_path / "toy/renderings/001.png")
    scene = open_scenes(str(path))[0]
    np.testing.assert_allclose(scene.camera(0)[0], [25, 25.5, 10.5, 7.5])
    with pytest.raises(FrameError, match=r"30x40 pixels, but opencv_cameras\.json says 40x30"):
        scene.camera(1)


@pytest.mark.parametrize("place", ["../secret.png", "/etc/hosts", "a/../../x.png", "", None, "..\\x.png"])
def test_paths_that_leave_the_folder_are_not_followed(tmp_path, place):
    path = write_object(tmp_path)
    (tmp_path / "secret.png").write_bytes((tmp_path / "toy/renderings/000.png").read_bytes())
    change(path, 0, file_path=place)
    scene = open_scenes(str(path))[0]
    assert "leads out" in scene.missing(0) and scene.missing(1) == ""
    with pytest.raises(SceneError):
        SceneDataset(str(path), ViewSettings.of(settings(path))).evaluation_sample(0, (0,), (1,))


@pytest.mark.parametrize(
    "text,words",
    [("{}", "expected a list"), ("[]", "list of paths"), ("[1]", "list of paths"), ("[", "not JSON")],
)
def test_other_files_are_refused_by_name(tmp_path, text, words):
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"list.json.*{words}"):
        open_scenes(str(path))


def test_damaged_scenes_are_replaced_and_counted(objects, tmp_path):
    (tmp_path / "box/opencv_cameras.json").write_text("[{}")
    loader = training_loader(settings(objects, num_views=5, num_input_views=3), rank=0, world=1)
    for _ in range(3):
        batch = next(loader)
        assert set(batch.scene_name) == {"toy"}
        for row in batch.index[..., 0].tolist():
            assert len(set(row)) == 5
    assert loader.report()["replaced_scenes"] > 0


def test_views_are_chosen_where_no_index_is_given(objects):
    run = settings(objects)
    run.inference.view_selection, run.inference.num_input_views = "random", 4
    first, second = (evaluation_loader(run, str(objects), rank=0, world=1) for _ in range(2))
    assert first.num_scenes == 2 and first.chosen_index == second.chosen_index
    (batch,) = first
    assert batch.num_input == 4 and batch.image.shape == (2, 6, 3, 14, 28)
    run.inference.num_input_views = 6  # no frame is left for a target
    with pytest.raises(ConfigError, match="6 usable frames are too few for 6 input views"):
        evaluation_loader(run, str(objects), rank=0, world=1)


def test_a_chosen_index_read_as_a_file_gives_the_same(objects, tmp_path):
    run = settings(objects)
    run.inference.view_selection, run.inference.num_input_views = "uniform", 2
    chosen = evaluation_loader(run, str(objects), rank=0, world=1)
    (tmp_path / "index.json").write_text(chosen.chosen_index)
    run.inference.view_selection, run.inference.view_idx_file_path = "index", str(tmp_path / "index.json")
    read = evaluation_loader(run, str(objects), rank=0, world=1)
    assert read.index_sha256 == chosen.index_sha256
    for ours, theirs in zip(chosen, read, strict=True):
        assert torch.equal(ours.image, theirs.image) and torch.equal(ours.c2w, theirs.c2w)


def test_a_full_ring_and_cameras_in_one_place_have_a_frame(objects):
    """The mean viewing direction of a ring vanishes, and cameras in one place have no extent."""
    run = settings(objects, pose_frame="mean_axes", scene_scale_factor=1.0)
    ring = SceneDataset(str(objects), ViewSettings.of(run)).evaluation_sample(0, (0, 1, 2), (3, 4, 5))
    assert torch.isfinite(ring["c2w"]).all()
    torch.testing.assert_close(ring["c2w"][:, :3, 3].abs().max(), torch.tensor(1.0))
    still = SceneDataset(str(objects), ViewSettings.of(run)).evaluation_sample(0, (0, 0), (0,))
    assert torch.isfinite(still["c2w"]).all() and still["c2w"][:, :3, 3].abs().max() < 1e-6


def test_context_frames_do_not_depend_on_the_targets(objects):
    """`pose_norm: context`; the published frame of all views does."""
    for norm, same in (("context", True), ("all", False)):
        run = settings(objects, pose_frame="mean_axes", scene_scale_factor=1.0, pose_norm=norm)
        dataset = SceneDataset(str(objects), ViewSettings.of(run))
        one, other = (dataset.evaluation_sample(0, (0, 1), (target,)) for target in (2, 3))
        assert torch.allclose(one["c2w"][:2], other["c2w"][:2]) == same


def test_the_shipped_object_is_read(shared):
    scenes = open_scenes(str(shared / "data/gso_data_path.json"))
    scene = scenes[0]
    assert (scenes.names, scene.num_frames) == (["gso_toy"], 64)
    np.testing.assert_allclose(scene.camera(5)[0], [548.9937684857528] * 2 + [256, 256])
