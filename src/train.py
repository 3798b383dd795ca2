"""Train a model of any family.

    python -m src.train --config config/uplvsm_x224.yaml [key=value ...] [--print-config]
    torchrun --nproc_per_node 8 -m src.train --config ...

A run lives in `training.checkpoint_dir`: checkpoints, `config.yaml`, `log.jsonl`, `tensorboard/`, `iter_<step>/`. Started
again, it goes on from its newest whole checkpoint as if it had never stopped, also on another number of processes.

Exit status: 0 finished; 2 a mistake that a message explains; 3 too many non-finite steps in a row; 130 or 143 stopped by
Ctrl-C or SIGTERM, after a last checkpoint.

Public: main, train, train_step, StepResult.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from easydict import EasyDict
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .checkpoint import find_checkpoints
from .cli import guarded, read_config
from .data.batch import split_views, to_device
from .data.loader import training_loader
from .evaluate import evaluate
from .files import write_text
from .optim import clip_or_skip, learning_rate
from .run import Run, open_run, save
from .runtime import (
    Runtime,
    StopRequest,
    all_gather_objects,
    autocast,
    largest_over_ranks,
    set_precision,
    setup_logging,
    start,
    stop,
)
from .settings import RunConfig, Training, config_digest
from .tracking import Meter, Tracker, console_line
from .visualize import save_image, sheet

log = logging.getLogger(__name__)

STATUS_DIVERGED = 3
FIRST_STEPS = 20
"""Each of so many first steps of a process is shown: a wrong setting is seen at once."""


def main(argv: list[str] | None = None) -> int:
    """Train; the exit status."""
    return guarded(lambda: _run(argv))


def _run(argv: list[str] | None) -> int:
    config = read_config(argv, "Train a model of any family.")
    if config is None:
        return 0
    runtime = start(config.training.seed)
    setup_logging(runtime.is_main)
    set_precision(config.training)
    try:
        status = train(config, runtime)
    except KeyboardInterrupt:
        log.warning("Interrupted. Checkpoints that were written are kept.")
        return 128 + signal.SIGINT
    stop()
    return status


# ----------------------------------------------------------------------------------------------- the loop


def train(config: RunConfig, runtime: Runtime) -> int:
    """Train until `train_steps`, a signal or too many bad steps; the exit status."""
    run, training = open_run(config, runtime), config.training
    progress = run.progress
    if progress.step >= training.train_steps:
        log.info("This run is finished: %d steps. Raise training.train_steps to go on.", progress.step)
        return 0
    loader = training_loader(
        config,
        rank=runtime.rank,
        world=runtime.world,
        samples_seen=progress.samples_seen,
        pin=runtime.device.type != "cpu",
    )
    announce(run, loader)
    meter, first_step = Meter(), progress.step
    with StopRequest() as request, Tracker(run.folder, config, runtime, first_step) as tracker:
        batches = iter(loader)
        while progress.step < training.train_steps:
            begin = time.perf_counter()
            micro_batches = [next(batches) for _ in range(training.grad_accum_steps)]
            waited = time.perf_counter() - begin
            result = train_step(
                run.network,
                micro_batches,
                progress.step,
                run.optimizer,
                run.scaler,
                run.image_loss.at(progress.step),
                training,
                runtime,
                request,
            )
            samples = training.batch_size_per_gpu * len(micro_batches) * runtime.world
            progress.advance(samples, stepped=result.stepped, bad=result.bad)
            terms = {} if result.bad else result.terms
            meter.add(terms, micro_batches, waited, time.perf_counter() - begin)

            if result.bad:
                report_bad_step(run, result, micro_batches, tracker)
            if progress.bad_in_a_row >= training.max_bad_steps:
                return give_up(run)
            report(run, meter, result, tracker, verbose=progress.step - first_step <= FIRST_STEPS)
            last = progress.step == training.train_steps
            if last or result.stop or due(training.checkpoint_every, progress.step):
                save(run)
            if result.stop:
                log.warning("Stopped by a signal at step %d; start again to go on.", progress.step)
                return 128 + result.stop
            if due(training.vis_every, progress.step) and runtime.is_main:
                save_pictures(run, micro_batches[-1])
            if run.evaluation and (last or due(training.eval_every, progress.step)):
                score(run, tracker)
    log.info("Finished %d steps. %s", progress.step, _loader_report(loader))
    return 0


@dataclass
class StepResult:
    """What one optimiser step did.

    terms: scalar loss terms, mean over the micro-steps of this rank, on the device.
    grad_norm: joint norm before clipping.
    stepped: the weights were updated.
    bad: loss or gradients were not finite (an fp16 overflow, which the scaler answers, does not count).
    lr: learning rate in force.
    stop: signal that asks the run to end, got by this or another rank; 0: none.
    grad_norms: norm of each parameter's gradient, if asked for.
    """

    terms: dict[str, Tensor]
    grad_norm: float
    stepped: bool
    bad: bool
    lr: float
    stop: int = 0
    grad_norms: dict[str, Tensor] = field(default_factory=dict)


def train_step(
    network: nn.Module,
    micro_batches: Sequence[EasyDict],
    step: int,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    image_loss: Callable[[Tensor, Tensor], dict[str, Tensor]],
    training: Training,
    runtime: Runtime,
    request: StopRequest | None = None,
) -> StepResult:
    """One update from all micro-batches: forward, objective, backward of each, then clip, skip or step.

    Gradients are summed between ranks once, in the last backward pass. The forward pass runs under autocast, the
    objective in float32. Whether the update is made is decided alike on all ranks.

    Args:
        network: the model, wrapped in DistributedDataParallel if there are several ranks.
        micro_batches: `grad_accum_steps` batches as the loader gives them.
        step: number of the update, from 0: sets the learning rate.
        scaler: scales the loss in fp16; disabled otherwise.
        request: whether this rank was asked to stop; the answer of all ranks is `StepResult.stop`.
    """
    model = network.module if isinstance(network, DistributedDataParallel) else network
    lr = learning_rate(step, training)
    for group in optimizer.param_groups:
        group["lr"] = lr
    terms: dict[str, Tensor] = {}
    for i, batch in enumerate(micro_batches):
        unsynced = network is not model and i + 1 < len(micro_batches)
        input, target = split_views(to_device(batch, runtime.device), batch.num_input)
        with network.no_sync() if unsynced else nullcontext():
            with autocast(runtime.device, training):
                result = network(input, target)
            losses = model.objective(_float32(result), target, image_loss)
            scaler.scale(losses["loss"] / len(micro_batches)).backward()
        for name, value in losses.items():
            terms[name] = terms.get(name, 0.0) + value.detach().float() / len(micro_batches)

    scaler.unscale_(optimizer)
    parameters = [p for p in model.parameters() if p.requires_grad]
    norms = _gradient_norms(model) if training.log_grad_norm_details else {}
    broken = ~torch.isfinite(terms["loss"])
    # Filled on the device: a tensor copied from the host would make it wait.
    asked = torch.full_like(broken, request.signal if request else 0, dtype=torch.int32)
    broken, asked = largest_over_ranks(torch.stack([broken.int(), asked]), runtime)
    clip = step >= training.clip_from_step
    outcome = clip_or_skip(parameters, optimizer, broken == 0, training, asked, clip=clip)
    # Gradients that overflow in fp16 are how the scaler finds its scale; below 1 there is nothing left to find.
    overflow = not outcome.finite and scaler.get_scale() > 1 and not bool(broken)
    scaler.update()
    bad = not outcome.finite and not overflow
    return StepResult(terms, outcome.grad_norm, outcome.stepped, bad, lr, int(outcome.along), norms)


def due(every: int, step: int) -> bool:
    """Whether something that happens each `every` steps (0: never) happens after update number `step`, from 1."""
    return every > 0 and step % every == 0


def _float32(result: EasyDict) -> EasyDict:
    """The result of a forward pass with its half-precision tensors as float32."""
    for name, value in result.items():
        if torch.is_tensor(value) and value.is_floating_point():
            result[name] = value.float()
    return result


def _gradient_norms(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.norm() for name, p in model.named_parameters() if p.grad is not None}


# ----------------------------------------------------------------------------------------------- what is reported


def announce(run: Run, loader: Any) -> None:
    """Say what is about to happen."""
    training, world = run.config.training, run.runtime.world
    log.info(
        "%s with %.2f M parameters on %d x %s; %d scenes; %d samples a step (%d x %d processes x %d accumulated); "
        "steps %d to %d; config %s",
        run.config.model.class_name,
        sum(p.numel() for p in run.model.parameters()) / 1e6,
        world,
        run.runtime.device.type,
        loader.num_scenes,
        training.batch_size_per_gpu * world * training.grad_accum_steps,
        training.batch_size_per_gpu,
        world,
        training.grad_accum_steps,
        run.progress.step,
        training.train_steps,
        config_digest(run.config),
    )


def report(run: Run, meter: Meter, result: StepResult, tracker: Tracker, *, verbose: bool) -> None:
    """Console line, JSONL record and curves, when they are due; all ranks call this."""
    training, step = run.config.training, run.progress.step
    shown = verbose or due(training.print_every, step) or step == training.train_steps
    plotted = verbose or due(training.wandb_log_every, step)
    if not (shown or plotted):
        return
    values = meter.means(run.runtime)
    values |= {
        "lr": result.lr,
        "grad_norm": result.grad_norm,
        "skipped": run.progress.skipped,
        "bad": run.progress.bad,
    }
    meter.clear()
    if shown:
        log.info(console_line(step, training.train_steps, values))
    details = {f"grad_norm/{name}": norm.item() for name, norm in result.grad_norms.items()}
    tracker.record("train", step, values | details)
    if plotted:
        tracker.curves("train", step, values | details)


def report_bad_step(
    run: Run, result: StepResult, micro_batches: Sequence[EasyDict], tracker: Tracker
) -> None:
    """Say which scenes and loss terms were not finite; all ranks call this."""
    progress = run.progress
    terms = {name: value.item() for name, value in result.terms.items()}
    scenes = [name for batch in micro_batches for name in batch.scene_name]
    guilty = not bool(torch.isfinite(result.terms["loss"]))
    ranks = all_gather_objects({"guilty": guilty, "terms": terms, "scenes": scenes})
    ranks = [rank for rank in ranks if rank["guilty"]] or ranks  # none: only gradients were not finite
    scenes = [name for rank in ranks for name in rank["scenes"]]
    log.warning(
        "Step %d is not finite and was skipped on all ranks (%d in a row, %d in all). Terms: %s. Scenes: %s.",
        progress.step,
        progress.bad_in_a_row,
        progress.bad,
        ", ".join(f"{name} {value:g}" for name, value in ranks[0]["terms"].items()),
        ", ".join(scenes),
    )
    tracker.record("bad_step", progress.step, {"terms": ranks[0]["terms"], "scenes": scenes})


def give_up(run: Run) -> int:
    """End a run that no longer learns. Its weights are those of the last good step, and no checkpoint is written."""
    newest = (find_checkpoints(run.folder) or ["none"])[-1]
    log.error(
        "Stopped at step %d: %d steps in a row were not finite (training.max_bad_steps). The weights were not touched "
        "by them. Last checkpoint: %s. The scenes are listed above; lower training.lr, or try training.use_amp=false.",
        run.progress.step,
        run.progress.bad_in_a_row,
        newest,
    )
    return STATUS_DIVERGED


def score(run: Run, tracker: Tracker) -> None:
    """Evaluate on every scene once, shared between the ranks, and record the means."""
    loader, metrics = run.evaluation
    result = evaluate(run.model, loader, run.config, run.runtime, metrics=metrics)
    floors = {name: table["mean_over_scenes"] for name, table in result["floors"].items()}
    step, headline = run.progress.step, result["headline"] | result["terms"]
    tracker.record("eval", step, {"headline": headline, "floors": floors, "counts": result["counts"]})
    tracker.curves("eval", step, headline)
    log.info(
        "Evaluation after step %d, %d scenes: %s  (floors: %s)",
        step,
        result["counts"]["evaluated"],
        _scores(headline),
        "; ".join(f"{name} {_scores(means)}" for name, means in floors.items()) or "none",
    )


def _scores(means: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in means.items())


def save_pictures(run: Run, batch: EasyDict) -> None:
    """`iter_<step>/`: truth beside render of every target, the context views, and which scenes they are."""
    training = run.config.training
    device = run.runtime.device
    input, target = split_views(to_device(batch, device), batch.num_input)
    run.model.eval()  # noise would take numbers out of the generator, and a resumed run would not draw the same ones
    with torch.no_grad(), autocast(device, training):
        render = run.model(input, target).render.float()  # [b, v, 3, h, w]
    run.model.train()
    pairs = torch.stack([target.image, render], dim=2).flatten(1, 2)  # [b, 2 v, 3, h, w], truth before render
    uids = batch.index[:, 0, 1].tolist()
    folder = run.folder / f"iter_{run.progress.step:08d}"
    span = f"{uids[0]}_{uids[-1]}"
    save_image(folder / f"supervision_{span}.jpg", sheet(list(pairs)))
    save_image(folder / f"input_{span}.jpg", sheet(list(input.image)))
    write_text(folder / "uids.txt", "".join(f"{uid} {name}\n" for uid, name in zip(uids, batch.scene_name)))


def _loader_report(loader: Any) -> str:
    counts = {name: count for name, count in loader.report().items() if isinstance(count, int) and count}
    return f"Data of this process: {', '.join(f'{name} {count}' for name, count in counts.items())}."


if __name__ == "__main__":
    raise SystemExit(main())
