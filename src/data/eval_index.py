"""Evaluation: which frames of which scenes are context and target, and the loader that gives each scene once.

The index is pixelSplat's JSON: scene -> {"context": [...], "target": [...]} or null (no entry, passed over). A scene
that is in the index and cannot be scored is left out, listed and counted, with the reason.

Public: Entry, EvaluationIndex, read_index, read_video_index, evaluation_loader, EvaluationLoader.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from tqdm import tqdm

from ..config import ConfigError
from ..files import parse_json
from ..settings import Inference, RunConfig
from . import dataset_class
from .batch import Batch, collate
from .dataset import SceneDataset
from .loader import EVALUATION_SHARE, plan_prefetch
from .order import scene_seed
from .remote.source import SourceLost
from .scene import SceneError
from .transforms import image_header, resized_size
from .view_choice import choose_index, index_text
from .view_settings import ViewSettings
from .workers import ReadAhead, WorkerDied

log = logging.getLogger(__name__)

PREFETCH = 2
"""Batches each worker may hold ready: scoring is slower than loading."""


@dataclass(frozen=True)
class Entry:
    """Frames of one scene: positions in its list of frames."""

    context: tuple[int, ...]
    target: tuple[int, ...]

    def with_context(self, count: int) -> Entry:
        """The same targets with so many of the context views: the first and the last, the others spread evenly.

        Raises:
            SceneError: there are fewer.
        """
        if count > len(self.context):
            raise SceneError(f"{len(self.context)} context views in the index, fewer than {count}")
        ordered, last = sorted(self.context), len(self.context) - 1
        places = [round(place * last / max(1, count - 1)) for place in range(count)]
        return Entry(tuple(ordered[place] for place in places), self.target)


@dataclass(frozen=True)
class EvaluationIndex:
    """A read index file. `entries` keeps the order of the file and has no null entries; `num_null` counts those."""

    path: str
    sha256: str
    entries: dict[str, Entry]
    num_null: int


def read_index(path: str) -> EvaluationIndex:
    """Read and check an index file.

    Raises:
        ConfigError: absent, not JSON, or of another form.
    """
    if not path:
        raise ConfigError(
            "inference.view_idx_file_path is empty: name an evaluation index, or set inference.view_selection to "
            "kmeans, random or uniform."
        )
    content, tree = _read_tree(path)
    entries = {scene: _entry(path, scene, value) for scene, value in tree.items() if value is not None}
    digest = hashlib.sha256(content).hexdigest()
    return EvaluationIndex(path, digest, entries, len(tree) - len(entries))


def read_video_index(path: str) -> dict[str, list[Entry]]:
    """Read an index for sampling videos: as above, or with a list of entries for each scene (as mv-ldm's).

    Raises:
        ConfigError: absent, not JSON, or of another form.
    """
    _, tree = _read_tree(path)
    lists = {scene: value if isinstance(value, list) else [value] for scene, value in tree.items() if value}
    return {scene: [_entry(path, scene, value) for value in values] for scene, values in lists.items()}


def _read_tree(path: str) -> tuple[bytes, dict]:
    """Content of an index file, raw and read."""
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{path}: no such file; an evaluation index was expected there.")
    content = file.read_bytes()
    try:
        tree = parse_json(content)
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected scene -> {{context, target}}, found a {type(tree).__name__}.")
    return content, tree


def _entry(path: str, scene: str, value: Any) -> Entry:
    if isinstance(value, list):
        raise ConfigError(
            f"{path}: scene {scene} has a list of entries (an index for video sampling in several rounds). "
            "Expected one {context, target} per scene."
        )
    frames = []
    for name in ("context", "target"):
        numbers = value.get(name) if isinstance(value, dict) else None
        if not isinstance(numbers, list) or not numbers or any(type(n) is not int or n < 0 for n in numbers):
            raise ConfigError(f"{path}: scene {scene}: {name} must be a list of frame numbers from 0.")
        frames.append(tuple(numbers))
    return Entry(*frames)


def evaluation_loader(
    config: RunConfig, dataset_path: str, *, rank: int, world: int, pin: bool = False
) -> EvaluationLoader:
    """The scenes of `inference.view_idx_file_path` that `rank` scores.

    Args:
        dataset_path: as for `open_scenes`.
        pin: hand out page-locked tensors.

    Raises:
        ConfigError: index or data set are absent or unreadable, or none of the scenes can be scored.
    """
    return EvaluationLoader(config, dataset_path, rank, world, pin)


class EvaluationLoader:
    """Finite iterable of batches; scenes of equal (context, target) counts stand together.

    Every scene comes on exactly one rank, once, in a fixed order; ranks may have different numbers of batches.

    num_scenes: scenes to score, over all ranks.
    num_in_index, num_null: scenes named in the index file, and those of them without an entry.
    missing: (scene, reason) of the others: those found at the start, the same on all ranks; while iterating, scenes
        of this rank whose pictures prove damaged are added.
    enlarged: pictures of this rank that were smaller than the image size, counted while iterating.
    index_path, index_sha256: the index file, or what `inference.view_selection` chose instead.
    chosen_index: text of an index file with this choice; empty if the index was read from a file.
    """

    def __init__(self, config: RunConfig, dataset_path: str, rank: int, world: int, pin: bool) -> None:
        from_file = config.inference.view_selection == "index"
        index = read_index(config.inference.view_idx_file_path) if from_file else None
        if not isinstance(dataset_path, str):
            raise ConfigError("evaluation reads one data set: name one path, not a weighted list.")
        self.pin, self.training, self.seed = pin, config.training, config.inference.sampling_seed
        self.dataset = dataset_class(config.training.dataset_name)(dataset_path, ViewSettings.of(config))
        self.missing: list[tuple[str, str]] = []
        self.chosen_index = ""
        index = index or self._choose(config.inference)
        self.index_path, self.index_sha256 = index.path, index.sha256
        self.num_null, self.num_in_index = index.num_null, index.num_null + len(index.entries)
        self.enlarged = 0
        usable = self._usable(index, config.inference.max_scenes, config.inference.num_context_views)
        self.num_scenes = len(usable)
        if self.missing:
            log.warning(
                "%d of %d scenes of %s cannot be scored; first %s: %s",
                len(self.missing), len(self.missing) + len(usable), index.path, *self.missing[0],
            )  # fmt: skip
        if not usable:
            first = f"; first {self.missing[0][0]}: {self.missing[0][1]}" if self.missing else ""
            raise ConfigError(f"{index.path}: none of its {len(index.entries)} scenes is usable{first}.")
        self.requests = self._deal(usable, rank, world)

    def _choose(self, inference: Inference) -> EvaluationIndex:
        """The index that `inference.view_selection` makes; scenes with too few frames go to `missing`."""
        chosen, problems = choose_index(self.dataset.scenes, inference, inference.max_scenes)
        self.missing += problems
        self.chosen_index = index_text(chosen, problems)
        entries = {
            scene: Entry(tuple(frames.context), tuple(frames.target)) for scene, frames in chosen.items()
        }
        label = f"{inference.view_selection} views of {self.dataset.path}, seed {inference.view_seed}"
        return EvaluationIndex(label, hashlib.sha256(self.chosen_index.encode()).hexdigest(), entries, 0)

    def _usable(self, index: EvaluationIndex, max_scenes: int, num_context: int) -> list[_Request]:
        """Scenes in the order of the data set; what cannot be scored goes to `missing`."""
        chosen = list(index.entries)[: max_scenes or None]
        names = self.dataset.scenes.names
        positions = {str(name): position for position, name in enumerate(names)}
        self.missing += [(scene, "not in the data set") for scene in chosen if scene not in positions]
        present = sorted((scene for scene in chosen if scene in positions), key=positions.__getitem__)
        usable: list[_Request] = []
        for scene in tqdm(present, desc="checking scenes", unit="scene", disable=len(present) < 500):
            entry = index.entries[scene]
            try:
                entry = entry.with_context(num_context) if num_context else entry
                _check_frames(self.dataset, positions[scene], entry, index.path)
            except SceneError as error:
                self.missing.append((scene, str(error)))
                continue
            usable.append(_Request(len(usable), positions[scene], scene, entry))
        return usable

    def _deal(self, usable: list[_Request], rank: int, world: int) -> list[list[_Request]]:
        """Batches of this rank: scenes grouped by equal counts, no batch larger than the limit, every world-th batch.

        Which scenes share a batch does not depend on `world`: half precision rounds differently in other batches.
        """
        groups: dict[tuple[int, int], list[_Request]] = {}
        for request in sorted(usable, key=lambda r: (r.counts, r.uid)):
            groups.setdefault(request.counts, []).append(request)
        limit = int(self.training.prefetch_bytes * EVALUATION_SHARE)
        batches, self.batch_bytes = [], 0
        for counts, group in groups.items():
            scene_bytes = self._view_bytes(usable[0]) * sum(counts)
            size = max(1, min(self.training.batch_size_per_gpu, limit // scene_bytes))
            self.batch_bytes = max(self.batch_bytes, size * scene_bytes)
            batches += [group[i : i + size] for i in range(0, len(group), size)]
        return batches[rank::world]

    def _view_bytes(self, request: _Request) -> int:
        """Bytes of a resized picture, judged by one scene: others may be a little larger."""
        s = self.dataset.settings
        if s.image_shape:
            return 3 * s.image_shape[0] * s.image_shape[1]
        try:
            width, height, _ = image_header(
                self.dataset.scenes[request.position].encoded(request.entry.context[0])
            )
        except ValueError:
            width = height = s.image_size  # damaged: it is reported when its turn comes
        height, width = resized_size(height, width, s.image_size, s.patch_size)
        return 3 * (s.image_size**2 if s.square_crop else height * width)

    def __len__(self) -> int:
        """Batches of this rank, if no picture proves damaged."""
        return len(self.requests)

    def __iter__(self) -> Iterator[Batch]:
        num_workers, factor = plan_prefetch(
            self.batch_bytes,
            min(self.training.num_workers, len(self.requests)),
            min(self.training.prefetch_factor, PREFETCH),
            int(self.training.prefetch_bytes * EVALUATION_SHARE),
        )
        loader = ReadAhead(
            _Requests(self.dataset, self.requests, self.seed),
            range(len(self.requests)),
            num_workers=num_workers,
            prefetch_factor=factor,
            pin=self.pin,
            describe=lambda place: ", ".join(request.scene for request in self.requests[place]),
        )
        try:
            yield from self._hand_out(loader)
        finally:
            loader.close()

    def _hand_out(self, loader: ReadAhead) -> Iterator[Batch]:
        self.enlarged = 0
        while (read := self._next(loader)) is not None:
            batches, failed, enlarged, lost = read
            if lost:
                raise SourceLost(lost)
            if enlarged and not self.enlarged:
                log.warning(
                    "pictures smaller than model.image_tokenizer.image_size are enlarged for scoring."
                )
            self.enlarged += enlarged
            for scene, reason in failed:
                if (scene, reason) not in self.missing:
                    log.warning("scene %s cannot be scored: %s", scene, reason)
                    self.missing.append((scene, reason))
            yield from (Batch(batch) for batch in batches)

    def _next(self, loader: ReadAhead) -> _Read | None:
        """What `_Requests` gives for the next place; None at the end."""
        try:
            return next(loader, None)
        except WorkerDied as error:
            return [], [(request.scene, str(error)) for request in self.requests[error.key]], 0, ""


_Read = tuple[list[dict[str, Any]], list[tuple[str, str]], int, str]
"""Batches (more than one where picture sizes differ), scenes that cannot be scored with the reasons, the number of enlarged
pictures, and why there is no hope for further scenes, if so.
"""


@dataclass(frozen=True)
class _Request:
    """One scene to score. uid: position among the usable scenes; position: that in the data set."""

    uid: int
    position: int
    scene: str
    entry: Entry

    @property
    def counts(self) -> tuple[int, int]:
        return len(self.entry.context), len(self.entry.target)


def _check_frames(dataset: SceneDataset, position: int, entry: Entry, index_path: str) -> None:
    """Raises SceneError if the scene lacks a frame of `entry`."""
    scene = dataset.scenes[position]
    for kind, frames in (("context", entry.context), ("target", entry.target)):
        if len(frames) > scene.num_frames:
            raise SceneError(
                f"{len(frames)} {kind} frames in {Path(index_path).name}, more than its {scene.num_frames}"
            )
        for frame in frames:
            if frame >= scene.num_frames:
                raise SceneError(
                    f"{kind} frame {frame} in {Path(index_path).name}, but the scene has {scene.num_frames} frames. "
                    "Was it made with --mode test?"
                )
            if reason := scene.missing(frame):
                raise SceneError(f"{kind} frame {frame} is missing: {reason}")


class _Requests(Dataset):
    """Evaluation batches by their place. Lives in the worker processes."""

    def __init__(self, dataset: SceneDataset, requests: list[list[_Request]], seed: int) -> None:
        self.dataset, self.requests, self.seed = dataset, requests, seed

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, place: int) -> _Read:
        """Raises nothing that a lost source raises: exceptions of a worker lose their form."""
        by_size: dict[tuple[int, ...], list[dict[str, Any]]] = {}
        failed: list[tuple[str, str]] = []
        enlarged = 0
        for request in self.requests[place]:
            try:
                sample = self.dataset.evaluation_sample(
                    request.position, request.entry.context, request.entry.target
                )
            except SceneError as error:
                failed.append((request.scene, str(error)))
                continue
            except SourceLost as error:
                return [], [], 0, str(error)
            sample["index"][:, 1] = request.uid
            sample["draw"] = scene_seed(self.seed, request.scene)
            enlarged += sample["enlarged"]
            by_size.setdefault(tuple(sample["image"].shape), []).append(sample)
        num_input = self.requests[place][0].counts[0]
        return [collate(samples, num_input) for samples in by_size.values()], failed, enlarged, ""
