"""What a training step of a config costs under different settings: time, pictures a second, MFU, memory.

MFU is the useful work of a step, counted exactly (`src/cost.py`: what forward and backward pass compute, networks of the loss
included, a multiply-add as two, recomputation not), over its time and the measured peak of large products in the step's number
type. The same batch of noise goes through every variant, and loss and gradients of their first steps are compared: a
variant that computes something else is no faster way to do the same.

Public: VARIANTS, Row, measure, table.
"""

from __future__ import annotations

import gc
import statistics
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from ..cost import StepOnPaper
from ..model import family_config
from ..runtime import AUTOCAST_TYPES, Runtime, set_precision
from ..settings import RunConfig, Training, load_config
from .limits import matmul_peak, seconds
from .measure import PeakMemory, timed
from .noise import NoiseTraining, StepFailed

VARIANTS: dict[str, list[str]] = {
    "blocks": ["training.activations=blocks", "training.grad_checkpoint_every=1", "training.compile=false"],
    "blocks_4": ["training.activations=blocks", "training.grad_checkpoint_every=4", "training.compile=false"],
    "memory": ["training.activations=memory", "training.compile=false"],
    "products": ["training.activations=products", "training.compile=false"],
    "speed": ["training.activations=speed", "training.compile=false"],
    "compiled_blocks": [
        "training.activations=blocks",
        "training.grad_checkpoint_every=1",
        "training.compile=true",
    ],
    "compiled_memory": ["training.activations=memory", "training.compile=true"],
    "compiled_speed": ["training.activations=speed", "training.compile=true"],
}
"""Name -> settings. The first recomputes each block, as published, and compiles nothing."""

WARM_UP = 2
"""Steps after the first one, whose times do not count."""


@dataclass(frozen=True)
class Row:
    """One variant.

    problem: why it could not be done; empty: it could, and the rest holds.
    first_s, step_s: seconds of the first step, compilation included, and of the median of the timed ones.
    images_s: pictures a second, of all processes. mfu: see above.
    peak_bytes: most memory held during the timed steps. activation_bytes: what of it is neither weights, moments nor
        gradients. None: this system does not tell.
    loss, norms: of the first step; norms of each parameter's gradient.
    """

    variant: str
    problem: str = ""
    first_s: float = 0.0
    step_s: float = 0.0
    images_s: float = 0.0
    mfu: float = 0.0
    peak_bytes: int | None = None
    activation_bytes: int | None = None
    loss: float = 0.0
    norms: dict[str, float] = field(default_factory=dict)

    def differs(self, other: Row) -> float:
        """Largest relative difference of the losses and of a parameter's gradient norms."""
        pairs = [(self.loss, other.loss), *((self.norms[name], norm) for name, norm in other.norms.items())]
        return max(abs(ours - theirs) / max(abs(theirs), 1e-30) for ours, theirs in pairs)


def measure(path: Path, overrides: list[str], variants: list[str], steps: int, runtime: Runtime) -> list[Row]:
    """The variants one after another: of large models only one fits a memory.

    Args:
        path, overrides: config file, and settings for all variants; those of the variant come after them.
        steps: that are timed.

    Raises:
        ConfigError: a setting that cannot be used.
    """
    configs = {name: load_config(path, [*overrides, *VARIANTS[name]], family_config) for name in variants}
    config = next(iter(configs.values()))
    training = config.training
    set_precision(training)
    work = step_flops(config)
    peak = matmul_peak(runtime.device, number_type(training))
    return [
        _measure(name, configs[name], steps, runtime, work / peak)
        for name in tqdm(variants, desc="variants", disable=not runtime.is_main)
    ]


def step_flops(config: RunConfig) -> int:
    """Useful work of one process in one step."""
    training, step = config.training, StepOnPaper(config)
    samples = training.batch_size_per_gpu * training.grad_accum_steps
    return samples * (step.flops() + step.loss_flops())


def number_type(training: Training) -> torch.dtype:
    """Of the products of a forward pass; TF32 counts as float32."""
    return AUTOCAST_TYPES.get(training.amp_dtype, torch.float32) if training.use_amp else torch.float32


def _measure(name: str, config: RunConfig, steps: int, runtime: Runtime, least_s: float) -> Row:
    """least_s: seconds of a step that reaches the peak."""
    device = runtime.device
    _forget(device)
    try:
        run = NoiseTraining(config, runtime)
        first, first_time = timed(partial(run.step, norms=True), device)
        for _ in range(WARM_UP):
            run.step()
        with PeakMemory(device) as peak:
            times = [seconds(timed(run.step, device)[1], device) for _ in range(steps)]
    except (StepFailed, torch.OutOfMemoryError) as error:
        return Row(name, problem=str(error).partition("\n")[0])
    step_s = statistics.median(times)
    gradients = sum(p.nbytes for p in run.model.parameters() if p.requires_grad)
    known = peak.bytes is not None
    return Row(
        name,
        first_s=seconds(first_time, device),
        step_s=step_s,
        images_s=run.images * runtime.world / step_s,
        mfu=least_s / step_s,
        peak_bytes=peak.before + peak.bytes if known else None,
        activation_bytes=max(0, peak.bytes - gradients) if known else None,
        loss=first.terms["loss"].item(),
        norms={name: norm.item() for name, norm in first.grad_norms.items()},
    )


def _forget(device: torch.device) -> None:
    """Nothing of the variant before is left in the memory, and nothing that was compiled for it."""
    torch.compiler.reset()
    gc.collect()
    if device.type != "cpu":
        torch.accelerator.empty_cache()


def table(rows: list[Row]) -> str:
    """Markdown; speed and memory also as multiples of the first variant's."""
    lines = [
        "| variant | step, s | speed | images/s | MFU | peak, GiB | activations, GiB | of the first's | first step, s | differs by |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    first = next((row for row in rows if not row.problem), None)
    for r in rows:
        if r.problem or first is None:
            lines.append(f"| {r.variant} | {r.problem} | | | | | | | | |")
            continue
        share = f"{r.activation_bytes / first.activation_bytes:.2f}" if first.activation_bytes else "-"
        lines.append(
            f"| {r.variant} | {r.step_s:.3f} | {first.step_s / r.step_s:.2f} | {r.images_s:.1f} | {r.mfu:.0%} "
            f"| {_gib(r.peak_bytes)} | {_gib(r.activation_bytes)} | {share} "
            f"| {r.first_s:.1f} | {r.differs(first):.0e} |"
        )
    return "\n".join(lines) + "\n"


def _gib(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**30:.2f}"
