"""LVSM with a view mask, on pixels or in the latents of an image autoencoder.

Context views attend to the context, each target view to the context and itself (`one_way.py`). With `model.vae.name` the
model works on latents (`vae.py`): pictures are encoded first, rays brought to their resolution, and what comes out is
decoded. With `model.lora` the decoder's adapters learn, and nothing else.

Conventions that published files settled otherwise than LVSM are settings: `ray_order`, `patch_order`, `image_range`. With
LVSM's and `attention: full` this is LVSM decoder-only with another norm of queries and keys.

Original repository: KaiHelli/lvsm. Paper of the base model: arXiv 2410.17242.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from easydict import EasyDict
from einops import rearrange
from torch import Tensor, nn

from ..config import key, raise_all
from ..geometry.camera import RAY_ORDERS, Cameras, Views, plucker
from .base import ImageTokenizer, ViewSynthesizer
from .lora import Lora, add_lora, with_adapter_names
from .one_way import KeysValues, OneWaySettings, OneWayTransformer
from .patch import PATCH_ORDERS, Patchify, check_size, unpatchify
from .ray_downsampler import RayDownsampler
from .vae import ImageCodec, Vae


@dataclass(kw_only=True)
class Config:
    """`model` section."""

    class_name: str = key("model family", "src.model.lvsm_latent.LVSM")
    image_size: int = key("image height, pixels", 192, least=1)
    patch_size: int = key("side of a square patch, pixels, or latent pixels with an autoencoder", 8, least=1)
    num_input_channels: int = key("follows from the pictures", 3, ignored=True)
    ray_order: str = key("which half of a ray comes first", "direction_first", choices=RAY_ORDERS)
    patch_order: str = key(
        "what changes fastest in a patch vector: its pixels, or the channel (channel_last)",
        "channel_first",
        choices=(*PATCH_ORDERS,),
    )
    image_range: str = key(
        "range of the pictures that a model of pixels reads",
        "zero_to_one",
        choices=("zero_to_one", "minus_one_to_one"),
    )
    transformer: OneWaySettings = key("sizes", OneWaySettings)
    vae: Vae = key("autoencoder; none: the model works on pixels", Vae)
    lora: Lora = key("adapters of the autoencoder's decoder", Lora)

    def __post_init__(self) -> None:
        raise_all(self._problems())

    def _problems(self) -> Iterator[str]:
        _ = self.image_tokenizer  # checks the sizes
        if self.vae.name and self.image_range != "zero_to_one":
            yield (
                f"model.image_range is {self.image_range}, but model.vae.name {self.vae.name} puts an autoencoder first: "
                "set model.vae.image_range instead."
            )
        if self.lora.active and not self.vae.name:
            yield "model.lora adapts the decoder of an autoencoder: set model.vae.name."
        if self.lora.active and self.vae.name and not self.vae.image_loss_weight:
            yield (
                "model.lora learns from decoded pictures alone, but model.vae.image_loss_weight is 0: set it to 1."
            )

    @property
    def image_tokenizer(self) -> ImageTokenizer:
        """What the data set asks for: sides of pictures and patches, in pixels."""
        return ImageTokenizer(image_size=self.image_size, patch_size=self.patch_size * self.vae.factor)


class LVSM(ViewSynthesizer):
    """The scene state is the context's keys and values of every layer; with full attention, its tokens."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        sizes, p, codec = config.transformer, config.patch_size, config.vae
        d, bias = sizes.d_model, sizes.bias
        self.patch_size, self.settings, self.adapted = p, codec, config.lora.active
        self.ray_order, self.patch_order = config.ray_order, config.patch_order
        self.symmetric = config.image_range == "minus_one_to_one"
        channels, ray_channels = (codec.channels, codec.channels) if codec.name else (3, 6)
        self.vae = ImageCodec(codec) if codec.name else None
        self.downsample_rays = RayDownsampler(codec.factor, ray_channels, bias=bias) if codec.name else None
        self.tokenize_input = self._tokenizer(channels + ray_channels, d, bias)
        self.tokenize_target = self._tokenizer(ray_channels, d, bias)
        self.norm_in = nn.LayerNorm(d, bias=bias)
        self.transformer = OneWayTransformer(sizes)
        self.norm_out = nn.LayerNorm(d, bias=bias)
        self.untokenize_output = nn.Sequential(nn.Linear(d, channels * p * p, bias=bias))
        if self.vae is not None:
            self.pretrained_parts = {"vae": "vae."}
        if self.adapted:
            self.requires_grad_(False)
            add_lora(self.vae.vae.decoder, config.lora)

    @property
    def codec(self) -> ImageCodec | None:
        return self.vae

    def train(self, mode: bool = True) -> LVSM:
        """While adapters learn, all else is in eval mode."""
        super().train(mode and not self.adapted)
        if self.vae is not None:
            self.vae.train(mode)
        self.training = mode
        return self

    def encode(self, input: Views) -> KeysValues | Tensor:
        if self.vae is not None:
            picture = self.vae.latents(input)
        else:
            picture = 2 * input.image - 1 if self.symmetric else input.image
        tokens = self.tokenize_input(torch.cat([picture, self._rays(input.cameras)], dim=2))  # [b * v, n, d]
        tokens = rearrange(tokens, "(b v) n d -> b (v n) d", b=len(picture))
        return self.transformer.read(self.norm_in(tokens))

    def predict(self, scene: KeysValues | Tensor, cameras: Cameras) -> Tensor:
        """What the last layer says of each view: logits of pixels, or latents. [b, v, c, h, w], float32"""
        rays = self._rays(cameras)  # [b, v, c, h, w]
        tokens = self.transformer(self.norm_in(self.tokenize_target(rays)), scene)  # [b * v, n, d]
        patches = self.untokenize_output(self.norm_out(tokens)).float()
        return unpatchify(patches, self.patch_size, rays.shape[1], *rays.shape[-2:], self.patch_order)

    def decode(self, scene: KeysValues | Tensor, cameras: Cameras) -> Tensor:
        return self._picture(self.predict(scene, cameras))

    def forward(self, input: Views, target: Views) -> EasyDict:
        """`result.latent` of a latent model; `result.render` unless training compares latents alone."""
        predicted = self.predict(self.encode(input), target.cameras)
        result = EasyDict(cameras=target.cameras)
        if self.vae is not None:
            result.latent = predicted
        if self.vae is None or self.settings.image_loss_weight or not self.training:
            result.render = self._picture(predicted)
        return result

    def objective(
        self, result: EasyDict, target: Views, image_loss: Callable[[Tensor, Tensor], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The image loss; of a latent model the weighted sum of latent and image loss."""
        if self.vae is None:
            return image_loss(result.render, target.image)
        terms = image_loss(result.render, target.image) if "render" in result else {}
        loss = self.settings.image_loss_weight * terms.get("loss", 0.0)
        if self.settings.latent_loss_weight:
            latent_loss = F.mse_loss(result.latent, self.vae.latents(target))
            loss = loss + self.settings.latent_loss_weight * latent_loss
            terms["latent_loss"] = latent_loss.detach()
        return {**terms, "loss": loss}

    def with_own_names(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Lightning puts `model.` in front of all names; a model with adapters takes files without."""
        if all(name.startswith("model.") for name in state):
            state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
        return with_adapter_names(self, state) if self.adapted else state

    def _rays(self, cameras: Cameras) -> Tensor:
        """Direction and moment of each pixel's ray, or what the small CNN makes of them. [b, v, c, h, w]"""
        rays = plucker(cameras, order=self.ray_order)
        check_size(*rays.shape[-2:], self.patch_size * self.settings.factor)
        if self.downsample_rays is None:
            return rays
        return self.downsample_rays(rays.flatten(0, 1)).unflatten(0, rays.shape[:2])

    def _picture(self, predicted: Tensor) -> Tensor:
        return predicted.sigmoid() if self.vae is None else self.vae.decode(predicted)

    def _tokenizer(self, channels: int, d: int, bias: bool) -> nn.Sequential:
        """[b, v, c, h, w] -> [b * v, n, d]"""
        linear = nn.Linear(channels * self.patch_size**2, d, bias=bias)
        return nn.Sequential(Patchify(self.patch_size, self.patch_order), linear)
