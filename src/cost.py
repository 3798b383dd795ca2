"""What a training step costs, counted on the meta device: nothing is computed and no memory is taken.

Public: StepCost, step_cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from easydict import EasyDict
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .geometry.camera import Cameras, Views
from .model import build_model
from .settings import RunConfig

STATE_BYTES_PER_PARAMETER = 16
"""float32 weight, gradient and two moments of AdamW."""


@dataclass(frozen=True)
class StepCost:
    """Cost of one sample of a training step.

    parameters: that are trained.
    flops: of forward and backward pass, a multiply-add as two; recomputation is not counted as work.
    kept_bytes: activations kept from the forward for the backward pass, in float32, with the config's checkpointing.
    """

    parameters: int
    flops: int
    kept_bytes: int

    @property
    def state_bytes(self) -> int:
        """Memory of weights, gradients and optimiser, whatever the batch."""
        return STATE_BYTES_PER_PARAMETER * self.parameters


def step_cost(config: RunConfig) -> StepCost:
    """Count one sample (batch 1, images of training.image_shape, else square ones of the model's size) through model
    and objective, without the loss network.
    """
    training = config.training
    shape = tuple(training.image_shape) or 2 * (config.model.image_tokenizer.image_size,)
    with torch.device("meta"):
        model = build_model(config.model)
        input = _views(training.num_input_views, *shape)
        target = _views(training.num_target_views, *shape)
    # Attention written out as two matrix products: the only form whose operations can be counted everywhere.
    with sdpa_kernel(SDPBackend.MATH):
        model.train().set_checkpointing(0)
        with FlopCounterMode(display=False) as counter:
            _output(model(input, target)).sum().backward()
    model.set_checkpointing(training.grad_checkpoint_every)
    return StepCost(
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        flops=counter.get_total_flops(),
        kept_bytes=_kept_bytes(model, input, target),
    )


def _output(result: EasyDict) -> Tensor:
    """What the loss looks at: a latent family decodes no pictures where training compares latents."""
    return result.render if "render" in result else result.latent


def _views(num_views: int, height: int, width: int) -> Views:
    cameras = Cameras(torch.empty(1, num_views, 4, 4), torch.empty(1, num_views, 4), height, width)
    return Views(torch.empty(1, num_views, 3, height, width), cameras)


def _kept_bytes(model: torch.nn.Module, input: Views, target: Views) -> int:
    """Bytes of the tensors that a forward pass saves, each storage once, parameters left out."""
    kept: dict[int, Tensor] = {}
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        result = model(input, target)  # held until the storages are counted, so that none is reused
    total = sum(t.untyped_storage().nbytes() for name, t in kept.items() if name not in parameters)
    del result
    return total
