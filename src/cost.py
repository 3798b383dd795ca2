"""What a training step costs, counted on the meta device: nothing is computed and no memory is taken.

Public: StepCost, step_cost, StepMemory, StepOnPaper, fitting_plan, chosen_plan, plans_of.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from easydict import EasyDict
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .activations import PLANS, keep_activations
from .loss import ImageLoss, build_image_loss
from .memory import MARGIN, AutocastOnPaper, LiveMemory, autocast_on_paper, views_on_paper
from .model import build_model
from .runtime import Runtime, all_gather_objects, device_memory
from .settings import Pretrained, RunConfig, Training

log = logging.getLogger(__name__)

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
    step = StepOnPaper(config)
    return StepCost(step.trained, step.flops(), step.kept_bytes())


@dataclass(frozen=True)
class StepMemory:
    """Bytes that one process holds at the worst moment of a training step.

    weights: parameters and buffers of the model, frozen ones included, and averages of them if the run keeps any.
    gradients: of everything trained; held throughout, as with accumulation and between processes.
    optimizer: two moments of AdamW.
    loss_network: weights of LPIPS and VGG19, where the loss has them.
    gathered: with fsdp, weights and gradients that are whole at once: of the largest block, the one after it, and all
        that lies outside of blocks. Of everything trained a process then holds its share only.
    activations: the most that is alive beside these, with the config's batch, checkpointing and autocast.
    """

    weights: int
    gradients: int
    optimizer: int
    loss_network: int
    gathered: int
    activations: int

    @property
    def total(self) -> int:
        return sum(vars(self).values())


class StepOnPaper:
    """One micro-step of a config: its model and views without content.

    trained, frozen: number of parameters.
    plan: for activations, one of `activations.PLANS`; the config's, until it is changed.
    """

    def __init__(
        self, config: RunConfig, *, samples: int = 1, num_input: int = 0, shape: tuple[int, ...] = ()
    ) -> None:
        """
        Args:
            samples: batch of one process.
            num_input: context views; 0: training.num_input_views.
            shape: height and width of the pictures; none: those of the config.
        """
        self.config, training = config, config.training
        self.plan = training.activations if training.activations != "auto" else "blocks"
        shape = shape or tuple(training.image_shape) or 2 * (config.model.image_tokenizer.image_size,)
        with torch.device("meta"):
            self.model = build_model(config.model)
            self.input = views_on_paper(samples, num_input or training.num_input_views, *shape)
            self.target = views_on_paper(samples, training.num_target_views, *shape)
        self.model.train()
        parameters = list(self.model.parameters())
        self.trained = sum(p.numel() for p in parameters if p.requires_grad)
        self.frozen = sum(p.numel() for p in parameters) - self.trained

    def flops(self, plan: str = "speed") -> int:
        """Of forward and backward pass with this plan for activations (what it recomputes counts), without the loss
        network.
        """
        keep_activations(self.model, self.config.training, plan)
        # Attention written out as two matrix products: the only form whose operations can be counted everywhere.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            result = self.model(self.input, self.target)
            self.model.objective(result, self.target, _squared_error)["loss"].backward()
        self.model.zero_grad()
        return counter.get_total_flops()

    def loss_flops(self) -> int:
        """Of the networks in the image loss, forward and backward; 0 where the objective looks at no pictures."""
        compared: list[tuple[Tensor, Tensor]] = []

        def remember(pred: Tensor, target: Tensor) -> dict[str, Tensor]:
            compared.append((torch.empty_like(pred, requires_grad=True), target))
            return _squared_error(pred, target)

        with torch.no_grad():
            self.model.objective(self.model(self.input, self.target), self.target, remember)
        with FlopCounterMode(display=False) as counter:
            for pred, target in compared:
                self._image_loss()(pred, target)["loss"].backward()
        return counter.get_total_flops()

    def kept_bytes(self) -> int:
        """Bytes of the tensors that a forward pass saves, each storage once, parameters left out."""
        keep_activations(self.model, self.config.training, self.plan)
        kept: dict[int, Tensor] = {}
        parameters = {p.untyped_storage()._cdata for p in self.model.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage()._cdata] = tensor
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            result = self.model(self.input, self.target)  # held until all are counted: no storage is reused
        total = sum(t.untyped_storage().nbytes() for name, t in kept.items() if name not in parameters)
        del result
        return total

    def checkpoint_bytes(self) -> int:
        """Of a checkpoint: weights, both moments of AdamW, and averages if the run keeps any."""
        size = _bytes_of(p for p in self.model.parameters() if p.requires_grad)
        averages = size if self.config.training.ema_decay else 0
        return _bytes_of(self.model.state_dict().values()) + 2 * size + averages

    def memory(self, processes: int = 1) -> StepMemory:
        """What the step holds, with the plan for activations, the config's autocast and form of parallel training."""
        training, image_loss = self.config.training, self._image_loss()
        networks = [p for _, network in image_loss.terms.values() for p in network.parameters()]
        parameters = list(self.model.parameters())
        trained = [p for p in parameters if p.requires_grad]
        own, size = [*parameters, *self.model.buffers()], _bytes_of(trained)
        shares = processes if training.parallel == "fsdp" else 1
        share = -(-size // shares)
        return StepMemory(
            weights=_bytes_of(own) - size + share + (share if training.ema_decay else 0),
            gradients=share,
            optimizer=2 * share,
            loss_network=_bytes_of(networks),
            gathered=self._gathered(size) if shares > 1 else 0,
            activations=self._activations(image_loss, [*own, *networks], trained),
        )

    def _gathered(self, size: int) -> int:
        blocks = [_bytes_of(p for p in block.parameters() if p.requires_grad) for block in self.model.units()]
        return 2 * (size - sum(blocks)) + 3 * max(blocks, default=0)

    def _activations(self, image_loss: ImageLoss, known: list[Tensor], trained: list[Tensor]) -> int:
        """Most bytes alive during forward pass, objective and backward pass, beside `known` and gradients."""
        training = self.config.training
        keep_activations(self.model, training, self.plan)
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        with LiveMemory([*known, *(p.grad for p in trained)]) as live, AutocastOnPaper() as paper:
            with autocast_on_paper(training):
                result = self.model(self.input, self.target)
            losses = self.model.objective(_float32(result), self.target, image_loss)
            paper.backward(losses["loss"])
        self.model.zero_grad()
        return live.peak

    def _image_loss(self) -> ImageLoss:
        """The config's loss; its networks have the sizes of the real ones and no content."""
        with torch.device("meta"):
            unread = Pretrained(vgg19="random", vgg16="random")
            return build_image_loss(self.config.training, unread, torch.device("meta"))


def fitting_plan(step: StepOnPaper, free: float, processes: int = 1) -> str:
    """The fastest plan for activations that leaves room in `free` bytes; where none does, the one that takes least."""
    for plan in plans_of(step.config.training):
        step.plan = plan
        if step.memory(processes).total <= MARGIN * free:
            break
    return step.plan


def plans_of(training: Training) -> tuple[str, ...]:
    """What there is to choose from; what compiled blocks keep, they choose themselves."""
    return tuple(plan for plan in PLANS if plan != "products" or not training.compile)


def chosen_plan(config: RunConfig, runtime: Runtime, num_input: int = 0, shape: tuple[int, ...] = ()) -> str:
    """The plan for activations that the config names or, where it says auto, the fastest for which the GPUs of all ranks
    have room. All ranks call this. num_input, shape: as in `StepOnPaper`.
    """
    training = config.training
    if training.activations != "auto":
        return training.activations
    free = min(all_gather_objects(sum(device_memory(runtime.device))))  # the count has all that a step holds
    if not free:
        log.info("training.activations auto: blocks, as there is no GPU whose memory could be counted.")
        return "blocks"
    step = StepOnPaper(config, samples=training.batch_size_per_gpu, num_input=num_input, shape=shape)
    plan = fitting_plan(step, free, runtime.world)
    log.info("training.activations auto: %s, for %.3g GiB of GPU memory", plan, free / 2**30)
    return plan


def _squared_error(pred: Tensor, target: Tensor) -> dict[str, Tensor]:
    return {"loss": F.mse_loss(pred, target)}


def _float32(result: EasyDict) -> EasyDict:
    """What leaves the forward pass in half precision enters the objective in float32, as in a training step."""
    half = {n: t for n, t in result.items() if isinstance(t, Tensor) and t.is_floating_point()}
    return EasyDict({**result, **{name: tensor.float() for name, tensor in half.items()}})


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
