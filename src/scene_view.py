"""Pictures of where a scene's cameras stand and what their rays are.

`scene_view` draws the context cameras as pyramids that carry their pictures, the targets as empty pyramids and the
path of the video as a line, obliquely and from above. It needs no graphics library: points are projected with the
pinhole formula, pictures are warped onto their planes, and what is farther away is drawn first.

Public: scene_view, ray_picture, ray_colours.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .geometry.camera import Cameras, Views, pixel_rays
from .visualize import enlarged, sheet, to_uint8

PANEL = 640
"""Side of each of the two panels, pixels."""

SMALLEST_VIEW = 160
"""Least height of a view in the picture of the rays, pixels."""

OVERSAMPLING = 2
"""Lines are drawn so many times larger and averaged down, which makes them smooth."""

FIELD_OF_VIEW_DEG = 36.0
AZIMUTH_DEG, ELEVATION_DEG = 35.0, 28.0
"""Where the oblique panel is seen from: to the side of, and above, the cameras' mean direction, from behind."""

PAPER, GRID, INK, TARGET = (247, 245, 241), (222, 217, 208), (60, 58, 54), (120, 116, 108)
PATH_START, PATH_END = (238, 150, 60), (122, 60, 150)


@dataclass
class _Drawing:
    """What is drawn, in world coordinates, and the directions that count as up and ahead. All float64."""

    context: (
        np.ndarray
    )  # corners of the pyramids: apex, then the picture's upper left, upper right, lower ..., [v, 5, 3]
    pictures: np.ndarray  # uint8 [v, h, w, 3]
    target: np.ndarray  # [v_t, 5, 3]
    path: np.ndarray  # [f, 3]
    up: np.ndarray
    ahead: np.ndarray
    points: np.ndarray = field(init=False)  # all of the above, [n, 3]

    def __post_init__(self) -> None:
        parts = [self.context.reshape(-1, 3), self.target.reshape(-1, 3), self.path]
        self.points = np.concatenate(parts)


def scene_view(input: Views, target: Cameras, path: Cameras | None = None) -> np.ndarray:
    """The cameras of one scene, obliquely (left) and from above (right), with a legend.

    Args:
        input: context views, batch size 1.
        target: cameras to score, batch size 1, in the same world; may be empty.
        path: cameras of the video, batch size 1.

    Returns:
        uint8 [PANEL, 2 * PANEL, 3]
    """
    drawing = _drawing(input, target, path)
    colours = _colours(len(drawing.context))
    panels = [
        _panel(drawing, colours, AZIMUTH_DEG, ELEVATION_DEG),
        _panel(drawing, colours, 0.0, 89.9),  # the camera's own up must not be the view direction
    ]
    picture = Image.fromarray(np.concatenate(panels, axis=1))
    _write_legend(picture, len(colours), len(drawing.target), len(drawing.path), colours)
    return np.asarray(picture)


# ----------------------------------------------------------------------------------------------- world


def _drawing(input: Views, target: Cameras, path: Cameras | None) -> _Drawing:
    cameras = [input.cameras, target]
    poses = np.concatenate([_array(c.c2w[0]) for c in cameras])  # [v + v_t, 4, 4]
    along = np.zeros((0, 3)) if path is None else _array(path.c2w[0])[:, :3, 3]
    depth = _pyramid_depth(np.concatenate([poses[:, :3, 3], along]))
    context, empty = (_pyramids(c, depth) for c in cameras)
    up, ahead = _world_axes(poses)
    return _Drawing(context, to_uint8(input.image[0]), empty, along, up, ahead)


def _pyramid_depth(centres: np.ndarray) -> float:
    """Distance of a drawn picture from its camera: below the usual distance of neighbours, but visible. [n, 3]"""
    extent = np.linalg.norm(np.ptp(centres, axis=0))
    if not extent > 0:
        return 1.0
    some = centres[np.linspace(0, len(centres) - 1, min(len(centres), 200)).astype(int)]
    apart = np.linalg.norm(some[:, None] - some, axis=-1)
    apart[apart < 1e-6 * extent] = np.inf  # itself, and cameras at the same place
    return float(np.clip(0.7 * np.median(apart.min(axis=1)), 0.09 * extent, 0.3 * extent))


def _pyramids(cameras: Cameras, depth: float) -> np.ndarray:
    """Camera centre and picture corners (from the upper left, clockwise) at a distance. [v, 5, 3]"""
    c2w, (fx, fy, cx, cy) = _array(cameras.c2w[0]), _array(cameras.fxfycxcy[0]).T
    rows, columns = np.array([0, 0, 1, 1]) * cameras.height, np.array([0, 1, 1, 0]) * cameras.width
    x = (columns - cx[:, None]) / fx[:, None]  # [v, 4], camera frame, at depth 1
    y = (rows - cy[:, None]) / fy[:, None]
    corners = np.stack([x, y, np.ones_like(x)], axis=-1) * depth  # [v, 4, 3]
    corners = np.concatenate([np.zeros_like(corners[:, :1]), corners], axis=1)
    return corners @ c2w[:, :3, :3].transpose(0, 2, 1) + c2w[:, None, :3, 3]


