"""Chunks of pictures with about as much detail as photos, for benchmarks on machines without a data set.

Public: write_chunks.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

WIDTH, HEIGHT, QUALITY = 640, 360, 90
"""Of RealEstate10K as it is handed around."""

OCTAVES = (4, 8, 16, 32, 64, 128)
"""Cells across; each octave is weaker in proportion, as in photos."""


def write_chunks(folder: Path, scenes: int, frames: int) -> None:
    """Write one chunk. Cameras move along x and look ahead."""
    rng = np.random.default_rng(0)
    chunk = []
    for number in range(scenes):
        images = [torch.frombuffer(bytearray(_jpeg(rng)), dtype=torch.uint8) for _ in range(frames)]
        cameras = torch.zeros(frames, 18)
        cameras[:, :4] = torch.tensor([0.9, 1.6, 0.5, 0.5])
        cameras[:, 6:] = torch.eye(3, 4).flatten()
        cameras[:, 9] = -torch.arange(frames) / 10
        chunk.append({"key": f"scene{number}", "cameras": cameras, "images": images})
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(chunk, folder / "000000.torch")


def _jpeg(rng: np.random.Generator) -> bytes:
    levels = np.full((HEIGHT, WIDTH, 3), 128.0, np.float32)
    for cells in OCTAVES:
        grid = rng.integers(0, 256, (max(2, cells * HEIGHT // WIDTH), cells, 3), np.uint8)
        smooth = Image.fromarray(grid).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        levels += (np.asarray(smooth, np.float32) - 128) * 2 / cells
    buffer = io.BytesIO()
    Image.fromarray(levels.clip(0, 255).astype(np.uint8)).save(buffer, format="JPEG", quality=QUALITY)
    return buffer.getvalue()
