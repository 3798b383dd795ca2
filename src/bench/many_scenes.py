"""Starting from, and resuming in, a list of a million scenes: seconds and memory of one process.

There is no reference: the published way lists all scenes as Python strings and shuffles a list of indices, which is what
the limits were taken from.

Public: measure.
"""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

from ..data.order import Order
from ..data.scene import ListedScenes
from .host_memory import held_bytes
from .ratio import Place, Row

SCENES = 1_000_000
MOST_S, MOST_BYTES = 10.0, 1e9
RESUMED_AT = 3_400_000
"""Samples seen before."""


def measure(place: Place) -> list[Row]:
    """Limits stand in the place of the reference."""
    listing = place.work / "full_list.txt"
    listing.write_text("".join(f"metadata/{_name(number)}.json\n" for number in range(SCENES)))
    context = multiprocessing.get_context("spawn")  # a process of its own: nothing of this one is counted
    rows = []
    for what, seen in (("start", 0), ("resume", RESUMED_AT)):
        mine, theirs = context.Pipe()
        process = context.Process(target=_open, args=(listing, seen, theirs))
        process.start()
        seconds, held, correct = mine.recv()
        process.join()
        equal = "the drawn scene is the same" if correct else ""
        where = f"a million scenes, {what}"
        rows.append(Row(f"{where}: time", f"{MOST_S:g} s", f"{seconds:.1f} s", MOST_S / seconds, 1.0, equal))
        rows.append(Row(f"{where}: memory", "1 GB", f"{held / 1e9:.2f} GB", MOST_BYTES / held, 1.0, equal))
    return rows


def _name(number: int) -> str:
    """Hexadecimal names in no order."""
    return f"{number * 2654435761 % 2**32:08x}"


def _open(listing: Path, seen: int, pipe) -> None:
    """Seconds until the first scene is known, memory of the process then, and whether it is the right scene."""
    begin = time.perf_counter()
    scenes = ListedScenes(listing)
    draw = Order([len(scenes)], [1.0], seed=777).draw(seen)
    name = scenes.names[draw.scene]
    seconds = time.perf_counter() - begin
    again = Order([SCENES], [1.0], seed=777).draw(seen)
    expected = sorted(_name(number) for number in range(SCENES))[again.scene]
    pipe.send((seconds, held_bytes(), name == expected))
