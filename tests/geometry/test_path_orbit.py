"""Turntable and spin, against formulas written out here."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from src.geometry.camera import Cameras
from src.geometry.trajectory import spin, turntable

PUBLISHED = {"hfov_deg": 50.0, "radius": (1.7, 3.0), "elevation_deg": 30.0, "up": (0, 0, 1)}
TOLERANCE = {"atol": 1e-6, "rtol": 0}


def keys(num_samples: int = 1, height: int = 48, width: int = 64) -> Cameras:
    c2w = torch.eye(4).expand(num_samples, 2, 4, 4)
    return Cameras(c2w, torch.tensor([60.0, 55, 31, 25]).expand(num_samples, 2, 4), height, width)


def assert_rigid(c2w: Tensor) -> None:
    rotation = c2w[..., :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand_as(rotation), **TOLERANCE)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(rotation.shape[:-2]), **TOLERANCE)
    assert (c2w[..., 3, :] == torch.tensor([0.0, 0, 0, 1])).all()


def test_a_turntable_stands_where_the_formula_says() -> None:
    path = turntable(keys(2), 7, **PUBLISHED)
    assert path.c2w.shape == (2, 7, 4, 4)
    assert_rigid(path.c2w)
    for i in range(7):
        a, phase = 2 * math.pi * i / 7, 2 * math.pi * i / 6
        e, r = math.radians(30 + 15 * math.sin(phase)), 2.35 + 0.65 * math.sin(phase)
        expected = torch.tensor([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)]) * r
        for sample in range(2):
            torch.testing.assert_close(path.c2w[sample, i, :3, 3], expected, **TOLERANCE)


def test_a_turntable_looks_at_the_origin_with_a_level_horizon() -> None:
    c2w = turntable(keys(), 9, **PUBLISHED).c2w[0]
    centre = c2w[:, :3, 3]
    torch.testing.assert_close(c2w[:, :3, 2], -centre / centre.norm(dim=1, keepdim=True), **TOLERANCE)
    assert c2w[:, 2, 0].abs().max() < 1e-6, "right is horizontal"
    assert (c2w[:, 2, 1] < 0).all(), "down points down"


def test_a_turntable_of_a_wide_picture_has_the_given_horizontal_field_of_view() -> None:
    path = turntable(keys(height=48, width=64), 3, **PUBLISHED)
    fx, fy, cx, cy = path.fxfycxcy[0, 0].tolist()
    assert (path.width, path.height, cx, cy) == (64, 48, 32, 24)
    assert fx == fy == pytest.approx(32 / math.tan(math.radians(25)), rel=1e-6)


def test_the_zoom_of_a_turntable_stays_between_its_radii_and_ends_in_the_middle() -> None:
    distance = turntable(keys(), 101, **PUBLISHED).c2w[0, :, :3, 3].norm(dim=1)
    assert 1.7 - 1e-5 <= distance.min() < 1.71 and 2.99 < distance.max() <= 3 + 1e-5
    torch.testing.assert_close(distance[[0, -1]], torch.tensor([2.35, 2.35]), atol=1e-5, rtol=0)


def test_a_turntable_over_the_pole_and_one_frame_are_finite_rotations() -> None:
    steep = turntable(keys(), 5, **PUBLISHED | {"elevation_deg": 75.0}).c2w  # frame 1 looks straight down
    assert_rigid(steep)
    torch.testing.assert_close(steep[0, 1, :3, 2], torch.tensor([0.0, 0, -1]), **TOLERANCE)
    assert_rigid(turntable(keys(), 1, **PUBLISHED).c2w)


@pytest.mark.parametrize("up", [(0, -1, 0), (0, 0, -2), (1, 2, 3), (1, 0, 0)])
def test_a_turntable_turns_about_the_direction_that_is_up(up: tuple) -> None:
    c2w = turntable(keys(), 8, **PUBLISHED | {"up": up, "elevation_deg": 0.0, "radius": (2, 2)}).c2w[0]
    assert_rigid(c2w)
    direction = torch.tensor(up, dtype=torch.float32)
    direction = direction / direction.norm()
    swing = 2 * torch.sin(torch.deg2rad(15 * torch.sin(2 * math.pi * torch.arange(8) / 7)))
    torch.testing.assert_close(c2w[:, :3, 3] @ direction, swing, atol=2e-6, rtol=0)
    assert (c2w[:, :3, 1] @ direction < 0).all()


def test_the_published_turntable_turns_about_z_whatever_is_up() -> None:
    tilted = turntable(keys(), 6, **PUBLISHED | {"up": (0, -1, 0), "axis": (0, 0, 1)}).c2w
    torch.testing.assert_close(
        tilted[..., :3, 2:], turntable(keys(), 6, **PUBLISHED).c2w[..., :3, 2:], **TOLERANCE
    )
    assert tilted[0, :, 1, 0].abs().max() < 1e-6, "right is at right angles to up"


@pytest.mark.parametrize(
    "wrong", [{"radius": (3, 1)}, {"radius": (0, 1)}, {"hfov_deg": 180.0}, {"up": (0, 0, 0)}]
)
def test_a_turntable_that_makes_no_circle_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="turntable: radius"):
        turntable(keys(), 4, **PUBLISHED | wrong)


def test_spin_is_the_product_of_its_rotations() -> None:
    path = spin(keys(), 6, elevation_deg=20, radius=2.5)
    assert_rigid(path.c2w)
    for i in range(6):
        a, e = 2 * math.pi * i / 6, math.radians(20)
        around = torch.tensor([[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]])
        tilt = torch.tensor([[1, 0, 0], [0, math.cos(e), -math.sin(e)], [0, math.sin(e), math.cos(e)]])
        start = torch.tensor([[-1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, 1, -2.5]])
        torch.testing.assert_close(path.c2w[0, i, :3], around @ tilt @ start, **TOLERANCE)
    torch.testing.assert_close(path.fxfycxcy, torch.tensor([60.0, 55, 31, 25]).expand(1, 6, 4))


def test_spin_looks_at_the_origin() -> None:
    c2w = spin(keys(), 5, elevation_deg=40, radius=3).c2w[0]
    torch.testing.assert_close(c2w[:, :3, 3], -3 * c2w[:, :3, 2], atol=1e-6, rtol=0)
