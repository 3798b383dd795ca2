"""Train a model of any family.

    python -m src.train --config config/uplvsm_x224.yaml [key=value ...] [--print-config | --dry-run | --profile]
    torchrun --nproc_per_node 8 -m src.train --config ...

A run lives in `training.checkpoint_dir`: checkpoints, `config.yaml`, `log.jsonl`, `tensorboard/`, `iter_<step>/`. Started
again, it goes on from its newest whole checkpoint as if it had never stopped, also on another number of processes.

Exit status:

      0  finished
      1  an error that nobody foresaw, with its traceback
      2  a mistake that a message explains
      3  `max_bad_steps` steps in a row failed or were not finite; the last good checkpoint stays
    124  `training.time_limit` is over      |
    130  Ctrl-C; a second one ends at once  |  after a last checkpoint: start again to go on
    138  SIGUSR1                            |
    143  SIGTERM                            |

torchrun has a status of its own: 0, or 1 for every other.

Public: main, train.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import torch
from easydict import EasyDict
from torch.profiler import record_function

from . import plan
from .activations import keep_activations
from .checkpoint import find_checkpoints
from .cli import LESS_MEMORY, chosen_config, config_parser, guarded
from .cost import chosen_plan
from .data.batch import split_views, to_device
from .data.loader import training_loader
from .evaluate import evaluate
from .files import write_text
from .model.base import ViewSynthesizer
from .optim import learning_rate
from .profiling import profiling
from .run import Run, finish_saving, open_run, save
from .runtime import (
    Runtime,
    agree,
    all_gather_objects,
    autocast,
    end_torchrun,
    set_precision,
    setup_logging,
    start,
    stop,
)
from .settings import RunConfig, config_digest
from .step import StepResult, told, train_step
from .stopping import REASONS, Interrupted, StopRequest
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
    parser = config_parser("Train a model of any family.")
    plan.add_arguments(parser)
    parser.add_argument(
        "--profile",
        action="store_true",
        help="record a few steps for ui.perfetto.dev in the run folder's profile/, and go on",
    )
    arguments = parser.parse_intermixed_args(argv)
    if arguments.dry_run:
        return plan.plan(arguments)
    config = chosen_config(arguments)
    if config is None:
        return 0
    runtime = start(config.training.seed)
    setup_logging(runtime.is_main)
    set_precision(config.training)
    try:
        status = train(config, runtime, profile=arguments.profile)
    except KeyboardInterrupt:
        log.warning("Interrupted. Checkpoints that were written are kept.")
        return 128 + signal.SIGINT
    stop()
    if status:
        end_torchrun(runtime)
    return status


# ----------------------------------------------------------------------------------------------- the loop


def train(config: RunConfig, runtime: Runtime, *, profile: bool = False) -> int:
    """Train until `train_steps`, a request to stop or too many bad steps; the exit status. profile: see profiling.py."""
    request = StopRequest(config.training.time_limit)  # its time runs from here
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
    plan_of_activations = chosen_plan(config, runtime, loader.contexts.most, loader.shape)
    keep_activations(run.model, training, plan_of_activations)
    announce(run, loader, plan_of_activations)
    meter, first_step, saved_step = Meter(), progress.step, progress.step
    steps = training.train_steps - first_step
    with (
        request,
        run.saver,
        closing(loader),
        Tracker(run.folder, config, runtime, first_step) as tracker,
        profiling(profile, run.folder / "profile", runtime, steps) as end_of_step,
    ):
        while progress.step < training.train_steps:
            begin = time.perf_counter()
            with record_function("data wait"):
                micro_batches, problem = draw(loader, training.grad_accum_steps, request)
            status, failed = agree([request.status, bool(problem)], runtime)
            if status:
                return end_early(run, status, saved_step)
            waited = time.perf_counter() - begin
            result = update(run, micro_batches) if not failed else skip(run, problem)
            terms = {} if result.bad else result.terms
            meter.add(terms, micro_batches, waited, time.perf_counter() - begin)

            if result.bad:
                report_bad_step(run, result, micro_batches, tracker)
            if progress.bad_in_a_row >= training.max_bad_steps:
                return give_up(run)
            report(run, meter, result, tracker, verbose=progress.step - first_step <= FIRST_STEPS)
            last = progress.step == training.train_steps
            if last or due(training.checkpoint_every, progress.step):
                save(run)
                saved_step = progress.step
            if due(training.vis_every, progress.step):
                with run.in_use() as model, tracker.going_on_without("a picture"):
                    save_pictures(run, model, micro_batches)
            if run.evaluation and (last or due(training.eval_every, progress.step)):
                status = score(run, tracker, request)
                if status:
                    return end_early(run, status, saved_step)
            end_of_step()
        finish_saving(run)
    log.info("Finished %d steps. %s", progress.step, _loader_report(loader))
    return 0


def draw(loader: Iterator[EasyDict], count: int, request: StopRequest) -> tuple[list[EasyDict], str]:
    """The next micro-batches of this rank, and why some are absent; fewer also when the run was asked to stop."""
    micro_batches, problem = [], ""
    for _ in range(count):  # to the end, or the ranks would no longer read the samples of one step
        try:
            with request.giving_way():
                micro_batches.append(next(loader))
        except Interrupted:
            break
        except Exception as error:
            problem = told(error, micro_batches)
    return micro_batches, problem


def update(run: Run, micro_batches: list[EasyDict]) -> StepResult:
    """One optimiser step with everything that goes on with it."""
    result = train_step(
        run.network,
        micro_batches,
        run.progress.step,
        run.optimizer,
        run.scaler,
        run.image_loss.at(run.progress.step),
        run.config.training,
        run.runtime,
    )
    if run.ema and result.stepped:
        run.ema.update(run.model)
    run.count(result)
    return result


def skip(run: Run, problem: str) -> StepResult:
    """The step for which some rank has no data. problem: why this one has none, if so."""
    result = StepResult.failed(problem, learning_rate(run.progress.step, run.config.training))
    run.count(result)
    return result


def end_early(run: Run, status: int, saved_step: int) -> int:
    """Save what was not saved yet; the exit status that was asked for."""
    if run.progress.step > saved_step:
        save(run)
    finish_saving(run)
    log.warning("Stopped at step %d: %s. Start again to go on.", run.progress.step, REASONS[status])
    return status


def due(every: int, step: int) -> bool:
    """Whether something that happens each `every` steps (0: never) happens after update number `step`, from 1."""
    return every > 0 and step % every == 0


# ----------------------------------------------------------------------------------------------- what is reported


def announce(run: Run, loader: Any, plan_of_activations: str) -> None:
    """Say what is about to happen."""
    training, world = run.config.training, run.runtime.world
    log.info(
        "%s with %.2f M parameters on %d x %s; %d scenes; %d samples a step (%d x %d processes x %d accumulated); "
        "steps %d to %d; activations %s; config %s",
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
        plan_of_activations,
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
    """Say why a step was skipped, and at which scenes; all ranks call this."""
    progress = run.progress
    terms = {name: value.item() for name, value in result.terms.items()}
    mine = {
        "guilty": bool(result.problem) or not math.isfinite(terms.get("loss", 0.0)),
        "problem": result.problem,
        "terms": terms,
        "scenes": [name for batch in micro_batches for name in batch.scene_name],
    }
    ranks = all_gather_objects(mine)
    ranks = [rank for rank in ranks if rank["guilty"]] or ranks  # none: only gradients were not finite
    scenes = [name for rank in ranks for name in rank["scenes"]]
    problem = next((rank["problem"] for rank in ranks if rank["problem"]), "")
    log.warning(
        "Step %d %s and was skipped on all ranks (%d in a row, %d in all). %s. Scenes: %s.",
        progress.step,
        "failed" if problem else "is not finite",
        progress.bad_in_a_row,
        progress.bad,
        problem or "Terms: " + ", ".join(f"{name} {value:g}" for name, value in ranks[0]["terms"].items()),
        ", ".join(scenes),
    )
    values = {"terms": ranks[0]["terms"], "scenes": scenes, "problem": problem}
    tracker.record("bad_step", progress.step, values)


def give_up(run: Run) -> int:
    """End a run that no longer learns. Its weights are those of the last good step, and no checkpoint is written."""
    run.saver.wait()
    newest = (find_checkpoints(run.folder) or ["none"])[-1]
    log.error(
        "Stopped at step %d: %d steps in a row were not finite or failed (training.max_bad_steps). The weights were not "
        "touched by them. Last checkpoint: %s. Reasons and scenes are listed above. Against numbers that are not finite: "
        "lower training.lr, or try training.use_amp=false. %s",
        run.progress.step,
        run.progress.bad_in_a_row,
        newest,
        f"Against a lack of memory: {LESS_MEMORY}",
    )
    return STATUS_DIVERGED


def score(run: Run, tracker: Tracker, request: StopRequest) -> int:
    """Evaluate on every scene once, shared between the ranks, and record the means; the status of a request to stop."""
    loader, metrics = run.evaluation
    try:
        with run.in_use() as model:
            result = evaluate(model, loader, run.config, run.runtime, metrics=metrics, request=request)
    except Interrupted as stop:
        log.warning("The evaluation after step %d is cut short.", run.progress.step)
        return stop.status
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
    return 0


def _scores(means: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in means.items())


def save_pictures(run: Run, model: ViewSynthesizer, micro_batches: Sequence[EasyDict]) -> None:
    """`iter_<step>/` of rank 0: truth beside render of every target of its last micro-batch, the context views, and
    which scenes they are.
    """
    if not (run.runtime.is_main and micro_batches):
        return
    device, batch = run.runtime.device, micro_batches[-1]
    input, target = split_views(to_device(batch, device), batch.num_input)
    model.eval()  # noise would take numbers out of the generator, and a resumed run would not draw the same ones
    with torch.no_grad(), autocast(device, run.config.training):
        render = model(input, target).render.float()  # [b, v, 3, h, w]
    model.train()
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
