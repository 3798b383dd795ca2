"""From files to inputs of a model, and from cameras of the photos' own world to the model's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from photo_folder import LVSM, UP_LVSM, write_config, write_data_set, write_photos
from textured_world import FXFYCXCY, HEIGHT, pose

from src.config import ConfigError
from src.data.dataset import SceneDataset
from src.explore.capture import choose_frames, open_scene, read_capture
from src.explore.open_model import open_model, open_place
from src.explore.path_file import read_path, write_path
from src.geometry.camera import Cameras
from src.runtime import stop


@pytest.fixture(autouse=True)
def no_process_group():
    yield
    stop()


@pytest.fixture
def opened(tmp_path: Path):
    return open_model(str(write_config(tmp_path / "c.yaml", LVSM)), "", [])


def test_every_way_to_name_a_scene_gives_the_same_cameras(tmp_path: Path, opened) -> None:
    listed = write_data_set(tmp_path)
    sources = [
        str(listed.parent / "metadata" / "room.json"),
        str(tmp_path / "raw" / "room" / "opencv_cameras.json"),
        str(tmp_path / "raw" / "room"),
    ]
    for source in sources:
        capture = read_capture(open_scene([], source, 60), [0, 2], opened.settings)
        assert capture.posed and capture.image.shape == (1, 2, 3, 24, 24)
        torch.testing.assert_close(
            capture.cameras.c2w[0, 1].double(), torch.linalg.inv(torch.tensor(pose(2))), atol=1e-6, rtol=0
        )
        assert capture.cameras.fxfycxcy[0, 0, 0] == pytest.approx(FXFYCXCY[0] * 24 / HEIGHT, rel=1e-3)


def test_frames_are_named_numbered_or_spread(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "room", 5)
    scene = open_scene([], str(tmp_path / "room/opencv_cameras.json"), 60)
    assert choose_frames(scene, [str(photos[3]), str(photos[1])], [], 2) == [3, 1]
    assert choose_frames(scene, [], [4, 0], 2) == [4, 0]
    assert choose_frames(scene, [], [], 3) == [0, 2, 4]
    with pytest.raises(ConfigError, match=r"nobody\.png is no picture"):
        choose_frames(scene, ["nobody.png"], [], 2)
    with pytest.raises(ConfigError, match="view 9"):
        choose_frames(scene, [], [9], 2)


@pytest.mark.parametrize("images,scene", [([], ""), (["none.jpg"], ""), ([], "none.json")])
def test_what_is_not_there_is_told(images, scene) -> None:
    with pytest.raises(ConfigError):
        open_scene(images, scene, 60)


def test_a_render_is_what_scoring_renders(tmp_path: Path, opened) -> None:
    """Cameras of the photos' world go where the data set puts them, at any moment."""
    listed = write_data_set(tmp_path)
    scene = open_scene([], str(listed.parent / "metadata/room.json"), 60)
    place = open_place(opened, read_capture(scene, [0, 3], opened.settings))
    wanted = read_capture(scene, [1, 2], opened.settings)
    images = place.render(wanted.cameras)
    sample = SceneDataset(str(listed), opened.settings).evaluation_sample(0, (0, 3), (1, 2))
    cameras = Cameras(sample["c2w"][None], sample["fxfycxcy"][None], 24, 24)
    with torch.inference_mode():
        expected = opened.model.render(opened.model.encode(place.input), cameras.views([2, 3]))
    torch.testing.assert_close(images, expected, atol=2e-5, rtol=0)
    moved = Cameras(wanted.cameras.c2w.clone(), wanted.cameras.fxfycxcy, 24, 24)
    moved.c2w[:, :, :3, 3] += 0.5
    assert (place.render(moved) - images).abs().max() > 1e-4


def test_other_sizes_are_whole_patches_and_see_the_same(tmp_path: Path, opened) -> None:
    write_photos(tmp_path / "room")
    scene = open_scene([], str(tmp_path / "room/opencv_cameras.json"), 60)
    place = open_place(opened, read_capture(scene, [0, 1], opened.settings))
    larger = place.sized(place.keys, 50)
    assert (larger.height, larger.width) == (48, 48)
    torch.testing.assert_close(larger.fxfycxcy, 2 * place.keys.fxfycxcy)
    assert place.render(larger).shape == (1, 2, 3, 48, 48)


def test_photos_without_poses_need_a_family_that_needs_none(tmp_path: Path, opened) -> None:
    photos = [str(path) for path in write_photos(tmp_path / "room")]
    scene = open_scene(photos[:3], "", 60)
    with pytest.raises(ConfigError, match="poses colmap"):
        open_place(opened, read_capture(scene, [0, 1, 2], opened.settings))
    stop()
    unposed = open_model(str(write_config(tmp_path / "u.yaml", UP_LVSM)), "", ["pretrained.dinov2=random"])
    place = open_place(unposed, read_capture(scene, [0, 1, 2], unposed.settings))
    assert not place.knows_world and place.keys.num_views == 3
    assert place.render(place.keys).isfinite().all()


def test_paths_survive_their_file(tmp_path: Path) -> None:
    c2w = torch.eye(4).repeat(1, 3, 1, 1)
    c2w[0, :, 0, 3] = torch.tensor([0.1, 0.2, 0.3])
    cameras = Cameras(c2w, torch.tensor([50.0, 51, 16, 12]).expand(1, 3, 4), 24, 32)
    write_path(tmp_path / "p.json", cameras, 12)
    found = read_path(tmp_path / "p.json")
    assert (found.fps, found.cameras.height, found.cameras.width) == (12, 24, 32)
    assert torch.equal(found.cameras.c2w, c2w) and torch.equal(found.cameras.fxfycxcy, cameras.fxfycxcy)


def test_a_nerfstudio_path_turns_its_axes(tmp_path: Path) -> None:
    given = np.linalg.inv(pose(2)) @ np.diag([1, -1, -1, 1])
    content = '{"camera_path": [{"camera_to_world": %s, "fov": 90}], "render_height": 20, "render_width": 40, "fps": 24}'
    (tmp_path / "p.json").write_text(content % given.reshape(-1).tolist())
    found = read_path(tmp_path / "p.json")
    np.testing.assert_allclose(found.cameras.c2w[0, 0], np.linalg.inv(pose(2)), atol=1e-6)
    np.testing.assert_allclose(found.cameras.fxfycxcy[0, 0], [10, 10, 20, 10], atol=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"size": [8, 8], "frames": []}', '{"size": [8, 8], "frames": [{"c2w": [[1]], "fxfycxcy": [1]}]}',
        '{"size": [8, 8], "frames": [{"c2w": [[1,0,0,0],[0,1,0,0],[0,0,1,NaN],[0,0,0,1]], "fxfycxcy": [1,1,1,1]}]}',
        '{"size": [8, 8], "frames": [{"c2w": [[1,0,0,0],[0,1,0,0],[0,0,1,0],[0,0,0,1]], "fxfycxcy": [0,1,1,1]}]}',
        "[" * 100000,
    ],
)  # fmt: skip
def test_other_files_are_no_paths(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ConfigError, match=r"p\.json"):
        read_path(tmp_path / "p.json")
