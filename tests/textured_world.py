"""Photographs of a world with texture: a wall, and a nearer board in front of its middle. Cameras are known exactly."""

from __future__ import annotations

import functools

import cv2
import numpy as np

WIDTH, HEIGHT, FOCAL = 240, 180, 225.0
FXFYCXCY = np.array([FOCAL, FOCAL, 112.0, 96.0])
PLANES = ((6.0, (-6.0, -5.0, 12.0)), (4.0, (-0.8, -0.7, 1.5)))
"""Depth z of a plane, then the left end, the top and the side of the square that it shows."""


@functools.cache
def texture(seed: int, side: int = 512) -> np.ndarray:
    """Blotches of several sizes, none alike. uint8 [side, side, 3]"""
    rng = np.random.default_rng(seed)
    layers = [
        cv2.resize(
            rng.random((side // cell, side // cell, 3), np.float32),
            (side, side),
            interpolation=cv2.INTER_CUBIC,
        )
        for cell in (4, 8, 16, 64)
    ]
    mixed = sum(layers)
    return np.uint8(np.clip((mixed - mixed.mean()) / mixed.std() * 55 + 128, 0, 255))


def pose(number: int) -> np.ndarray:
    """World to camera, OpenCV axes: to the right, a little down and forward, turning. [4, 4]"""
    w2c = np.eye(4)
    w2c[:3, :3] = cv2.Rodrigues(np.array([0.02, -0.06, 0.03]) * number)[0]
    centre = np.array([0.35, 0.1, 0.15]) * number - [0.6, 0.2, 0]
    w2c[:3, 3] = -w2c[:3, :3] @ centre
    return w2c


def photograph(
    w2c: np.ndarray, fxfycxcy: np.ndarray = FXFYCXCY, size: tuple[int, int] = (WIDTH, HEIGHT)
) -> np.ndarray:
    """What a pinhole camera sees; each plane by the homography between its texture and the picture. uint8 [h, w, 3]"""
    fx, fy, cx, cy = fxfycxcy
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # OpenCV counts from centres, we from corners
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    for seed, (depth, (left, top, side)) in enumerate(PLANES):
        image = texture(seed)
        unit = side / len(image)
        on_plane = np.array([[unit, 0, left], [0, unit, top], [0, 0, depth], [0, 0, 1]])
        homography = np.linalg.inv(half) @ matrix @ w2c[:3] @ on_plane @ half
        seen = cv2.warpPerspective(image, homography, size, flags=cv2.INTER_AREA)
        covered = cv2.warpPerspective(
            np.ones(image.shape[:2], np.uint8), homography, size, flags=cv2.INTER_NEAREST
        )
        picture = np.where(covered[..., None] > 0, seen, picture)
    return picture
