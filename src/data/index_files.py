"""How an index of chunks is kept: five files in a folder named after the state of the chunks.

    .parallax_index/
        <digest>/   names.npy  chunk.npy  first.npy   of each scene: name, number of its chunk, its first row in frames.npy
                    frames.npy                        a `FRAME` for each frame
                    index.json                        format, and what could not be used
        chunks.json                                   which digest belongs to which chunks, for copies on servers

A finished index is never written again: readers map its arrays, builders rename a whole folder into place.

Public: FORMAT, FRAME, STATUS, BESIDE, CHUNK_LIST, ARRAYS, index_all, write_index, finishing, cached_home, digest_of, made_once, tell_copies.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..config import ConfigError
from ..files import exclusive, user_cache, write_bytes
from .chunks import ChunkError
from .parallel import parallel_map

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

ARRAYS = ("names", "chunk", "first", "frames")

BESIDE, CHUNK_LIST = ".parallax_index", "chunks.json"
"""Folder beside the chunks that holds their index, and the file in it that tells which one is that of which chunks."""

STATUS = ("", "no image bytes", "not a JPEG, PNG or WebP picture")


def index_all(work: Callable, chunks: list, label: str, num_processes: int) -> list[tuple]:
    """`work(chunk)` for each chunk, in their order; several at once, with a progress bar for many."""
    results: dict[Any, tuple] = {}
    with tqdm(total=len(chunks), unit="chunk", desc=label, disable=len(chunks) < 16) as bar:
        for chunk, result in parallel_map(work, chunks, num_processes):
            results[chunk] = result
            bar.update()
    return [results[chunk] for chunk in chunks]


def write_index(label: str, chunks: list[str], results: list[tuple], target: Path) -> None:
    """Join what `index_chunk` found in each chunk and rename the result to `target`; a finished one stays.

    Args:
        label: what was indexed, for people.
        chunks: names.

    Raises:
        ChunkError: there is not a single usable scene.
    """
    found: dict[str, tuple[int, np.ndarray]] = {}
    problems: list[tuple[str, str]] = []
    for number, (chunk, (names, tables, troubles)) in enumerate(zip(chunks, results)):
        problems += troubles
        for name, table in zip(names, tables):
            if name in found:
                problems.append((chunk, f"scene {name} is already in {chunks[found[name][0]]}"))
            else:
                found[name] = (number, table)
    if not found:
        raise ChunkError(f"{label}: none of its {len(chunks)} chunks gives a scene; {problems[0][1]}")
    order = sorted(found, key=lambda name: f"{name}.json")  # as full_list.txt is sorted
    first = np.cumsum([0, *(len(found[name][1]) for name in order)])
    with finishing(target) as partial:
        np.save(partial / "names.npy", np.array(order, dtype=np.str_))
        np.save(partial / "chunk.npy", np.array([found[name][0] for name in order], dtype=np.int32))
        np.save(partial / "first.npy", first.astype(np.int64))
        frames = np.lib.format.open_memmap(partial / "frames.npy", "w+", FRAME, (int(first[-1]),))
        for name, start in zip(order, first):  # written in place: all frames of a large set take a gigabyte
            frames[start : start + len(found[name][1])] = found[name][1]
        frames.flush()
        summary = {"format": FORMAT, "folder": label, "problems": problems}
        write_bytes(partial / "index.json", json.dumps(summary, indent=1).encode())


@contextmanager
def finishing(target: Path) -> Iterator[Path]:
    """A folder for the files of an index, which becomes `target` at the end unless others have made that meanwhile."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    try:
        yield partial
        if not (target / "index.json").exists():
            os.rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def cached_home(label: str) -> Path:
    """The folder in the user's cache that holds the indices of chunks that lie elsewhere."""
    return user_cache() / "chunk_index" / hashlib.sha256(label.encode()).hexdigest()[:16]


def digest_of(stamps: list) -> str:
    """Name of the index of chunks in this state: (name, size, time or the like)."""
    return hashlib.sha256(json.dumps([FORMAT, stamps]).encode()).hexdigest()[:16]


def made_once(home: Path, digest: str, build: Callable[[Path], None]) -> Path:
    """The folder `home/digest`, made by `build(target)` in one process while others wait; older ones are deleted."""
    target = home / digest
    if (target / "index.json").exists():
        return target
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the chunks cannot have an index beside them, and it cannot go to {home} ({error.strerror}): "
            "set PARALLAX_CACHE in the environment to a folder that can be written."
        ) from error
    with exclusive(home / "lock", wait=True):
        if not (target / "index.json").exists():
            build(target)
            for old in home.iterdir():
                if old.is_dir() and old != target:
                    shutil.rmtree(old, ignore_errors=True)
    return target


def tell_copies(home: Path, digest: str, stamps: list) -> None:
    """Note which index belongs to which chunks, for copies of the folder on a server, where times are other ones."""
    content = {"format": FORMAT, "index": digest, "chunks": [[name, size] for name, size, _ in stamps]}
    text = json.dumps(content).encode()
    try:
        if not (home / CHUNK_LIST).is_file() or (home / CHUNK_LIST).read_bytes() != text:
            write_bytes(home / CHUNK_LIST, text)
    except OSError as error:
        log.debug("%s: %s", home / CHUNK_LIST, error)
