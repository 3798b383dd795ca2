"""Pictures and videos from tensors.

Colours are RGB in [0, 1] until `to_uint8`, which rounds to the nearest of the 256 levels. (The published scripts cut
the fraction off instead, which darkens every picture by half a level on average.)

Public: to_uint8, sheet, save_image, save_video.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .files import replacing

LABEL_HEIGHT = 18
"""Height of the strip above a labelled row, pixels."""

JPEG_QUALITY = 90
VIDEO_QUALITY = 8
"""Of 10, as imageio counts."""


def to_uint8(image: Tensor) -> np.ndarray:
    """8-bit RGB with channels last: round(255 x), clipped; a NaN becomes black.

    Args:
        image: any floating type, nominally in [0, 1]. [..., 3, h, w]

    Returns:
        uint8 [..., h, w, 3]
    """
    levels = (torch.nan_to_num(image.detach().float(), nan=0.0) * 255 + 0.5).clamp(0, 255)
    return levels.to(torch.uint8).movedim(-3, -1).cpu().numpy()


def sheet(rows: Sequence[Tensor], labels: Sequence[str] = ()) -> np.ndarray:
    """One picture of several rows of views of the same size, without gaps; short rows end in white.

    Args:
        rows: views from left to right, RGB in [0, 1]. each [v, 3, h, w]
        labels: text above each row; none: no strip above the rows.

    Returns:
        uint8 [sum of row heights, widest row, 3]

    Raises:
        ValueError: no rows, or not as many labels as rows.
    """
    if not rows or (labels and len(labels) != len(rows)):
        raise ValueError(
            f"sheet: got {len(rows)} rows and {len(labels)} labels; give one label per row or none."
        )
    strips = [np.concatenate(list(to_uint8(row)), axis=1) for row in rows]  # each [h, v * w, 3]
    width = max(strip.shape[1] for strip in strips)
    parts = []
    for i, strip in enumerate(strips):
        if labels:
            parts.append(_label(labels[i], width))
        parts.append(np.pad(strip, ((0, 0), (0, width - strip.shape[1]), (0, 0)), constant_values=255))
    return np.concatenate(parts, axis=0)


def _label(text: str, width: int) -> np.ndarray:
    strip = Image.new("RGB", (width, LABEL_HEIGHT), "white")
    ImageDraw.Draw(strip).text((4, 1), text, fill="black", font=ImageFont.load_default(13))
    return np.asarray(strip)


def save_image(path: str | Path, image: np.ndarray | Tensor) -> None:
    """Write one picture; the suffix (.png, .jpg) chooses the format.

    Args:
        path: file to make; it appears only when it is whole.
        image: uint8 [h, w, 3], or a tensor [3, h, w] in [0, 1].
    """
    pixels = to_uint8(image) if isinstance(image, Tensor) else image
    with replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, quality=JPEG_QUALITY)


def save_video(path: str | Path, frames: Iterable[np.ndarray], fps: int = 30) -> None:
    """Write an H.264 video that every browser plays (yuv420p).

    Its sides must be even, so an odd last row or column is doubled.

    Args:
        path: .mp4 file to make; it appears only when it is whole.
        frames: uint8 [h, w, 3], all of one size; taken one at a time, so that a generator keeps memory small.
        fps: frames per second.
    """
    with replacing(path) as temporary:
        writer = imageio.get_writer(
            temporary,
            fps=fps,
            codec="libx264",
            quality=VIDEO_QUALITY,
            macro_block_size=1,
            pixelformat="yuv420p",
        )
        # `with writer` would leave ffmpeg running, and writing, after an error.
        with contextlib.closing(writer):
            for frame in frames:
                height, width = frame.shape[:2]
                writer.append_data(np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))
