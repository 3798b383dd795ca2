"""Everything that would stop a training run, found before it starts: settings, data, files, space.

Each check works on the sections that are usable and adds to one list; none fetches or computes anything. Folders of chunks
are indexed if they were not, as the run would do.

Public: Preflight, inspect.
"""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm import tqdm

from .checkpoint import find_checkpoints
from .data.dataset import ViewSettings, open_scenes
from .data.eval_index import read_index
from .data.known_sets import expected_scenes
from .data.loader import ContextCounts, sources, training_loader
from .data.scene import ListedScenes, SceneError, Scenes
from .data.view_sampler import Wanted, view_sampler
from .model import build_model
from .model.base import ViewSynthesizer
from .run import check_folder
from .settings import Pretrained, RunConfig, Training
from .settings_views import OWN_TARGETS
from .vae_files import OnHub, locate_vae

LOOKED_AT = 500
"""Scenes of a data set whose frames are counted, evenly spread: reading all metadata of a large one takes long."""


@dataclass
class Preflight:
    """What was found.

    problems: each would stop the run. notes: what is worth knowing. data: a line for each data set.
    shape: height and width of the pictures of the first sample; empty if there is none.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    shape: tuple[int, ...] = ()

    def attempt(self, key: str, work: Any, *arguments: Any) -> Any:
        """What `work(*arguments)` returns; None after an error of the user's, which becomes a problem of that key."""
        try:
            return work(*arguments)
        except (ValueError, OSError) as error:
            lines = str(error).splitlines() or [type(error).__name__]
            known = ("training.", "inference.", "pretrained.", "model.", "unposed.")
            self.problems += [line if line.startswith(known) else f"{key}: {line}" for line in lines]
            return None


def inspect(parts: dict[str, Any], problems: list[str]) -> Preflight:
    """Check a run as `settings.load_parts` gives it, with the problems that it found."""
    found = Preflight(list(problems))
    model, training = parts["model"], parts["training"]
    found.attempt("training.checkpoint_dir", check_folder, training.checkpoint_dir)
    found.attempt("training.view_sampler", view_sampler, training.view_sampler)
    _check_data(found, training)
    _check_evaluation(found, parts)
    built = found.attempt("model", _build, model) if model else None
    _check_weights(found, training, parts["pretrained"], built)
    _check_loss(found, parts)
    if not problems:
        _check_sample(found, RunConfig(**parts))
    return found


def _build(model: Any) -> ViewSynthesizer:
    with torch.device("meta"):
        return build_model(model)


# ----------------------------------------------------------------------------------------------- data


def _check_data(found: Preflight, training: Training) -> None:
    """All data sets that training reads."""
    paths, _ = found.attempt("training.dataset_path", sources, training.dataset_path) or ([], [])
    for path in paths:
        scenes = found.attempt("training.dataset_path", open_scenes, path, training.remote)
        if scenes is not None:
            found.data.append(_describe(found, scenes, path, training))


