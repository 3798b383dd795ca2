"""MV-LDM: diffusion in the latents of an image autoencoder, all target views of a scene denoised together.

The network (`unet.py`) sees of each view its latent, a mask (0: context, 1: target) and the rays of its camera; context
views are clean and at noise level 0. A render is a sample: DDIM from noise, guided by what the network says of the
targets without the context. It depends on all cameras of a call, so `render` never cuts them into chunks.

Whatever is random comes from `Views.draws`, one seed for each sample: not from the device, the number of processes or
what else is in the batch.

Original repository: mohammadasim98/mv-ldm. Paper: MEt3R, arXiv 2501.06336.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from easydict import EasyDict
from torch import Tensor

from ..config import ConfigError, key
from ..geometry.camera import Cameras, Views, rebase
from .base import ImageTokenizer, ViewSynthesizer
from .diffusion import Schedule, Scheduler, guided
from .mvldm_choice import Choice, Sizes, choose, fresh_seeds, normal, sample_generator
from .ray_encoding import RayEncoding, encode_rays
from .unet import Denoiser, MultiViewUNet
from .unet_weights import from_stable_diffusion, without_unused
from .vae import ImageCodec, Vae

POSTERIOR, NOISE, PROBE = range(3)
"""Streams of random numbers of one sample."""

PROBED = (0.1, 0.5, 0.9)
"""Noise levels of `held_out_terms`, as shares of all."""


@dataclass(kw_only=True)
class Config:
    """`model` section."""

    class_name: str = key("model family", "src.model.mvldm.MVLDM")
    image_size: int = key("image height, pixels", 256, least=1)
    patch_size: int = key(
        "the network sees so many latent pixels along each side as one, with their channels side by side",
        1,
        least=1,
    )
    vae: Vae = key("autoencoder", Vae)
    denoiser: Denoiser = key("the network", Denoiser)
    ray_encodings: RayEncoding = key("what the network sees of a ray", RayEncoding)
    scheduler: Scheduler = key("noise levels", Scheduler)
    use_cfg: bool = key("guide samples by what the network says without context", True)
    cfg_scale: float = key("how far guidance goes; 1: as without, at half the time", 3.0)
    unconditional_probability: float = key(
        "share of training samples without context; 0: no guidance can be learnt", 0.1, least=0
    )
    absolute_poses_probability: float = key(
        "share of training samples whose poses stay in the data's frame instead of that of a context view",
        0.5,
        least=0,
    )
    random_num_context: bool = key(
        "draw for each training sample how many of its context views are used", True
    )

    def __post_init__(self) -> None:
        if not self.vae.name:
            raise ConfigError("model.vae.name is empty: MV-LDM works on latents; set sd21, or tiny on a CPU.")
        if self.vae.image_loss_weight:
            raise ConfigError(
                f"model.vae.image_loss_weight is {self.vae.image_loss_weight}: MV-LDM learns from noise, not from "
                "pictures; set 0."
            )
        _ = self.image_tokenizer  # checks the sizes

    @property
    def image_tokenizer(self) -> ImageTokenizer:
        """What the data set asks for: sides in pixels, multiples of what the network halves to one latent pixel."""
        side = self.vae.factor * self.patch_size * self.denoiser.downsampling
        return ImageTokenizer(image_size=self.image_size, patch_size=side)


@dataclass
class Context:
    """The scene state.

    latents: of the context views. [b, v, c, h, w]
    cameras: of the context views.
    seeds: of each sample's noise. [b]
    """

    latents: Tensor
    cameras: Cameras
    seeds: list[int]


class MVLDM(ViewSynthesizer):
    """Parameters have the published names: `denoiser.*` and, frozen, `autoencoder.*`."""

    pretrained_parts = {"vae": "autoencoder."}

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.schedule = Schedule(config.scheduler)
        latent = config.vae.channels * config.patch_size**2
        self.denoiser = MultiViewUNet(config.denoiser, latent + 1 + config.ray_encodings.channels, latent)
        codec = ImageCodec(config.vae)
        self.autoencoder = codec.vae
        self._codec = (codec,)  # in a tuple torch does not see it: its parameters stand under `autoencoder`

    @property
    def codec(self) -> ImageCodec:
        return self._codec[0]

    def train(self, mode: bool = True) -> MVLDM:
        super().train(mode)
        self.codec.train(mode)
        return self

    def with_own_names(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Published files may hold averaged weights, which are left out, and parameters that nothing uses; files of Stable
        Diffusion's UNet have no prefix.
        """
        state = {name: tensor for name, tensor in state.items() if not name.startswith("ema.")}
        return without_unused(from_stable_diffusion(state, "denoiser.unet."), self.state_dict().keys())

    # ------------------------------------------------------------------------------------------- sampling

    def encode(self, input: Views) -> Context:
        seeds = input.draws or fresh_seeds(len(input.image))
        return Context(self.latents(input, seeds), input.cameras, seeds)

    def decode(self, scene: Context, cameras: Cameras) -> Tensor:
        """A sample, in the frame of the first context view."""
        shape = (cameras.num_views, *scene.latents.shape[2:])
        noise = normal(_generators(scene.seeds, NOISE), shape, scene.latents.device)
        return self.codec.decode(self.sample(scene.latents, scene.cameras, cameras, noise))

    def render(self, scene: Context, cameras: Cameras, chunk: int = 0) -> Tensor:
        """All cameras together, whatever `chunk` says: views that are sampled apart do not fit together."""
        return self.decode(scene, cameras)

    @torch.no_grad()
    def sample(
        self,
        context: Tensor,
        context_cameras: Cameras,
        cameras: Cameras,
        noise: Tensor,
        *,
        reference: int = 0,
        steps: int = 0,
        on_step: Callable[[], None] | None = None,
    ) -> Tensor:
        """Latents of the target views, by DDIM from `noise`.

        Args:
            context: latents of the context views. [b, v_c, c, h, w]
            cameras: of the target views, in the same frame as the context's.
            noise: standard normal numbers. [b, v_t, c, h, w]
            reference: the context view whose camera becomes the identity.
            steps: noise levels to go through; 0: `model.scheduler.num_inference_steps`.
            on_step: called after each of them.

        Returns:
            [b, v_t, c, h, w] float32
        """
        given, joined = context.shape[1], _joined(context_cameras, cameras)
        moved = joined.at(rebase(joined.c2w, joined.c2w[:, reference]))
        condition = self.condition(moved, given, context.shape[-2:])
        scale = self.config.cfg_scale if self.config.use_cfg else 1.0
        levels = self.schedule.timesteps(steps or self.config.scheduler.num_inference_steps)
        latents = noise.float()
        for level, following in pairwise([*levels, None]):
            now = torch.full((len(latents),), level, device=latents.device)
            prediction = self.predict(torch.cat([context, latents], dim=1), condition, now, given)
            if scale != 1:
                # The number of views differs, so this cannot be one batch with the pass above.
                alone = self.predict(latents, condition[:, given:], now, 0)
                prediction = guided(prediction, alone, scale)
            latents = self.schedule.step(latents, prediction, level, following)
            if on_step:
                on_step()
        return latents

    def latents(self, views: Views, seeds: list[int]) -> Tensor:
        """Latents of pictures, drawn where the settings say so. [b, v, c, h, w] float32, without gradient"""
        with torch.no_grad():
            posterior = self._posterior(views)
            shape = (*posterior.shape[1:2], *posterior.shape[3:])
            return self.codec.draw(posterior, normal(_generators(seeds, POSTERIOR), shape, posterior.device))

    # ------------------------------------------------------------------------------------------- the network

    def condition(self, cameras: Cameras, num_context: int, size: tuple[int, int]) -> Tensor:
        """Mask (0 on the first `num_context` views, else 1) and encoded rays of latents of this size, one for each patch.

        [b, v, 1 + e, h / patch_size, w / patch_size]
        """
        height, width = (side // self.config.patch_size for side in size)
        rays = encode_rays(_at_size(cameras, height, width), self.config.ray_encodings)
        mask = torch.ones_like(rays[:, :, :1])
        mask[:, :num_context] = 0
        return torch.cat([mask, rays], dim=2)

    def predict(self, latents: Tensor, condition: Tensor, level: Tensor, num_context: int) -> Tensor:
        """What the network says of the noisy latents behind the first `num_context` views, which are clean.

        Args:
            latents: [b, v, c, h, w]
            condition: of the same views, as `condition` gives it.
            level: noise level of each sample's targets. [b]

        Returns:
            [b, v - num_context, c, h, w] float32
        """
        levels = level[:, None].repeat(1, latents.shape[1])
        levels[:, :num_context] = 0
        patches = F.pixel_unshuffle(latents, self.config.patch_size)
        said = self.denoiser(torch.cat([patches, condition], dim=2), levels)[:, num_context:]
        return F.pixel_shuffle(said.float(), self.config.patch_size)

    # ------------------------------------------------------------------------------------------- training

    def forward(self, input: Views, target: Views) -> EasyDict:
        """In training `result.prediction` and `result.truth` of every denoised view [n, c, h, w], and `result.weight` [n],
        the share of each in the mean over samples; in eval mode a sample, as `decode`.
        """
        if not self.training:
            return super().forward(input, target)
        seeds = input.draws or fresh_seeds(len(input.image))
        sizes = Sizes(
            input.cameras.num_views,
            target.cameras.num_views,
            self.config.random_num_context,
            self.config.absolute_poses_probability,
            self.config.unconditional_probability,
        )
        generators = _generators(seeds, PROBE)
        choices = [choose(generator, sizes, self.config.scheduler) for generator in generators]
        both = Views(
            torch.cat([input.image, target.image], dim=1),
            _joined(input.cameras, target.cameras),
            torch.cat([self._posterior(input), self._posterior(target)], dim=1),
        )
        clean = self.latents(both, seeds)
        noise = normal(_generators(seeds, NOISE), clean.shape[1:], clean.device)
        return self.denoise(clean, both.cameras, noise, choices)

    def denoise(self, clean: Tensor, cameras: Cameras, noise: Tensor, choices: list[Choice]) -> EasyDict:
        """Predictions for given draws; samples whose choices have one shape go through the network together.

        Args:
            clean: latents of all views, context first. [b, v, c, h, w]
            noise: standard normal numbers for the same views. [b, v, c, h, w]
            choices: one for each sample.
        """
        groups: dict[tuple[int, int, bool], list[int]] = {}
        for place, choice in enumerate(choices):
            groups.setdefault(choice.shape, []).append(place)
        parts = []
        for places in groups.values():
            rows = torch.tensor(places, device=clean.device)
            chosen = [choices[place] for place in places]
            parts.append(
                self._denoise_alike(clean[rows], _rows(cameras, rows), noise[rows], chosen, len(choices))
            )
        prediction, truth, weight = (torch.cat(tensors) for tensors in zip(*parts))
        return EasyDict(prediction=prediction, truth=truth, weight=weight, cameras=cameras)

    def _denoise_alike(
        self, clean: Tensor, cameras: Cameras, noise: Tensor, choices: list[Choice], batch: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Prediction, truth and weight of the denoised views of samples whose choices have one shape."""
        device, given = clean.device, len(choices[0].context)
        rows = torch.arange(len(choices), device=device)[:, None]
        columns = torch.tensor([[*choice.context, *choice.target] for choice in choices], device=device)
        level = torch.tensor([choice.level for choice in choices], device=device)
        clean, noise = clean[rows, columns], noise[rows, columns][:, given:]
        noisy = self.schedule.add_noise(clean[:, given:], noise, level)
        truth = self.schedule.target(clean[:, given:], noise, level)
        condition = self.condition(_moved(cameras, columns, choices), given, clean.shape[-2:])
        if choices[0].unconditional:
            prediction = self.predict(noisy, condition[:, given:], level, 0)
        else:
            prediction = self.predict(torch.cat([clean[:, :given], noisy], dim=1), condition, level, given)
        weight = torch.full((truth.shape[0] * truth.shape[1],), 1 / (batch * truth.shape[1]), device=device)
        return prediction.flatten(0, 1), truth.flatten(0, 1), weight

    def objective(
        self, result: EasyDict, target: Views, image_loss: Callable[[Tensor, Tensor], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Mean squared error of the prediction: over the target views of a sample, then over samples."""
        errors = (result.prediction.float() - result.truth).square().flatten(1).mean(1)  # [n]
        return {"loss": (errors * result.weight).sum()}

    def held_out_terms(self, input: Views, target: Views) -> dict[str, Tensor]:
        """Error of the prediction given the context, mean over a few noise levels, with the noise of `Views.draws`. [b]"""
        seeds = input.draws or [0] * len(input.image)
        context, clean = self.latents(input, seeds), self.latents(target, seeds)
        noise = normal(_generators(seeds, PROBE), clean.shape[1:], clean.device)
        cameras, given = _joined(input.cameras, target.cameras), context.shape[1]
        moved = cameras.at(rebase(cameras.c2w, cameras.c2w[:, 0]))
        condition, errors = self.condition(moved, given, clean.shape[-2:]), []
        for share in PROBED:
            level = int(share * self.config.scheduler.num_train_timesteps)
            levels = torch.full((len(clean),), level, device=clean.device)
            noisy = torch.cat([context, self.schedule.add_noise(clean, noise, levels)], dim=1)
            prediction = self.predict(noisy, condition, levels, given)
            errors.append(
                (prediction - self.schedule.target(clean, noise, levels)).square().flatten(1).mean(1)
            )
        return {"denoising_loss": torch.stack(errors).mean(0)}

    def _posterior(self, views: Views) -> Tensor:
        """Mean and deviation of the latents, computed here or beforehand. [b, v, 2, c, h, w]"""
        with torch.no_grad():
            return self.codec.posterior(views.image) if views.posterior is None else views.posterior


def _generators(seeds: list[int], stream: int) -> list[torch.Generator]:
    return [sample_generator(seed, stream) for seed in seeds]


def _joined(first: Cameras, second: Cameras) -> Cameras:
    """Views of two sets of cameras of the same scenes, one after the other."""
    c2w, fxfycxcy = (torch.cat([getattr(first, n), getattr(second, n)], dim=1) for n in ("c2w", "fxfycxcy"))
    return Cameras(c2w, fxfycxcy, first.height, first.width)


def _rows(cameras: Cameras, rows: Tensor) -> Cameras:
    """Some of the samples."""
    return Cameras(cameras.c2w[rows], cameras.fxfycxcy[rows], cameras.height, cameras.width)


def _moved(cameras: Cameras, columns: Tensor, choices: list[Choice]) -> Cameras:
    """The chosen views of each sample, in the frame of its reference view where it has one."""
    device = cameras.c2w.device
    rows = torch.arange(len(choices), device=device)[:, None]
    c2w = cameras.c2w[rows, columns]
    places = torch.tensor([choice.reference or 0 for choice in choices], device=device)
    absolute = torch.tensor([choice.reference is None for choice in choices], device=device)
    relative = rebase(c2w, c2w[rows[:, 0], places])
    c2w = torch.where(absolute[:, None, None, None], c2w, relative)
    return Cameras(c2w, cameras.fxfycxcy[rows, columns], cameras.height, cameras.width)


def _at_size(cameras: Cameras, height: int, width: int) -> Cameras:
    """The same cameras with pictures of another size. Intrinsics scale with each side."""
    ratio = cameras.fxfycxcy.new_tensor([width / cameras.width, height / cameras.height] * 2)
    return Cameras(cameras.c2w, cameras.fxfycxcy * ratio, height, width)
