"""Raw chunks read directly: a sidecar index gives random access to just the bytes of the frames needed.

The index is a folder `.parallax_index/<digest>/` beside the chunks (or in `$PARALLAX_CACHE`, else `~/.cache/parallax`,
where their folder is read-only), of the form told in `index_files`. The digest covers name, size and time of every chunk,
so a changed folder gets a new index.

Public: ChunkScenes, ChunkScene, HEAD_BYTES, addresses.
"""

from __future__ import annotations

import json
import logging
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ..files import writable
from ..torch_files import is_zip
from . import packed
from .chunks import (
    ChunkError,
    RawScene,
    find_chunks,
    first_storage_offset,
    frame_camera,
    open_chunk,
    raw_scenes,
    unpacked,
)
from .index_files import (
    BESIDE,
    FRAME,
    STATUS,
    cached_home,
    digest_of,
    index_all,
    made_once,
    tell_copies,
    write_index,
)
from .scene import FrameError, SceneError, camera_problem
from .transforms import image_header

log = logging.getLogger(__name__)

HEAD_BYTES = 2048
"""Read from each frame while indexing: enough for the size in the header of nearly every JPEG."""

TAIL_BYTES = 16
"""Read from the end of each frame while indexing, to check its place in the file."""

OPEN_CHUNKS, WHOLE_CHUNKS = 64, 2
"""Chunk files that one process keeps open, and packed ones that it keeps in memory as a whole."""


# ----------------------------------------------------------------------------------------------- building


def index_chunk(path: Path) -> tuple[list[str], list[np.ndarray], list[tuple[str, str]]]:
    """Names, frame tables [f] of `FRAME`, and problems (where, why) of one chunk.

    A chunk that cannot be used gives no scenes and one problem; every offset is checked against the file. Offsets in a
    packed chunk are those in what is packed.
    """
    if path.suffix != packed.SUFFIX:
        return _index_file(path, path)
    try:
        with unpacked(path) as plain:
            return _index_file(plain, path)
    except (ChunkError, OSError) as error:
        return [], [], [(path.name, str(error))]


def _index_file(file: Path, path: Path) -> tuple[list[str], list[np.ndarray], list[tuple[str, str]]]:
    """`index_chunk` of a plain file, which is called `path` in messages."""
    names: list[str] = []
    tables: list[np.ndarray] = []
    problems: list[tuple[str, str]] = []
    try:
        if not is_zip(file):
            open_chunk(file)  # a damaged file is reported as such
            raise ChunkError(f"{path} was written by an old torch.save: convert it with process_data.py")
        chunk = open_chunk(file)
        shift = first_storage_offset(file) - min(addresses(chunk), default=0)
        with file.open("rb") as opened:
            for scene in raw_scenes(chunk):
                if isinstance(scene, SceneError):
                    problems.append((path.name, str(scene)))
                else:
                    tables.append(_frame_table(scene, opened.fileno(), shift, path))
                    names.append(scene.key)
    except (ChunkError, OSError) as error:
        return [], [], [(path.name, str(error).replace(str(file), str(path)))]
    except (RuntimeError, ValueError, BadZipFile) as error:  # sparse tensors, a list in itself, a foreign zip
        return [], [], [(path.name, f"{path} is packed in an unknown way ({type(error).__name__})")]
    return names, tables, problems


def addresses(item: object) -> list[int]:
    """Where in memory the storages below `item` begin."""
    if isinstance(item, dict):
        item = list(item.values())
    if isinstance(item, list | tuple):
        return [address for entry in item for address in addresses(entry)]
    storage = getattr(item, "untyped_storage", None)
    return [storage().data_ptr()] if storage is not None and storage().nbytes() else []


def _frame_table(scene: RawScene, file: int, shift: int, path: Path) -> np.ndarray:
    """The chunk is mapped as it lies in the file: offset = address + shift, which is checked here."""
    table = np.zeros(len(scene.images), dtype=FRAME)
    table["camera"] = scene.cameras
    for row, image in zip(table, scene.images):
        if image is None:
            row["status"] = 1
            continue
        offset, size = image.data_ptr() + shift, image.numel()
        row["offset"], row["size"] = offset, size
        head = os.pread(file, min(HEAD_BYTES, size), offset)
        tail = os.pread(file, min(TAIL_BYTES, size), offset + size - min(TAIL_BYTES, size))
        if head != image[:HEAD_BYTES].numpy().tobytes() or tail != image[-TAIL_BYTES:].numpy().tobytes():
            raise ChunkError(f"{path} is packed in an unknown way: convert it with process_data.py")
        try:
            row["width"], row["height"], _ = _header(head, image)
        except ValueError:
            row["status"] = 2
    return table


def _header(head: bytes, image: Any) -> tuple[int, int, str]:
    try:
        return image_header(head)
    except ValueError:  # a long comment or colour profile may stand before the size
        return image_header(image.numpy().tobytes())


