"""The same data set in another container: `.torch` chunks packed as `.bl2`, and back.

Public: repack.
"""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

from tqdm import tqdm

from ..config import ConfigError
from ..files import exclusive, read_json, replacing, write_text
from .chunks import find_chunks, stage_folders
from .packed import SUFFIX, Packed, pack
from .parallel import parallel_map

INDEX = "index.json"


def repack(source: Path, target: Path, suffix: str, num_processes: int) -> tuple[int, int, int]:
    """Write the chunks of a data set as `suffix` files; index.json follows, other files beside them are copied.

    Finished files are kept, so an interrupted run goes on.

    Args:
        source: folder of chunks, or folder of such folders (`train`, `test`).
        target: folder of the copy, laid out alike.
        suffix: ".bl2" to pack `.torch` chunks, ".torch" to unpack `.bl2` chunks.

    Returns:
        chunks written, their bytes before, and after.

    Raises:
        ConfigError: no such chunks, or somebody else is writing to `target`.
        ValueError: a packed chunk is damaged.
    """
    other = ".torch" if suffix == SUFFIX else SUFFIX
    tasks = []
    for stage, folder in stage_folders(source):
        chunks = find_chunks(folder)
        if chunks[0].suffix != other:
            raise ConfigError(f"{folder} holds {chunks[0].suffix} chunks, not {other} ones.")
        (target / stage).mkdir(parents=True, exist_ok=True)
        tasks += [(path, target / stage / f"{path.stem}{suffix}") for path in chunks]
    with exclusive(target / ".lock", wait=False) as free:
        if not free:
            raise ConfigError(f"{target}: another process is writing here. Wait for it, or stop it.")
        todo = [(path, copy) for path, copy in tasks if not copy.is_file()]
        with tqdm(total=len(tasks), initial=len(tasks) - len(todo), unit="chunk", desc="repacking") as bar:
            for _ in parallel_map(functools.partial(_one, suffix), todo, num_processes):
                bar.update()
        for stage in {"", *(stage for stage, _ in stage_folders(source))}:
            _copy_others(source / stage, target / stage, suffix)
    sizes = [sum(pair[side].stat().st_size for pair in todo) for side in (0, 1)]
    return len(todo), *sizes


def _one(suffix: str, task: tuple[Path, Path]) -> None:
    path, copy = task
    if suffix == SUFFIX:
        pack(path, copy)
        return
    try:
        with replacing(copy) as temporary:
            Packed(path).unpack(temporary)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error


def _copy_others(folder: Path, target: Path, suffix: str) -> None:
    """Small files beside the chunks; index.json names the new files."""
    for path in folder.iterdir():
        if not path.is_file() or path.suffix in (".torch", SUFFIX) or path.name.startswith("."):
            continue
        if path.name != INDEX:
            shutil.copyfile(path, target / path.name)
            continue
        try:
            index = read_json(path)
            renamed = {scene: f"{Path(chunk).stem}{suffix}" for scene, chunk in index.items()}
        except (ValueError, AttributeError, TypeError) as error:
            raise ConfigError(f"{path} is no list of scenes and their chunks ({error}).") from error
        write_text(target / INDEX, json.dumps(renamed) + "\n")