def _describe(found: Preflight, scenes: Scenes, path: str, training: Training) -> str:
    """Scenes against the expected number and the files that are there, frames, and scenes that are too short."""
    words, expected = [f"{len(scenes):,} scenes"], expected_scenes(path)
    if expected and expected != len(scenes):
        words.append(f"expected {expected:,}")
        found.notes.append(f"{path} has {len(scenes):,} scenes, the published set {expected:,}.")
    if isinstance(scenes, ListedScenes):
        positions = tqdm(range(len(scenes)), desc="looking for files", disable=len(scenes) < 5000)
        absent = [place for place in positions if not scenes.metadata_path(place).is_file()]
        if absent:
            first = scenes.metadata_path(absent[0])
            words.append(f"{len(absent):,} files missing")
            found.problems.append(
                f"training.dataset_path: {path} lists {len(scenes):,} scenes, and the files of {len(absent):,} are "
                f"missing; first {first}."
            )
    if scenes.problems:
        found.notes.append(f"{path}: {len(scenes.problems)} unusable; first {': '.join(scenes.problems[0])}.")
    step = max(1, len(scenes) // LOOKED_AT)
    looked = range(0, len(scenes), step)
    frames, short = _frames(found, scenes, looked, training)
    if frames:
        words.append(f"{min(frames)} to {max(frames)} frames (median {median(frames):.0f})")
        words.append(
            f"{short} too short for the sampler" + (f" of {len(looked)} looked at" if step > 1 else "")
        )
    return f"{path}: {', '.join(words)}"


def _frames(found: Preflight, scenes: Scenes, positions: range, training: Training) -> tuple[list[int], int]:
    """Frames of some scenes, and how many of these give the sampler too few."""
    if any(problem.startswith("training.") for problem in found.problems):
        return [], 0
    choose, contexts = view_sampler(training.view_sampler), ContextCounts(training)
    apart = training.view_sampler in OWN_TARGETS
    views = contexts.most + training.num_target_views if apart else training.num_views
    wanted = Wanted(num_views=views, num_input=contexts.most, selector=training.view_selector, step=0)
    frames, short = [], 0
    for position in positions:
        try:
            scene = scenes[position]
            frames.append(scene.num_frames)
            short += choose(scene, wanted, random.Random(0)) is None
        except SceneError as error:
            found.notes.append(f"scene {scenes.names[position]} cannot be used: {error}.")
    return frames, short


def _check_evaluation(found: Preflight, parts: dict[str, Any]) -> None:
    """The data set and the index of the evaluations while training."""
    training, inference = parts["training"], parts["inference"]
    if not (training.eval_every and training.eval_dataset_path):
        return
    index = None
    if inference.view_selection == "index":
        index = found.attempt("inference.view_idx_file_path", read_index, inference.view_idx_file_path)
    path = training.eval_dataset_path
    if not isinstance(path, str):
        found.problems.append("training.eval_dataset_path: evaluation reads one data set: name one path.")
        return
    scenes = found.attempt("training.eval_dataset_path", open_scenes, path, training.remote)
    if scenes is None:
        return
    expected, words = expected_scenes(path), [f"{len(scenes):,} scenes"]
    if expected and expected != len(scenes):
        words.append(f"expected {expected:,}")
    if index:
        here = {str(name) for name in scenes.names}
        present = sum(name in here for name in index.entries)
        words.append(f"{present:,} of the {len(index.entries):,} in {index.path}")
        if not present:
            found.problems.append(
                f"training.eval_dataset_path: {path} has none of the scenes in {index.path}."
            )
    found.data.append(f"{path} (evaluation): {', '.join(words)}")


def _check_sample(found: Preflight, config: RunConfig) -> None:
    """One sample, as training would read it."""
    found.attempt("training.image_shape", ViewSettings.of, config)
    if found.problems:
        return  # they would be told again
    alone = replace(config, training=replace(config.training, num_workers=0))

    def first() -> tuple[int, ...]:
        loader = training_loader(alone, rank=0, world=1)
        return tuple(loader.samples[[(0, loader.contexts.most, 0)]]["image"].shape[-2:])

    found.shape = found.attempt("training.dataset_path", first) or ()


# ----------------------------------------------------------------------------------------------- weights and space


def _check_weights(
    found: Preflight, training: Training, pretrained: Pretrained, model: ViewSynthesizer | None
) -> None:
    """What the run would start from; nothing if it has checkpoints of its own."""
    if find_checkpoints(training.checkpoint_dir):
        found.notes.append(f"goes on from the checkpoints in {training.checkpoint_dir}.")
        return
    if training.resume_ckpt:
        _check_file(found, "training.resume_ckpt", training.resume_ckpt)
        return
    for name in model.pretrained_parts if model is not None else ():
        path = getattr(pretrained, name)
        if name == "vae" and path != "random":
            place = found.attempt("pretrained.vae", locate_vae, path, model.codec.settings.name)
            if isinstance(place, OnHub):
                found.notes.append(f"pretrained.vae would be fetched from huggingface.co/{place.repository}.")
        elif path != "random":
            _check_file(found, f"pretrained.{name}", path, fetched=True)
    if training.init_from:
        _check_file(found, "training.init_from", training.init_from)


def _check_loss(found: Preflight, parts: dict[str, Any]) -> None:
    """The networks of loss and metrics."""
    training, inference, pretrained = parts["training"], parts["inference"], parts["pretrained"]
    scored = training.eval_every and training.eval_dataset_path
    lpips = training.lpips_loss_weight > 0 or (
        scored and inference.compute_metrics and "lpips" in inference.metrics
    )
    for name, used in (("vgg19", training.perceptual_loss_weight > 0), ("vgg16", lpips)):
        if used and getattr(pretrained, name) != "random":
            _check_file(found, f"pretrained.{name}", getattr(pretrained, name), fetched=True)


def _check_file(found: Preflight, key: str, path: str, *, fetched: bool = False) -> None:
    if not Path(path).exists():
        name = key.rpartition(".")[2]
        remedy = f" `python -m scripts.download_weights {name}` fetches it." if fetched else ""
        found.problems.append(f"{key}: {path} is missing.{remedy}")


def check_space(found: Preflight, training: Training, checkpoint_bytes: int) -> str:
    """What checkpoints take and what the disk has; a problem if there is not room for one of them."""
    folder = Path(training.checkpoint_dir).absolute()
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    kept = training.keep_checkpoints or -(-training.train_steps // training.checkpoint_every)
    needed = (kept + 1) * checkpoint_bytes  # a new one is written before the oldest is deleted
    if free < checkpoint_bytes:
        found.problems.append(
            f"training.checkpoint_dir {training.checkpoint_dir}: a checkpoint takes {checkpoint_bytes / 2**30:.1f} GiB, "
            f"but {free / 2**30:.1f} GiB are free."
        )
    elif free < needed:
        found.notes.append(
            f"{kept} checkpoints and one in writing do not fit on the disk: lower keep_checkpoints."
        )
    return (
        f"{checkpoint_bytes / 2**30:.2f} GiB a checkpoint, {needed / 2**30:.1f} GiB for {kept} and one in writing; "
        f"{free / 2**30:.1f} GiB free"
    )
