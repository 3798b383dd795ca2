"""Line charts of measured figures as a PNG: panels side by side, logarithmic across and, unless asked otherwise, upwards.

Public: Panel, draw_chart.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class Panel:
    """title: what the height is, with its unit. across: what the other axis is. lines: name -> [(x, y), ...], positive.
    dots: small ones in the colour of the line of that name. logarithmic: the height.
    """

    title: str
    across: str
    lines: dict[str, list[tuple[float, float]]]
    dots: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    logarithmic: bool = True

    def ticks(self) -> list[float]:
        """Round heights, evenly spaced on the axis, that enclose all points."""
        heights = [y for lines in (self.lines, self.dots) for line in lines.values() for _, y in line]
        if self.logarithmic:
            low = math.floor(math.log10(min(heights)))
            high = max(low + 1, math.ceil(math.log10(max(heights))))
            return [10.0**power for power in range(low, high + 1)]
        step = max(10.0 ** math.floor(math.log10(max(max(heights) - min(heights), 1e-6))), 1e-6)
        first, last = math.floor(min(heights) / step), math.ceil(max(heights) / step)
        return [step * number for number in range(first, max(last, first + 1) + 1)]


def draw_chart(panels: list[Panel], path: Path) -> None:
    """Write the panels, left to right."""
    image = Image.new("RGB", (WIDTH * len(panels), HEIGHT), "white")
    for number, panel in enumerate(panels):
        _draw(ImageDraw.Draw(image), WIDTH * number, panel)
    with replacing(path) as temporary:
        image.save(temporary)


def _draw(draw: ImageDraw.ImageDraw, origin: int, panel: Panel) -> None:
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
        return origin + LEFT + (RIGHT - LEFT) * along, BOTTOM - (BOTTOM - TOP) * up

    for tick in ticks:
        _, y = place(across[0], tick)
        draw.line([(origin + LEFT, y), (origin + RIGHT, y)], fill=(220, 220, 220))
        draw.text((origin + 8, y - 8), f"{tick:g}", fill="black", font=font)
    for x in across:
        draw.text((place(x, ticks[0])[0] - 5, BOTTOM + 8), f"{x:g}", fill="black", font=font)
    draw.text((origin + 8, 12), panel.title, fill="black", font=font)
    draw.text((origin + LEFT + 120, BOTTOM + 32), panel.across, fill="black", font=font)
    labels: list[float] = []
    for colour, (name, line) in zip(COLOURS, panel.lines.items()):
        dots = [place(x, y) for x, y in line]
        draw.line(dots, fill=colour, width=3)
        for x, y in dots:
            draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=colour)
        for x, y in (place(*point) for point in panel.dots.get(name, [])):
            draw.ellipse([x - 2, y - 2, x + 2, y + 2], outline=colour)
        height = _free(dots[-1][1] - 8, labels)
        labels.append(height)
        draw.text((dots[-1][0] + 10, height), name, fill=colour, font=font)


def _free(height: float, taken: list[float]) -> float:
    """The nearest height below at which a label covers no other."""
    for other in sorted(taken):
        if abs(height - other) < 16:
            height = other + 16
    return height
