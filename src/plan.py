"""`--dry-run`: what a training run would take, and all that is wrong with it, before anything is paid for.

    python -m src.train --config config/uplvsm_x224.yaml [key=value ...] --dry-run [--processes 8] [--utilisation 0.4]

Exit status: 0, the run can start; 2, it cannot, and every reason is listed.

Public: add_arguments, plan, Plan, make_plan.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass

from .config import ConfigError
from .cost import StepMemory, StepOnPaper, plans_of
from .data.loader import ContextCounts
from .gpus import GPUS, Gpu
from .memory import MARGIN
from .model import family_config
from .preflight import Preflight, check_space, inspect
from .scaling import talk
from .settings import RunConfig, load_parts

GIB, TERA = 2**30, 1e12
RESERVED = 1.0
"""GiB of a card that its driver, the libraries and gaps between tensors take."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words of a dry run, for the command line of training."""
    parser.add_argument(
        "--dry-run", action="store_true", help="say what the run would take, and start nothing"
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=int(os.environ.get("WORLD_SIZE", 1)),
        metavar="N",
        help="dry run: GPUs over all machines (default: 1)",
    )
    parser.add_argument(
        "--utilisation",
        type=float,
        default=0.4,
        metavar="SHARE",
        help="dry run: part of a GPU's peak that is reached (default: 0.4)",
    )


def plan(arguments: argparse.Namespace) -> int:
    """Print the plan of a run; the exit status.

    Raises:
        ConfigError: a config file that is absent or no YAML, or an argument out of range.
    """
    if arguments.processes < 1 or not 0 < arguments.utilisation <= 1:
        raise ConfigError("--processes must be at least 1, and --utilisation above 0 and at most 1.")
    parts, problems = load_parts(arguments.config, arguments.overrides, family_config)
    found = inspect(parts, problems)
    config = RunConfig(**parts) if not problems else None
    made = found.attempt("model", make_plan, config, found, arguments.processes) if config else None
    lines = [f"Plan of {arguments.config}"]
    if made:
        lines += made.lines(arguments.utilisation)
    lines += _listed("data", found.data) + _listed("notes", found.notes)
    sys.stdout.write("\n".join(lines) + "\n")
    for problem in found.problems:
        sys.stderr.write(f"error: {arguments.config}: {problem}\n")
    return 2 if found.problems else 0


def _listed(name: str, entries: list[str]) -> list[str]:
    return [f"  {name if not number else '':<12}{entry}" for number, entry in enumerate(entries)]


