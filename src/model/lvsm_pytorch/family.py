"""The module API's LVSM as a family of the shared trainer.

The weights lie under `lvsm.`, as in a CameraWrapper and in an MAE: files of all these forms load. The losses are the
trainer's; `perceptual_loss_weight` of the class has no part in them.

Public: Config, LVSMFamily.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from einops import rearrange, repeat
from torch import Tensor

from ...config import key, raise_all
from ...geometry.camera import Cameras, Views, plucker
from ..base import ImageTokenizer, ViewSynthesizer
from .cameras import camera_arguments, to_plucker_rays
from .lvsm import LVSM
from .transformer import DecoderSettings


@dataclass(kw_only=True)
class Config:
    """`model` section, under the published names of the constructor's arguments."""

    class_name: str = key("model family", "lvsm_pytorch.LVSM")
    dim: int = key("width of a token", least=1)
    max_image_size: int = key("image height after resizing, pixels; side of the axial tables", least=1)
    patch_size: int = key("side of a square patch, pixels", least=1)
    depth: int = key("pairs of attention and feed-forward layers", 12, least=1)
    heads: int = key("attention heads", 8, least=1)
    dim_head: int = key("width of a head; heads * dim_head need not be dim", 64, least=1)
    max_input_images: int = key(
        "rows of the image embeddings; a target takes one, inputs the others", 32, least=2
    )
    rand_input_image_embed: bool = key("random rows of the image embeddings in training", True)
    dropout_input_ray_prob: float = key("probability that an input loses its rays in training", 0.0, least=0)
    keep_one_input_ray: bool = key("ray dropout spares one input of each sample", False)
    add_axial_pos_emb: bool = key("learned embeddings of patch rows and columns", False)
    decoder_kwargs: DecoderSettings = key("switches of the transformer", DecoderSettings)
    rays: str = key(
        "ray code: plucker (moment, unit direction) or published (direction, moment; any length)",
        "plucker",
        choices=("plucker", "published"),
    )

    def __post_init__(self) -> None:
        raise_all(self._problems())

    def _problems(self) -> Iterator[str]:
        if self.max_image_size % self.patch_size:
            yield (
                f"model.max_image_size is {self.max_image_size}: expected a multiple of model.patch_size, which is "
                f"{self.patch_size}."
            )
        if self.dropout_input_ray_prob > 1:
            yield (f"model.dropout_input_ray_prob is {self.dropout_input_ray_prob}: expected 0 to 1.")

    @property
    def image_tokenizer(self) -> ImageTokenizer:
        """Sizes under the names that the data set asks for."""
        return ImageTokenizer(image_size=self.max_image_size, patch_size=self.patch_size)


class LVSMFamily(ViewSynthesizer):
    """Inputs attend to the target, so nothing of the transformer is shared between targets: each is a pass of its own.

    The scene state is the context's images and ray maps.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.rays = config.rays
        self.lvsm = LVSM(
            config.dim,
            max_image_size=config.max_image_size,
            patch_size=config.patch_size,
            depth=config.depth,
            heads=config.heads,
            max_input_images=config.max_input_images,
            dim_head=config.dim_head,
            rand_input_image_embed=config.rand_input_image_embed,
            dropout_input_ray_prob=config.dropout_input_ray_prob,
            keep_one_input_ray=config.keep_one_input_ray,
            decoder_kwargs=config.decoder_kwargs,
            add_axial_pos_emb=config.add_axial_pos_emb,
            perceptual_loss_weight=0.0,
        )

    def ray_map(self, cameras: Cameras) -> Tensor:
        """[b, v, 6, h, w] in the ray code of the config."""
        if self.rays == "published":
            return to_plucker_rays(*camera_arguments(cameras))
        return plucker(cameras)

    def encode(self, input: Views) -> tuple[Tensor, Tensor]:
        """Images [b, v, 3, h, w] and ray maps [b, v, 6, h, w] of the context."""
        return input.image, self.ray_map(input.cameras)

    def decode(self, scene: tuple[Tensor, Tensor], cameras: Cameras) -> Tensor:
        v = cameras.num_views
        images, rays = (repeat(x, "b i c h w -> (b v) i c h w", v=v) for x in scene)
        targets = rearrange(self.ray_map(cameras), "b v c h w -> (b v) c h w")
        return rearrange(self.lvsm(images, rays, targets), "(b v) c h w -> b v c h w", v=v)

    def with_own_names(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Files of a bare LVSM and of an MAECameraWrapper, under the names of an MAE."""
        if any(name.startswith("mae.") for name in state):
            return {name.removeprefix("mae."): tensor for name, tensor in state.items()}
        if any(name.startswith("image_and_ray_encoder.") for name in state):
            return {f"lvsm.{name}": tensor for name, tensor in state.items()}
        return state
