"""Raw chunks read directly: a sidecar index gives random access to just the bytes of the frames needed.

The index is a folder `.parallax_index/<digest>/` beside the chunks (or in `$PARALLAX_CACHE`, else `~/.cache/parallax`,
where their folder is read-only). The digest covers name, size and time of every chunk, so a changed folder gets a new
index and a finished index is never written again: readers map its arrays, builders rename a whole folder into place.

Public: ChunkScenes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from tqdm import tqdm

from ..config import ConfigError
from ..files import exclusive, writable, write_bytes
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
from .parallel import parallel_map
from .scene import FrameError, SceneError, camera_problem
from .transforms import image_header

log = logging.getLogger(__name__)

FORMAT = 1
"""Version of the index files; part of the digest."""

FRAME = np.dtype(
    [
        ("offset", "<i8"),
        ("size", "<i8"),
        ("width", "<i4"),
        ("height", "<i4"),
        ("status", "u1"),
        ("camera", "<f4", 18),
    ]
)
"""One frame: where its bytes are in the chunk, size of the picture in pixels, place in `STATUS`, stored camera."""

STATUS = ("", "no image bytes", "not a JPEG, PNG or WebP picture")

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
        shift = first_storage_offset(file) - min(_addresses(chunk), default=0)
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


def _addresses(item: object) -> list[int]:
    """Where in memory the storages below `item` begin."""
    if isinstance(item, dict):
        item = list(item.values())
    if isinstance(item, list | tuple):
        return [address for entry in item for address in _addresses(entry)]
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
    """Index all chunks and rename the result to `target`; a finished one made meanwhile by others is kept.

    Raises:
        ChunkError: there is not a single usable scene.
    """
    results: dict[Path, tuple] = {}
    with tqdm(
        total=len(chunks), unit="chunk", desc=f"indexing {folder.name}", disable=len(chunks) < 16
    ) as bar:
        for path, result in parallel_map(index_chunk, chunks, min(num_processes, len(chunks) // 4)):
            results[path] = result
            bar.update()
    found: dict[str, tuple[int, np.ndarray]] = {}
    problems: list[tuple[str, str]] = []
    for number, path in enumerate(chunks):
        names, tables, troubles = results[path]
        problems += troubles
        for name, table in zip(names, tables):
            if name in found:
                problems.append((path.name, f"scene {name} is already in {chunks[found[name][0]].name}"))
            else:
                found[name] = (number, table)
    if not found:
        raise ChunkError(f"{folder}: none of its {len(chunks)} chunks gives a scene; {problems[0][1]}")
    order = sorted(found, key=lambda name: f"{name}.json")  # as full_list.txt is sorted
    first = np.cumsum([0, *(len(found[name][1]) for name in order)])
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    try:
        np.save(partial / "names.npy", np.array(order, dtype=np.str_))
        np.save(partial / "chunk.npy", np.array([found[name][0] for name in order], dtype=np.int32))
        np.save(partial / "first.npy", first.astype(np.int64))
        frames = np.lib.format.open_memmap(partial / "frames.npy", "w+", FRAME, (int(first[-1]),))
        for name, start in zip(order, first):  # written in place: all frames of a large set take a gigabyte
            frames[start : start + len(found[name][1])] = found[name][1]
        frames.flush()
        summary = {"format": FORMAT, "folder": str(folder.resolve()), "problems": problems}
        write_bytes(partial / "index.json", json.dumps(summary, indent=1).encode())
        if not (target / "index.json").exists():
            os.rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


# ----------------------------------------------------------------------------------------------- finding


def _stamps(chunks: list[Path]) -> list[tuple[str, int, int]]:
    stats = [(path.name, path.stat()) for path in chunks]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _home(folder: Path) -> Path:
    """The folder that holds the indices of a chunk folder."""
    beside = folder / ".parallax_index"
    if writable(beside if beside.is_dir() else folder):
        return beside
    cache = Path(os.environ.get("PARALLAX_CACHE") or Path.home() / ".cache" / "parallax")
    return cache / "chunk_index" / hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]


def _prepare(folder: Path, chunks: list[Path], stamps: list, num_processes: int) -> Path:
    """Folder of the finished index for these chunks, built if need be by one process while others wait."""
    digest = hashlib.sha256(json.dumps([FORMAT, stamps]).encode()).hexdigest()[:16]
    beside, home = folder / ".parallax_index" / digest, _home(folder)
    for target in (beside, home / digest):
        if (target / "index.json").exists():
            return target
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder} is read-only and the index of its chunks cannot go to {home} ({error.strerror}): "
            "set PARALLAX_CACHE in the environment to a folder that can be written."
        ) from error
    target = home / digest
    with exclusive(home / "lock", wait=True):
        if not (target / "index.json").exists():
            _build(folder, chunks, target, num_processes)
            for old in home.iterdir():
                if old.is_dir() and old != target:
                    shutil.rmtree(old, ignore_errors=True)
    return target


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
