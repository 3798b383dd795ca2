"""Items of a data set in the order of their keys, read ahead by loader processes that may die.

A loader process that is killed, most often for want of memory, is told with what it was reading, and reading goes on
where it stopped; what kills a process twice is given up with an error. Signals to the whole process group leave loader
processes alone: the run stops them when it ends.

Public: ReadAhead, WorkerDied.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ..stopping import leave_signals_to_the_run

log = logging.getLogger(__name__)

DEATHS = 2
"""After so many dead processes a key is given up."""

DYING_S = 0.5
"""A process that was killed closes its connections a moment before it counts as dead."""

PARENT_POLL_S = 0.5
"""How often a loader process looks whether the run still lives."""


class WorkerDied(RuntimeError):
    """Loader processes died while they read what belongs to `key`, which is passed over."""

    def __init__(self, message: str, key: Any) -> None:
        super().__init__(message)
        self.key = key


@dataclass
class _Task:
    """A key that was handed out and whose item did not come back yet. number: among all keys, from 0."""

    key: Any
    number: int
    deaths: int = 0


class ReadAhead:
    """Iterator of `samples[key]` for each key, in their order. Start it where its processes may be forked."""

    def __init__(
        self,
        samples: Dataset,
        keys: Iterable[Any],
        *,
        num_workers: int,
        prefetch_factor: int,
        pin: bool,
        describe: Callable[[Any], str],
    ) -> None:
        """
        Args:
            samples: read in the loader processes.
            keys: may be endless; drawn in this process.
            num_workers: 0 reads in this process.
            prefetch_factor: items that each process may hold ready.
            pin: hand out page-locked tensors.
            describe: names the scenes of a key, for messages.
        """
        self.samples, self.describe = samples, describe
        self.num_workers, self.prefetch_factor, self.pin = num_workers, prefetch_factor, pin
        self._rest = iter(keys)
        self._tasks: deque[_Task] = deque()
        self._count = 0
        self._items = _Noting(samples, num_workers)
        self._loader: Any = None
        self._stop: Callable[[], Any] = lambda: None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """The next item.

        Raises:
            WorkerDied: there is none for a key, as for any other error of a reading; the next call goes on with the key
                after it.
        """
        while True:
            if self._tasks and self._tasks[0].deaths >= DEATHS:
                task = self._tasks.popleft()
                scenes = self.describe(task.key)
                raise WorkerDied(f"{DEATHS} loader processes died while they read {scenes}", task.key)
            if self._loader is None:
                self._start()
            try:
                item = next(self._loader)
            except StopIteration:
                if self._tasks:  # the last keys, of which one was given up
                    self.close()
                    continue
                raise
            except Exception as error:
                if isinstance(error, EOFError | ConnectionError):
                    time.sleep(
                        DYING_S
                    )  # between announcing an item and handing it over a process died, or still dies
                if isinstance(error, RuntimeError | EOFError | ConnectionError) and self._bury():
                    continue
                if self._tasks:
                    self._tasks.popleft()  # its reading failed; the next call goes on with the one after it
                raise
            self._tasks.popleft()
            return item

    def close(self) -> None:
        """Stop the processes; also done when this is no longer used, and when the program ends."""
        self._stop()
        self._loader = None

    def _start(self) -> None:
        options = {"prefetch_factor": self.prefetch_factor} if self.num_workers else {}
        # What is loaded now stays shared with the processes: without this, each one's garbage collection writes into all
        # objects of the run, and so makes a copy of them.
        gc.collect()
        gc.freeze()
        self._loader = iter(
            DataLoader(
                self._items,
                batch_size=None,  # a key stands for a whole batch
                sampler=self._keys(),
                collate_fn=_unchanged,
                num_workers=self.num_workers,
                worker_init_fn=_begin,
                pin_memory=self.pin,
                generator=torch.Generator(),  # its seed for workers must not come from the run's own generator
                **options,
            )
        )
        gc.unfreeze()
        if not self.num_workers:
            return
        # Left to itself, multiprocessing would wait for ever at exit for processes that ignore signals.
        self._stop = weakref.finalize(self, _kill, self._loader)
        if threading.current_thread() is threading.main_thread():
            # torch's own handler raises an error wherever the program stands when a process dies, in the middle of a
            # step or of a save. Without it a death is found here, some seconds after the items have run out.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def _keys(self) -> Iterator[tuple[int, Any]]:
        """Numbers and keys, first those that were handed out to processes that died."""
        for task in [task for task in self._tasks if task.deaths < DEATHS]:
            yield task.number, task.key
        for key in self._rest:
            self._tasks.append(_Task(key, self._count))
            self._count += 1
            yield self._tasks[-1].number, key

    def _bury(self) -> bool:
        """Whether processes have died: then tell it, note what they were reading and stop the others."""
        dead = {
            n: w.exitcode for n, w in enumerate(getattr(self._loader, "_workers", ())) if not w.is_alive()
        }
        dead = {number: code for number, code in dead.items() if code}
        if not (dead and self._tasks):
            return False
        open_tasks = {task.number: task for task in self._tasks if task.deaths < DEATHS}
        for worker, code in dead.items():
            task = open_tasks.get(int(self._items.begun[worker]))
            what = self.describe(task.key) if task else "nothing"
            # Without a culprit the first in line gets the blame: processes that cannot even start are not started for ever.
            (task or self._tasks[0]).deaths += 1
            how = signal.Signals(-code).name if code < 0 else f"status {code}"
            hint = " Is the machine out of memory? Lower training.num_workers or prefetch_bytes."
            log.error(
                "A loader process died (%s) while it read %s.%s",
                how,
                what,
                hint if code == -signal.SIGKILL else "",
            )
        self.close()
        return True


class _Noting(Dataset):
    """Items of a data set. The number of the one that each process began last stands where the run can see it.

    What a process has finished may die with it, on its way to the run: that an item did not come back says nothing.
    """

    def __init__(self, samples: Dataset, num_workers: int) -> None:
        self.samples = samples
        self.begun = torch.full((max(1, num_workers),), -1).share_memory_()

    def __getitem__(self, task: tuple[int, Any]) -> Any:
        number, key = task
        worker = get_worker_info()
        self.begun[worker.id if worker else 0] = number
        return self.samples[key]


def _kill(loader: Any) -> None:
    """Stop loader processes without waiting for what they read."""
    for worker in loader._workers:
        worker.kill()
    loader._shutdown_workers()


def _begin(_: int) -> None:
    """First thing in a loader process: it leaves signals to the run, and ends with it however that ends.

    torch's own watch is not enough: after a SIGKILL to the run the process leaves its loop and then waits for ever to
    hand over items that nobody takes, and with it live the files and locks that it got from the run.
    """
    leave_signals_to_the_run()
    run = multiprocessing.parent_process()
    if run is not None:
        threading.Thread(target=_end_with, args=(run.pid,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    os._exit(1)


def _unchanged(item: Any) -> Any:
    return item
