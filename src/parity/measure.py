"""What the readers of several systems do: run a model with given weights and record what it computes.

Float32 on the CPU, without autocast. Intermediate tensors are read with forward hooks, so the models carry no test code.

Public: checked_settings, model_with, split_columns, recording, image_loss, run_model, follow_path, train.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import load_into
from ..config import ConfigError, build
from ..geometry.camera import Cameras, Views
from ..geometry.trajectory import TRAJECTORIES
from ..loss import ImageLoss
from ..model import build_model, family_config
from ..model.base import ViewSynthesizer
from ..model.transformer import BlockStack
from ..optim import build_optimizer, clip_or_skip, learning_rate
from ..settings import Training

CPU = torch.device("cpu")


def checked_settings(schema: type, tree: dict, where: str) -> Any:
    """Instance of a settings dataclass from a config tree of the original; raises ConfigError."""
    problems: list[str] = []
    with _silent(logging.getLogger(build.__module__)):  # keys without effect are no news in these files
        settings = build(schema, tree, where, problems)
    if problems:
        raise ConfigError(" ".join(problems))
    return settings


@contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def model_with(tree: dict, state: dict[str, Tensor], source: str) -> ViewSynthesizer:
    """The model of a `model` section (`class_name` included), filled strictly with given weights."""
    model = build_model(checked_settings(family_config(tree["class_name"]), tree, "model"))
    load_into(model, state, source)
    return model


def split_columns(inputs: dict, num_input: int, target_columns: Tensor) -> tuple[Views, Views]:
    """The first views as context and the given columns [b, v_t] of `image`, `c2w`, `fxfycxcy` as targets."""
    batch = torch.arange(len(target_columns))[:, None]

    def views(index: Any) -> Views:
        image = inputs["image"][index]
        return Views(image, Cameras(inputs["c2w"][index], inputs["fxfycxcy"][index], *image.shape[-2:]))

    return views((slice(None), slice(num_input))), views((batch, target_columns))


@contextmanager
def recording(modules: dict[str, nn.Module]) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """While it is open, every call of a named module is kept: name -> list of (first argument, result), of several
    results the first.
    """
    calls: dict[str, list] = {name: [] for name in modules}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple, result: Tensor | tuple) -> None:
            result = result[0] if isinstance(result, tuple) else result
            calls[name].append((args[0].detach(), result.detach()))

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def image_loss(training: dict, perceptual: nn.Module | None) -> ImageLoss:
    """The loss with the weights of the original's `training` section and a given perceptual network."""
    if training["lpips_loss_weight"] > 0:
        raise ConfigError("lpips_loss_weight is above 0: golden files carry no LPIPS network.")
    weight = training["perceptual_loss_weight"]
    if weight > 0 and perceptual is None:
        raise ConfigError("perceptual_loss_weight is above 0, but the file holds no network for it.")
    return ImageLoss(training["l2_loss_weight"], {"perceptual": (weight, perceptual)} if weight > 0 else {})


# ----------------------------------------------------------------------------------------------- one pass


@dataclass
class Pass:
    """One forward and backward pass. `calls` as `recording` keeps them."""

    calls: dict[str, list[tuple[Tensor, Tensor]]]
    render: Tensor
    cameras: Cameras
    losses: dict[str, Tensor]
    grad_norms: dict[str, float | None]
    total_grad_norm: float


def run_model(
    model: ViewSynthesizer, input: Views, target: Views, loss: ImageLoss, modules: dict[str, nn.Module]
) -> Pass:
    """Forward, objective and backward, as a training step does them."""
    model.eval()  # no random pose noise: what was drawn is in the file
    for module in model.modules():
        if isinstance(module, BlockStack):
            module.skip_unused = False  # stored are all tokens of the last blocks
    with recording(modules) as calls:
        result = model(input, target)
    losses = model.objective(result, target, loss)
    losses["loss"].backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return Pass(
        calls,
        result.render,
        result.cameras,
        losses,
        gradient_norms(model),
        float(nn.utils.get_total_norm(gradients)),
    )


def gradient_norms(model: nn.Module) -> dict[str, float | None]:
    """Euclidean norm of each gradient. A tied parameter's stands under its first name; its other names have None."""
    first = {name for name, _ in model.named_parameters()}
    everything = model.named_parameters(remove_duplicate=False)
    return {
        name: float(p.grad.norm()) if name in first and p.grad is not None else None for name, p in everything
    }


@torch.no_grad()
def follow_path(model: ViewSynthesizer, input: Views, target: Views, video: dict) -> Tensor:
    """Frames along the path that a golden file's `inputs.video` asks for. [b, frames, 3, h, w]"""
    model.eval()
    scene = model.encode(input)
    path = TRAJECTORIES[video.get("traj_type", "interpolate")](
        model.key_cameras(scene, input, target),
        video["num_frames"],
        loop=video.get("loop_video", False),
        order=video.get("order_poses", False),
    )
    return model.render(scene, path, chunk=4)


# ----------------------------------------------------------------------------------------------- several steps


@dataclass
class Step:
    """One forward pass of a training run.

    lr, lr_after: rate in force during the pass, and after it.
    grad_norm: None where no update was due.
    """

    lr: float
    losses: dict[str, float]
    lr_after: float = 0.0
    grad_norm: float | None = None
    stepped: bool = False


def train(
    model: ViewSynthesizer, batches: Iterable[tuple[Views, Views]], loss: ImageLoss, training: Training
) -> list[Step]:
    """A training run by the rules of src/optim.py on given (input, target) pairs, one for each forward pass."""
    model.train()
    optimizer = build_optimizer(model, training, CPU)
    steps, updates = [], 0
    for number, (input, target) in enumerate(batches, start=1):
        lr = learning_rate(updates, training)
        losses = model.objective(model(input, target), target, loss)
        (losses["loss"] / training.grad_accum_steps).backward()
        step = Step(lr, {name: float(value.detach()) for name, value in losses.items()})
        if number % training.grad_accum_steps == 0:
            for group in optimizer.param_groups:
                group["lr"] = lr
            finite = losses["loss"].detach().isfinite()
            clip = updates >= training.clip_from_step
            outcome = clip_or_skip(model.parameters(), optimizer, finite, training, clip=clip)
            step.grad_norm, step.stepped = outcome.grad_norm, outcome.stepped
            updates += 1
        step.lr_after = learning_rate(updates, training)
        steps.append(step)
    return steps
