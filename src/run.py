"""A training run: what it consists of, what it starts from, and how it is saved and goes on.

Public: Run, Progress, check_folder, open_run, save, state_of, finish_saving.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from .checkpoint import (
    CheckpointError,
    find_checkpoints,
    is_checkpoint,
    load_into,
    load_pretrained_part,
    load_training_state,
    load_weights,
    newest_checkpoint,
)
from .config import ConfigError
from .data.eval_index import evaluation_loader
from .data.latents import Meta, place_of_latents
from .data.loader import sources
from .ema import Ema
from .evaluate import Metrics
from .files import write_text
from .loss import build_image_loss
from .metrics import build_metrics
from .model import build_model
from .model.base import ViewSynthesizer
from .optim import build_optimizer
from .parallel import gathered, gathered_state, like, spread
from .runtime import Runtime, all_gather_objects, from_main, grad_scaler, random_state, set_random_state
from .saving import Saver
from .settings import RunConfig, Training, to_plain
from .step import StepResult
from .vae_files import load_vae
from .warm_start import start_from

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """Where a run stands; saved in its checkpoints. Skipped steps count as steps: the schedule goes on.

    step: optimiser steps attempted.
    samples_seen: training samples consumed, over all ranks.
    skipped: steps without update, for whatever reason.
    bad: steps that failed, or whose loss or gradients were not finite.
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
    """Everything that a training run holds. `network` and `twin` are what `parallel.spread` makes of `model`."""

    config: RunConfig
    runtime: Runtime
    folder: Path
    model: ViewSynthesizer
    network: nn.Module
    twin: nn.Module | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    image_loss: Any
    evaluation: tuple[Any, Metrics] | None
    saver: Saver
    ema: Ema | None = None
    progress: Progress = field(default_factory=Progress)

    @contextmanager
    def in_use(self) -> Iterator[ViewSynthesizer]:
        """Inside, the model that is scored: with whole weights, and averaged ones if the run keeps and uses them; all
        ranks enter together.
        """
        use_ema = self.ema and self.config.inference.use_ema
        averaged = self.ema.applied_to(self.model) if use_ema else nullcontext()
        with averaged, gathered(self.model, self.twin) as model:
            yield model

    def count(self, result: StepResult) -> None:
        """Take note of a step that was attempted."""
        training = self.config.training
        samples = training.batch_size_per_gpu * training.grad_accum_steps * self.runtime.world
        self.progress.advance(samples, stepped=result.stepped, bad=result.bad)


def open_run(config: RunConfig, runtime: Runtime) -> Run:
    """Build model, loss, optimiser and evaluation, and load what the run starts from. Cheap checks come first.

    Raises:
        ConfigError, CheckpointError: a setting or file that cannot be used.
    """
    training = config.training
    check_folder(training.checkpoint_dir)
    if not training.dataset_path:
        raise ConfigError(
            "training.dataset_path is empty: name a full_list.txt or a folder of .torch chunks."
        )
    evaluation = _open_evaluation(config, runtime)
    saver = Saver(
        Path(training.checkpoint_dir),
        keep=training.keep_checkpoints,
        keep_every=training.keep_checkpoint_every,
        background=training.async_save,
    )
    from_main(saver.claim, runtime)
    model = build_model(config.model)
    network, twin = spread(model, training.parallel, runtime)
    run = Run(
        config=config,
        runtime=runtime,
        folder=Path(training.checkpoint_dir),
        model=model,
        network=network,
        twin=twin,
        optimizer=build_optimizer(model, training, runtime.device),
        scaler=grad_scaler(runtime.device, training),
        image_loss=build_image_loss(training, config.pretrained, runtime.device),
        evaluation=evaluation,
        saver=saver,
    )
    load_start(run)
    _load_teachers(run)
    _check_latents(run)
    if training.ema_decay and run.ema is None:
        run.ema = Ema(model, training.ema_decay)
    if runtime.is_main:
        trained = [p for p in model.parameters() if p.requires_grad]
        # Weights and the two moments of AdamW.
        saver.reserve([*model.state_dict().values(), *trained, *trained])
    model.train()
    if training.compile:
        model.compile_blocks()
    from_main(
        lambda: write_text(run.folder / "config.yaml", yaml.safe_dump(to_plain(config), sort_keys=False)),
        runtime,
    )
    return run


def check_folder(checkpoint_dir: str) -> None:
    """A run writes to a folder of its own; in scoring the same key may name a file of weights or one checkpoint.

    Raises:
        ConfigError: no folder is named, or something else.
    """
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
    codec = run.model.codec
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
                load_vae(run.model.codec, path)
            else:
                load_pretrained_part(run.model, prefix, path, name)
        if training.init_from:
            start_from(run.model, training.init_from)
    elif training.reset_training_state:
        load_into(run.model, load_weights(training.resume_ckpt), training.resume_ckpt)
    else:
        resume(run, _foreign_checkpoint(training.resume_ckpt), reset_schedule=training.reset_lr_scheduler)


def _load_teachers(run: Run) -> None:
    """Fill the frozen networks that the model learns from."""
    for name, network in run.model.teachers().items():
        path = getattr(run.config.pretrained, name)
        if path == "random":
            log.warning("pretrained.%s=random: the model learns from a teacher that knows nothing.", name)
        else:
            load_pretrained_part(network, "", path, name)
        network.to(run.runtime.device)


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
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
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
        for name in ("exp_avg", "exp_avg_sq"):
            if moment[name].shape != parameters[number].shape or not torch.isfinite(moment[name]).all():
                raise ValueError(f"the moments of parameter {number} are not finite or have another shape")
            moment[name] = like(moment[name], parameters[number])
        if moment["step"].shape or moment["step"].dtype != torch.float32:
            raise ValueError(f"the count of parameter {number} is none")
    # The moments come from the file, the settings (decay, betas) from the config.
    run.optimizer.load_state_dict(run.optimizer.state_dict() | {"state": moments})
    if run.config.training.ema_decay and "ema" in state:
        run.ema = Ema(run.model, run.config.training.ema_decay)
        run.ema.load_state_dict(state["ema"])
    if run.scaler.is_enabled() and state["scaler"]:
        run.scaler.load_state_dict(state["scaler"])
    if not reset_schedule:
        if not all(type(count) is int and count >= 0 for count in state["progress"].values()):
            raise ValueError("progress must be counts")
        run.progress = Progress(**state["progress"])
        if len(state["random"]) == run.runtime.world:
            set_random_state(state["random"][run.runtime.rank], run.runtime.device)


def save(run: Run) -> None:
    """Save a checkpoint of how the run is now; all ranks call this, rank 0 writes, in the background if so set.

    One that cannot be written is logged, and training goes on: those before it are kept. `finish_saving` raises.
    """
    weights, state = state_of(run)
    if run.runtime.is_main:
        run.saver.save(run.progress.step, weights, state, to_plain(run.config))


def state_of(run: Run) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the training state that a checkpoint holds; all ranks call this, what rank 0 gets counts."""
    state = {
        "progress": asdict(run.progress),
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        **({"ema": run.ema.state_dict()} if run.ema else {}),
        "random": all_gather_objects(random_state(run.runtime.device)),
    }
    return gathered_state((dict(run.model.state_dict()), state))


def finish_saving(run: Run) -> None:
    """Return when the newest checkpoint is on the disk; all ranks call this.

    Raises:
        CheckpointError: it could not be written.
    """
    from_main(run.saver.finish, run.runtime)
