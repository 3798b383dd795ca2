"""Files that are whole or absent, and folders with one writer at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

_NO_LOCKS_HERE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""What file systems without locks answer."""


def write_whole(path: Path, content: bytes, *, sync: bool = False) -> None:
    """Write a file under a temporary name, then rename it. `sync` waits until its content is on the disk."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(content)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    os.replace(partial, path)


@contextlib.contextmanager
def exclusive(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock file `path`; the system frees it when the process ends, however it ends.

    Args:
        path: lock file, created if absent and left there.
        wait: wait for another holder instead of giving up.

    Yields:
        False if somebody else holds it (only with `wait=False`). File systems without locks count as free.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = True
        except OSError as error:
            held = error.errno in _NO_LOCKS_HERE
        yield held


def writable(folder: Path) -> bool:
    """Whether `folder` may be written to; one without any write bit counts as read-only even for root."""
    return bool(folder.stat().st_mode & 0o222) and os.access(folder, os.W_OK)
