"""Masked-autoencoder pre-training as a family of the shared trainer.

It trains on the context views alone: set training.num_input_views to training.num_views. A view whose image is hidden
is just what LVSM calls a target, so the same weights also render, and are scored like any family; beside that the
evaluation reports both errors of the pre-training task. Its checkpoint starts an LVSM run: training.init_from.

Public: Config, MAEFamily.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from easydict import EasyDict
from torch import Tensor

from ...config import ConfigError, key
from ...geometry.camera import Cameras, Views
from . import family
from .mae import BALANCES, MAE, ROUNDINGS


@dataclass(kw_only=True)
class Masking:
    """`model.mae`."""

    frac_masked: float = key("part of the views that lose their image or their rays", 0.5, least=0)
    frac_images_to_ray_masked: float = key("part of those that lose the image", 0.5, least=0)
    image_to_ray_loss_weight: float = key("weight of image errors against ray errors", 1.0, least=0)
    rounding: str = key("how many views a fraction makes: random (exact in the mean) or floor (as published)",
                        "random", choices=ROUNDINGS)  # fmt: skip
    balance: str = key(
        "elements: one mean over images and rays together (as published); kinds: the mean of each, added",
        "elements",
        choices=BALANCES,
    )

    def __post_init__(self) -> None:
        for name in ("frac_masked", "frac_images_to_ray_masked"):
            if getattr(self, name) > 1:
                raise ConfigError(f"model.mae.{name} is {getattr(self, name)}: expected 0 to 1.")


@dataclass(kw_only=True)
class Config(family.Config):
    """`model` section: that of LVSM and how views are masked."""

    class_name: str = key("model family", "lvsm_pytorch.MAE")
    mae: Masking = key("what is masked, and how errors are weighed", Masking)


class MAEFamily(family.LVSMFamily):
    """Trains by masking, renders as LVSM."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        mae = MAE(self.lvsm, **vars(config.mae))
        self.unpatchify_to_rays = mae.unpatchify_to_rays
        # Not a sub-module: its weights are this module's own, under the names of the published class.
        self._mae = [mae]

    @property
    def mae(self) -> MAE:
        return self._mae[0]

    def forward(self, input: Views, target: Views) -> EasyDict:
        """In training what became of the masked context; else renders of the target views, as of any family.

        `result.render`: restored images [b, i, 3, h, w]; `result.image_error`, `ray_error`: squared errors summed over
        what was masked; `num_image`, `num_ray`: how many numbers that is.
        """
        if not self.training:
            return super().forward(input, target)
        rays = self.ray_map(input.cameras)
        image_mask, ray_mask = self.mae.draw_masks(input.image)
        done = self.mae.restore(input.image, rays, image_mask, ray_mask)
        image_error, num_image = _masked_sum((done.images - input.image) ** 2, image_mask)
        ray_error, num_ray = _masked_sum((done.rays - rays) ** 2, ray_mask)
        return EasyDict(
            render=done.images,
            image_error=image_error.sum(),
            ray_error=ray_error.sum(),
            num_image=num_image.sum(),
            num_ray=num_ray.sum(),
        )

    def objective(
        self, result: EasyDict, target: Views, image_loss: Callable[[Tensor, Tensor], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The loss of the masked views; the trainer's image loss has no part in it."""
        loss = self.mae.combine(result.image_error, result.ray_error, result.num_image, result.num_ray)
        return {
            "loss": loss,
            "mae_image_loss": result.image_error / result.num_image.clamp_min(1),
            "mae_ray_loss": result.ray_error / result.num_ray.clamp_min(1),
        }

    def held_out_terms(self, input: Views, target: Views) -> dict[str, Tensor]:
        """Mean squared error of each view's image, and of its rays, when it alone is hidden; no draw is involved. [b]"""
        images, cameras, counts = _distinct_views(input, target)
        rays = self.ray_map(cameras)
        sums = {"mae_image_loss": 0.0, "mae_ray_loss": 0.0}
        nothing = torch.zeros(images.shape[:2], dtype=torch.bool, device=images.device)
        for view in range(images.shape[1]):
            hidden = nothing.clone()
            hidden[:, view] = view < counts
            image = self.mae.restore(images, rays, hidden, nothing, counts).images
            ray = self.mae.restore(images, rays, nothing, hidden, counts).rays
            sums["mae_image_loss"] += _masked_sum((image - images) ** 2, hidden)[0] / images[0, 0].numel()
            sums["mae_ray_loss"] += _masked_sum((ray - rays) ** 2, hidden)[0] / rays[0, 0].numel()
        return {name: total / counts for name, total in sums.items()}


def _masked_sum(errors: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of [b, i, c, h, w] over masked views, and how many numbers were summed. Each [b]"""
    per_view = errors.sum(dim=(2, 3, 4))  # [b, i]
    return per_view.masked_fill(~mask, 0.0).sum(1), mask.sum(1) * errors[0, 0].numel()


def _distinct_views(input: Views, target: Views) -> tuple[Tensor, Cameras, Tensor]:
    """Context and those targets that are not among the context, which come first; how many these are. [b]"""
    c2w = torch.cat([input.cameras.c2w, target.cameras.c2w], dim=1)
    fxfycxcy = torch.cat([input.cameras.fxfycxcy, target.cameras.fxfycxcy], dim=1)
    images = torch.cat([input.image, target.image], dim=1)
    num_input = input.cameras.num_views
    same = (c2w[:, :, None] == c2w[:, None, :num_input]).all(-1).all(-1).any(-1)  # [b, v]
    same[:, :num_input] = False
    order = same.int().argsort(dim=1, stable=True)
    rows = torch.arange(len(c2w), device=c2w.device)[:, None]
    cameras = Cameras(c2w[rows, order], fxfycxcy[rows, order], input.cameras.height, input.cameras.width)
    return images[rows, order], cameras, (~same).sum(1)
