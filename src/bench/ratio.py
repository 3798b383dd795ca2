"""Ratios of two ways to do the same work, measured by turns in one run on one machine, and the table of them.

A subject of `scripts/benchmark.py` is a function from `Place` to rows. Only what gives the same results counts: a subject
compares them in the same run and says in `equal` what it found.

Public: Place, Row, Turns, take_turns, ratio_row, table.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm


@dataclass(frozen=True)
class Place:
    """What a subject may use. chunks: folder of `.torch` chunks. work: an empty folder. rounds: turns of each side."""

    chunks: Path
    work: Path
    rounds: int


@dataclass(frozen=True)
class Row:
    """One line of the table. ratio: how many times better than the reference; target: the same.

    reference, ours: figures with units. equal: what the comparison of both results said; "" where they differ.
    """

    what: str
    reference: str
    ours: str
    ratio: float
    target: float
    equal: str

    @property
    def reached(self) -> bool:
        """Whether the target is met, with the same results."""
        return bool(self.equal) and self.ratio >= self.target


@dataclass(frozen=True)
class Turns:
    """Processor seconds of each side, turn by turn."""

    reference_s: list[float]
    ours_s: list[float]

    @property
    def ratio(self) -> float:
        """Median over turns: what else the machine does falls on both sides of a turn."""
        return statistics.median(slow / fast for slow, fast in zip(self.reference_s, self.ours_s))


def take_turns(name: str, reference: Callable[[], object], ours: Callable[[], object], rounds: int) -> Turns:
    """Time both sides by turns, after one turn that warms up and does not count. Work must stay in this process."""
    turns = Turns([], [])
    for number in tqdm(range(rounds + 1), desc=name, leave=False):
        for work, seconds in ((reference, turns.reference_s), (ours, turns.ours_s)):
            begin = time.process_time()
            work()
            if number:
                seconds.append(time.process_time() - begin)
    return turns


def ratio_row(what: str, turns: Turns, amount: float, unit: str, target: float, equal: str) -> Row:
    """A row about rates: `amount` of something in each turn, called `unit`."""
    rates = [f"{amount / statistics.median(side):.0f} {unit}" for side in (turns.reference_s, turns.ours_s)]
    return Row(what, *rates, turns.ratio, target, equal)


def table(rows: list[Row]) -> str:
    """As Markdown."""
    lines = [
        "| what | reference | ours | ratio | target | reached | same results |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.what} | {row.reference} | {row.ours} | {row.ratio:.3g} | {row.target:.3g} "
        f"| {'yes' if row.reached else 'no'} | {row.equal or 'NO'} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"
