"""Real training steps of a config, on noise instead of pictures and with weights that nobody trained.

Everything that a step of `src.train` computes is computed here by the same functions; loading and reporting are left out.

Public: NoiseTraining, StepFailed.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from easydict import EasyDict
from torch import Tensor

from ..activations import keep_activations
from ..cost import chosen_plan
from ..loss import build_image_loss
from ..model import build_model
from ..optim import build_optimizer
from ..parallel import spread
from ..runtime import Runtime, grad_scaler
from ..settings import Pretrained, RunConfig, Training
from ..step import StepResult, train_step

NEVER_SKIPPED = 1e12
"""For training.allowed_gradnorm_factor: the norm of noise is no reason to leave out the update, which takes time."""


class StepFailed(RuntimeError):
    """A step that could not be done, most likely for lack of memory."""


class NoiseTraining:
    """A run without data. Networks of loss and teachers have the real sizes and random weights.

    batch: what the loaders would give, the same at each step.
    images: pictures that a step takes, in all micro-batches of this process.
    """

    def __init__(self, config: RunConfig, runtime: Runtime) -> None:
        training = replace(config.training, allowed_gradnorm_factor=NEVER_SKIPPED)
        torch.manual_seed(training.seed)
        self.training, self.runtime, self.number = training, runtime, 0
        self.model = build_model(config.model)
        self.network, _ = spread(self.model, training.parallel, runtime)
        self.optimizer = build_optimizer(self.model, training, runtime.device)
        self.scaler = grad_scaler(runtime.device, training)
        unread = Pretrained(vgg19="random", vgg16="random")
        self.image_loss = build_image_loss(training, unread, runtime.device)
        for teacher in self.model.teachers().values():
            teacher.to(runtime.device)
        self.model.train()
        keep_activations(self.model, training, chosen_plan(config, runtime))
        if training.compile:
            self.model.compile_blocks()
        side = config.model.image_tokenizer.image_size
        self.batch = noise_batch(training, tuple(training.image_shape) or (side, side), runtime.rank)
        if runtime.device.type != "cpu":  # as loaders do
            pinned = {n: value.pin_memory() for n, value in self.batch.items() if isinstance(value, Tensor)}
            self.batch = EasyDict({**self.batch, **pinned})
        self.images = training.batch_size_per_gpu * training.grad_accum_steps * training.num_views

    def step(self, *, norms: bool = False) -> StepResult:
        """One optimiser step. norms: with the gradient norm of each parameter.

        Raises:
            StepFailed: with the reason.
        """
        result = train_step(
            self.network,
            [self.batch] * self.training.grad_accum_steps,
            self.number,
            self.optimizer,
            self.scaler,
            self.image_loss.at(self.number),
            replace(self.training, log_grad_norm_details=norms),
            self.runtime,
        )
        self.number += 1
        if result.problem:
            raise StepFailed(result.problem)
        return result


def noise_batch(training: Training, shape: tuple[int, int], seed: int) -> EasyDict:
    """A micro-batch as loaders make it (src/data/batch.py): noise, seen by cameras that stand side by side.

    The last views are the targets, beginning inside the context where the views are too few for both.
    """
    (height, width), b, v = shape, training.batch_size_per_gpu, training.num_views
    numbers = torch.Generator().manual_seed(seed)
    c2w = torch.eye(4).repeat(b, v, 1, 1)
    c2w[..., 0, 3] = torch.arange(v) / v
    focal = float(max(height, width))
    targets = torch.arange(v - training.num_target_views, v)
    index = torch.stack([torch.arange(v), torch.zeros(v, dtype=torch.int64)], dim=1)
    return EasyDict(
        image=_pixels((b, v, 3, height, width), numbers),
        c2w=c2w,
        fxfycxcy=torch.tensor([focal, focal, width / 2, height / 2]).repeat(b, v, 1),
        camera_scale=torch.ones(b),
        index=index.repeat(b, 1, 1),
        target_idx=targets.repeat(b, 1),
        scene_name=["noise"] * b,
        draws=list(range(b)),
        num_input=training.num_input_views,
    )


def _pixels(shape: tuple[int, ...], numbers: torch.Generator) -> Tensor:
    return torch.randint(0, 256, shape, generator=numbers, dtype=torch.uint8)
