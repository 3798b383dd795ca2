"""Pieces of bytes kept on the disk of this machine, within a bound that all its processes share.

The folder has `SHARES` parts, each with its share of the bound, a lock and a count of bytes. A piece is counted before it
is written, so after a kill the count is too high, never too low; the next clearing counts anew. What was used longest ago
goes first. It is a cache: whoever finds a lock taken, or the disk full, goes on without keeping the piece.

Public: ByteCache.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import zlib
from pathlib import Path

from ...files import exclusive

log = logging.getLogger(__name__)

SHARES = 64
KEPT_SHARE = 0.9
"""A part that is full is cleared down to this, so that not every further piece leads to a look at all files."""

FREE_SHARE = 0.05
"""Of the disk that is left to others, such as the checkpoints of a run."""

CHECK_BYTES = 4
"""At the end of each file: a checksum of the rest, as a power cut can leave a file of zeros."""

LOCK, COUNT, PARTIAL = "lock", "count", ".partial"


class ByteCache:
    """Pieces by key. Any number of processes may use a folder at once; any of them may be killed at any time."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        """most_bytes: of all files together. Pieces larger than a 64th of it are not kept; 0 keeps and reads nothing."""
        self.folder, self.share = folder, most_bytes // SHARES
        self.told = False

    def get(self, key: str, size: int) -> bytes | None:
        """The piece of that key and size; None if it is not there. Never raises."""
        if not self.share:
            return None
        path = self._path(key)
        try:
            content = path.read_bytes()
            os.utime(path)  # the time of its last use
        except OSError:
            return None
        data, check = content[:-CHECK_BYTES], content[-CHECK_BYTES:]
        return data if len(data) == size and _checksum(data) == check else None

    def put(self, key: str, data: bytes) -> None:
        """Keep a piece, if there is room and nobody else is writing just now. Never raises."""
        size = len(data) + CHECK_BYTES
        if size > self.share:
            return
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with exclusive(path.parent / LOCK, wait=False) as free:
                disk = shutil.disk_usage(path.parent)
                if disk.free < disk.total * FREE_SHARE:
                    raise OSError(errno.ENOSPC, f"less than {FREE_SHARE:.0%} of the disk are free")
                if free and _make_room(path.parent, size, self.share):
                    partial = path.parent / PARTIAL
                    partial.write_bytes(data + _checksum(data))
                    partial.replace(path)
        except OSError as error:
            if not self.told:
                log.warning("%s: pictures are not kept here: %s.", self.folder, error.strerror)
            self.told = True

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / f"{int(name[:4], 16) % SHARES:02d}" / name[:32]


def _checksum(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(CHECK_BYTES, "little")


def _make_room(part: Path, size: int, most: int) -> bool:
    """Count `size` bytes more in a part, whose lock is held, and delete what was used longest ago if it has too many.

    False if there is no room for them.
    """
    used = _count(part)
    if used is None or used + size > most:
        used = _clear(part, min(most - size, int(most * KEPT_SHARE)))
    if used + size > most:
        return False
    (part / COUNT).write_text(str(used + size))
    return True


def _count(part: Path) -> int | None:
    try:
        return int((part / COUNT).read_text())
    except (OSError, ValueError):  # the first time, or cut off by a kill
        return None


def _clear(part: Path, most: int) -> int:
    """Delete until at most so many bytes are left; their number."""
    (part / PARTIAL).unlink(missing_ok=True)  # of a process that was killed
    files = []
    with os.scandir(part) as entries:
        for entry in entries:
            if entry.name not in (LOCK, COUNT):
                stat = entry.stat()
                files.append((stat.st_mtime_ns, stat.st_size, entry.path))
    used = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if used <= most:
            break
        os.unlink(path)
        used -= size
    return used
