"""Memory of a rank and its loader processes at the published settings, without a model.

The reference is on paper: a process of its own for each worker, `prefetch_factor` batches of float32 ready in each.

Public: measure, held_bytes.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

from ..data.convert import Options, convert
from ..data.loader import training_loader
from ..settings import Training
from .published_data import BATCH, SIZE, VIEWS, run_config
from .ratio import Place, Row

MOST_BYTES = 2e9
PATIENCE_S = 150
"""How long the loaders may take to fill what they may hold."""


def measure(place: Place) -> list[Row]:
    """One row: the sum over the processes when all batches that may be held are ready."""
    convert(Options(place.chunks, place.work / "data"), num_processes=1, chunk_size=1)
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_load, args=(place.work / "data" / "full_list.txt", theirs))
    process.start()
    held, workers, full = mine.recv()
    process.join()
    training = Training()
    batch = BATCH * VIEWS * 3 * SIZE * SIZE * 4
    published = training.num_workers * training.prefetch_factor * batch
    return [
        Row(
            f"host memory of a rank and {workers} workers, limit {MOST_BYTES / 1e9:g} GB",
            f"{published / 1e9:.1f} GB (on paper)",
            f"{held / 1e9:.2f} GB",
            published / held,
            published / MOST_BYTES,
            "all batches ready" if full else "",
        )
    ]


def _load(listing: Path, pipe) -> None:
    """In a process that stands for a rank: fill the loaders, then add up."""
    # Loader processes start as those of a rank do, not in the way in which this process was started.
    multiprocessing.set_start_method(None, force=True)
    loader = training_loader(run_config(listing), rank=0, world=1)
    batch = next(loader)
    ready = loader.num_workers * loader.prefetch_factor * batch["image"].nbytes
    until = time.monotonic() + PATIENCE_S
    while not (full := sum(_shared_files(_family())) >= 0.9 * ready) and time.monotonic() < until:
        time.sleep(2)
    time.sleep(5)  # all workers are idle: nothing moves any more
    pipe.send((held_bytes(), loader.num_workers, full))
    loader.close()


def held_bytes() -> int:
    """Of this process and those it started: memory in proportion to how many share it, and batches on their way.

    Those lie in shared memory that is open as a file and that no process may have mapped.
    """
    processes = _family()
    _, only_open = _shared_files(processes)
    return sum(_pss(process) for process in processes) + only_open


def _family() -> list[int]:
    """This process and its children."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()
    return [os.getpid(), *map(int, children)]


def _pss(process: int) -> int:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("Pss:")).split()[1])


def _shared_files(processes: list[int]) -> tuple[int, int]:
    """Bytes of the files in /dev/shm that these processes have mapped, and of those that are only open; each once."""
    shared = os.stat("/dev/shm").st_dev
    device = f"{os.major(shared):02x}:{os.minor(shared):02x}"
    mapped: dict[int, int] = {}
    opened: dict[int, int] = {}
    for process in processes:
        for line in Path(f"/proc/{process}/maps").read_text(encoding="utf-8").splitlines():
            span, _, _, where, inode, *_ = line.split()
            if where == device:
                begin, end = (int(edge, 16) for edge in span.split("-"))
                mapped[int(inode)] = end - begin
        for entry in Path(f"/proc/{process}/fd").iterdir():
            try:
                stat = entry.stat()
            except OSError:  # closed meanwhile
                continue
            if stat.st_dev == shared:
                opened[stat.st_ino] = stat.st_blocks * 512
    return sum(mapped.values()), sum(size for inode, size in opened.items() if inode not in mapped)
