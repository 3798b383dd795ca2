"""What a camera wrote into a photo: which way it was held, and its focal length.

Public: UPRIGHT, PhotoFacts, photo_facts, upright.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image

from .transforms import FORMATS, image_header

UPRIGHT = 1
SIDEWAYS = (5, 6, 7, 8)
"""Orientations at which stored width and height are exchanged."""
FULL_FRAME_DIAGONAL_MM = math.hypot(36, 24)
MM_PER_UNIT = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}
"""EXIF FocalPlaneResolutionUnit: inch, centimetre, millimetre, micrometre."""


@dataclass(frozen=True)
class PhotoFacts:
    """width, height: of the upright photo, pixels. focal_px: None if the photo does not say."""

    width: int
    height: int
    orientation: int
    focal_px: float | None


def photo_facts(data: bytes) -> PhotoFacts:
    """What the header of an encoded photo says.

    Raises:
        ValueError: it is no picture of a known format.
    """
    width, height, _ = image_header(data)
    try:
        exif = Image.open(io.BytesIO(data), formats=FORMATS).getexif()
        tags = {**exif, **exif.get_ifd(ExifTags.IFD.Exif)}
    except (
        OSError,
        ValueError,
        SyntaxError,
        KeyError,
        TypeError,
    ):  # EXIF is often broken; the photo need not be
        tags = {}
    orientation = tags.get(ExifTags.Base.Orientation)
    orientation = orientation if orientation in range(1, 9) else UPRIGHT
    if orientation in SIDEWAYS:
        width, height = height, width
    return PhotoFacts(
        width, height, orientation, _focal_px(tags, max(width, height), math.hypot(width, height))
    )


def _focal_px(tags: dict, longer_side: int, diagonal: float) -> float | None:
    """From the length for 35 mm film, else from the length and the sensor's resolution.

    Source: EXIF 2.32, FocalLengthIn35mmFilm (by the diagonal, as CIPA DCG-001 defines the equivalent), FocalLength,
    FocalPlaneXResolution.
    """
    equivalent = _positive(tags.get(ExifTags.Base.FocalLengthIn35mmFilm))
    if equivalent:
        return equivalent / FULL_FRAME_DIAGONAL_MM * diagonal
    focal = _positive(tags.get(ExifTags.Base.FocalLength))
    resolution = _positive(tags.get(ExifTags.Base.FocalPlaneXResolution))
    unit = MM_PER_UNIT.get(tags.get(ExifTags.Base.FocalPlaneResolutionUnit, 2))
    taken_at = (
        _positive(tags.get(ExifTags.Base.ExifImageWidth)),
        _positive(tags.get(ExifTags.Base.ExifImageHeight)),
    )
    if not (focal and resolution and unit and all(taken_at)):
        return None
    # The resolution is that of the size at which the photo was taken; it may have been made smaller since.
    return focal * resolution / unit * longer_side / max(taken_at)


def _positive(value: object) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A stored picture as it was seen. [h, w, c] -> [h, w, c] or [w, h, c]; the source of the eight cases: EXIF 2.32"""
    if orientation in SIDEWAYS:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
