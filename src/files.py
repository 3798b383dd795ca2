"""Files that are either whole or not there, and folders with one writer at a time.

Public: replacing, write_text, write_bytes, exclusive, writable.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_LOCKS_HERE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""What file systems without locks answer."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, with the same suffix; it becomes `path` if the block ends without an error.

    Folders that are missing are made. After an error nothing is left behind and an older `path` is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text in one step."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: str | Path, content: bytes, *, sync: bool = False) -> None:
    """Write a file in one step. `sync` waits until its content is on the disk."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        if sync:
            file.flush()
            os.fsync(file.fileno())


@contextmanager
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
