"""What a connection to a folder behind a URL offers, and how it fails.

Public: within, RemoteError, OutOfTime, Refused, Absent, SourceLost, RemoteFile, Source.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class RemoteError(ValueError):
    """A request that failed and may succeed when it is repeated; the text belongs behind the name of the file."""


class OutOfTime(RemoteError):
    """It did not end within its time limit."""


class Refused(RemoteError):
    """Asking again does not help."""


class Absent(Refused):
    """There is no such file."""


class SourceLost(OSError):
    """Nothing that was asked for came for `training.remote.patience_s`: no frame of this source can be hoped for."""


@dataclass(frozen=True)
class RemoteFile:
    """A file and the state it is in. tag: ETag, time or the like, which changes with the content; "" if none is told."""

    name: str
    size: int
    tag: str = ""


class Source(Protocol):
    """One connection to a folder, of one process. Each method makes one attempt and ends within the time limit.

    All raise RemoteError; `names` gives None where files cannot be listed. `read` may give fewer bytes only by raising.
    """

    def names(self) -> list[str] | None: ...

    def stat(self, name: str) -> RemoteFile: ...

    def read(self, name: str, offset: int, size: int) -> tuple[bytes, RemoteFile]: ...


def within(seconds: float, work: Callable[[], T]) -> T:
    """What `work()` returns or raises; OutOfTime if it takes longer. Its thread is then left behind, as nothing could end
    it.
    """
    result: dict[str, Any] = {}

    def run() -> None:
        try:
            result["value"] = work()
        except Exception as error:  # raised again below, where somebody listens
            result["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if "error" in result:
        raise result["error"]
    if "value" not in result:
        raise OutOfTime(f"gave no answer for {seconds:g} s")
    return result["value"]
