"""The contract that every model family fulfils, so that one training and one inference script serve them all.

A family is one file: a `Config` dataclass (the `model` section of its YAML, made of `key`s) and a subclass of
`ViewSynthesizer` that takes it. It is listed in `MODELS` of `src/model/__init__.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from easydict import EasyDict
from torch import Tensor, nn

from ..config import ConfigError, key
from ..geometry.camera import Cameras, Views
from .recompute import RecomputingList

if TYPE_CHECKING:
    from .vae import ImageCodec


@dataclass(kw_only=True)
class ImageTokenizer:
    """`model.image_tokenizer`: also tells the data set how to resize."""

    image_size: int = key("image height after resizing, pixels")
    patch_size: int = key("side of a square patch, pixels")
    in_channels: int = key("follows from the ray code", 9, ignored=True)

    def __post_init__(self) -> None:
        size, patch = self.image_size, self.patch_size
        if patch < 1 or size < 1 or size % patch:
            raise ConfigError(
                f"model.image_tokenizer.image_size is {size}: expected a multiple of "
                f"model.image_tokenizer.patch_size, which is {patch}."
            )


@dataclass(kw_only=True)
class PoseTokenizer:
    """`model.target_pose_tokenizer`."""

    patch_size: int = key("side of a square patch, pixels; that of the image tokenizer")
    image_size: int = key("that of the image tokenizer is used", 256, ignored=True)
    in_channels: int = key("follows from the ray code", 6, ignored=True)


def patch_size_problems(images: ImageTokenizer, poses: PoseTokenizer) -> Iterator[str]:
    """What is wrong unless images and rays are cut into the same patches."""
    if images.patch_size != poses.patch_size:
        yield (
            f"model.image_tokenizer.patch_size is {images.patch_size} and model.target_pose_tokenizer."
            f"patch_size is {poses.patch_size}: expected the same patch size in both."
        )


class ViewSynthesizer(nn.Module):
    """Context images in, views from other cameras out.

    A family writes `encode` and `decode`; `render` and `forward` follow. One that learns otherwise than by
    comparing renders with targets overrides `forward` and `objective`. All learnable computation must happen
    inside `forward`, which is what DistributedDataParallel wraps; `objective` only compares.
    """

    target_aware: ClassVar[bool] = False
    """The target images take part in the render (UP-LVSM estimates its target poses from them)."""

    pretrained_parts: ClassVar[dict[str, str]] = {}
    """Field of `settings.Pretrained` -> prefix of the parameters its file fills when a run starts afresh."""

    codec: ImageCodec | None = None
    """The frozen image autoencoder of a family that works on latents."""

    def encode(self, input: Views) -> Any:
        """Scene state from the context views, once per scene: any nest of tensors, batch axis first."""
        raise NotImplementedError

    def decode(self, scene: Any, cameras: Cameras) -> Tensor:
        """Images of all given cameras in one pass. [b, v, 3, h, w] in [0, 1]"""
        raise NotImplementedError

    def target_cameras(self, scene: Any, target: Views) -> Cameras:
        """Cameras to render for `target`: the given ones, unless the family estimates its own."""
        return target.cameras

    def key_cameras(self, scene: Any, input: Views, target: Views) -> Cameras:
        """Cameras through which a video goes: the context's, or a target-aware family's own estimates."""
        return self.target_cameras(scene, target) if self.target_aware else input.cameras

    def render(self, scene: Any, cameras: Cameras, chunk: int = 0) -> Tensor:
        """Images of any number of cameras, `chunk` views at a time (0: all at once).

        [b, v, 3, h, w] in [0, 1]; the result does not depend on `chunk`.
        """
        step = chunk or cameras.num_views
        parts = [
            self.decode(scene, cameras.views(slice(i, i + step))) for i in range(0, cameras.num_views, step)
        ]
        return torch.cat(parts, dim=1)

    def forward(self, input: Views, target: Views) -> EasyDict:
        """Training and scoring in one pass: `result.render` [b, v_t, 3, h, w] and `result.cameras`."""
        scene = self.encode(input)
        cameras = self.target_cameras(scene, target)
        return EasyDict(render=self.decode(scene, cameras), cameras=cameras)

    def objective(
        self, result: EasyDict, target: Views, image_loss: Callable[[Tensor, Tensor], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Scalar loss terms of a forward pass; `loss` is the one to minimise."""
        return image_loss(result.render, target.image)

    def held_out_terms(self, input: Views, target: Views) -> dict[str, Tensor]:
        """What evaluation reports beside the image metrics, one number for each sample [b], without any random draw:
        for families that learn something else than to render.
        """
        return {}

    def with_own_names(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of a file, under the names of this model: for families whose files exist in several forms."""
        return state

    def teachers(self) -> dict[str, nn.Module]:
        """Field of `settings.Pretrained` -> frozen network that this family learns from and that is no part of it.

        Asked for once, before training; the networks come back with random weights, and the files fill them at every start
        of a run.
        """
        return {}

    def set_checkpointing(self, every: int, *, keep_products: bool = False, slices: int = 1) -> None:
        """Recompute activations in groups of `every` blocks while training; 0 keeps them all. See RecomputingList."""
        for stack in self._stacks():
            stack.checkpoint_every, stack.keep_products, stack.slices = every, keep_products, slices

    def compile_blocks(self) -> None:
        """torch.compile every transformer block in place; parameter names do not change."""
        for stack in self._stacks():
            for block in stack:
                block.compile()

    def units(self) -> Iterator[nn.Module]:
        """What `training.parallel: fsdp` makes whole piece by piece, inner modules first; the rest is whole all the time.

        The weights of a unit must be used in calls of the unit alone, or of its `keys_values` if it has that method.
        """
        for stack in self._stacks():
            yield from stack

    def _stacks(self) -> Iterator[RecomputingList]:
        return (module for module in self.modules() if isinstance(module, RecomputingList))
