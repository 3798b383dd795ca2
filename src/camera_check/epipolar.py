"""What two cameras say about the points that their pictures have in common.

Public: Camera, epipolar_matrix, sampson, in_front, transfer, CONVENTIONS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

AXES = np.diag([1.0, -1.0, -1.0, 1.0])
"""Between OpenCV's axes (x right, y down, z forward) and OpenGL's (x right, y up, z backward)."""
SMALLEST_BASELINE = 1e-9


class Camera(NamedTuple):
    """fxfycxcy: pixels. [4]; w2c: world to camera, OpenCV axes. [4, 4]; size: width and height of the picture."""

    fxfycxcy: np.ndarray
    w2c: np.ndarray
    size: tuple[int, int]

    @property
    def matrix(self) -> np.ndarray:
        """Intrinsics. [3, 3]"""
        fx, fy, cx, cy = self.fxfycxcy
        return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])


def epipolar_matrix(a: Camera, b: Camera) -> np.ndarray | None:
    """F with x_b^T F x_a = 0 for pixels of the same point. [3, 3]; None: the cameras stand in one place.

    Source: Hartley and Zisserman, Multiple View Geometry, 9.12.
    """
    relative = b.w2c @ np.linalg.inv(a.w2c)  # camera a -> camera b
    t = relative[:3, 3]
    if np.linalg.norm(t) <= SMALLEST_BASELINE:
        return None
    x, y, z = t / np.linalg.norm(t)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.linalg.inv(b.matrix).T @ cross @ relative[:3, :3] @ np.linalg.inv(a.matrix)


def sampson(f: np.ndarray, points_a: np.ndarray, points_b: np.ndarray) -> np.ndarray:
    """First-order distance of matches from their epipolar geometry, pixels. [3, 3], [n, 2], [n, 2] -> [n]

    Source: Hartley and Zisserman, Multiple View Geometry, 11.4.3.
    """
    a, b = _homogeneous(points_a), _homogeneous(points_b)
    lines_b, lines_a = a @ f.T, b @ f
    algebraic = np.abs((b * lines_b).sum(axis=1))
    gradient = np.sqrt((lines_b[:, :2] ** 2).sum(axis=1) + (lines_a[:, :2] ** 2).sum(axis=1))
    return algebraic / np.maximum(gradient, 1e-15)


def triangulate(a: Camera, b: Camera, points_a: np.ndarray, points_b: np.ndarray) -> np.ndarray:
    """World points nearest to both rays of each match (midpoint method). [n, 2], [n, 2] -> [n, 3]"""
    origin_a, along_a = _rays(a, points_a)
    origin_b, along_b = _rays(b, points_b)
    gap = origin_b - origin_a
    dot = (along_a * along_b).sum(axis=1)
    parallel = np.maximum(1 - dot**2, 1e-15)
    depth_a = ((along_a @ gap) - dot * (along_b @ gap)) / parallel
    depth_b = (dot * (along_a @ gap) - (along_b @ gap)) / parallel
    return (origin_a + depth_a[:, None] * along_a + origin_b + depth_b[:, None] * along_b) / 2


def in_front(a: Camera, b: Camera, points_a: np.ndarray, points_b: np.ndarray) -> np.ndarray:
    """Whether the point of each match lies in front of both cameras. [n, 2], [n, 2] -> bool [n]"""
    world = _homogeneous(triangulate(a, b, points_a, points_b))
    return ((world @ a.w2c.T)[:, 2] > 0) & ((world @ b.w2c.T)[:, 2] > 0)


def transfer(
    a: Camera, b: Camera, c: Camera, points: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> np.ndarray:
    """Distance, in pixels of c, between points and the projection of what a and b make of their matches. -> [n]

    Unlike epipolar lines it sees an error of scale along the path.
    """
    world = _homogeneous(triangulate(a, b, points[0], points[1]))
    seen = (world @ c.w2c.T)[:, :3] @ c.matrix.T
    behind = seen[:, 2] <= 0
    pixel = seen[:, :2] / np.where(behind, np.nan, seen[:, 2])[:, None]
    return np.where(behind, np.inf, np.linalg.norm(pixel - points[2], axis=1))


def _rays(camera: Camera, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    c2w = np.linalg.inv(camera.w2c)
    along = _homogeneous(points) @ np.linalg.inv(camera.matrix).T @ c2w[:3, :3].T
    return c2w[:3, 3], along / np.linalg.norm(along, axis=1, keepdims=True)


def _homogeneous(points: np.ndarray) -> np.ndarray:
    return np.hstack([points, np.ones((len(points), 1))])


# ----------------------------------------------------------------------------------------------- mistakes


def _centre_as_translation(camera: Camera) -> Camera:
    w2c = camera.w2c.copy()
    w2c[:3, 3] = -w2c[:3, :3] @ w2c[:3, 3]
    return camera._replace(w2c=w2c)


def _other_size(factor: float) -> Callable[[Camera], Camera]:
    return lambda camera: camera._replace(fxfycxcy=camera.fxfycxcy * factor)


CONVENTIONS: dict[str, Callable[[Camera], Camera]] = {
    "the axes are OpenGL's (y up, z backward), not OpenCV's": lambda c: c._replace(w2c=AXES @ c.w2c),
    "the matrices are camera-to-world, not world-to-camera": lambda c: c._replace(w2c=np.linalg.inv(c.w2c)),
    "the matrices are camera-to-world with OpenGL axes (y up, z backward)": (
        lambda c: c._replace(w2c=AXES @ np.linalg.inv(c.w2c))
    ),
    "the last column of the matrices is the camera's centre, not the translation": _centre_as_translation,
    "the intrinsics are fractions of the picture's size, not pixels": (
        lambda c: c._replace(fxfycxcy=c.fxfycxcy * np.tile(c.size, 2))
    ),
    "fx, cx and fy, cy are exchanged": lambda c: c._replace(fxfycxcy=c.fxfycxcy[[1, 0, 3, 2]]),
    **{
        f"the intrinsics are those of a picture {times} as large": _other_size(factor)
        for times, factor in (
            ("twice", 1 / 2), ("four times", 1 / 4), ("eight times", 1 / 8), ("half", 2.0), ("a quarter", 4.0)
        )
    },
}  # fmt: skip
"""What may be wrong with cameras -> the cameras as they would be without that mistake."""
