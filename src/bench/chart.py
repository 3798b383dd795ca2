"""Line charts of measured figures as a PNG: panels side by side, logarithmic across and, unless asked otherwise, upwards.

Public: Panel, draw_chart.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..files import replacing

WIDTH, HEIGHT = 620, 420
LEFT, RIGHT, TOP, BOTTOM = (
    70,
    440,
    50,
    360,
)  # edges of the plot inside a panel, pixels; labels stand right of it

COLOURS = ((30, 110, 180), (190, 60, 50), (210, 150, 40), (70, 140, 80), (120, 80, 160), (110, 110, 110))
GREY = (120, 120, 120)


@dataclass(frozen=True)
class Panel:
    """title: what the height is, with its unit. across: what the other axis is. lines: name -> [(x, y), ...], positive.
    dots: small ones in the colour of the line of that name. logarithmic: the height.
    dashed, dotted: further lines in the colour of the line of that name; under a name of their own in grey, with it.
    """

    title: str
    across: str
    lines: dict[str, list[tuple[float, float]]]
    dots: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    logarithmic: bool = True
    dashed: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    dotted: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def ticks(self) -> list[float]:
        """Round heights, evenly spaced on the axis, that enclose all points."""
        drawn = (self.lines, self.dots, self.dashed, self.dotted)
        heights = [y for lines in drawn for line in lines.values() for _, y in line]
        if self.logarithmic:
            low = math.floor(math.log10(min(heights)))
            high = max(low + 1, math.ceil(math.log10(max(heights))))
            return [10.0**power for power in range(low, high + 1)]
        step = max(10.0 ** math.floor(math.log10(max(max(heights) - min(heights), 1e-6))), 1e-6)
        first, last = math.floor(min(heights) / step), math.ceil(max(heights) / step)
        return [step * number for number in range(first, max(last, first + 1) + 1)]


def draw_chart(panels: list[Panel], path: Path, columns: int = 0) -> None:
    """Write the panels, left to right, so many in a row (0: all)."""
    columns = columns or len(panels)
    rows = -(-len(panels) // columns)
    image = Image.new("RGB", (WIDTH * columns, HEIGHT * rows), "white")
    for number, panel in enumerate(panels):
        part = Image.new("RGB", (WIDTH, HEIGHT), "white")
        _draw(ImageDraw.Draw(part), panel)
        image.paste(part, (WIDTH * (number % columns), HEIGHT * (number // columns)))
    with replacing(path) as temporary:
        image.quantize(64).save(temporary, optimize=True)  # a few colours: half the bytes


def _draw(draw: ImageDraw.ImageDraw, panel: Panel) -> None:
    font = ImageFont.load_default(14)
    points = [point for line in panel.lines.values() for point in line]
    across = sorted({x for x, _ in points})
    ticks = panel.ticks()
    scale = math.log10 if panel.logarithmic else float
    low, high = scale(ticks[0]), scale(ticks[-1])
    span = math.log2(across[-1] / across[0]) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        along = math.log2(x / across[0]) / span
        up = (scale(y) - low) / (high - low)
        return LEFT + (RIGHT - LEFT) * along, BOTTOM - (BOTTOM - TOP) * up

    for tick in ticks:
        _, y = place(across[0], tick)
        draw.line([(LEFT, y), (RIGHT, y)], fill=(220, 220, 220))
        draw.text((8, y - 8), f"{tick:g}", fill="black", font=font)
    for x in across:
        draw.text((place(x, ticks[0])[0] - 5, BOTTOM + 8), f"{x:g}", fill="black", font=font)
    draw.text((8, 12), panel.title, fill="black", font=font)
    draw.text((LEFT + 120, BOTTOM + 32), panel.across, fill="black", font=font)
    labels: list[tuple[float, float, str, tuple[int, int, int]]] = []  # height, left edge, text, colour
    colours = dict(zip(panel.lines, COLOURS))
    for lines, on, off in ((panel.dashed, 9, 6), (panel.dotted, 2, 4)):
        for name, line in lines.items():
            dots = [place(x, y) for x, y in line]
            _broken_line(draw, dots, colours.get(name, GREY), on, off)
            if name not in colours:
                labels.append((dots[-1][1] - 8, dots[-1][0] + 10, name, GREY))
    for name, line in panel.lines.items():
        colour, dots = colours[name], [place(x, y) for x, y in line]
        draw.line(dots, fill=colour, width=3)
        for x, y in dots:
            draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=colour)
        for x, y in (place(*point) for point in panel.dots.get(name, [])):
            draw.ellipse([x - 2, y - 2, x + 2, y + 2], outline=colour)
        labels.append((dots[-1][1] - 8, dots[-1][0] + 10, name, colour))
    labels.sort()
    for height, (_, left, name, colour) in zip(_apart([label[0] for label in labels]), labels):
        draw.text((left, height), name, fill=colour, font=font)


def _apart(heights: list[float]) -> list[float]:
    """Heights of labels, from the top, moved until none covers another or the numbers below the plot."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + 16) if placed else height)
    limit = BOTTOM - 12.0
    for number in reversed(range(len(placed))):
        placed[number] = min(placed[number], limit)
        limit = placed[number] - 16
    return placed


def _broken_line(
    draw: ImageDraw.ImageDraw,
    points: list[tuple[float, float]],
    colour: tuple[int, int, int],
    on: int,
    off: int,
) -> None:
    """Strokes of `on` pixels with gaps of `off` pixels along a line."""
    walked = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        length = math.hypot(x1 - x0, y1 - y0)
        begin = -(walked % (on + off))
        while begin < length:
            a, b = max(begin, 0.0) / length, min(begin + on, length) / length
            if b > a:
                draw.line(
                    [(x0 + (x1 - x0) * a, y0 + (y1 - y0) * a), (x0 + (x1 - x0) * b, y0 + (y1 - y0) * b)],
                    fill=colour,
                    width=2,
                )
            begin += on + off
        walked += length
