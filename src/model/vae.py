"""The image codec of latent models: a frozen `diffusers.AutoencoderKL` between pictures and latents.

What lies between a picture and the autoencoder is explicit: range of the pictures, scale and shift of the latents, and
when the encoder samples. The defaults are those the autoencoders were trained with; weights published for the latent
LVSM need `image_range: zero_to_one`, `scale_latents: false` and `stochastic_encoder: always`.

A posterior is one tensor [b, v, 2, c, h, w]: mean and standard deviation as the autoencoder gives them, before any
scaling. Latents are what the model works with. diffusers is imported when a codec is built, so that no other family
needs it.

Public: Vae (settings), ImageCodec, ARCHITECTURES, autoencoder_arguments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..config import ConfigError, key, raise_all
from ..geometry.camera import Views, full_precision
from .lora import is_adapted

_SD = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "sd15": _SD,
    "sd21": _SD,
    "sdxl": {**_SD, "scaling_factor": 0.13025},
    "sd35": {
        **_SD,
        "latent_channels": 16,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
    },
    "tiny": {
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "block_out_channels": [16, 32, 32],
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 8,
        "scaling_factor": 1.0,
        "mid_block_add_attention": False,
    },
    "custom": {},
}
"""`model.vae.name` -> arguments of AutoencoderKL. The first four are published; `tiny` (factor 4) suits a CPU."""

ARGUMENTS = {
    "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels", "layers_per_block",
    "act_fn", "latent_channels", "norm_num_groups", "sample_size", "scaling_factor", "shift_factor", "latents_mean",
    "latents_std", "force_upcast", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention",
}  # fmt: skip
"""Everything that AutoencoderKL takes."""

ALWAYS, TRAINING, NEVER = "always", "training", "never"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(kw_only=True)
class Vae:
    """`model.vae`."""

    name: str = key(
        "autoencoder: sd15, sd21, sd35 or sdxl as published, tiny, custom; empty: the model works on pixels",
        "",
        choices=("", *ARCHITECTURES),
    )
    architecture: dict = key("arguments of diffusers.AutoencoderKL that differ from those of `name`", {})
    num_latent_channels: int = key("follows from the architecture; 0: unchecked", 0, least=0)
    downsample_factor: int = key("follows from the architecture; 0: unchecked", 0, least=0)
    image_range: str = key(
        "range in which the autoencoder sees pictures; published latent LVSM: zero_to_one",
        "minus_one_to_one",
        choices=("minus_one_to_one", "zero_to_one"),
    )
    scale_latents: bool = key(
        "apply the autoencoder's scaling and shift factor; published latent LVSM: false", True
    )
    stochastic_encoder: str = key(
        "when latents are drawn from the posterior instead of its mean; published latent LVSM: always",
        TRAINING,
        choices=(ALWAYS, TRAINING, NEVER),
    )
    num_slices_in_parallel: int = key("pictures encoded or decoded at once; 0: all", 4, least=0)
    dtype: str = key(
        "type of its weights and computation, whatever the autocast of the run", "float32", choices=(*DTYPES,)
    )
    latent_loss_weight: float = key("weight of the mean squared error of latents", 1.0, least=0)
    image_loss_weight: float = key(
        "weight of the image loss that `training` describes, on decoded pictures; 0: training decodes nothing",
        0.0,
        least=0,
    )

    def __post_init__(self) -> None:
        raise_all(self._problems())

    def _problems(self) -> Iterator[str]:
        unknown = sorted(self.architecture.keys() - ARGUMENTS)
        if unknown:
            yield (
                f"model.vae.architecture.{unknown[0]} is no argument of AutoencoderKL. Known: {', '.join(sorted(ARGUMENTS))}."
            )
        if self.name == "custom" and "block_out_channels" not in self.architecture:
            yield (
                "model.vae.name is custom, but model.vae.architecture names no block_out_channels: copy the "
                "config.json of the autoencoder into model.vae.architecture."
            )
            return
        for given, true in (("num_latent_channels", self.channels), ("downsample_factor", self.factor)):
            if getattr(self, given) not in (0, true):
                yield (
                    f"model.vae.{given} is {getattr(self, given)}, but the architecture of {self.name or 'no VAE'} makes {true}."
                )
        if self.name and not self.latent_loss_weight + self.image_loss_weight:
            yield (
                "model.vae.latent_loss_weight and model.vae.image_loss_weight are both 0: there is nothing to minimise."
            )

    @property
    def channels(self) -> int:
        """Channels of a latent; 0 without an autoencoder."""
        return autoencoder_arguments(self)["latent_channels"] if self.name else 0

    @property
    def factor(self) -> int:
        """Pixels per latent pixel, along each side; 1 without an autoencoder."""
        return 2 ** (len(autoencoder_arguments(self)["block_out_channels"]) - 1) if self.name else 1


def autoencoder_arguments(settings: Vae) -> dict[str, Any]:
    """The arguments of AutoencoderKL that these settings ask for, with its own default where a file left one out."""
    return {"latent_channels": 4, **ARCHITECTURES[settings.name], **settings.architecture}


class ImageCodec(nn.Module):
    """Pictures to latents and back. The autoencoder (under `vae`, as in published files) is frozen and stays in eval
    mode; only adapters of its decoder (`lora.py`) may learn.
    """

    def __init__(self, settings: Vae) -> None:
        super().__init__()
        self.vae = _build_autoencoder(settings)
        self.settings = settings
        self.factor = settings.factor
        arguments = autoencoder_arguments(settings)
        scale, shift = arguments.get("scaling_factor"), arguments.get("shift_factor")
        # AutoencoderKL's own defaults
        self.scale = (0.18215 if scale is None else scale) if settings.scale_latents else 1.0
        self.shift = (shift or 0.0) if settings.scale_latents else 0.0

    def train(self, mode: bool = True) -> ImageCodec:
        """`training` says whether latents are drawn for training; the autoencoder itself stays as it is."""
        super().train(mode)
        self.vae.eval()
        for module in self.vae.modules():
            if is_adapted(module):
                module.parametrizations.train(mode)
        return self

    def latents(self, views: Views) -> Tensor:
        """Latents of the views' pictures, or drawn anew from the posterior that came with them; without gradient.

        [b, v, c, h / factor, w / factor], float32
        """
        with torch.no_grad():
            posterior = self.posterior(views.image) if views.posterior is None else views.posterior
            return self.draw(posterior)

    @torch.no_grad()
    def posterior(self, image: Tensor) -> Tensor:
        """What the encoder says of pictures [b, v, 3, h, w] in [0, 1]. [b, v, 2, c, h / factor, w / factor], float32

        Raises:
            ValueError: the sides of the pictures are no multiples of the factor.
        """
        height, width = image.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"pictures of {height} x {width} pixels (height x width) do not fit the autoencoder: expected multiples "
                f"of {self.factor}."
            )
        if self.settings.image_range == "minus_one_to_one":
            image = 2 * image - 1
        flat = self._in_slices(self._encode, image.flatten(0, 1))
        return flat.unflatten(0, image.shape[:2])

    def draw(self, posterior: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents from a posterior: mean + deviation * noise where the settings say so, else the mean.

        Args:
            posterior: [b, v, 2, c, h, w]
            noise: standard normal numbers; none: torch's global generator. [b, v, c, h, w]

        Returns:
            scaled and shifted latents, float32. [b, v, c, h, w]
        """
        mean, deviation = posterior.float().unbind(2)
        when = self.settings.stochastic_encoder
        if when == ALWAYS or (when == TRAINING and self.training):
            mean = mean + deviation * (torch.randn_like(mean) if noise is None else noise)
        return (mean - self.shift) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures of latents [b, v, c, h, w], with gradients. [b, v, 3, h * factor, w * factor] in [0, 1], float32"""
        flat = latents.flatten(0, 1).float() / self.scale + self.shift
        image = self._in_slices(self._decode, flat)
        if self.settings.image_range == "minus_one_to_one":
            image = (image + 1) / 2
        return image.clamp(0, 1).unflatten(0, latents.shape[:2])

    def digest(self) -> str:
        """sha256 of what decides a posterior: the encoder's tensors and the range of its pictures."""
        found = hashlib.sha256(self.settings.image_range.encode())
        for name, tensor in sorted(self.vae.state_dict().items()):
            if name.startswith(("encoder.", "quant_conv.")):
                found.update(name.encode())
                found.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()

    def _encode(self, image: Tensor) -> Tensor:
        found = self.vae.encode(image.to(self.vae.dtype)).latent_dist
        return torch.stack([found.mean, found.std], dim=1).float()

    def _decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents.to(self.vae.dtype)).sample.float()

    def _in_slices(self, function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        """`function` on a few pictures at a time, in the autoencoder's own type; adapted weights are computed once."""
        step = self.settings.num_slices_in_parallel or max(1, len(batch))
        with full_precision(batch.device), parametrize.cached():
            return torch.cat([function(part) for part in batch.split(step)])


def _build_autoencoder(settings: Vae) -> nn.Module:
    try:
        # Imported here: it takes seconds, and no other family needs the package.
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise ConfigError(
            f"model.vae.name {settings.name} needs the package diffusers ({error}): pip install diffusers."
        ) from error
    try:
        vae = AutoencoderKL(**autoencoder_arguments(settings))
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"model.vae.architecture makes no autoencoder: {error}") from error
    # Not vae.to(...): diffusers' own warns of a list of modules that is empty here.
    return nn.Module.to(vae, DTYPES[settings.dtype]).requires_grad_(False).eval()
