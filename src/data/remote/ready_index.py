"""An index that lies ready beside the chunks on a server: which chunks it is of, and fetching it.

It comes from strangers: plain arrays only, all of whose numbers are checked.

Public: is_chunk, ready_made, fetch_index.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tokenize import TokenError

import numpy as np
from tqdm import tqdm

from ...config import ConfigError
from ...files import parse_json, write_bytes
from ..chunks import key_problem
from ..index_files import ARRAYS, BESIDE, CHUNK_LIST, FORMAT, FRAME, STATUS, finishing
from .folder import CONNECTIONS, PIECE_BYTES, RemoteFolder
from .source import Absent, Refused, RemoteError, RemoteFile

log = logging.getLogger(__name__)

LOOKED_AT = 8
"""Chunks whose sizes are compared with a ready-made index before the first sample; all others when they are read."""

ROWS = 2**20
"""Of frames that are checked at once."""


def is_chunk(name: object) -> bool:
    """Whether it is a plain file name, which leads nowhere else, of a chunk."""
    return not key_problem(name) and str(name).endswith(".torch")


def ready_made(folder: RemoteFolder) -> tuple[str, list[RemoteFile]] | None:
    """Digest and chunks of the index that lies beside the chunks; None if there is none that belongs to them."""
    try:
        digest, chunks = _chunk_list(folder.content(f"{BESIDE}/{CHUNK_LIST}"))
        looked = chunks[:: -(-len(chunks) // LOOKED_AT)]
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            for file, found in zip(looked, pool.map(lambda file: folder.stat(file.name), looked)):
                if found.size != file.size:
                    raise ValueError(f"{file.name} has {found.size} bytes, not {file.size}")
    except Refused as error:
        if not isinstance(error, Absent):
            log.info("%s/%s %s", folder, BESIDE, error)
        return None
    except (RemoteError, ConfigError):
        raise
    except ValueError as error:
        log.warning("%s/%s is not that of the chunks (%s): another index is made.", folder, BESIDE, error)
        return None
    return digest, chunks


def _chunk_list(content: bytes) -> tuple[str, list[RemoteFile]]:
    """What `index_files.tell_copies` wrote; ValueError for anything else."""
    tree = parse_json(content)
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    digest, entries = tree.get("index"), tree.get("chunks")
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{16}", digest):
        raise ValueError("it names no index")
    if not isinstance(entries, list) or not entries:
        raise ValueError("it names no chunks")
    chunks = []
    for entry in entries:
        name, size = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        if not is_chunk(name) or type(size) is not int or size <= 0:
            raise ValueError(f"{str(entry)[:60]} is no chunk")
        chunks.append(RemoteFile(name, size))
    return digest, chunks


def fetch_index(folder: RemoteFolder, digest: str, chunks: list[RemoteFile], target: Path) -> None:
    """Fetch the index that lies beside the chunks. Raises ConfigError if it is damaged."""
    place = f"{BESIDE}/{digest}"
    with finishing(target) as partial_folder:
        for name in ARRAYS:
            _fetch(folder, f"{place}/{name}.npy", partial_folder / f"{name}.npy")
        try:
            _check(partial_folder, [file.size for file in chunks])
            problems = _problems(parse_json(folder.content(f"{place}/index.json")))
        except RemoteError:
            raise
        except (
            ValueError,
            OSError,
            EOFError,
            SyntaxError,
            TokenError,
        ) as error:  # the last two: headers of arrays
            reason = " ".join(str(error).split())[:160]
            raise ConfigError(
                f"{folder}/{place} is damaged ({reason}): put it there anew, or take away {BESIDE}/{CHUNK_LIST}."
            ) from error
        summary = {"format": FORMAT, "folder": folder.url, "problems": problems}
        write_bytes(partial_folder / "index.json", json.dumps(summary).encode())


def _fetch(folder: RemoteFolder, name: str, target: Path) -> None:
    """Copy a file of any size to the disk, piece by piece."""
    file = folder.stat(name)
    if file.size > shutil.disk_usage(target.parent).free:
        raise ConfigError(f"{folder}/{name} takes {file.size:,} bytes: {target.parent} has less room.")
    starts = range(0, file.size, PIECE_BYTES)
    with target.open("wb") as opened, ThreadPoolExecutor(CONNECTIONS) as pool:

        def copy(start: int) -> None:
            data = folder.read(file, start, min(PIECE_BYTES, file.size - start))
            os.pwrite(opened.fileno(), data, start)

        list(tqdm(pool.map(copy, starts), f"fetching {target.name}", len(starts), disable=len(starts) < 8))


def _check(place: Path, sizes: list[int]) -> None:
    """ValueError unless the arrays fit together and lead into chunks of these sizes only."""
    names, chunk, first, frames = (
        np.load(place / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ARRAYS
    )
    kinds = (names.dtype.kind, chunk.dtype, first.dtype, frames.dtype)
    if kinds != ("U", np.dtype(np.int32), np.dtype(np.int64), FRAME):
        raise ValueError("its arrays are of other types")
    if any(array.ndim != 1 for array in (names, chunk, first, frames)) or not len(names):
        raise ValueError("its arrays have other shapes")
    if len(chunk) != len(names) or len(first) != len(names) + 1:
        raise ValueError("its arrays have different lengths")
    if first[0] != 0 or first[-1] != len(frames) or (np.diff(first) <= 0).any():
        raise ValueError("its scenes are not one after the other")
    if chunk.min() < 0 or chunk.max() >= len(sizes):
        raise ValueError("a scene lies in no chunk")
    if any(key_problem(str(name)) for name in names) or len(set(names.tolist())) < len(names):
        raise ValueError("a scene has an unusable name")
    room = np.array(sizes, dtype=np.int64)[chunk]
    for start in range(0, len(frames), ROWS):
        rows = frames[start : start + ROWS]
        scene = np.searchsorted(first, np.arange(start, start + len(rows)), side="right") - 1
        used = rows["status"] == 0
        if (rows["status"] >= len(STATUS)).any() or (rows["size"][used] < 1).any():
            raise ValueError("a frame is damaged")
        inside = (rows["offset"] >= 0) & (rows["offset"] <= room[scene] - rows["size"])
        if not inside[used].all() or (rows["width"][used] < 1).any() or (rows["height"][used] < 1).any():
            raise ValueError("a frame lies outside of its chunk")


def _problems(tree: object) -> list[tuple[str, str]]:
    """What could not be used when the index was made; ValueError for another form."""
    entries = tree.get("problems") if isinstance(tree, dict) else None
    if not isinstance(entries, list) or any(not isinstance(e, list) or len(e) != 2 for e in entries):
        raise ValueError("index.json has no list of problems")
    return [(str(where), str(why)) for where, why in entries]
