"""The picture of a camera check: points in one frame, their epipolar lines and true places in another.

Public: check_picture.
"""

from __future__ import annotations

import cv2
import numpy as np

from ..data.scene import Scene
from ..data.transforms import decode_image
from .check import PairCheck, SceneCheck
from .epipolar import epipolar_matrix

SHOWN_POINTS = 12
PANEL_HEIGHT = 300
STRIP = 22


def check_picture(scene: Scene, check: SceneCheck) -> np.ndarray | None:
    """A median and the worst pair of a check, one above the other. uint8 [h, w, 3]; None if no pair could be measured"""
    if not check.pairs:
        return None
    ranked = sorted(check.pairs, key=lambda pair: pair.median)
    chosen = [ranked[len(ranked) // 2], *ranked[len(ranked) // 2 + 1 :][-1:]]
    panels = [_panel(scene, pair) for pair in chosen]
    width = max(panel.shape[1] for panel in panels)
    padded = [
        cv2.copyMakeBorder(p, 0, 0, 0, width - p.shape[1], cv2.BORDER_CONSTANT, value=(255,) * 3)
        for p in panels
    ]
    title = _strip(f"{check.name}: {check.verdict}"[:140], width)
    return np.concatenate([title, *padded])


def _panel(scene: Scene, pair: PairCheck) -> np.ndarray:
    f = epipolar_matrix(*pair.cameras)
    left, right = (decode_image(scene.encoded(frame)).copy() for frame in pair.frames)
    scales = PANEL_HEIGHT / left.shape[0], PANEL_HEIGHT / right.shape[0]
    left, right = (
        cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        for image, scale in zip((left, right), scales, strict=True)
    )
    for number, i in enumerate(_spread_out(pair.points_a)):
        colour = _colour(number)
        line = f @ np.array([*pair.points_a[i], 1.0])
        _draw_line(right, line, scales[1], colour)
        for image, point, scale in (
            (left, pair.points_a[i], scales[0]),
            (right, pair.points_b[i], scales[1]),
        ):
            cv2.circle(image, _pixel(point * scale), 4, colour, 2, cv2.LINE_AA)
    text = (
        f"frames {pair.frames[0]} and {pair.frames[1]}: {len(pair.points_a)} matches, {pair.median:.2f} px from their "
        "epipolar lines (circles should lie on lines)"
    )
    both = np.concatenate([left, right], axis=1)
    return np.concatenate([_strip(text, both.shape[1]), both])


def _spread_out(points: np.ndarray) -> list[int]:
    """Matches far from one another (farthest-point order)."""
    chosen = [0]
    distance = np.linalg.norm(points - points[0], axis=1)
    while len(chosen) < min(SHOWN_POINTS, len(points)):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return chosen


def _draw_line(image: np.ndarray, line: np.ndarray, scale: float, colour: tuple[int, int, int]) -> None:
    """a x + b y + c = 0, in pixels of the picture before it was scaled."""
    a, b, c = line
    width, height = image.shape[1] / scale, image.shape[0] / scale
    if abs(b) > abs(a):
        ends = [(x, -(a * x + c) / b) for x in (0.0, width)]
    elif a:
        ends = [(-(b * y + c) / a, y) for y in (0.0, height)]
    else:
        return
    if np.abs(ends).max() < 1e5:
        cv2.line(image, *(_pixel(np.array(end) * scale) for end in ends), colour, 1, cv2.LINE_AA)


def _pixel(point: np.ndarray) -> tuple[int, int]:
    """Nearest whole pixel as OpenCV counts them."""
    return round(point[0] - 0.5), round(point[1] - 0.5)


def _strip(text: str, width: int) -> np.ndarray:
    strip = np.full((STRIP, width, 3), 255, np.uint8)
    cv2.putText(strip, text, (4, STRIP - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return strip


def _colour(number: int) -> tuple[int, int, int]:
    hue = np.uint8([[[number * 180 // SHOWN_POINTS, 230, 255]]])
    return tuple(int(x) for x in cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0])