def _world_axes(poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean up direction of the cameras and their mean view direction at right angles to it. [v, 4, 4] -> [3], [3]"""
    up = _unit(-poses[:, :3, 1].mean(axis=0), np.array([0.0, -1.0, 0.0]))
    ahead = poses[:, :3, 2].mean(axis=0)  # vanishes for cameras all around
    spare = np.eye(3)[np.abs(up).argmin()]
    ahead = _unit(ahead - (ahead @ up) * up, _unit(spare - (spare @ up) * up, spare))
    return up, ahead


def _unit(x: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(x)
    return x / length if length > 1e-3 else otherwise


def _array(x: Tensor) -> np.ndarray:
    return x.detach().double().cpu().numpy()


# ----------------------------------------------------------------------------------------------- panels


class _Projection:
    """A pinhole camera from which all points of a drawing are seen."""

    def __init__(self, drawing: _Drawing, azimuth_deg: float, elevation_deg: float, side: int) -> None:
        azimuth, elevation = math.radians(azimuth_deg), math.radians(elevation_deg)
        beside = np.cross(drawing.ahead, drawing.up)
        level = math.cos(azimuth) * drawing.ahead - math.sin(azimuth) * beside
        forward = math.cos(elevation) * level - math.sin(elevation) * drawing.up
        right = _unit(np.cross(forward, drawing.up), beside)
        self.axes = np.stack([right, np.cross(forward, right), forward])  # rows: right, down, forward
        self.middle = (drawing.points.min(axis=0) + drawing.points.max(axis=0)) / 2
        x, y, z = self.axes @ (drawing.points - self.middle).T
        tangent = math.tan(math.radians(FIELD_OF_VIEW_DEG) / 2) * 0.9  # a margin
        self.distance = max(float((np.maximum(np.abs(x), np.abs(y)) / tangent - z).max()), 1e-6)
        self.focal = side / 2 / math.tan(math.radians(FIELD_OF_VIEW_DEG) / 2)
        self.side = side

    def __call__(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels and distances of world points. [..., 3] -> [..., 2], [...]"""
        local = (points - self.middle) @ self.axes.T
        depth = np.maximum(local[..., 2] + self.distance, 1e-3 * self.distance)
        return local[..., :2] / depth[..., None] * self.focal + self.side / 2, depth


def _panel(
    drawing: _Drawing, colours: Sequence[tuple], azimuth_deg: float, elevation_deg: float
) -> np.ndarray:
    """uint8 [PANEL, PANEL, 3]"""
    side = PANEL * OVERSAMPLING
    project = _Projection(drawing, azimuth_deg, elevation_deg, side)
    canvas = np.full((side, side, 3), PAPER, dtype=np.uint8)
    _draw_grid(canvas, drawing, project)
    _draw_path(canvas, drawing.path, project)
    pyramids = np.concatenate([drawing.context, drawing.target])
    pixels, depths = project(pyramids)  # [v + v_t, 5, 2], [v + v_t, 5]
    for i in np.argsort(-depths.mean(axis=1)):
        if i < len(colours):
            _draw_picture(canvas, drawing.pictures[i], pixels[i, 1:])
        _draw_pyramid(
            canvas, pixels[i], colours[i] if i < len(colours) else TARGET, 4 if i < len(colours) else 2
        )
    return cv2.resize(canvas, (PANEL, PANEL), interpolation=cv2.INTER_AREA)


def _draw_grid(canvas: np.ndarray, drawing: _Drawing, project: _Projection) -> None:
    """Ten by ten cells under everything, in the plane across `up`."""
    beside = np.cross(drawing.ahead, drawing.up)
    centred = drawing.points - project.middle
    floor = project.middle + drawing.up * (centred @ drawing.up).min()
    half = 0.75 * max(np.ptp(centred @ beside), np.ptp(centred @ drawing.ahead))
    for step in np.linspace(-half, half, 11):
        for across, along in ((beside, drawing.ahead), (drawing.ahead, beside)):
            ends = floor + step * across + np.outer([-half, half], along)
            _line(canvas, project(ends)[0], GRID, 2)


def _draw_path(canvas: np.ndarray, centres: np.ndarray, project: _Projection) -> None:
    """A line whose colour tells the time; a path that stands still is a dot."""
    if not len(centres):
        return
    pixels = project(centres)[0]
    for i in range(len(pixels) - 1):
        t = i / max(len(pixels) - 2, 1)
        colour = tuple(round((1 - t) * a + t * b) for a, b in zip(PATH_START, PATH_END))
        _line(canvas, pixels[i : i + 2], colour, 6)
    for place, colour in ((pixels[0], PATH_START), (pixels[-1], PATH_END)):
        cv2.circle(canvas, _whole(place), 9, colour, -1, cv2.LINE_AA)


def _draw_picture(canvas: np.ndarray, picture: np.ndarray, corners: np.ndarray) -> None:
    """Warp a picture onto a quadrangle. corners: [4, 2] from the picture's upper left, clockwise."""
    low, high = np.floor(corners.min(axis=0)).astype(int), np.ceil(corners.max(axis=0)).astype(int) + 1
    width, height = high - low
    if width < 3 or height < 3:
        return
    small = _shrunk(picture, max(width, height))
    h, w = small.shape[:2]
    source = np.float32([[0, 0], [w, 0], [w, h], [0, h]])
    matrix = cv2.getPerspectiveTransform(source, np.float32(corners - low))
    warped = cv2.warpPerspective(small, matrix, (int(width), int(height)), borderMode=cv2.BORDER_REPLICATE)
    inside = np.zeros((height, width), dtype=np.uint8)
    cv2.fillConvexPoly(inside, np.round(corners - low).astype(np.int32), 255)
    region = canvas[low[1] : high[1], low[0] : high[0]]  # everything fits into the panel
    region[:] = np.where(inside[..., None] > 0, warped, region)


def _shrunk(picture: np.ndarray, side: int) -> np.ndarray:
    """Averaged down to about the size at which it is shown, so that it does not alias."""
    factor = side / max(picture.shape[:2])
    if factor >= 1:
        return picture
    h, w = (max(1, round(n * factor)) for n in picture.shape[:2])
    return cv2.resize(picture, (w, h), interpolation=cv2.INTER_AREA)


def _draw_pyramid(canvas: np.ndarray, pixels: np.ndarray, colour: tuple, width: int) -> None:
    """Edges of a pyramid, apex first; the picture's upper edge is drawn wider. [5, 2]"""
    apex, corners = pixels[0], pixels[1:]
    for i in range(4):
        _line(canvas, np.stack([apex, corners[i]]), colour, max(width // 2, 1))
        _line(canvas, np.stack([corners[i], corners[(i + 1) % 4]]), colour, width + 3 if i == 0 else width)


def _line(canvas: np.ndarray, ends: np.ndarray, colour: tuple, width: int) -> None:
    cv2.line(canvas, _whole(ends[0]), _whole(ends[1]), colour, width, cv2.LINE_AA)


def _whole(pixel: np.ndarray) -> tuple[int, int]:
    """Integers, near enough to the panel for OpenCV."""
    x, y = np.clip(np.round(pixel), -(2**14), 2**14).astype(int)
    return int(x), int(y)


def _colours(count: int) -> list[tuple[int, int, int]]:
    """Colours all around the circle of hues."""
    hues = [(0.58 + i / max(count, 1)) % 1 for i in range(count)]
    return [tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.78, 0.82)) for hue in hues]


def _write_legend(
    picture: Image.Image, inputs: int, targets: int, frames: int, colours: Sequence[tuple]
) -> None:
    draw, font, y = ImageDraw.Draw(picture), ImageFont.load_default(15), PANEL - 26
    entries = [(f"{inputs} inputs" if inputs > 1 else "1 input", colours[:6])]
    if targets:
        entries.append((f"{targets} targets" if targets > 1 else "1 target", [TARGET]))
    if frames:
        entries.append((f"path of the video, {frames} frames", [PATH_START, PATH_END]))
    x = 14
    for text, marks in entries:
        for mark in marks:
            draw.rectangle((x, y + 3, x + 9, y + 14), fill=mark)
            x += 11
        draw.text((x + 5, y - 1), text, fill=INK, font=font)
        x += 30 + int(draw.textlength(text, font=font))
    for left, text in ((14, "oblique"), (PANEL + 14, "from above")):
        draw.text((left, 10), text, fill=INK, font=font)
    draw.line((PANEL, 0, PANEL, PANEL), fill=GRID, width=1)


# ----------------------------------------------------------------------------------------------- rays


def ray_picture(input: Views) -> np.ndarray:
    """Pictures, ray directions and ray moments of the context views, in three rows. uint8 [h', w', 3]

    Small views are enlarged by a whole number.
    """
    ray_o, ray_d = pixel_rays(input.cameras)  # each [1, v, 3, h, w]
    moment = torch.linalg.cross(ray_o, ray_d, dim=2)
    rows = [input.image[0], ray_colours(ray_d[0]), ray_colours(moment[0])]
    rows = [enlarged(row, SMALLEST_VIEW) for row in rows]
    return sheet(rows, ["inputs", "ray directions", "ray moments (brightness: size)"])


def ray_colours(vectors: Tensor) -> Tensor:
    """Vectors as colours: the direction is the hue, the length over the largest length the brightness.

    Args:
        vectors: [v, 3, h, w]

    Returns:
        (unit vector + 1) / 2 squeezed to 0.1 ... 0.9, times a brightness of 0.1 ... 1. [v, 3, h, w]

    Source: KaiHelli/lvsm, ray visualisation.
    """
    length = vectors.norm(dim=1, keepdim=True)  # [v, 1, h, w]
    unit = vectors / length.clamp_min(torch.finfo(vectors.dtype).tiny)
    largest = length.max().clamp_min(torch.finfo(vectors.dtype).tiny)
    return (0.1 + 0.8 * (unit + 1) / 2) * (0.1 + 0.9 * length / largest)
