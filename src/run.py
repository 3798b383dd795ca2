"""A training run: what it consists of, what it starts from, and how it is saved and goes on.

Public: Run, Progress, open_run, save.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .checkpoint import (
    CheckpointError,
    find_checkpoints,
    is_checkpoint,
    load_into,
    load_pretrained_part,
    load_training_state,
    load_weights,
    newest_checkpoint,
    save_checkpoint,
)
from .config import ConfigError
from .data.eval_index import evaluation_loader
from .data.latents import Meta, place_of_latents
from .data.loader import sources
from .evaluate import Metrics
from .files import write_text
from .loss import build_image_loss
from .metrics import build_metrics
from .model import build_model
from .model.base import ViewSynthesizer
from .optim import build_optimizer
from .runtime import Runtime, all_gather_objects, from_main, grad_scaler, random_state, set_random_state
from .settings import RunConfig, Training, to_plain
from .vae_files import load_vae
from .warm_start import start_from

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """Where a run stands; saved in its checkpoints. Skipped steps count as steps: the schedule goes on.

    step: optimiser steps attempted.
    samples_seen: training samples consumed, over all ranks.
    skipped: steps without update, for whatever reason.
    bad: steps whose loss or gradients were not finite.
    """

    step: int = 0
    samples_seen: int = 0
    skipped: int = 0
    bad: int = 0
    bad_in_a_row: int = 0

    def advance(self, samples: int, *, stepped: bool, bad: bool) -> None:
        """Count one step that consumed so many samples."""
        self.step += 1
        self.samples_seen += samples
        self.skipped += not stepped
        self.bad += bad
        self.bad_in_a_row = self.bad_in_a_row + 1 if bad else 0


@dataclass
class Run:
    """Everything that a training run holds. `network` is `model`, wrapped if there are several ranks."""

    config: RunConfig
    runtime: Runtime
    folder: Path
    model: ViewSynthesizer
    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    image_loss: Any
    evaluation: tuple[Any, Metrics] | None
    progress: Progress = field(default_factory=Progress)


def open_run(config: RunConfig, runtime: Runtime) -> Run:
    """Build model, loss, optimiser and evaluation, and load what the run starts from. Cheap checks come first.

    Raises:
        ConfigError, CheckpointError: a setting or file that cannot be used.
    """
    training = config.training
    _check_folder(training.checkpoint_dir)
    if not training.dataset_path:
        raise ConfigError(
            "training.dataset_path is empty: name a full_list.txt or a folder of .torch chunks."
        )
    evaluation = _open_evaluation(config, runtime)
    model = build_model(config.model).to(runtime.device)
    run = Run(
        config=config,
        runtime=runtime,
        folder=Path(training.checkpoint_dir),
        model=model,
        network=model,
        optimizer=build_optimizer(model, training, runtime.device),
        scaler=grad_scaler(runtime.device, training),
        image_loss=build_image_loss(training, config.pretrained, runtime.device),
        evaluation=evaluation,
    )
    load_start(run)
    _check_latents(run)
    model.train()
    model.set_checkpointing(training.grad_checkpoint_every)
    if training.compile:
        model.compile_blocks()
    if runtime.world > 1:
        run.network = DistributedDataParallel(model, gradient_as_bucket_view=True)
    from_main(
        lambda: write_text(run.folder / "config.yaml", yaml.safe_dump(to_plain(config), sort_keys=False)),
        runtime,
    )
    return run


def _check_folder(checkpoint_dir: str) -> None:
    """A run writes to a folder of its own; in scoring the same key may name a file of weights or one checkpoint."""
    if not checkpoint_dir:
        raise ConfigError("training.checkpoint_dir is empty: name the folder that the run writes to.")
    folder = Path(checkpoint_dir)
    if folder.is_file() or is_checkpoint(folder):
        raise ConfigError(
            f"training.checkpoint_dir {folder} is {'a file' if folder.is_file() else 'one checkpoint'}: name the folder "
            "of the run. To start from these weights, name them in training.resume_ckpt."
        )


def _open_evaluation(config: RunConfig, runtime: Runtime) -> tuple[Any, Metrics] | None:
    """Loader and metrics of the evaluations during training, built before the first step: a missing file is told now."""
    training = config.training
    if not training.eval_every or not training.eval_dataset_path:
        return None
    loader = evaluation_loader(
        config,
        training.eval_dataset_path,
        rank=runtime.rank,
        world=runtime.world,
        pin=runtime.device.type != "cpu",
    )
    names = config.inference.metrics if config.inference.compute_metrics else []
    return loader, build_metrics(names, config.pretrained, runtime.device)


def _check_latents(run: Run) -> None:
    """Latents that lie beside the data belong to one autoencoder: it must be this model's."""
    training = run.config.training
    if not training.vae_latents:
        return
    codec = run.model.get_submodule("vae") if "vae" in dict(run.model.named_children()) else None
    if codec is None:
        raise ConfigError(
            f"training.vae_latents is {training.vae_latents}, but {run.config.model.class_name} has no autoencoder here: "
            "leave it empty."
        )
    paths, _ = sources(training.dataset_path)
    for place in (place_of_latents(path, training.vae_latents) for path in paths):
        Meta.read(place).require_same({"vae_digest": codec.digest()}, place)


