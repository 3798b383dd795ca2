"""One optimiser step: forward, objective and backward of its micro-batches, then an update or none, alike on all ranks.

A forward pass that raises an error on one rank (data that does not fit, a lack of memory) costs that step on all ranks.
They learn of it before they meet in the backward pass, each by its host: nobody waits for a device. Where ranks meet
earlier (fsdp), or when the backward pass itself fails between them, the run ends with that error instead of hanging.

Public: train_step, StepResult, told.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from easydict import EasyDict
from torch import Tensor, nn
from torch.profiler import record_function

from .data.batch import split_views, to_device
from .optim import clip_or_skip, learning_rate
from .parallel import is_replicated, is_sharded, settle, sync_next_backward, unsynced, whole
from .runtime import Runtime, agree, autocast, largest_over_ranks
from .settings import Training

log = logging.getLogger(__name__)

THE_RUN_ENDS = (
    "The other ranks wait for this one in the middle of a pass, so the run ends. Started again, by hand or by torchrun "
    "--max-restarts, it goes on from its newest checkpoint."
)


@dataclass
class StepResult:
    """What one optimiser step did.

    terms: scalar loss terms, mean over the micro-steps of this rank, on the device.
    grad_norm: joint norm before clipping.
    stepped: the weights were updated.
    bad: a rank failed, or loss or gradients were not finite (an fp16 overflow, which the scaler answers, does not
        count).
    lr: learning rate in force.
    problem: what failed on this rank; empty: nothing did.
    grad_norms: norm of each parameter's gradient, if asked for.
    """

    terms: dict[str, Tensor]
    grad_norm: float
    stepped: bool
    bad: bool
    lr: float
    problem: str = ""
    grad_norms: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def failed(cls, problem: str, lr: float) -> StepResult:
        """A step that some rank could not do."""
        return cls({}, float("nan"), stepped=False, bad=True, lr=lr, problem=problem)


def train_step(
    network: nn.Module,
    micro_batches: Sequence[EasyDict],
    step: int,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    image_loss: Callable[[Tensor, Tensor], dict[str, Tensor]],
    training: Training,
    runtime: Runtime,
) -> StepResult:
    """One update from all micro-batches: forward, objective, backward of each, then clip, skip or step.

    Gradients are summed between ranks once, in the last backward pass. The forward pass runs under autocast, the
    objective in float32. Whether the update is made is decided alike on all ranks.

    Args:
        network: the model, wrapped or dealt out if there are several ranks (`parallel.py`).
        micro_batches: `grad_accum_steps` batches as the loader gives them.
        step: number of the update, from 0: sets the learning rate.
        scaler: scales the loss in fp16; disabled otherwise.
    """
    model = network.module if is_replicated(network) else network
    lr = learning_rate(step, training)
    for group in optimizer.param_groups:
        group["lr"] = lr
    terms: dict[str, Tensor] = {}

    def forward(batch: EasyDict) -> Tensor:
        """The part of the scaled loss that this batch is; adds to `terms`. Labels are for `--profile`."""
        input, target = split_views(to_device(batch, runtime.device), batch.num_input)
        with record_function("forward"), autocast(runtime.device, training):
            result = network(input, target)
        with record_function("objective"):
            losses = model.objective(_float32(result), target, image_loss)
        for name, value in losses.items():
            terms[name] = terms.get(name, 0.0) + value.detach().float() / len(micro_batches)
        return scaler.scale(losses["loss"] / len(micro_batches))

    def backward(loss: Tensor) -> None:
        with record_function("backward"):
            loss.backward()

    settle(network)
    problem = ""
    try:
        with unsynced(network):
            for batch in micro_batches[:-1]:
                backward(forward(batch))
            loss = forward(micro_batches[-1])
    except Exception as error:
        problem = told(error, micro_batches, ends=is_sharded(network))
    if any(agree([bool(problem)], runtime)):
        optimizer.zero_grad(set_to_none=True)
        return StepResult.failed(problem, lr)
    try:
        sync_next_backward(network)
        backward(loss)
    except Exception as error:
        problem = told(error, micro_batches, ends=runtime.world > 1)
        optimizer.zero_grad(set_to_none=True)
        return StepResult.failed(problem, lr)

    scaler.unscale_(optimizer)
    parameters = [p for p in model.parameters() if p.requires_grad]
    norms = _gradient_norms(model) if training.log_grad_norm_details else {}
    broken = largest_over_ranks((~torch.isfinite(terms["loss"])).int(), runtime)
    with record_function("optimiser"):
        outcome = clip_or_skip(
            parameters, optimizer, broken == 0, training, clip=step >= training.clip_from_step
        )
    # Gradients that overflow in fp16 are how the scaler finds its scale; below 1 there is nothing left to find.
    overflow = not outcome.finite and scaler.get_scale() > 1 and not bool(broken)
    scaler.update()
    bad = not outcome.finite and not overflow
    return StepResult(terms, outcome.grad_norm, outcome.stepped, bad, lr, grad_norms=norms)


def told(error: Exception, batches: Sequence[EasyDict], *, ends: bool = False) -> str:
    """Log what failed here and at which scenes; one line on it.

    Args:
        ends: raise it again, because the ranks cannot go on together. So are errors that leave a device unusable.
    """
    line = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    scenes = ", ".join(name for batch in batches for name in batch.scene_name) or "none were read"
    ends = ends or isinstance(error, torch.AcceleratorError)
    remedy = THE_RUN_ENDS if ends else "The step is skipped on all ranks."
    log.error("%s. Scenes: %s. %s", line, scenes, remedy, exc_info=None if ends else error)
    if ends:
        raise error
    return line


def _float32(result: EasyDict) -> EasyDict:
    """The result of a forward pass with its half-precision tensors as float32."""
    for name, value in result.items():
        if torch.is_tensor(value) and value.is_floating_point():
            result[name] = value.float()
    return result


def _gradient_norms(model: nn.Module) -> dict[str, Tensor]:
    return {name: whole(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}
