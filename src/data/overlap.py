"""How much two views see of each other, by their cameras alone.

A ray of one view meets the other image if some point on it, from the camera to infinity, is projected into that image.
In homogeneous coordinates (u w, v w, w) = K (R x + t) of the other camera, being inside is 0 <= u w <= w and
0 <= v w <= w: four conditions that are linear in the position along the ray, so the stretch of the ray that is seen is
an interval, and no epipolar geometry or depth is needed.

Source of the measure: pixelSplat, evaluation_index_generator.py; the conditions are derived here.

Public: Pinholes, fields_of_view_deg, overlaps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_EDGE = 1e-6
"""Image sides by which a projection may lie outside, as published: rays that run along a border count as seen."""

_RESOLUTION = 1e-6
"""Centres that are closer than this part of their coordinates coincide: files hold float32."""


@dataclass(frozen=True)
class Pinholes:
    """Cameras of one scene, float64.

    fxfycxcy: divided by the width (fx, cx) and the height (fy, cy) of the image. [f, 4]
    w2c: world to camera, OpenCV axes. [f, 4, 4]
    """

    fxfycxcy: np.ndarray
    w2c: np.ndarray

    def __len__(self) -> int:
        return len(self.w2c)


def fields_of_view_deg(fxfycxcy: np.ndarray) -> np.ndarray:
    """Horizontal and vertical field of view: the angle between the rays through the middles of opposite edges.

    Args:
        fxfycxcy: divided by width and height. [..., 4]

    Returns:
        degrees. [..., 2]
    """
    focal, centre = fxfycxcy[..., :2], fxfycxcy[..., 2:]
    # Across the other axis these rays pass through the middle of the image, which need not be the principal point.
    tilt = ((0.5 - centre) / focal)[..., ::-1]
    low, high = -centre / focal, (1 - centre) / focal
    cosine = (low * high + tilt**2 + 1) / np.sqrt((low**2 + tilt**2 + 1) * (high**2 + tilt**2 + 1))
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def overlaps(cameras: Pinholes, one: int, others: list[int], grid: tuple[int, int]) -> np.ndarray:
    """Overlap of view `one` with each of some others: the smaller of the two fractions of rays that meet the other image.

    Args:
        grid: rows and columns of rays, through the centres of equal cells of the image; the image's own size gives the
            published number exactly.

    Returns:
        fractions in [0, 1]. [len(others)]
    """
    index = np.array(others)
    there = _fraction_seen(cameras, np.full_like(index, one), index, grid)
    back = _fraction_seen(cameras, index, np.full_like(index, one), grid)
    return np.minimum(there, back)


def _fraction_seen(
    cameras: Pinholes, source: np.ndarray, sink: np.ndarray, grid: tuple[int, int]
) -> np.ndarray:
    """Fraction of the rays of views `source` that meet the images of views `sink`. [n], [n] -> [n]"""
    rows, columns = grid
    fx, fy, cx, cy = cameras.fxfycxcy[source].T[:, :, None]  # each [n, 1]
    x = ((np.arange(columns) + 0.5) / columns - cx) / fx  # [n, columns], at depth 1
    y = ((np.arange(rows) + 0.5) / rows - cy) / fy  # [n, rows]
    across = cameras.w2c[sink] @ np.linalg.inv(cameras.w2c[source])  # [n, 4, 4], source to sink
    inside = _inside(cameras.fxfycxcy[sink])  # [n, 4, 3]
    start = (inside @ _baseline(cameras, source, sink, across))[
        ..., None
    ]  # [n, 4, 1, 1]: conditions at the camera
    turned = inside @ across[:, :3, :3]  # [n, 4, 3]
    slope = (  # its change along the ray, [n, 4, rows, columns]
        turned[:, :, 0, None, None] * x[:, None, None, :]
        + turned[:, :, 1, None, None] * y[:, None, :, None]
        + turned[:, :, 2, None, None]
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = -start / slope
    enters = np.where(slope > 0, crossing, np.where((slope == 0) & (start < 0), np.inf, 0.0))
    leaves = np.where(slope < 0, crossing, np.inf)
    # Strictly: at the centre of the other camera itself all conditions hold, and nothing is seen.
    seen = np.maximum(enters.max(axis=1), 0) < leaves.min(axis=1)  # [n, rows, columns]
    return seen.mean(axis=(1, 2))


def _baseline(cameras: Pinholes, source: np.ndarray, sink: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Centre of the first camera in the frame of the second, exactly 0 where they stand in one place. [n, 3, 1]"""
    between = across[:, :3, 3:]
    reach = np.maximum(*(np.linalg.norm(cameras.w2c[view, :3, 3], axis=1) for view in (source, sink)))
    apart = np.linalg.norm(between[..., 0], axis=1) > _RESOLUTION * reach
    return between * apart[:, None, None]


def _inside(fxfycxcy: np.ndarray) -> np.ndarray:
    """Rows that are not negative at camera-space points inside the image. [n, 4] -> [n, 4, 3]"""
    n = len(fxfycxcy)
    conditions = np.zeros((n, 4, 3))
    for axis in range(2):
        focal, centre = fxfycxcy[:, axis], fxfycxcy[:, 2 + axis]
        conditions[:, 2 * axis, axis] = focal
        conditions[:, 2 * axis, 2] = centre + _EDGE  # u w >= 0
        conditions[:, 2 * axis + 1, axis] = -focal
        conditions[:, 2 * axis + 1, 2] = 1 + _EDGE - centre  # u w <= w
    return conditions