def load_start(run: Run) -> None:
    """Load what the run starts from: its own newest checkpoint, else `resume_ckpt`, else pretrained parts and
    what fits of `init_from`.

    A run that has checkpoints of its own goes on from them whatever `resume_ckpt` says: after a crash, fine-tuning
    does not start over.
    """
    training = run.config.training
    own = from_main(lambda: _own_checkpoint(run.folder, training), run.runtime)
    if own and not all(all_gather_objects(own.is_dir())):
        raise ConfigError(
            f"training.checkpoint_dir {run.folder} holds {own.name} on the first machine only: it must be the same "
            "folder on all machines, on a disk that they share."
        )
    if own:
        resume(run, own)
    elif not training.resume_ckpt:
        for name, prefix in run.model.pretrained_parts.items():
            path = getattr(run.config.pretrained, name)
            if path == "random":
                log.warning("pretrained.%s=random: %s starts from random weights.", name, prefix)
            elif name == "vae":
                load_vae(run.model.get_submodule(prefix.rstrip(".")), path)
            else:
                load_pretrained_part(run.model, prefix, path, name)
        if training.init_from:
            start_from(run.model, training.init_from)
    elif training.reset_training_state:
        load_into(run.model, load_weights(training.resume_ckpt), training.resume_ckpt)
    else:
        resume(run, _foreign_checkpoint(training.resume_ckpt), reset_schedule=training.reset_lr_scheduler)


def _own_checkpoint(folder: Path, training: Training) -> Path | None:
    newest = newest_checkpoint(folder)
    published = sorted(folder.glob("ckpt_*.pt"))
    if newest is None and published and not training.resume_ckpt:
        raise ConfigError(
            f"training.checkpoint_dir {folder} holds {published[-1].name} of another program. To start from it: "
            f"training.resume_ckpt={published[-1]} training.reset_training_state=true; else name another folder."
        )
    return newest


def _foreign_checkpoint(path: str) -> Path:
    """The checkpoint folder that `resume_ckpt` names, itself or as a run folder."""
    folder = Path(path)
    if folder.is_file():
        raise ConfigError(
            f"training.resume_ckpt {path} holds weights, but no training state that can be continued: set "
            "training.reset_training_state=true to take the weights alone."
        )
    if find_checkpoints(folder):
        folder = newest_checkpoint(folder)
    return folder


def resume(run: Run, path: Path, *, reset_schedule: bool = False) -> None:
    """Put the run where the checkpoint left it; with `reset_schedule` only weights and optimiser, from step 0."""
    load_into(run.model, load_weights(path), path)
    state = load_training_state(path)
    try:
        _restore(run, state, reset_schedule)
    except torch.OutOfMemoryError:
        raise
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: its training state does not belong to this model ({error}). "
            "To start from its weights alone: training.resume_ckpt with training.reset_training_state=true."
        ) from error
    if reset_schedule:
        log.info("Optimiser of %s, schedule from step 0.", path)
        return
    log.info(
        "Going on from %s: step %d, %d samples seen.", path, run.progress.step, run.progress.samples_seen
    )


def _restore(run: Run, state: dict[str, Any], reset_schedule: bool) -> None:
    """Optimiser, and unless the schedule starts anew progress and generators, from a training state."""
    moments = state["optimizer"]["state"]
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    for number, moment in moments.items():
        if moment["exp_avg"].shape != parameters[number].shape:
            raise ValueError(f"the moments of parameter {number} have another shape")
    # The moments come from the file, the settings (decay, betas) from the config.
    run.optimizer.load_state_dict(run.optimizer.state_dict() | {"state": moments})
    if run.scaler.is_enabled() and state["scaler"]:
        run.scaler.load_state_dict(state["scaler"])
    if not reset_schedule:
        run.progress = Progress(**state["progress"])
        if len(state["random"]) == run.runtime.world:
            set_random_state(state["random"][run.runtime.rank], run.runtime.device)


def save(run: Run) -> None:
    """Write a checkpoint; all ranks call this, rank 0 writes."""
    state = {
        "progress": asdict(run.progress),
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "random": all_gather_objects(random_state(run.runtime.device)),
    }
    keep = run.config.training.keep_checkpoints
    begin = time.perf_counter()
    path = from_main(
        lambda: save_checkpoint(run.folder, run.progress.step, run.model, state, to_plain(run.config), keep),
        run.runtime,
    )
    log.info("Wrote %s in %.1f s.", path, time.perf_counter() - begin)
