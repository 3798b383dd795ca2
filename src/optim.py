"""AdamW groups, the learning rate of a step, and the update that clips, skips or refuses.

The rules are those of LVSM's trainer (github.com/Haian-Jin/LVSM, train.py), except that a non-finite gradient is
never replaced by numbers: such a step is skipped, on all ranks alike, and its gradients are cleared.

Public: parameter_groups, build_optimizer, learning_rate, clip_or_skip, UpdateOutcome.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .parallel import whole

if TYPE_CHECKING:
    from .settings import Training


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two AdamW groups of the trained parameters: those that decay, and gains and biases, which do not.

    Args:
        model: parameters with two or more dimensions decay, latents and position tables included.
        weight_decay: decay of the first group.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, training: Training, device: torch.device) -> torch.optim.AdamW:
    """AdamW over the parameters of `model`, which must already be on `device`; fused kernels on accelerators."""
    return torch.optim.AdamW(
        parameter_groups(model, training.weight_decay),
        lr=training.lr,
        betas=(training.beta1, training.beta2),
        eps=training.adam_eps,
        fused=device.type != "cpu",
    )


def learning_rate(step: int, training: Training) -> float:
    """Rate in force during the update number `step` (0-based): linear warm-up from `warmup_start_factor` of `lr`, then the
    chosen schedule.

    Skipped updates count, so the rate is a function of the step alone.
    """
    if training.scheduler_type == "cosine_min":
        return _cosine_min(step, training)
    if step < training.warmup:
        start = training.warmup_start_factor
        return training.lr * (start + (1 - start) * step / training.warmup)
    progress = (step - training.warmup) / max(1, training.train_steps - training.warmup)
    if training.scheduler_type == "cosine":
        # Parity: past train_steps the original's cosine rises again; a run never gets there.
        factor = 0.5 * (1.0 + math.cos(math.pi * progress))
    elif training.scheduler_type == "linear":
        factor = 1.0 - progress
    else:
        factor = 1.0
    return training.lr * max(0.0, factor)


def _cosine_min(step: int, training: Training) -> float:
    """The schedule of lvsm_latent: `initial_lr` in the first step, `lr` in the last of the warm-up, `min_lr` at the end.

    Source: KaiHelli/lvsm, src/model/lr_scheduler.py; beyond it, a warm-up of one step, and the end is never left.
    """
    if step < training.warmup:
        share = step / (training.warmup - 1) if training.warmup > 1 else 1.0
        return training.initial_lr + (training.lr - training.initial_lr) * share
    progress = (step - training.warmup + 1) / max(1, training.train_steps - training.warmup)
    factor = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return training.min_lr + (training.lr - training.min_lr) * factor


@dataclass(frozen=True)
class UpdateOutcome:
    """What became of one update.

    grad_norm: joint gradient norm before clipping; NaN or inf when `finite` is False.
    stepped: the weights were updated.
    finite: loss and gradients were finite on all ranks.
    """

    grad_norm: float
    stepped: bool
    finite: bool


def clip_or_skip(
    parameters: Iterable[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    loss_finite: Tensor,
    training: Training,
    *,
    clip: bool = True,
) -> UpdateOutcome:
    """Clip the gradients jointly to `grad_clip_norm` and update, or skip the update; always clear the gradients.

    Skipped are steps whose norm exceeds `grad_clip_norm * allowed_gradnorm_factor`, and steps with anything
    non-finite. Every rank decides alike: gradients are averaged already and `loss_finite` is reduced already.

    Args:
        parameters: everything the optimiser trains.
        loss_finite: whether the loss was finite on all ranks. scalar
        clip: False: gradients stay as they are, and only what is not finite is skipped.
    """
    parameters = list(parameters)
    limit = training.grad_clip_norm if clip else math.inf
    norm = whole(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    if clip:
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    # The only time in a training step that the host waits for the device: both facts travel together.
    facts = [fact.to(norm.device, torch.float32) for fact in (norm, loss_finite)]
    grad_norm, loss_ok = torch.stack(facts).tolist()
    finite = bool(loss_ok) and math.isfinite(grad_norm)
    stepped = finite and grad_norm <= limit * training.allowed_gradnorm_factor
    if stepped:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for parameter in parameters:
        parameter.grad = None  # those that the optimiser does not hold
    return UpdateOutcome(grad_norm, stepped, finite)
