"""A local file as long as a remote one in which only the parts that are needed are filled in; the rest takes no room.

With the directory of the zip, all small records and the place of each tensor filled in, torch opens a chunk of which
a hundredth was fetched, and maps its tensors where they lie in the whole file.

Public: PartialCopy, fill_zip.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..chunks import ChunkError
from .folder import RemoteFolder
from .source import RemoteFile

BLOCK_BYTES = 2**14
"""Fetched and noted by whole blocks; neighbours come in one request."""

TAIL_BYTES = 2**18
"""Of a zip, to begin with: holds the directory of a usual chunk."""

MOST_BYTES = 2**28
"""Of one chunk, for its index."""

CONNECTIONS = 8

HEADER_BYTES, ALIGNMENT, PADDING_BYTES = 30, 64, 4
"""torch.save writes a fixed header, the name and padding of at least 4 bytes before a record, which begins at a multiple
of 64."""


class PartialCopy:
    """`path` holds the bytes of a remote file wherever `need` was asked for them; elsewhere zeros."""

    def __init__(self, folder: RemoteFolder, file: RemoteFile, path: Path) -> None:
        """Make the file. Raises OSError if it cannot be that long here."""
        self.folder, self.file, self.path = folder, file, path
        self.filled: set[int] = set()
        with path.open("wb") as made:
            made.truncate(file.size)
        self.opened = path.open("r+b", buffering=0)

    def close(self) -> None:
        self.opened.close()

    def need(self, spans: Iterable[tuple[int, int]]) -> None:
        """Fetch what is missing of these (offset, size).

        Raises:
            RemoteError: it did not come.
            ChunkError: they lie outside of the file, or are more than an index takes.
        """
        spans = [(offset, min(size, self.file.size - offset)) for offset, size in spans]
        if any(offset < 0 or size < 0 for offset, size in spans):
            raise ChunkError("it is damaged: parts of it lie outside of it")
        if sum(size for _, size in spans) + len(self.filled) * BLOCK_BYTES > MOST_BYTES:
            raise ChunkError(f"more than {MOST_BYTES >> 20} MiB of it would be needed for its index")
        wanted = {
            block
            for offset, size in spans
            for block in range(offset // BLOCK_BYTES, -(-(offset + size) // BLOCK_BYTES))
        }
        missing = sorted(wanted - self.filled)
        runs: list[list[int]] = []
        for block in missing:
            if runs and runs[-1][1] == block:
                runs[-1][1] += 1
            else:
                runs.append([block, block + 1])
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(self._fetch, runs))
        self.filled |= wanted

    def _fetch(self, run: list[int]) -> None:
        start = run[0] * BLOCK_BYTES
        self.write(
            start, self.folder.read(self.file, start, min(run[1] * BLOCK_BYTES, self.file.size) - start)
        )

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes where the remote file has, or would have, them."""
        os.pwrite(self.opened.fileno(), data, offset)

    def read(self, offset: int, size: int) -> bytes:
        """What `need` brought."""
        return os.pread(self.opened.fileno(), size, offset)


class _Reading(io.RawIOBase):
    """A partial copy as a file that fetches what is read."""

    def __init__(self, copy: PartialCopy) -> None:
        self.copy, self.place = copy, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.copy.file.size}[whence]
        self.place = max(0, base + offset)
        return self.place

    def tell(self) -> int:
        return self.place

    def read(self, size: int = -1) -> bytes:
        left = max(0, self.copy.file.size - self.place)
        size = left if size < 0 else min(size, left)
        self.copy.need([(self.place, size)])
        data = self.copy.read(self.place, size)
        self.place += len(data)
        return data


def fill_zip(copy: PartialCopy) -> None:
    """Fetch all of a file of torch.save except the tensors.

    The header before each tensor follows from the directory, and is written instead of fetched: they are spread over the
    whole file. Where the file was packed in another way than torch's they are fetched.

    Raises:
        BadZipFile: it is none. RemoteError, ChunkError: see `need`.
    """
    copy.need([(0, BLOCK_BYTES), (max(0, copy.file.size - TAIL_BYTES), TAIL_BYTES)])
    with zipfile.ZipFile(_Reading(copy)) as archive:
        records = sorted(archive.infolist(), key=lambda record: record.header_offset)
        end = archive.start_dir
    ends = [*(record.header_offset for record in records[1:]), end]
    is_tensor = [record.filename.split("/")[-2:-1] == ["data"] for record in records]
    copy.need(
        (record.header_offset, after - record.header_offset)
        for record, after, tensor in zip(records, ends, is_tensor)
        if not tensor
    )
    tensors = [(record, after) for record, after, tensor in zip(records, ends, is_tensor) if tensor]
    copy.need((record.header_offset, HEADER_BYTES) for record, _ in tensors[:1])
    if all(_fits(record, after) for record, after in tensors) and _as_written(copy, tensors):
        for record, _ in tensors:
            copy.write(record.header_offset, _header(record))
    else:
        copy.need((record.header_offset, HEADER_BYTES) for record, _ in tensors)


def _name(record: zipfile.ZipInfo) -> bytes:
    return record.orig_filename.encode("utf-8" if record.flag_bits & 0x800 else "cp437")


def _start(record: zipfile.ZipInfo) -> int:
    """Where in the file a record of torch.save begins."""
    least = record.header_offset + HEADER_BYTES + len(_name(record)) + PADDING_BYTES
    return -(-least // ALIGNMENT) * ALIGNMENT


def _fits(record: zipfile.ZipInfo, after: int) -> bool:
    """Whether the record then ends where the next thing in the file begins; a descriptor may stand between."""
    between = (16, 24) if record.flag_bits & 8 else (0,)
    return record.header_offset >= 0 and after - _start(record) - record.file_size in between


def _header(record: zipfile.ZipInfo) -> bytes:
    """The part of a record's header that tells where its content begins, and its name."""
    name = _name(record)
    padding = _start(record) - record.header_offset - HEADER_BYTES - len(name)
    lengths = len(name).to_bytes(2, "little") + padding.to_bytes(2, "little")
    return b"PK\x03\x04".ljust(HEADER_BYTES - 4, b"\0") + lengths + name


def _as_written(copy: PartialCopy, tensors: list[tuple[zipfile.ZipInfo, int]]) -> bool:
    """Whether the first tensor's own header says what was made of the directory."""
    return all(
        copy.read(record.header_offset + HEADER_BYTES - 4, 4)
        == _header(record)[HEADER_BYTES - 4 : HEADER_BYTES]
        for record, _ in tensors[:1]
    )
