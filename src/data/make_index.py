"""Evaluation index of a whole data set, in several processes, and restartable.

Finished scenes go to a journal beside the output, `.<output>.journal`: its first line names the settings, each further
one holds a scene. A run that is started again with the same settings goes on there. What a scene gets depends on the
seed and its name alone.

Public: IndexOptions, Summary, make_index, make_video_index.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..files import write_text
from .bounded_views import Chosen
from .dataset import open_scenes
from .eval_index import read_index
from .index_generators import METHODS, PairRules, every_frame_between, nested_contexts
from .overlap import Pinholes, fields_of_view_deg
from .parallel import parallel_map
from .scene import Scene, SceneError, Scenes
from .transforms import image_header

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """What to make.

    dataset: a `full_list.txt` or a folder of chunks. method: entry of METHODS.
    image_shape: [height, width] of the centre crop whose overlap counts; empty: the whole picture.
    max_fov: scenes with a wider field of view get no entry, degrees; 0: none are skipped.
    """

    dataset: str
    method: str
    rules: PairRules
    seed: int = 123
    image_shape: tuple[int, ...] = ()
    max_fov: float = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError for rules that the method does not know."""
        if self.method == "v1" and (self.rules.num_context > 2 or self.rules.min_target_distance > 1):
            raise ValueError("num_context_views and min_tgt_to_ctx_distance belong to method v2.")
        if self.method == "v2" and self.rules.as_published:
            raise ValueError("as_published belongs to method v1.")
        if any(side < 0 for side in self.image_shape):
            raise ValueError(f"image_shape is {self.image_shape}: expected height and width.")


@dataclass
class Summary:
    """What happened. reasons: why scenes have no entry -> how many."""

    entries: int = 0
    resumed: int = 0
    reasons: Counter = field(default_factory=Counter)
    files: list[Path] = field(default_factory=list)


# ----------------------------------------------------------------------------------------------- one scene


@functools.lru_cache(maxsize=1)
def _scenes(dataset: str) -> Scenes:
    """The data set, opened once in each process."""
    return open_scenes(dataset)


def scene_entry(options: IndexOptions, position: int) -> tuple[Chosen | None, str]:
    """Context and targets of one scene, or None and the reason. Context: ends first, as `nested_contexts` wants it."""
    try:
        scene = _scenes(options.dataset)[position]
        usable = [not scene.missing(frame) for frame in range(scene.num_frames)]
        cameras, aspect = _pinholes(scene, usable)
    except SceneError as error:
        return None, str(error)
    widest = fields_of_view_deg(cameras.fxfycxcy[usable]).max()
    if 0 < options.max_fov < widest:
        return None, f"a field of view above {options.max_fov:g} degrees"
    digest = hashlib.sha256(f"{options.seed}/{scene.name}".encode()).digest()
    rng = random.Random(int.from_bytes(digest[:8], "big"))
    if options.image_shape:
        cameras = _cropped(cameras, aspect, *options.image_shape)
    chosen = METHODS[options.method](cameras, usable, options.rules, rng)
    return chosen, "" if chosen else "no frames that fit"


def _pinholes(scene: Scene, usable: list[bool]) -> tuple[Pinholes, float]:
    """The cameras of a scene, and width by height of its pictures; frames that cannot be used have the camera of the
    first that can.

    Raises:
        SceneError: none can be used.
    """
    if True not in usable:
        raise SceneError("none of its frames can be used")
    first = usable.index(True)
    try:
        width, height, _ = image_header(scene.encoded(first))
    except ValueError as error:
        raise SceneError(f"frame {first}: {error}") from error
    found = [scene.camera(frame if good else first) for frame, good in enumerate(usable)]
    fxfycxcy = np.stack([intrinsics for intrinsics, _ in found]) / [width, height, width, height]
    return Pinholes(fxfycxcy, np.stack([w2c for _, w2c in found])), width / height


def _cropped(cameras: Pinholes, aspect: float, height: int, width: int) -> Pinholes:
    """The same cameras after a centre crop to the shape height x width. aspect: width by height before."""
    wanted = width / height
    kept = np.array(
        [min(1, wanted / aspect), min(1, aspect / wanted)]
    )  # parts of width and height that remain
    fxfycxcy = cameras.fxfycxcy.copy()
    fxfycxcy[:, :2] /= kept
    fxfycxcy[:, 2:] = (fxfycxcy[:, 2:] - 0.5) / kept + 0.5
    return Pinholes(fxfycxcy, cameras.w2c)


