"""Pictures and videos from tensors.

Colours are RGB in [0, 1] until `to_uint8`, which rounds to the nearest of the 256 levels. (The published scripts cut
the fraction off instead, which darkens every picture by half a level on average.)

Public: to_uint8, sheet, enlarged, save_image, save_video, save_videos.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import imageio_ffmpeg
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


def enlarged(images: Tensor, least_height: int) -> Tensor:
    """Views enlarged by the smallest whole number that makes them at least so high. [v, c, h, w] -> [v, c, h', w']"""
    times = math.ceil(least_height / images.shape[-2])
    return images.repeat_interleave(times, dim=-2).repeat_interleave(times, dim=-1)


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
    """Write one video; see `save_videos`."""
    save_videos([path], frames, fps)


def save_videos(paths: Sequence[str | Path], frames: Iterable[np.ndarray], fps: int = 30) -> None:
    """Write the same frames to several files; the suffixes choose the formats.

    An .mp4 is H.264 in yuv420p, which every browser plays; its sides must be even, so an odd last row or column is
    doubled. A .gif has a palette of its own for every frame and runs at the nearest speed in hundredths of a second.

    Args:
        paths: files to make; each appears only when it is whole.
        frames: uint8 [h, w, 3], all of one size; taken one at a time, so that a generator keeps memory small.
        fps: frames per second.

    Raises:
        ValueError: no frames, frames of several sizes, or a suffix other than .mp4 and .gif.
    """
    with contextlib.ExitStack() as files:
        temporaries = [files.enter_context(replacing(path)) for path in paths]
        frames = iter(frames)
        first = next(frames, None)
        if first is None:
            raise ValueError(f"{paths[0]}: a video needs at least one frame.")
        # The encoders end before the files take their places, after an error as well: ffmpeg would go on writing.
        with contextlib.ExitStack() as running:
            encoders = [running.enter_context(_encoder(path, first.shape, fps)) for path in temporaries]
            for frame in itertools.chain([first], frames):
                for append in encoders:
                    append(frame)


@contextlib.contextmanager
def _encoder(path: Path, shape: tuple[int, ...], fps: int) -> Iterator[Callable[[np.ndarray], None]]:
    """A running ffmpeg, as the function that takes the next frame."""
    height, width = shape[:2]
    if path.suffix == ".mp4":
        bottom, right = height % 2, width % 2
        form = {"codec": "libx264", "quality": VIDEO_QUALITY, "pix_fmt_out": "yuv420p"}
    elif path.suffix == ".gif":
        bottom, right = 0, 0
        # One palette a frame: a common one would have to see all frames before the first is written.
        palettes = "[0:v]split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1"
        form = {
            "codec": "gif",
            "quality": None,
            "pix_fmt_out": "pal8",
            "output_params": ["-filter_complex", palettes],
        }
    else:
        raise ValueError(f"{path.name}: a video is .mp4 or .gif.")
    size = (width + right, height + bottom)
    encoder = imageio_ffmpeg.write_frames(
        path, size, fps=fps, macro_block_size=1, ffmpeg_log_level="error", **form
    )
    encoder.send(None)  # starts it

    def append(frame: np.ndarray) -> None:
        if frame.shape != shape:
            raise ValueError(f"{path.name}: a frame is {frame.shape}, the first one was {shape}.")
        encoder.send(np.pad(frame, ((0, bottom), (0, right), (0, 0)), mode="edge").tobytes())

    with contextlib.closing(encoder):
        yield append
