"""One life of a training run: its processes, from their start until they are killed or end.

The processes are forked from this one, which has imported everything already, so that a life starts in some tenths of a
second; each gets the environment that torchrun would give it. Or torchrun itself starts them, in ten times the time.

Public: Life, ForkedLife, TorchrunLife, LAUNCHERS, warm_up.
"""

from __future__ import annotations

import importlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import traceback
from abc import ABC, abstractmethod
from pathlib import Path

import torch

from ..train import main as train

POLL_S = 0.005
CHILDREN = "/proc/{pid}/task/{pid}/children"

IMPORTED_LATE = ("torch._dynamo", "torch.utils.tensorboard", "torch.nn.parallel.distributed")
"""What a training imports only once it runs; some seconds of every life, unless they are there before it is forked."""


def warm_up() -> None:
    """Import all that a life needs, and no threads: what a forked process cannot take along."""
    torch.set_num_threads(1)
    for name in IMPORTED_LATE:
        importlib.import_module(name)


class Life(ABC):
    """Processes of one start.

    log: file that gets what they say. began: seconds since 1970.
    """

    def __init__(self, config: Path, world: int, log: Path) -> None:
        self.config, self.world, self.log = config, world, log
        self.began = time.time()

    @abstractmethod
    def ranks(self) -> list[int]:
        """Process ids of the ranks, as far as they have started; rank 0 first."""

    @abstractmethod
    def ended(self) -> bool:
        """Whether no process is left."""

    @property
    @abstractmethod
    def status(self) -> int:
        """Exit status after the end: the first one that is not 0, negative for a signal."""

    @abstractmethod
    def kill(self) -> None:
        """SIGKILL to all processes, loader workers included."""

    def kill_rank(self, rank: int) -> None:
        """SIGKILL to one rank alone; its loader workers notice some seconds later."""
        os.kill(self.ranks()[rank], signal.SIGKILL)

    def limit_files(self, num_bytes: int) -> None:
        """From now on, no file of rank 0 can grow beyond so many bytes; -1: lifted."""
        _, hard = resource.prlimit(self.ranks()[0], resource.RLIMIT_FSIZE)
        resource.prlimit(self.ranks()[0], resource.RLIMIT_FSIZE, (num_bytes, hard))

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end; False: it did not come in time."""
        until = time.monotonic() + timeout_s
        while not self.ended():
            if time.monotonic() > until:
                return False
            time.sleep(POLL_S)
        return True

    def said(self) -> str:
        """Everything that the processes of this life wrote."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""


class ForkedLife(Life):
    """Copies of this process that train."""

    def __init__(self, config: Path, world: int, log: Path) -> None:
        super().__init__(config, world, log)
        port = _free_port()
        self._pids = [self._fork(rank, port) for rank in range(world)]
        self._statuses: dict[int, int] = {}

    def _fork(self, rank: int, port: int) -> int:
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            os.setpgid(0, 0)  # with its loader workers
            descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            if self.world > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(self.world)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            status = train(["--config", str(self.config)])
        except BaseException as error:
            traceback.print_exception(error)
            raise
        finally:
            os._exit(status)  # past everything that this copy inherited

    def ranks(self) -> list[int]:
        return self._pids

    def ended(self) -> bool:
        for pid in self._pids:
            if pid not in self._statuses:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self._statuses[pid] = os.waitstatus_to_exitcode(status)
        return len(self._statuses) == len(self._pids)

    @property
    def status(self) -> int:
        return next((status for status in self._statuses.values() if status), 0)

    def kill(self) -> None:
        for pid in self._pids:
            if pid not in self._statuses:
                os.killpg(pid, signal.SIGKILL)


class TorchrunLife(Life):
    """torchrun and the ranks it starts."""

    def __init__(self, config: Path, world: int, log: Path) -> None:
        super().__init__(config, world, log)
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={world}", "--standalone"]
        with log.open("ab") as file:
            self._launcher = subprocess.Popen(
                [*command, "-m", "src.train", "--config", str(config)],
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def ranks(self) -> list[int]:
        children = Path(CHILDREN.format(pid=self._launcher.pid))
        return [int(pid) for pid in children.read_text().split()] if children.is_file() else []

    def ended(self) -> bool:
        return self._launcher.poll() is not None

    @property
    def status(self) -> int:
        return self._launcher.returncode

    def kill(self) -> None:
        os.killpg(self._launcher.pid, signal.SIGKILL)

    def kill_launcher(self) -> None:
        """SIGKILL to torchrun alone: the ranks go on without it."""
        self._launcher.kill()


LAUNCHERS: dict[str, type[Life]] = {"fork": ForkedLife, "torchrun": TorchrunLife}


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
