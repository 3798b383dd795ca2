"""When a run ends before its last step: by a signal or at the end of its time.

What asked first decides with which status the program ends:

    130  Ctrl-C (SIGINT)
    138  SIGUSR1, which SLURM sends some minutes before the end of a job (`sbatch --signal`)
    143  SIGTERM, as at a preemption
    124  `training.time_limit` is over

A request is only noted. The loop of `train.py` asks all ranks between two steps, and inside `giving_way` a wait that may
be long ends at once, so that a slow disk or an evaluation does not use up the minutes that are left.

Public: StopRequest, Interrupted, STATUS_TIME_LIMIT, REASONS, seconds_in, leave_signals_to_the_run.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STATUS_TIME_LIMIT = 124
"""As `timeout` of the GNU core utilities says it."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

REASONS = {
    STATUS_TIME_LIMIT: "training.time_limit is over",
    **{128 + number: f"{number.name} was received" for number in SIGNALS},
}
"""Exit status -> what asked for it."""

SAME_CTRL_C_S = 1.0
"""torchrun passes on a Ctrl-C that the terminal has sent to its processes already: within so many seconds it is one."""

FORMS = (
    re.compile(r"(?P<minutes>\d+)(:(?P<seconds>\d+))?"),
    re.compile(r"(?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>\d+)"),
    re.compile(r"(?P<days>\d+)-(?P<hours>\d+)(:(?P<minutes>\d+)(:(?P<seconds>\d+))?)?"),
)
UNITS_S = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}


def seconds_in(time_limit: str) -> int:
    """Seconds in a time as SLURM writes it: minutes, m:s, h:m:s, days-hours, d-h:m or d-h:m:s; 0 if it is none of these."""
    form = next((match for form in FORMS if (match := form.fullmatch(time_limit.strip()))), None)
    return sum(int(count or 0) * UNITS_S[unit] for unit, count in form.groupdict().items()) if form else 0


class Interrupted(Exception):
    """The run was asked to end in the middle of something that takes long. status: what was asked for; see REASONS."""

    def __init__(self, status: int) -> None:
        super().__init__(REASONS[status])
        self.status = status


class StopRequest:
    """While entered, notes that the run shall end; a second Ctrl-C ends it at once, with KeyboardInterrupt.

    status: with which the program shall end, of the first request to this process; 0: there was none. Ranks must stop
    at the same step, or one waits for the others: `train.py` asks them all.
    """

    def __init__(self, time_limit: str = "") -> None:
        """time_limit: counted from here; empty: none. See `seconds_in`."""
        self.status = 0
        self._end = time.monotonic() + seconds_in(time_limit) if time_limit else None
        self._gives_way = False
        self._ctrl_c = float("-inf")
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        wanted = SIGNALS if self._end is None else (*SIGNALS, signal.SIGALRM)
        self._before = {number: signal.signal(number, self._note) for number in wanted}
        if self._end is not None:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, self._end - time.monotonic()))
        return self

    def __exit__(self, *_: object) -> None:
        if self._end is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def giving_way(self) -> Iterator[None]:
        """Inside, a request raises Interrupted, also one that came before."""
        self._gives_way = True
        try:
            if self.status:
                raise Interrupted(self.status)
            yield
        finally:
            self._gives_way = False

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            before, self._ctrl_c = self._ctrl_c, time.monotonic()
            if self.status and self._ctrl_c - before > SAME_CTRL_C_S:
                raise KeyboardInterrupt
        self.status = self.status or (STATUS_TIME_LIMIT if number == signal.SIGALRM else 128 + number)
        if self._gives_way:
            self._gives_way = False  # once: whoever handles it shall not be interrupted again
            raise Interrupted(self.status)


def leave_signals_to_the_run(_: int = 0) -> None:
    """For helper processes: signals reach the whole process group, and the run needs its helpers to the end of a step.

    Then it stops them itself.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
