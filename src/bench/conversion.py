"""Frames per second of `process_data.py` in one process, against decoding and writing PNG files.

Public: measure.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np

from ..data.chunks import open_chunk
from ..data.convert import Options, convert
from .published_data import convert_to_png
from .ratio import Place, Row, ratio_row, take_turns

TARGETS = {"decode": 8.0, "header": 15.0}
MOST_BYTES = 1.05
"""Bytes written for each byte read."""


def measure(place: Place) -> list[Row]:
    """Both ways to verify pictures."""
    chunks = sorted(place.chunks.glob("*.torch"))
    frames = sum(len(scene["images"]) for path in chunks for scene in open_chunk(path))
    return [_row(place, verify, target, chunks, frames) for verify, target in TARGETS.items()]


def _row(place: Place, verify: str, target: float, chunks: list[Path], frames: int) -> Row:
    png, ours = place.work / "png", place.work / "ours"

    def reference() -> None:
        shutil.rmtree(png, ignore_errors=True)
        convert_to_png(place.chunks, png)

    def converted() -> None:
        shutil.rmtree(ours, ignore_errors=True)
        convert(Options(place.chunks, ours, verify=verify), num_processes=1, chunk_size=1)

    turns = take_turns(f"process_data --verify {verify}", reference, converted, place.rounds)
    grown = _bytes(ours) / sum(path.stat().st_size for path in chunks)
    equal = f"same pixels, {grown:.2f} bytes out per byte in"
    if grown > MOST_BYTES or not _same_pixels(png, ours):
        equal = ""
    return ratio_row(f"`process_data --verify {verify}`", turns, frames, "frames/s", target, equal)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _same_pixels(png: Path, ours: Path) -> bool:
    """Whether every tenth picture decodes to the PNG's pixels, and all are there."""
    pictures = sorted((png / "images").glob("*/*.png"))
    kept = [ours / "images" / path.parent.name / f"{path.stem}.jpg" for path in pictures]
    same = (
        np.array_equal(cv2.imread(str(a)), cv2.imread(str(b))) for a, b in zip(pictures[::10], kept[::10])
    )
    return all(path.is_file() for path in kept) and all(same)
