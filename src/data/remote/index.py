"""The index of chunks behind a URL: fetched ready-made from beside them, or made of a small part of each chunk.

A folder whose index was made on a disk (`.parallax_index/`, by opening it once) can be copied to a server as it is: then
one small file tells the chunks and their sizes, and nothing need be listed. Else the chunks are listed, and of each the
directory of its zip, its pickle and its cameras are fetched: about a hundredth of it.

Public: prepare.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from tqdm import tqdm

from ...config import ConfigError
from ...files import parse_json
from ..chunk_index import HEAD_BYTES, addresses
from ..chunks import ChunkError, RawScene, first_storage_offset, open_chunk, raw_scenes
from ..index_files import FRAME, cached_home, digest_of, index_all, made_once, write_index
from ..packed import SUFFIX
from ..scene import SceneError
from ..transforms import image_header
from .folder import CONNECTIONS, RemoteFolder
from .partial_copy import PartialCopy, fill_zip
from .ready_index import fetch_index, is_chunk, ready_made
from .source import Absent, RemoteError, RemoteFile

LEAST_PROCESSES = 4
"""That index chunks, whatever the number of processors: they mostly wait."""

_REMEDY = (
    "Put beside the chunks the folder .parallax_index, which opening them on a disk makes, or an index.json "
    "{scene: file name of its chunk}."
)


def prepare(folder: RemoteFolder, num_processes: int) -> tuple[list[RemoteFile], Path]:
    """The chunks of a folder, in the order of their numbers, and the local folder of their index.

    Raises:
        ConfigError: there are no chunks, they cannot be read, or there is no place for the index.
        ChunkError: none of them gives a scene.
    """
    home = cached_home(folder.url)
    try:
        ready = ready_made(folder)
        if ready:
            digest, chunks = ready
            target = digest_of([digest, *([file.name, file.size] for file in chunks)])
            return chunks, made_once(home, target, lambda to: fetch_index(folder, digest, chunks, to))
        chunks = _listed(folder)
        stamps = [[file.name, file.size, file.tag] for file in chunks]
        build = partial(_build, folder, chunks, num_processes=num_processes)
        return chunks, made_once(home, digest_of(stamps), build)
    except RemoteError as error:
        raise ConfigError(f"{folder}: {error}.") from error


# ----------------------------------------------------------------------------------------------- which chunks


def _listed(folder: RemoteFolder) -> list[RemoteFile]:
    """All chunks, sorted by name, with sizes and states."""
    names = folder.names() or []
    if not any(map(is_chunk, names)):
        if any(name.endswith(SUFFIX) for name in names):
            raise ConfigError(
                f"{folder}: {SUFFIX} chunks are not read over a network: put .torch chunks there."
            )
        names = _named_in_index(folder)
    chunks = sorted({name for name in names if is_chunk(name)})
    if not chunks:
        raise ConfigError(
            f"{folder}: no .torch chunks, neither in a list of files nor in index.json. {_REMEDY}"
        )
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        sized = pool.map(partial(_stat, folder), chunks)
        return list(tqdm(sized, "sizes of chunks", len(chunks), disable=len(chunks) < 200, unit="chunk"))


def _stat(folder: RemoteFolder, name: str) -> RemoteFile:
    """One without a size is a chunk that is not there, or empty: it becomes a problem of the index."""
    try:
        return folder.stat(name)
    except Absent:
        return RemoteFile(name, 0)
    except RemoteError as error:
        raise RemoteError(f"{name} {error}") from error


def _named_in_index(folder: RemoteFolder) -> list[str]:
    """Names of chunks in `index.json`, as data sets like RealEstate10K carry one."""
    try:
        tree = parse_json(folder.content("index.json"))
    except Absent as error:
        raise ConfigError(
            f"{folder}: the files cannot be listed, and there is no index.json; or there is no such folder. {_REMEDY}"
        ) from error
    except RemoteError:
        raise
    except ValueError as error:
        raise ConfigError(f"{folder}/index.json is not JSON ({error}). {_REMEDY}") from error
    return [name for name in tree.values() if isinstance(name, str)] if isinstance(tree, dict) else []


# ----------------------------------------------------------------------------------------------- made here


def _build(folder: RemoteFolder, chunks: list[RemoteFile], target: Path, *, num_processes: int) -> None:
    """Index all chunks. A chunk that cannot be reached now ends this: the index would lack it for ever."""
    processes = min(max(num_processes, LEAST_PROCESSES), len(chunks) // 4)
    results = index_all(partial(_index_chunk, folder), chunks, f"indexing {folder}", processes)
    write_index(folder.url, [file.name for file in chunks], results, target)


def _index_chunk(
    folder: RemoteFolder, file: RemoteFile
) -> tuple[list[str], list[np.ndarray], list[tuple[str, str]]]:
    """As `chunk_index.index_chunk`, but raises what would not happen again: an index that lacks the chunk would stay.

    Raises:
        RemoteError: the chunk cannot be reached. OSError: there is no room for what is fetched of it.
    """
    if not file.size:
        return [], [], [(file.name, f"{folder}/{file.name} is not there")]
    with tempfile.TemporaryDirectory(prefix="parallax-") as place:
        try:
            found = _tables(PartialCopy(folder, file, Path(place, file.name)))
        except Absent as error:
            return [], [], [(file.name, f"{folder}/{file.name} {error}")]
        except RemoteError as error:
            raise RemoteError(f"{file.name} {error}") from error
        except (ChunkError, BadZipFile, RuntimeError, ValueError) as error:
            text = str(error).replace(f"{place}/{file.name}", "it")
            return [], [], [(file.name, f"{folder}/{file.name} cannot be used: {text}")]
    names = [scene.key for scene, _ in found if isinstance(scene, RawScene)]
    tables = [table for scene, table in found if isinstance(scene, RawScene)]
    return names, tables, [(file.name, str(scene)) for scene, _ in found if isinstance(scene, SceneError)]


def _tables(copy: PartialCopy) -> list[tuple[RawScene | SceneError, np.ndarray]]:
    """Scenes of a chunk and their frames; cameras and the header of each scene's first picture are fetched for it.

    Raises:
        ChunkError, BadZipFile, RuntimeError, ValueError: see `chunk_index.index_chunk`.
        RemoteError: the chunk cannot be reached.
    """
    copy.need([(0, 4)])
    if copy.read(0, 4) != b"PK\x03\x04":
        raise ChunkError("damaged, or written by an old torch.save: convert it with process_data.py")
    fill_zip(copy)
    chunk = open_chunk(copy.path)
    shift = first_storage_offset(copy.path) - min(addresses(chunk), default=0)
    copy.need(_first_needed(copy, chunk, shift))
    found = []
    for scene in raw_scenes(chunk):  # mapped from the file: shows what was filled in since
        table = np.zeros(0, FRAME) if isinstance(scene, SceneError) else _frame_table(copy, scene, shift)
        found.append((scene, table))
    return found


def _first_needed(copy: PartialCopy, chunk: list, shift: int) -> list[tuple[int, int]]:
    """Where the cameras of all scenes and the first picture of each are."""
    cameras = [entry.get("cameras") for entry in chunk if isinstance(entry, dict)]
    spans = [
        _span(copy, address + shift, tensor.untyped_storage().nbytes())
        for tensor in cameras
        for address in addresses(tensor)
    ]
    for scene in raw_scenes(chunk):
        images = (
            [] if isinstance(scene, SceneError) else [image for image in scene.images if image is not None]
        )
        spans += [
            _span(copy, image.data_ptr() + shift, min(HEAD_BYTES, image.numel())) for image in images[:1]
        ]
    return spans


def _span(copy: PartialCopy, offset: int, size: int) -> tuple[int, int]:
    """(offset, size) of part of a chunk; ChunkError if it is none."""
    if offset < 0 or offset + size > copy.file.size:
        raise ChunkError("packed in an unknown way: convert it with process_data.py")
    return offset, size


def _frame_table(copy: PartialCopy, scene: RawScene, shift: int) -> np.ndarray:
    """As in `chunk_index`; all frames get the size of the first picture: the others are looked at when they are read."""
    table = np.zeros(len(scene.images), FRAME)
    table["camera"] = scene.cameras
    table["status"] = [image is None for image in scene.images]
    for row, image in zip(table, scene.images):
        if image is not None:
            row["offset"], row["size"] = _span(copy, image.data_ptr() + shift, image.numel())
    for row in table:
        size = None if row["status"] else _picture_size(copy, int(row["offset"]), int(row["size"]))
        if size:
            table["width"], table["height"] = size
            break
        row["status"] = row["status"] or 2
    return table


def _picture_size(copy: PartialCopy, offset: int, size: int) -> tuple[int, int] | None:
    """Width and height of a picture by its header, else by all of it; None if it is no picture."""
    for length in (min(HEAD_BYTES, size), size):
        copy.need([(offset, length)])
        try:
            return image_header(copy.read(offset, length))[:2]
        except ValueError:
            continue
    return None