def _build(folder: Path, chunks: list[Path], target: Path, num_processes: int) -> None:
    """Index all chunks of a folder.

    Raises:
        ChunkError: there is not a single usable scene.
    """
    results = index_all(index_chunk, chunks, f"indexing {folder.name}", min(num_processes, len(chunks) // 4))
    write_index(str(folder.resolve()), [path.name for path in chunks], results, target)


# ----------------------------------------------------------------------------------------------- finding


def _stamps(chunks: list[Path]) -> list[tuple[str, int, int]]:
    stats = [(path.name, path.stat()) for path in chunks]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _home(folder: Path) -> Path:
    """The folder that holds the indices of a chunk folder."""
    beside = folder / BESIDE
    if writable(beside if beside.is_dir() else folder):
        return beside
    return cached_home(str(folder.resolve()))


def _prepare(folder: Path, chunks: list[Path], stamps: list, num_processes: int) -> Path:
    """Folder of the finished index for these chunks, built if need be by one process while others wait."""
    digest, beside, home = digest_of(stamps), folder / BESIDE, _home(folder)
    if home != beside and (beside / digest / "index.json").exists():
        return beside / digest  # made when the folder could still be written
    index = made_once(home, digest, lambda target: _build(folder, chunks, target, num_processes))
    if home == beside:
        tell_copies(home, digest, stamps)
    return index


class ChunkScenes:
    """The scenes of a folder of chunks. Implements `scene.Scenes`.

    Only paths travel to other processes; each maps the index and opens chunks for itself.
    """

    def __init__(self, folder: Path, num_processes: int = 0) -> None:
        """Open the index of `folder`, building it first where there is none for the chunks as they are now.

        Args:
            num_processes: processes for building; 0: one per processor.

        Raises:
            ConfigError: the folder holds no chunks.
            ChunkError: none of them gives a scene.
        """
        chunks = find_chunks(folder)
        self.folder = folder
        self.stamps = _stamps(chunks)
        self.index = _prepare(folder, chunks, self.stamps, num_processes or os.cpu_count() or 1)
        self._open()
        self.problems = [tuple(p) for p in json.loads((self.index / "index.json").read_bytes())["problems"]]
        if self.problems:
            where, why = self.problems[0]
            log.warning(
                "%s: %d chunks or scenes cannot be used; first %s: %s", folder, len(self.problems), where, why
            )

    def _open(self) -> None:
        self.names, self.chunk, self.first = (
            np.load(self.index / f"{name}.npy", allow_pickle=False) for name in ("names", "chunk", "first")
        )
        self.frames = np.load(self.index / "frames.npy", mmap_mode="r", allow_pickle=False)
        self.files: OrderedDict[int, PlainFile | packed.Packed] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("folder", "stamps", "index", "problems")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self.chunk)

    def __getitem__(self, position: int) -> ChunkScene:
        return ChunkScene(self, position)

    def read(self, chunk: int, offset: int, size: int) -> bytes:
        """`size` bytes of a chunk; FrameError if the file is gone or another than was indexed."""
        try:
            if chunk not in self.files:
                self.files[chunk] = self._open_chunk(chunk)
                while self._held() > OPEN_CHUNKS:
                    self.files.popitem(last=False)
            self.files.move_to_end(chunk)
            return self.files[chunk].read(size, offset)
        except OSError as error:
            raise FrameError(f"{self.folder / self.stamps[chunk][0]}: {error.strerror}") from error
        except ValueError as error:
            raise FrameError(f"{self.folder / self.stamps[chunk][0]} {error}") from error

    def _held(self) -> int:
        """Open chunks; one that is in memory as a whole counts as many."""
        return sum(
            OPEN_CHUNKS // WHOLE_CHUNKS if getattr(file, "whole", b"") else 1 for file in self.files.values()
        )

    def _open_chunk(self, chunk: int) -> PlainFile | packed.Packed:
        name, *stamp = self.stamps[chunk]
        path = self.folder / name
        opened = packed.Packed(path) if path.suffix == packed.SUFFIX else PlainFile(path)
        stat = path.stat()
        if [stat.st_size, stat.st_mtime_ns] != stamp:
            raise ValueError("has changed since it was indexed: start again")
        return opened


class PlainFile:
    """A file read at random places; it is closed when it is no longer used."""

    def __init__(self, path: Path) -> None:
        self.file = os.open(path, os.O_RDONLY)

    def read(self, size: int, offset: int) -> bytes:
        return os.pread(self.file, size, offset)

    def __del__(self) -> None:
        if hasattr(self, "file"):
            os.close(self.file)


class ChunkScene:
    """One scene of an indexed chunk. Implements `scene.Scene`."""

    posed = True

    def __init__(self, scenes: ChunkScenes, position: int) -> None:
        self.scenes = scenes
        self.name = str(scenes.names[position])
        self.chunk = int(scenes.chunk[position])
        self.frames = scenes.frames[int(scenes.first[position]) : int(scenes.first[position + 1])]
        self.num_frames = len(self.frames)

    def missing(self, frame: int) -> str:
        return STATUS[self.frames[frame]["status"]] or camera_problem(*self.camera(frame))

    def camera(self, frame: int) -> tuple[np.ndarray, np.ndarray]:
        row = self.frames[frame]
        return frame_camera(row["camera"], int(row["width"]), int(row["height"]))

    def encoded(self, frame: int) -> bytes:
        row = self.frames[frame]
        return self.scenes.read(self.chunk, int(row["offset"]), int(row["size"]))
