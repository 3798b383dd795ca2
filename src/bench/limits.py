"""What a machine can do at most, measured: no step is faster than its products, its memory and its decoders allow.

Public: Limits, measure_limits, matmul_peak.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import torch

from .measure import Timing, timed
from .pictures import write_chunks

SIDE = 2048
"""Of the square matrices whose product is timed on a CPU; elsewhere four times as much, which fills any GPU."""

COPIED = 2**28
"""Bytes that a copy moves: more than any cache holds."""


@dataclass(frozen=True)
class Limits:
    """matmul: FLOP/s of float32 products. memcpy: bytes/s, those read and those written. jpeg: pictures/s of one core.

    On a CPU a second is one of processor time, as in all benchmarks: with several threads, of all cores together.
    """

    matmul: float
    memcpy: float
    jpeg: float


def seconds(time: Timing, device: torch.device) -> float:
    """Processor time on a CPU, which other programs use too; else the clock on the wall."""
    return time.cpu_s if device.type == "cpu" else time.wall_s


def measure_limits(device: torch.device, work: Path, repeats: int = 5) -> Limits:
    """work: an empty folder, for the pictures."""
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = _fastest(lambda: target.copy_(source), device, repeats)
    write_chunks(work, scenes=1, frames=8)
    files = [
        data.numpy() for data in torch.load(work / "000000.torch", weights_only=True, mmap=True)[0]["images"]
    ]
    decode = _fastest(
        lambda: [cv2.imdecode(file, cv2.IMREAD_COLOR) for file in files], torch.device("cpu"), repeats
    )
    return Limits(matmul_peak(device, torch.float32, repeats), 2 * source.nbytes / copy, len(files) / decode)


def matmul_peak(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """FLOP/s of a large square product in this type, a multiply-add as two; TF32 where the process allows it."""
    side = SIDE if device.type == "cpu" else 4 * SIDE
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / _fastest(lambda: a @ b, device, repeats)


def _fastest(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Seconds of the fastest turn after one that warms up: a limit is what was reached, not what is usual."""
    count = 1 if device.type == "cpu" else 20  # starting something on a GPU takes time of its own

    def turn() -> None:
        for _ in range(count):
            work()

    return min([seconds(timed(turn, device)[1], device) for _ in range(repeats + 1)][1:]) / count
