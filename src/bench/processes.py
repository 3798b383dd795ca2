"""Training steps on one and more processes of this machine, joined as torchrun joins them (gloo on CPUs, nccl on GPUs).

Each process takes a batch of its own, so perfect scaling is a constant time of a step. The clock on the wall holds all that
processes wait for, other programs on a busy machine included; processor time holds what a process computes, talk included.

Public: Row, measure, table.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from ..files import write_text
from ..runtime import Runtime, start, stop
from ..settings import RunConfig
from .measure import Timing, timed
from .noise import NoiseTraining


@dataclass(frozen=True)
class Row:
    """step_s, step_cpu_s: seconds of a step on the wall, and of processor time in one process.
    all_reduce_s: seconds on the wall that summing as many bytes as the gradients have takes alone; 0 for one process.
    samples: of all processes in a step.
    """

    processes: int
    step_s: float
    step_cpu_s: float
    all_reduce_s: float
    gradient_bytes: int
    samples: int


def measure(config: RunConfig, processes: int, repeats: int, folder: Path) -> Row:
    """Start the processes, take `repeats` steps after two that warm up, and end them.

    Args:
        folder: for what they report.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    report = folder / f"processes_{processes}.json"
    arguments = (processes, port, config, repeats, torch.get_num_threads(), report)
    torch.multiprocessing.start_processes(_work, arguments, nprocs=processes, start_method="spawn")
    return Row(**json.loads(report.read_text(encoding="utf-8")))


def _work(
    rank: int, processes: int, port: int, config: RunConfig, repeats: int, threads: int, report: Path
) -> None:
    """One process."""
    os.environ |= {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
    }
    torch.set_num_threads(threads)
    runtime = start(config.training.seed)
    run = NoiseTraining(config, runtime)
    size = sum(p.nbytes for p in run.model.parameters() if p.requires_grad)
    gradients = torch.zeros(size // 4, device=runtime.device)
    steps, sums = [], []
    for _ in range(repeats + 2):
        steps.append(_timed(run.step, runtime))
        sums.append(_timed(lambda: dist.all_reduce(gradients), runtime) if processes > 1 else Timing(0, 0))
    if runtime.is_main:
        row = Row(
            processes,
            step_s=statistics.median(time.wall_s for time in steps[2:]),
            step_cpu_s=statistics.median(time.cpu_s for time in steps[2:]),
            all_reduce_s=statistics.median(time.wall_s for time in sums[2:]),
            gradient_bytes=size,
            samples=processes * config.training.batch_size_per_gpu,
        )
        write_text(report, json.dumps(vars(row)))
    stop()


def _timed(work: Callable[[], object], runtime: Runtime) -> Timing:
    """From when all processes are there."""
    if dist.is_initialized():
        dist.barrier()
    return timed(work, runtime.device)[1]


def table(rows: list[Row]) -> str:
    """Markdown; efficiency: time of a step of the first row over this one's."""
    lines = [
        "| processes | step, CPU-s each | efficiency | step, s | efficiency | gradients, MB | summed alone in, s |",
        "|---|---|---|---|---|---|---|",
    ]
    first = rows[0]
    lines += [
        f"| {r.processes} | {r.step_cpu_s:.3f} | {first.step_cpu_s / r.step_cpu_s:.0%} "
        f"| {r.step_s:.3f} | {first.step_s / r.step_s:.0%} | {r.gradient_bytes / 1e6:.1f} | {r.all_reduce_s:.4f} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"