@dataclass(frozen=True)
class Plan:
    """What a run takes. FLOPs are those of one process in one optimiser step, a multiply-add as two.

    processes: over all machines. num_input: context views (the most, where they are drawn).
    shape: of the pictures, pixels.
    work: forward and backward pass; loss_work: networks of the loss.
    ways: plan for activations -> memory, and the work that is recomputed; the config's, or all where it says auto.
    space: a line about checkpoints and the disk.
    """

    config: RunConfig
    processes: int
    num_input: int
    shape: tuple[int, ...]
    trained: int
    frozen: int
    work: int
    loss_work: int
    ways: dict[str, tuple[StepMemory, int]]
    space: str

    def seconds(self, gpu: Gpu, utilisation: float, recomputed: int) -> float:
        """Of an optimiser step, if loading and talk between processes take none; 0 if the card cannot do it."""
        training = self.config.training
        speed = gpu.speed(training) * TERA * utilisation
        if not speed:
            return 0.0
        outside = gpu.float_speed(training) * TERA * utilisation
        return (self.work + recomputed) / speed + self.loss_work / outside

    def lines(self, utilisation: float) -> list[str]:
        """The plan in words."""
        training = self.config.training
        way, (memory, recomputed) = list(self.ways.items())[-1]
        micro, accum = training.batch_size_per_gpu, training.grad_accum_steps
        height, width = self.shape
        every = f" {training.grad_checkpoint_every}" if way == "blocks" else ""
        way = f"{way} (the least; auto takes more where it can)" if len(self.ways) > 1 else way
        numbers = training.amp_dtype if training.use_amp else "float32"
        gathered = f"gathered for a block {memory.gathered / GIB:.3g}, " if memory.gathered else ""
        total = self.work + recomputed + self.loss_work
        return [
            f"  model       {self.config.model.class_name}: {self.trained:,} parameters trained, {self.frozen:,} frozen",
            f"  step        {micro} scenes x {accum} accumulated x {self.processes} processes = "
            f"{micro * accum * self.processes} scenes; {self.num_input} context views, "
            f"{training.num_target_views} targets, {width} x {height} pixels; {numbers}, activations {way}{every}",
            f"  work        {total / TERA:.3g} TFLOP a step and process: {self.work / TERA:.3g} forward and backward, "
            f"{recomputed / TERA:.3g} recomputed, {self.loss_work / TERA:.3g} in networks of the loss",
            f"  memory      {memory.total / GIB:.3g} GiB a process: weights {memory.weights / GIB:.3g}, gradients "
            f"{memory.gradients / GIB:.3g}, optimiser {memory.optimizer / GIB:.3g}, networks of the loss "
            f"{memory.loss_network / GIB:.3g}, {gathered}activations at the worst moment {memory.activations / GIB:.3g}",
            *(
                [f"  talk        {talk(training, 4 * self.trained, self.processes)}"]
                if self.processes > 1
                else []
            ),
            f"  checkpoints {self.space}",
            f"  schedule    {training.train_steps:,} steps at {utilisation:.0%} of the peak on {self.processes} GPUs; "
            "loaders must give each process so many images a second:",
            f"    {'GPU':<14}{'peak TFLOP/s':>13}{'step, s':>10}{'hours':>10}{'images/s':>13}   memory",
            *(self._row(gpu, utilisation) for gpu in GPUS),
        ]

    def _row(self, gpu: Gpu, utilisation: float) -> str:
        training, room = self.config.training, (gpu.memory - RESERVED) * GIB
        *_, leanest = self.ways
        way = next((w for w, (memory, _) in self.ways.items() if memory.total <= MARGIN * room), leanest)
        fits = self.ways[way][0].total <= room
        seconds = self.seconds(gpu, utilisation, self.ways[way][1])
        if not seconds:
            return f"    {gpu.name:<14}{'':>46}   has no {training.amp_dtype}: set training.amp_dtype: fp16"
        images = training.batch_size_per_gpu * training.grad_accum_steps * training.num_views / seconds
        hours = seconds * training.train_steps / 3600
        chosen = f", activations {way}" if fits and len(self.ways) > 1 else ""
        return (
            f"    {gpu.name:<14}{gpu.speed(training):>13.0f}{seconds:>10.3g}{hours:>10.3g}{images:>13,.0f}   "
            f"{'fits' if fits else 'too little'} ({gpu.memory:.0f} GiB){chosen}"
        )


def make_plan(config: RunConfig, found: Preflight, processes: int = 1) -> Plan:
    """Count everything on the meta device; pictures have the shape that `found` met, else the config's.

    Raises:
        ConfigError, ValueError: the model does not take such views.
    """
    training = config.training
    num_input = ContextCounts(training).most
    side = config.model.image_tokenizer.image_size
    shape = found.shape or tuple(training.image_shape) or (side, side)
    one = StepOnPaper(config, num_input=num_input, shape=shape)
    samples = training.batch_size_per_gpu * training.grad_accum_steps
    whole = StepOnPaper(config, samples=training.batch_size_per_gpu, num_input=num_input, shape=shape)
    work, ways = one.flops(), {}
    for whole.plan in plans_of(training) if training.activations == "auto" else [training.activations]:
        ways[whole.plan] = whole.memory(processes), samples * (one.flops(whole.plan) - work)
    return Plan(
        config=config,
        processes=processes,
        num_input=num_input,
        shape=shape,
        trained=one.trained,
        frozen=one.frozen,
        work=samples * work,
        loss_work=samples * one.loss_flops(),
        ways=ways,
        space=check_space(found, training, one.checkpoint_bytes()),
    )
