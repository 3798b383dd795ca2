"""The camera check: right cameras pass, each known mistake is named, and what cannot be told is said."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image
from textured_world import FXFYCXCY, HEIGHT, WIDTH, photograph, pose

from scripts import check_cameras
from src.camera_check.check import check_scene
from src.camera_check.epipolar import Camera, epipolar_matrix, in_front, sampson, transfer
from src.camera_check.picture import check_picture

AXES = np.diag([1.0, -1, -1, 1])


class Photos:
    """A scene in memory whose cameras may be wrong."""

    name, posed = "photos", True

    def __init__(self, cameras: list) -> None:
        self.cameras, self.num_frames = cameras, len(cameras)
        self.files = []
        for number in range(len(cameras)):
            buffer = io.BytesIO()
            Image.fromarray(photograph(pose(number))).save(buffer, "PNG")
            self.files.append(buffer.getvalue())

    def missing(self, frame: int) -> str:
        return ""

    def camera(self, frame: int) -> tuple[np.ndarray, np.ndarray]:
        return self.cameras[frame]

    def encoded(self, frame: int) -> bytes:
        return self.files[frame]


@pytest.fixture(scope="module")
def photos() -> Photos:
    return Photos([(FXFYCXCY, pose(number)) for number in range(4)])


def wrong(photos: Photos, change) -> Photos:
    other = object.__new__(Photos)
    other.__dict__ = {**photos.__dict__, "cameras": [change(*camera) for camera in photos.cameras]}
    return other


def centre_as_translation(k, w2c):
    moved = w2c.copy()
    moved[:3, 3] = -w2c[:3, :3].T @ w2c[:3, 3]
    return k, moved


def test_right_cameras_fit(photos: Photos) -> None:
    check = check_scene(photos)
    assert check.fits and check.median < 0.3 and check.in_front > 0.98 and check.transfer < 0.5
    assert check.matches > 100 and len(check.pairs) >= 2


@pytest.mark.parametrize(
    "change,word",
    [
        (lambda k, m: (k, AXES @ m), "OpenGL"),
        (lambda k, m: (k, np.linalg.inv(m)), "camera-to-world, not"),
        (lambda k, m: (k, np.linalg.inv(m) @ AXES), "camera-to-world with OpenGL"),
        (centre_as_translation, "centre"),
        (lambda k, m: (k / [WIDTH, HEIGHT, WIDTH, HEIGHT], m), "fractions"),
        (lambda k, m: (k * 4, m), "four times"),
        (lambda k, m: (k / 2, m), "half"),
    ],
)
def test_a_known_mistake_is_named(photos: Photos, change, word: str) -> None:
    check = check_scene(wrong(photos, change))
    assert check.fits is False and check.verdict.startswith("WRONG") and word in check.verdict


def test_translations_of_the_wrong_sign_show_only_behind_the_camera(photos: Photos) -> None:
    flipped = wrong(photos, lambda k, m: (k, np.block([[m[:3, :3], -m[:3, 3:]], [m[3:]]])))
    check = check_scene(flipped)
    assert check.fits is False and "behind" in check.verdict and check.median < 0.3


def test_unexplained_errors_are_poor_not_named(photos: Photos) -> None:
    rng = np.random.default_rng(0)

    def shake(k, m):
        turned = m.copy()
        turned[:3, :3] = m[:3, :3] @ np.linalg.qr(np.eye(3) + 0.05 * rng.standard_normal((3, 3)))[0]
        turned[:3, :3] *= np.sign(np.linalg.det(turned[:3, :3]))
        return k, turned

    check = check_scene(wrong(photos, shake))
    assert check.fits is False and check.verdict.startswith("POOR")


def test_one_standpoint_cannot_be_judged(photos: Photos) -> None:
    check = check_scene(wrong(photos, lambda k, m: (k, np.eye(4))))
    assert check.fits is None and "cannot tell" in check.verdict


def test_the_picture_shows_two_pairs(photos: Photos) -> None:
    picture = check_picture(photos, check_scene(photos))
    assert picture.dtype == np.uint8 and picture.shape[1] == 2 * 400 and picture.shape[0] > 2 * 300


def test_formulas_on_points_that_are_known() -> None:
    rng = np.random.default_rng(1)
    world = np.hstack([rng.uniform(-1, 1, (30, 2)), rng.uniform(4, 6, (30, 1)), np.ones((30, 1))])
    cameras = [Camera(FXFYCXCY, pose(n), (WIDTH, HEIGHT)) for n in range(3)]
    seen = []
    for camera in cameras:
        local = (world @ camera.w2c.T)[:, :3] @ camera.matrix.T
        seen.append(local[:, :2] / local[:, 2:])
    f = epipolar_matrix(*cameras[:2])
    assert sampson(f, seen[0], seen[1]).max() < 1e-9
    assert in_front(*cameras[:2], seen[0], seen[1]).all()
    assert transfer(*cameras, tuple(seen)).max() < 1e-8
    # A step across the epipolar lines of both pictures is seen as half of it in each, 1 / sqrt 2 together.
    line = np.array([*seen[0][0], 1]) @ f.T
    aside = seen[1].copy()
    aside[0] += line[:2] / np.linalg.norm(line[:2])
    distance = sampson(f, seen[0], aside)
    back = np.array([*aside[0], 1]) @ f
    expected = np.linalg.norm(line[:2]) / np.hypot(np.linalg.norm(line[:2]), np.linalg.norm(back[:2]))
    assert distance[0] == pytest.approx(expected, rel=1e-6)
    assert epipolar_matrix(cameras[0], cameras[0]) is None


def test_the_command_reports_real_captures(shared, tmp_path, capsys) -> None:
    data = shared / "data" / "re10k_format" / "test"
    assert check_cameras.main([str(data), "--scenes", "1", "--pairs", "3", "--output", str(tmp_path)]) == 0
    (figures,) = json.loads((tmp_path / "check.json").read_text())
    assert figures["fits"] and figures["median"] < 0.2
    assert "cameras fit" in capsys.readouterr().out
    assert (tmp_path / f"{figures['name']}.png").is_file()
