"""The synthetic set: its pictures agree with its cameras, and its files do not depend on how they were made."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scripts import make_synthetic
from src.data.raycast import Box, Cylinder, Room, Sphere, Texture, Wall, depth, render
from src.data.synthetic import SyntheticSet, make_scene, median_depth, write_set

SPEC = SyntheticSet(train_scenes=3, test_scenes=2, frames=6, width=24, height=16, seed=5)

GREY = Texture("checks", np.array([[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]], np.float32), 1.0, 0)
RED = Texture("checks", np.array([[0.9, 0.05, 0.05], [0.9, 0.05, 0.05]], np.float32), 1.0, 0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    write_set(folder, SPEC)
    return folder


def grey_room(*objects: Sphere | Box | Cylinder) -> Room:
    walls = [Wall(GREY) for _ in range(6)]
    light, color = np.array([0, 0, 2.8], np.float32), np.ones(3, np.float32)
    return Room(np.array([4, 4, 3], np.float32), walls, list(objects), light, color)


def camera_towards_x() -> tuple[np.ndarray, np.ndarray]:
    """At (-1.5, 0, 1.5), looking along +x with world z up; 40 x 40 pixels, focal length 20."""
    c2w = np.eye(4)
    c2w[:3] = [[0, 0, 1, -1.5], [-1, 0, 0, 0], [0, -1, 0, 1.5]]
    return c2w, np.array([20.0, 20.0, 20.0, 20.0])


def test_depth_of_a_wall_is_its_distance():
    wall = depth(grey_room(), *camera_towards_x(), 40, 40)[15:25, 15:25]
    np.testing.assert_allclose(wall, 3.5, atol=1e-5)


@pytest.mark.parametrize(
    "thing",
    [
        Sphere(np.array([1, 0, 1.5], np.float32), 0.5, RED),
        Box(np.array([1, 0, 1.5], np.float32), np.array([0.5, 0.5, 0.5], np.float32), 0.0, RED),
        Box(np.array([1, 0, 1.5], np.float32), np.array([0.5, 0.5, 0.5], np.float32), np.pi / 2, RED),
        Cylinder(np.array([1, 0, 1.5], np.float32), 0.5, 0.5, RED),
    ],
    ids=["sphere", "box", "turned box", "cylinder"],
)
def test_an_object_is_seen_where_its_centre_projects(thing):
    """Centre 2.5 m ahead, half a metre thick: depth 2 in the middle of the picture, and red there."""
    room = grey_room(thing)
    picture = render(room, *camera_towards_x(), 40, 40).astype(int)
    assert depth(room, *camera_towards_x(), 40, 40)[20, 20] == pytest.approx(2.0, abs=0.01)
    assert picture[20, 20, 0] > 2 * picture[20, 20, 1]
    assert abs(picture[20, 2, 0] - picture[20, 2, 1]) < 3
    columns = np.flatnonzero(picture[20, :, 0] > 1.5 * picture[20, :, 1])
    assert columns[0] + columns[-1] == 39


def test_neighbouring_frames_agree_through_depth_and_cameras():
    """Most points of a frame, carried into the next by depth and pose, have the depth that is rendered there."""
    scene = make_scene(SyntheticSet(1, 0, 12, 64, 64, 3), "train", 0)
    first, second = scene.c2w[4], scene.c2w[5]
    near = depth(scene.room, first, scene.fxfycxcy, 64, 64)
    fx, fy, cx, cy = scene.fxfycxcy
    y, x = np.meshgrid(np.arange(64) + 0.5, np.arange(64) + 0.5, indexing="ij")
    points = np.stack([(x - cx) / fx * near, (y - cy) / fy * near, near, np.ones_like(near)], -1)
    points = points @ (np.linalg.inv(second) @ first).T
    column = np.floor(fx * points[..., 0] / points[..., 2] + cx).astype(int)
    row = np.floor(fy * points[..., 1] / points[..., 2] + cy).astype(int)
    inside = (column >= 0) & (column < 64) & (row >= 0) & (row < 64)
    there = depth(scene.room, second, scene.fxfycxcy, 64, 64)[row[inside], column[inside]]
    assert inside.mean() > 0.7
    assert np.median(np.abs(there / points[inside][:, 2] - 1)) < 0.02


def test_cameras_are_rigid_inside_the_room_and_clear_of_objects():
    for number in range(20):
        scene = make_scene(SPEC, "train", number)
        turn, eyes = scene.c2w[:, :3, :3], scene.c2w[:, :3, 3]
        np.testing.assert_allclose(turn @ turn.transpose(0, 2, 1), np.eye(3) + np.zeros_like(turn), atol=1e-9)
        assert (np.linalg.det(turn) > 0).all()
        assert (np.abs(eyes[:, :2]) < scene.room.size[:2] / 2).all()
        assert (depth(scene.room, scene.c2w[0], scene.fxfycxcy, 16, 24) > 0.1).all()


def test_chunks_hold_what_realestate10k_chunks_hold(root):
    entries = torch.load(root / "train" / "000000.torch", weights_only=True)
    assert len(entries) == 3
    entry = entries[0]
    assert set(entry) == {"key", "url", "timestamps", "cameras", "images"}
    assert re.fullmatch(r"[0-9a-f]{16}", entry["key"])
    assert entry["cameras"].shape == (6, 18) and entry["cameras"].dtype == torch.float32
    assert entry["timestamps"].dtype == torch.int64 and (entry["timestamps"].diff() > 0).all()
    assert all(image.dtype == torch.uint8 and image.ndim == 1 for image in entry["images"])
    with Image.open(io.BytesIO(entry["images"][0].numpy().tobytes())) as image:
        assert (image.format, image.size) == ("JPEG", (24, 16))


def test_written_cameras_are_world_to_camera_and_normalised(root):
    entry = torch.load(root / "train" / "000000.torch", weights_only=True)[1]
    scene = make_scene(SPEC, "train", 1)
    w2c = entry["cameras"][2, 6:].reshape(3, 4).double().numpy()
    np.testing.assert_allclose(w2c @ scene.c2w[2], np.eye(4)[:3], atol=1e-6)
    np.testing.assert_allclose(entry["cameras"][2, :4], scene.fxfycxcy / (24, 16, 24, 16), rtol=1e-6)


def test_index_files_name_every_scene_once(root):
    train = json.loads((root / "train" / "index.json").read_text())
    test = json.loads((root / "test" / "index.json").read_text())
    views = json.loads((root / "evaluation_index.json").read_text())
    depths = json.loads((root / "test" / "median_depth.json").read_text())
    assert len(train) == 3 and len(test) == 2 and not set(train) & set(test)
    assert set(views) == set(depths) == set(test)
    assert set(train.values()) == {"000000.torch"}
    for entry in views.values():
        first, last = entry["context"]
        assert 0 <= first < last < SPEC.frames
        assert len(set(entry["target"])) == 3 and all(first < frame < last for frame in entry["target"])


def test_median_depth_is_that_of_the_full_pictures():
    scene = make_scene(SPEC, "test", 0)
    full = [depth(scene.room, c2w, scene.fxfycxcy, 16, 24) for c2w in scene.c2w]
    assert median_depth(scene) == pytest.approx(float(np.median(np.stack(full))), rel=0.05)


def test_files_do_not_depend_on_the_number_of_processes(root, tmp_path):
    words = "--train_scenes 3 --test_scenes 2 --frames 6 --size 24x16 --seed 5 --num_processes 2"
    assert make_synthetic.main(["--output", str(tmp_path / "two"), *words.split()]) == 0
    names = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    assert names == sorted(
        p.relative_to(tmp_path / "two") for p in (tmp_path / "two").rglob("*") if p.is_file()
    )
    for name in names:
        assert (root / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_an_interrupted_run_keeps_its_whole_chunks(root, tmp_path):
    write_set(tmp_path, SPEC)
    kept, redone = tmp_path / "train" / "000000.torch", tmp_path / "test" / "000000.torch"
    time_ns = kept.stat().st_mtime_ns
    redone.unlink()
    write_set(tmp_path, SPEC)
    assert kept.stat().st_mtime_ns == time_ns
    assert redone.read_bytes() == (root / "test" / "000000.torch").read_bytes()


def test_a_set_with_other_settings_is_not_mixed_in(root, capsys):
    assert make_synthetic.main(["--output", str(root), "--train_scenes", "4"]) == 2
    assert "delete" in capsys.readouterr().err


def test_another_seed_makes_other_rooms():
    other = make_scene(SyntheticSet(3, 2, 6, 24, 16, seed=6), "train", 0)
    assert other.key != make_scene(SPEC, "train", 0).key
    assert not np.allclose(other.c2w, make_scene(SPEC, "train", 0).c2w)


def test_too_few_frames_are_refused():
    with pytest.raises(ValueError, match="at least 5"):
        SyntheticSet(1, 1, 4, 24, 16, 0)
