"""A training step at the width of config/uplvsm_x224.yaml and a third of its depth, float32, without perceptual loss.

The reference recomputes every block and computes all tokens of every block, as published. Each side does whole steps, update
included, on the same weights: with a learning rate of 0 they stay what they are, and losses and gradients can be compared.

Public: measure.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from easydict import EasyDict
from tqdm import tqdm

from ..activations import keep_activations
from ..config import build
from ..loss import ImageLoss
from ..model import build_model, family_config
from ..model.base import ViewSynthesizer
from ..optim import build_optimizer
from ..runtime import Runtime, grad_scaler
from ..settings import Training
from ..step import StepResult, train_step
from .measure import PeakMemory, scene, skip_unused
from .ratio import Place, Row

FAMILY = "src.model.uplvsm.unposedLVSM"
SIZE, INPUTS, TARGETS = 224, 2, 6
DEPTH = {"encoder_n_layer": 2, "estimator_n_layer": 1, "decoder_n_layer": 5}
DINO_DEPTH = 4
SPEED_TARGET, SLOWDOWN_TARGET, MEMORY_TARGET = 1.25, 1 / 1.1, 1 / 0.75
TOLERANCE = 1e-4
"""Of the loss and of each parameter's gradient norm, relative; a norm below a millionth of the largest counts as that."""


@dataclass
class Side:
    """plan: for activations. skips: unused tokens. Of one step: processor seconds, bytes, loss and gradient norms."""

    plan: str
    skips: bool
    seconds: float = 0.0
    peak: int = 0
    result: tuple[float, ...] = ()


def measure(_: Place) -> list[Row]:
    """Settings `speed` and `memory`, and `products` beside them; one step each: a second turn differs by 3 %."""
    sides = {plan: Side(plan, skips=True) for plan in ("speed", "products", "memory")}
    reference = Side("blocks", skips=False)
    _measure([reference, *sides.values()])
    rows = [
        _time_row(reference, sides["speed"], SPEED_TARGET),
        _time_row(reference, sides["products"], SPEED_TARGET),
        _time_row(reference, sides["memory"], SLOWDOWN_TARGET),
    ]
    return [*rows, *_memory_rows(reference, sides["memory"])]


def _measure(sides: list[Side]) -> None:
    torch.manual_seed(0)
    runtime, training = Runtime(), Training(use_amp=False, lr=0.0, warmup=0, log_grad_norm_details=True)
    model = _model()
    tools = (
        build_optimizer(model, training, runtime.device),
        grad_scaler(runtime.device, training),
        ImageLoss(1.0, {}),
    )
    batch = _batch()

    def step(side: Side) -> StepResult:
        _set(model, training, side)
        return train_step(model, [batch], 0, *tools, training, runtime)

    step(sides[1])  # makes the moments of the optimiser
    gradients = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    for side in tqdm(sides, desc="training step", leave=False):
        _take(side, step, gradients)


def _take(side: Side, step: Callable[[Side], StepResult], gradients: int) -> None:
    with PeakMemory(torch.device("cpu")) as peak:
        begin = time.process_time()
        result = step(side)
        side.seconds = time.process_time() - begin
    side.peak = (peak.bytes or 0) - gradients
    side.result = float(result.terms["loss"]), *map(float, result.grad_norms.values())


def _model() -> ViewSynthesizer:
    section = {
        "class_name": FAMILY,
        "image_tokenizer": {"image_size": SIZE, "patch_size": 14, "backbone": {"depth": DINO_DEPTH}},
        "target_pose_tokenizer": {"patch_size": 14},
        "transformer": {"use_qk_norm": True, "special_init": True, "depth_init": True, **DEPTH},
    }
    return build_model(build(family_config(FAMILY), section, "model", [])).train()


def _batch() -> EasyDict:
    """One sample of noise, as the loader gives it."""
    views = scene(INPUTS + TARGETS, SIZE, "cpu")
    return EasyDict(
        image=(255 * views.image).to(torch.uint8),
        c2w=views.cameras.c2w,
        fxfycxcy=views.cameras.fxfycxcy,
        target_idx=torch.arange(INPUTS, INPUTS + TARGETS)[None],
        num_input=INPUTS,
        scene_name=["noise"],
    )


def _set(model: ViewSynthesizer, training: Training, side: Side) -> None:
    keep_activations(model, training, side.plan)
    skip_unused(model, side.skips)


def _time_row(reference: Side, side: Side, target: float) -> Row:
    what, times = (
        f"training step, setting `{side.plan}`: time",
        [f"{s.seconds:.1f} s" for s in (reference, side)],
    )
    return Row(what, *times, reference.seconds / side.seconds, target, _same(reference, side))


def _memory_rows(reference: Side, side: Side) -> list[Row]:
    if min(reference.peak, side.peak) <= 0:
        return []  # this system does not tell
    what = f"training step, setting `{side.plan}`: activations"
    figures = [f"{s.peak / 2**30:.2f} GiB" for s in (reference, side)]
    return [Row(what, *figures, reference.peak / side.peak, MEMORY_TARGET, _same(reference, side))]


def _same(reference: Side, side: Side) -> str:
    least = 1e-6 * max(reference.result)
    worst = max(abs(a - b) / max(b, least) for a, b in zip(side.result, reference.result, strict=True))
    return f"loss and gradients within {max(worst, 1e-9):.0e}" if worst <= TOLERANCE else ""
