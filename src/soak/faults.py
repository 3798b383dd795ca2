"""What the soak does to a run: to the processes of a life, to the disk, and to checkpoints between two lives.

Public: FAULTS, SAVE_FAILED, corrupt, full_disk.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..checkpoint import MANIFEST, STATE, WEIGHTS, damage, find_checkpoints
from .life import POLL_S, Life

STEP = re.compile(r"step \d+/")
"""In the log, once for each step."""

SMALL_DISK_BYTES, FILL_STRIDE_BYTES = 2**30, 2**12

SAVE_FAILED = "is the disk full? Checkpoints before it are kept"
"""What a run says then."""

MOST_STEPS = 15
"""A life is killed at a random moment before it has reported so many steps."""

PATIENCE_S = 20
"""How long something that is waited for may take; then the fault comes as it is."""

ENDS_ALONE_S = 90
"""How long the other ranks may take to notice that one is gone."""


def at_a_random_moment(life: Life, run: Path, random: random.Random) -> None:
    """All processes, at any moment."""
    _some_steps(life, random)
    life.kill()


def while_saving(life: Life, run: Path, random: random.Random) -> None:
    """All processes, just after a save has begun."""
    _some_steps(life, random)
    _until(lambda: any(run.glob(".ckpt_*.tmp")), life)
    life.wait(random.uniform(0, 0.02))
    life.kill()


def one_rank(life: Life, run: Path, random: random.Random) -> None:
    """One rank at any moment; the others, if there are any, must end by themselves."""
    _some_steps(life, random)
    if not life.ended() and len(life.ranks()) == life.world:
        life.kill_rank(random.randrange(life.world))
    if not life.wait(ENDS_ALONE_S):
        life.kill()
        raise TimeoutError(f"the other ranks still ran {ENDS_ALONE_S} s after one was killed")


def on_a_full_disk(life: Life, run: Path, random: random.Random) -> None:
    """The disk is full for a while, then has room again; all processes are killed some time later."""
    _some_steps(life, random)
    if not life.ended():
        with full_disk(life, run, random):
            _until(lambda: SAVE_FAILED in life.said(), life)
    _some_steps(life, random)
    life.kill()


FAULTS: dict[str, Callable[[Life, Path, random.Random], None]] = {
    "kill": at_a_random_moment,
    "kill while saving": while_saving,
    "kill of one rank": one_rank,
    "kill after a full disk": on_a_full_disk,
}


@contextmanager
def full_disk(life: Life, run: Path, random: random.Random) -> Iterator[None]:
    """Inside, the disk is full: a small one for real, all but some bytes taken; otherwise no file of the run may grow
    beyond some bytes, which lets the last words of `life.log` through.
    """
    if shutil.disk_usage(run).total > SMALL_DISK_BYTES:
        life.limit_files(life.log.stat().st_size + random.randrange(10_000, 100_000))
        try:
            yield
        finally:
            if not life.ended():
                life.limit_files(-1)
        return
    ballast = run.parent / "ballast"
    try:
        with ballast.open("wb") as file:
            _fill(file.fileno(), shutil.disk_usage(run).free - random.randrange(20_000))
        yield
    finally:
        ballast.unlink()


def _fill(descriptor: int, num_bytes: int) -> None:
    """Make a file so large, or somewhat smaller if the run takes the room meanwhile."""
    while num_bytes > 0:
        try:
            os.posix_fallocate(descriptor, 0, num_bytes)
            return
        except OSError:
            num_bytes -= FILL_STRIDE_BYTES


def corrupt(run: Path, random: random.Random) -> str | None:
    """Harm the newest whole checkpoint, if there is another one behind it: what was done, or None."""
    whole = [path for path in find_checkpoints(run) if damage(path) is None]
    if len(whole) < 2:
        return None
    path = whole[-1] / random.choice((WEIGHTS, STATE, MANIFEST))
    content = path.read_bytes()
    harm = random.choice(("cut off", "changed one bit of", "deleted", "emptied"))
    if harm == "deleted":
        path.unlink()
    elif harm == "changed one bit of":
        position = random.randrange(len(content))
        changed = bytes([content[position] ^ 1 << random.randrange(8)])
        path.write_bytes(content[:position] + changed + content[position + 1 :])
    else:
        path.write_bytes(content[: random.randrange(len(content))] if harm == "cut off" else b"")
    return f"{harm} {path.parent.name}/{path.name}"


def _some_steps(life: Life, random: random.Random) -> None:
    """Let it do up to MOST_STEPS more steps, and a part of one."""
    wanted = len(STEP.findall(life.said())) + random.randrange(MOST_STEPS)
    _until(lambda: len(STEP.findall(life.said())) >= wanted, life)
    life.wait(random.uniform(0, 0.05))


def _until(reached: Callable[[], bool], life: Life) -> None:
    until = time.monotonic() + PATIENCE_S
    while not (reached() or life.ended()) and time.monotonic() < until:
        time.sleep(POLL_S)
