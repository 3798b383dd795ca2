"""Overlap of views, against points marched along the rays, and fields of view."""

from __future__ import annotations

import numpy as np
import pytest

from src.data.overlap import Pinholes, fields_of_view_deg, overlaps


def turned(yaw_deg: float, centre: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    """World to camera of a camera at `centre` that looks along z, turned to the right."""
    angle = np.radians(yaw_deg)
    c2w = np.eye(4)
    c2w[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    c2w[:3, 3] = centre
    return np.linalg.inv(c2w)


def marched(cameras: Pinholes, one: int, other: int, grid: tuple[int, int]) -> float:
    """Fraction of the rays of `one` with a point in the image of `other`, looked for at very many depths."""
    rows, columns = grid
    fx, fy, cx, cy = cameras.fxfycxcy[one]
    c2w = np.linalg.inv(cameras.w2c[one])
    depths = np.concatenate([np.geomspace(1e-6, 1e7, 20000)])
    hits = 0
    for row in range(rows):
        for column in range(columns):
            ray = np.array([((column + 0.5) / columns - cx) / fx, ((row + 0.5) / rows - cy) / fy, 1])
            points = (c2w[:3, :3] @ ray)[None] * depths[:, None] + c2w[:3, 3]
            seen = points @ cameras.w2c[other, :3, :3].T + cameras.w2c[other, :3, 3]
            front = seen[:, 2] > 0
            gx, gy, px, py = cameras.fxfycxcy[other]
            u, v = gx * seen[front, 0] / seen[front, 2] + px, gy * seen[front, 1] / seen[front, 2] + py
            hits += bool(((u >= 0) & (u <= 1) & (v >= 0) & (v <= 1)).any())
    return hits / (rows * columns)


def test_overlap_is_what_marching_along_the_rays_finds():
    rng = np.random.default_rng(0)
    n, grid = 6, (5, 7)
    w2c = np.stack([turned(rng.uniform(-60, 60), rng.normal(size=3)) for _ in range(n)])
    cameras = Pinholes(
        np.stack([rng.uniform([0.7, 0.9, 0.4, 0.4], [1.2, 1.6, 0.6, 0.7]) for _ in range(n)]), w2c
    )
    for one in range(n - 1):
        others = list(range(one + 1, n))
        expected = [min(marched(cameras, one, o, grid), marched(cameras, o, one, grid)) for o in others]
        np.testing.assert_allclose(overlaps(cameras, one, others, grid), expected)


def test_cameras_in_one_place_overlap_by_their_common_angle():
    """Fields of view of 90 degrees: turned by 45 degrees the common half is seen, by 90 nothing, by 180 nothing."""
    pinhole = np.array([0.5, 0.5, 0.5, 0.5])
    w2c = np.stack([turned(angle) for angle in (0, 45, 91, 180)])
    found = overlaps(Pinholes(np.tile(pinhole, (4, 1)), w2c), 0, [0, 1, 2, 3], (1, 1000))
    np.testing.assert_allclose(found, [1, 0.5, 0, 0], atol=2e-3)


def test_views_that_look_at_each_other_overlap_and_back_to_back_ones_do_not():
    pinhole = np.tile([1.0, 1.0, 0.5, 0.5], (3, 1))
    w2c = np.stack([turned(0), turned(180, (0, 0, 5)), turned(180, (0, 0, -5))])
    assert overlaps(Pinholes(pinhole, w2c), 0, [1, 2], (8, 8)).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    "fxfycxcy,degrees",
    [
        ([0.5, 0.5, 0.5, 0.5], [90, 90]),
        ([0.5 / np.sqrt(3), 0.5, 0.5, 0.5], [120, 90]),
        ([1, 1, 0, 0.5], [45, 53.130102]),
    ],
)
def test_field_of_view_is_the_angle_between_the_edges(fxfycxcy, degrees):
    """tan 45 = 1, tan 60 = sqrt 3. In the last the left edge is the axis; 2 atan(1/2) lies askew for the vertical."""
    found = fields_of_view_deg(np.array(fxfycxcy, dtype=float))
    if fxfycxcy[2] == 0:  # the rays through (0.5, 0) and (0.5, 1) are (0.5, -0.5, 1) and (0.5, 0.5, 1)
        degrees = [45, np.degrees(np.arccos((0.25 - 0.25 + 1) / 1.5))]
    np.testing.assert_allclose(found, degrees, atol=1e-9)
