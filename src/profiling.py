"""`--profile`: what a few steps of a training are spent on, as a trace for ui.perfetto.dev and as a table.

A step is labelled where it is written (`torch.profiler.record_function`): data wait, forward, objective, backward, optimiser.
Without a profiler these labels cost about a microsecond each.

Public: profiling, LABELS.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, schedule, supported_activities

from .files import replacing
from .runtime import Runtime

log = logging.getLogger(__name__)

LABELS = ("data wait", "forward", "objective", "backward", "optimiser")

WARM_UP = 10
"""Steps before the recorded ones: the first ones fill caches, measure kernels and compile."""

RECORDED = 3
SHOWN = 15
"""Operations in the table."""


@contextmanager
def profiling(wanted: bool, folder: Path, runtime: Runtime, steps: int) -> Iterator[Callable[[], None]]:
    """Inside, call what is given at the end of each step. After `WARM_UP` steps `RECORDED` ones are written to
    `folder/rank_<r>.json.gz`, by each rank, and the run goes on; what a run that ends earlier has recorded is written too.

    Args:
        wanted: False: nothing is recorded, and the call does nothing.
        steps: that this process will take; with few, those recorded come earlier.
    """
    if not wanted:
        yield _nothing
        return
    kinds = supported_activities() if runtime.device.type != "cpu" else {ProfilerActivity.CPU}
    before = max(0, min(WARM_UP, steps - RECORDED) - 1)  # the profiler itself warms up for one step

    def write(recorded: profile) -> None:
        path = folder / f"rank_{runtime.rank}.json.gz"
        try:
            with replacing(path) as temporary:
                recorded.export_chrome_trace(str(temporary))
        except OSError as error:
            log.warning("The trace could not be written (%s); training goes on.", error)
            return
        log.info("Trace for ui.perfetto.dev: %s\n%s", path, summary(recorded))

    with profile(
        activities=kinds,
        schedule=schedule(wait=before, warmup=1, active=RECORDED, repeat=1),
        on_trace_ready=write,
        record_shapes=True,
        acc_events=True,
    ) as profiler:
        yield profiler.step


def _nothing() -> None:
    """The end of a step that nobody profiles."""


def summary(recorded: profile) -> str:
    """The share of each label, as the host saw it, and the operations that took the most time."""
    averages = recorded.key_averages()
    spent = {event.key: event.cpu_time_total for event in averages if event.key in LABELS}
    total = sum(spent.values()) or 1.0
    shares = "  ".join(f"{name} {spent.get(name, 0.0) / total:.0%}" for name in LABELS)
    on_device = any(event.self_device_time_total for event in averages)
    order = "self_device_time_total" if on_device else "self_cpu_time_total"
    table = averages.table(sort_by=order, row_limit=SHOWN, max_name_column_width=48)
    return f"Of the host's time: {shares}\n{table}"
