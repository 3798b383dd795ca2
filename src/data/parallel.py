"""The same function on many items, in several processes, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from multiprocessing import connection
from multiprocessing.synchronize import Event
from typing import Any

import torch

_stop: Event | None = None


def stopping() -> bool:
    """Inside a worker: the main process was interrupted, so finish the file in hand and return."""
    return _stop is not None and _stop.is_set()


def _start_worker(stop: Event) -> None:
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the main process, which sets `stop`
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    """Without this, workers of a killed main process would wait for work for ever, and hold its lock files."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def parallel_map(
    function: Callable[[Any], Any], items: Iterable[Any], num_processes: int, *, ahead: int = 2
) -> Iterator[tuple[Any, Any]]:
    """Yield (item, function(item)) as results come in; in the calling process if `num_processes` is 1.

    Args:
        function: a module-level function; works with every start method.
        ahead: items handed out per process before results are awaited.

    Raises:
        RuntimeError: a worker process died (BrokenProcessPool), e.g. for lack of memory.
    """
    if num_processes <= 1:
        for item in items:
            yield item, function(item)
        return
    context = multiprocessing.get_context()
    stop = context.Event()
    todo = iter(items)
    pool = ProcessPoolExecutor(num_processes, context, _start_worker, (stop,))
    try:
        running: dict[Future, Any] = {}
        while True:
            for item in islice(todo, num_processes * max(1, ahead) - len(running)):
                running[pool.submit(function, item)] = item
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
