"""Part of a resized picture, computed without the rest: bit for bit what resizing all of it and then cropping give.

Pillow resizes columns, then rows (`_rows_first` names the exception), and rounds to 8 bits between. Hence columns that
the crop drops need no rows, and with `box` most of them are not computed at all. Pillow takes the edges of `box` as
float32 and the ratio of sizes from them, so an edge may only lie where that is exact: on the grid of the reduced ratio of
the sizes (640 -> 392 = 80 -> 49: every 49th column). What then differs from the whole picture is the last bit of weights
in float64, which become multiples of 2^-22.

Public: resize_window.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache

import numpy as np
from PIL import Image

Window = tuple[int, int, int, int]
"""left, top, right, bottom; the last two lie outside."""


def resize_window(image: Image.Image, size: tuple[int, int], window: Window) -> Image.Image:
    """`image.resize(size, LANCZOS).crop(window)`, with less work.

    Args:
        image: RGB or RGBA.
        size: width and height of the whole resized picture.
        window: inside it.
    """
    if image.size == size:
        return image.crop(window)
    if _rows_first(image.size, size):
        return image.resize(size, Image.Resampling.LANCZOS).crop(window)
    if image.mode == "RGBA":  # as Pillow does within one call: no colour comes from transparent pixels
        return resize_window(image.convert("RGBa"), size, window).convert("RGBA")
    (width, height), (left, top, right, bottom) = size, window
    first, last = exact_span(left, right, image.width, width)
    edges = _edges(first, last, image.width, width)
    columns = _resize(image, (last - first, image.height), (edges[0], 0, edges[1], image.height))
    columns = columns.crop((left - first, 0, right - first, image.height))
    first, last = exact_span(top, bottom, image.height, height)
    edges = _edges(first, last, image.height, height)
    rows = _resize(columns, (columns.width, last - first), (0, edges[0], columns.width, edges[1]))
    return rows.crop((0, top - first, rows.width, bottom - first))


def _rows_first(old: tuple[int, int], new: tuple[int, int]) -> bool:
    """Whether newer versions of Pillow resize rows first, which rounds elsewhere: tall pictures that shrink much."""
    shrunk = [before - after for before, after in zip(old, new)]
    return shrunk[1] > 0 and shrunk[1] > 2 * shrunk[0]


def _resize(image: Image.Image, size: tuple[int, int], box: tuple[float, ...]) -> Image.Image:
    return image.resize(size, Image.Resampling.LANCZOS, box=box)


@cache  # pictures of a data set are of a few sizes, and fractions are slow
def exact_span(start: int, stop: int, old: int, new: int) -> tuple[int, int]:
    """The shortest span around [start, stop) of `new` pixels whose edges are exact among the `old`; else all of them."""
    step = Fraction(old, new).denominator
    step //= step & -step  # its odd part: halves, quarters ... are exact
    first, last = start - start % step, stop + -stop % step
    exact = [Fraction(place * old, new) for place in (first, last)]
    if last > new or any(Fraction(float(np.float32(float(edge)))) != edge for edge in exact):
        return 0, new
    return first, last


def _edges(first: int, last: int, old: int, new: int) -> tuple[float, float]:
    """Where places among the `new` pixels lie among the `old`."""
    return first * old / new, last * old / new