# ----------------------------------------------------------------------------------------------- all scenes


def make_index(options: IndexOptions, output: Path, num_processes: int) -> Summary:
    """Write the index of a data set; with more than two context views also `<output>_num_src_<k>.json` for k from 2.

    Scenes without an entry are null.

    Raises:
        ConfigError: the data set cannot be opened.
    """
    names = [str(name) for name in _scenes(options.dataset).names]
    journal = output.with_name(f".{output.name}.journal")
    done = _read_journal(journal, options)
    summary = Summary(resumed=len(done))
    todo = [position for position, name in enumerate(names) if name not in done]
    lines = [_header(options), *(_line(name, *result) for name, result in done.items())]
    # Anew, because the last line may have been cut short.
    write_text(journal, "".join(json.dumps(line) + "\n" for line in lines))
    bar = tqdm(total=len(names), initial=len(done), unit="scene", desc="index")
    with journal.open("a", encoding="utf-8") as file, bar:
        work = functools.partial(scene_entry, options)
        for position, (chosen, reason) in parallel_map(work, todo, num_processes, ahead=8):
            done[names[position]] = (chosen, reason)
            file.write(json.dumps(_line(names[position], chosen, reason)) + "\n")
            file.flush()
            bar.update()
    entries = {name: done[name][0] for name in names}
    summary.entries = sum(chosen is not None for chosen in entries.values())
    summary.reasons.update(reason for _, reason in done.values() if reason)
    summary.files = _write_files(output, entries, options.rules.num_context)
    journal.unlink()
    return summary


def _write_files(output: Path, entries: dict[str, Chosen | None], num_context: int) -> list[Path]:
    files = {output: {name: _plain(chosen) for name, chosen in entries.items()}}
    if num_context > 2:
        for count in range(2, num_context + 1):
            part = {name: chosen and nested_contexts(chosen)[count] for name, chosen in entries.items()}
            path = output.with_name(f"{output.stem}_num_src_{count}{output.suffix}")
            files[path] = {name: _plain(chosen) for name, chosen in part.items()}
    for path, content in files.items():
        write_text(path, json.dumps(content) + "\n")
    return list(files)


def _plain(chosen: Chosen | None) -> dict | None:
    return chosen and {"context": sorted(chosen.context), "target": chosen.target}


def make_video_index(dataset: str, base: str, output: Path) -> Summary:
    """From an index: the same context views, and every frame from the first to the last of them as a target.

    Raises:
        ConfigError: the data set or the index cannot be opened.
    """
    index, scenes = read_index(base), open_scenes(dataset)
    positions = {str(name): position for position, name in enumerate(scenes.names)}
    summary, entries = Summary(), {}
    for name, entry in tqdm(index.entries.items(), unit="scene", desc="video index"):
        entries[name] = None
        if name not in positions:
            summary.reasons["not in the data set"] += 1
            continue
        try:
            scene = scenes[positions[name]]
            usable = [not scene.missing(frame) for frame in range(scene.num_frames)]
        except SceneError as error:
            summary.reasons[str(error)] += 1
            continue
        if max(entry.context) >= len(usable):
            summary.reasons["context frames that the scene does not have"] += 1
            continue
        entries[name] = _plain(every_frame_between(entry.context, usable))
    summary.entries = sum(entry is not None for entry in entries.values())
    write_text(output, json.dumps(entries) + "\n")
    summary.files = [output]
    return summary


# ----------------------------------------------------------------------------------------------- journal


def _header(options: IndexOptions) -> dict[str, Any]:
    return json.loads(json.dumps({"settings": asdict(options)}))


def _line(scene: str, chosen: Chosen | None, reason: str) -> dict[str, Any]:
    return {"scene": scene, "reason": reason, **(asdict(chosen) if chosen else {})}


def _read_journal(journal: Path, options: IndexOptions) -> dict[str, tuple[Chosen | None, str]]:
    """Scenes that an earlier run with the same settings has finished."""
    if not journal.is_file():
        return {}
    lines = list(_lines(journal))
    if lines[:1] != [_header(options)]:
        log.warning("%s belongs to other settings: starting anew.", journal)
        return {}
    return {
        line["scene"]: (
            Chosen(line["context"], line["target"]) if "context" in line else None,
            line["reason"],
        )
        for line in lines[1:]
    }


def _lines(journal: Path) -> Iterator[dict]:
    """What the journal holds, up to a line that was cut short."""
    for line in journal.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return
