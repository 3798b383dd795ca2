"""Lens distortion out of pictures: OpenCV's models, with pixel centres at +0.5 as everywhere here.

OpenCV counts from the centre of the first pixel, COLMAP and our cameras from its outer corner. The principal point is
therefore moved by half a pixel before OpenCV sees it and back afterwards.

Public: Lens, Undistorter.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

PERSPECTIVE = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
FISHEYE = ("k1", "k2", "k3", "k4")
"""Coefficients in OpenCV's order."""


@dataclass(frozen=True)
class Lens:
    """A camera with distortion.

    width, height: of the pictures that the numbers belong to, pixels.
    fxfycxcy: pixels of such pictures, centres at +0.5.
    distortion: coefficients in the order of PERSPECTIVE or FISHEYE.
    fisheye: OpenCV's fisheye model instead of the perspective one.
    """

    width: float
    height: float
    fxfycxcy: tuple[float, ...]
    distortion: tuple[float, ...]
    fisheye: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for numbers that are no camera."""
        numbers = np.array([self.width, self.height, *self.fxfycxcy, *self.distortion])
        if not np.isfinite(numbers).all() or min(self.width, self.height, *self.fxfycxcy[:2]) <= 0:
            raise ValueError("size and focal lengths must be positive and all numbers finite")

    def scaled(self, width: int, height: int) -> np.ndarray:
        """Intrinsics for the same picture in another size, by the true ratio of each axis. [4]

        Raises:
            ValueError: it cannot be the same picture: the aspect ratios differ by more than 2 %.
        """
        ratios = np.array([width / self.width, height / self.height])
        if abs(ratios[0] - ratios[1]) > 0.02 * ratios.max():
            raise ValueError(
                f"picture of {width}x{height} pixels, but its camera is for {self.width:g}x{self.height:g}"
            )
        return np.array(self.fxfycxcy) * np.tile(ratios, 2)


class Undistorter:
    """Turns distorted pictures of one lens and one size into those of a pinhole camera of the same size.

    The new camera sees the largest upright rectangle without pixels from outside the picture, stretched to its size.
    """

    def __init__(self, lens: Lens, width: int, height: int, *, published: bool = False) -> None:
        """published: Parity: the principal point is handed to OpenCV as it is, half a pixel off, and lenses without
        distortion go through the same steps.
        """
        fxfycxcy = lens.scaled(width, height)
        shift = 0.0 if published else 0.5
        self.identity = not published and not any(lens.distortion)
        if self.identity:
            self.fxfycxcy = fxfycxcy
            return
        matrix = _matrix(fxfycxcy, shift)
        coefficients, size = np.array(lens.distortion, dtype=np.float64), (width, height)
        if lens.fisheye:
            new = cv2.fisheye.estimateNewCameraMatrixForUndistortRectify(
                matrix, coefficients, size, np.eye(3), balance=0
            )
            maps = cv2.fisheye.initUndistortRectifyMap(
                matrix, coefficients, np.eye(3), new, size, cv2.CV_16SC2
            )
        else:
            new, _ = cv2.getOptimalNewCameraMatrix(matrix, coefficients, size, 0, size)
            maps = cv2.initUndistortRectifyMap(matrix, coefficients, np.eye(3), new, size, cv2.CV_16SC2)
        self.maps = maps
        self.fxfycxcy = np.array([new[0, 0], new[1, 1], new[0, 2] + shift, new[1, 2] + shift])
        if not np.isfinite(self.fxfycxcy).all() or min(self.fxfycxcy[:2]) <= 0:
            raise ValueError("its distortion leaves no rectangle to see")

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [height, width, c] -> uint8 [height, width, c], bilinear."""
        if self.identity:
            return pixels
        return cv2.remap(pixels, *self.maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)


def _matrix(fxfycxcy: np.ndarray, shift: float) -> np.ndarray:
    """[3, 3] with OpenCV's pixel centres."""
    fx, fy, cx, cy = fxfycxcy
    return np.array([[fx, 0, cx - shift], [0, fy, cy - shift], [0, 0, 1]])
