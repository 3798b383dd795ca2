"""Files that are either whole or not there, lines that are, reading that ends, and folders with one writer at a time.

Public: replacing, write_text, write_bytes, require_regular, read_bytes, parse_json, read_json, sync_to_disk, Lines, exclusive, claim, writable, user_cache.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

_NO_LOCKS_HERE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""What file systems without locks answer."""


LOCK_POLL_S = 0.2
"""Between two looks at a lock that somebody else holds."""

MOST_DIGITS = 100
"""Of a whole number in a JSON file."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, with the same suffix; it becomes `path` if the block ends without an error.

    Folders that are missing are made. After an error nothing is left behind and an older `path` is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        temporary.unlink()
        yield temporary
        temporary.chmod(mode)  # safetensors makes files that nobody else may read
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


def sync_to_disk(path: str | Path) -> None:
    """Return when a file, or the names in a folder, are on the disk and not only in the system's memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Lines:
    """A text file that grows by whole lines: one that a kill or a full disk cut off is taken back."""

    def __init__(self, path: Path) -> None:
        """Open `path`, made if missing; an incomplete last line is cut off. Raises OSError."""
        self._file = path.open("a+b", buffering=0)
        self._file.seek(0)
        size = end = 0
        for line in self._file:
            size += len(line)
            end = size if line.endswith(b"\n") else end
        self._file.truncate(end)

    def append(self, line: str) -> None:
        """Write one line, given without its end. After an error nothing of it is in the file. Raises OSError."""
        content, before = f"{line}\n".encode(), os.fstat(self._file.fileno()).st_size
        try:
            while content:
                content = content[self._file.write(content) :]
        except OSError:
            self._file.truncate(before)
            raise

    def close(self) -> None:
        self._file.close()


def require_regular(path: str | Path) -> None:
    """Raises OSError for a pipe, which would be waited for, and for a device, which may never end."""
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):  # a folder has an error of its own
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_bytes(path: str | Path) -> bytes:
    """Content of a regular file.

    Raises:
        OSError: it cannot be read, or `require_regular` refuses it.
        ValueError: the path holds a null byte.
    """
    require_regular(path)
    return Path(path).read_bytes()


def parse_json(content: bytes) -> Any:
    """The value of a JSON text from somebody else; ValueError, one line, for whatever is wrong with it."""
    try:
        return json.loads(content, parse_int=_int)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _int(digits: str) -> int:
    """One that a float can hold, as all that computes with it takes for granted."""
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def read_json(path: str | Path) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON; the message does not name the file.
    """
    return parse_json(read_bytes(path))


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
        yield _locked(file, wait)


def claim(path: Path, wait_s: float) -> TextIO | None:
    """Take the lock file `path` for as long as the returned file is open; the system frees it when the process ends.

    Who holds it stands in the file. File systems without locks count as free.

    Args:
        wait_s: how long to wait for another holder.

    Returns:
        the open file, or None if somebody else still holds it.
    """
    file, until = path.open("a"), time.monotonic() + wait_s
    while not _locked(file, wait=False):
        if time.monotonic() > until:
            file.close()
            return None
        time.sleep(LOCK_POLL_S)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def _locked(file: TextIO, wait: bool) -> bool:
    """Try to lock an open file; whether it is locked, or cannot be here."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        return error.errno in _NO_LOCKS_HERE
    return True


def writable(folder: Path) -> bool:
    """Whether `folder` may be written to; one without any write bit counts as read-only even for root."""
    return bool(folder.stat().st_mode & 0o222) and os.access(folder, os.W_OK)


def user_cache() -> Path:
    """The user's folder for what can be made again; it need not be there yet."""
    return Path(os.environ.get("PARALLAX_CACHE") or Path.home() / ".cache" / "parallax")
