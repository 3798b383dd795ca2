"""Runs the plan of a video (`video_plan.py`) with a multi-view diffusion model.

All poses stay in the frame in which they came; each call gets a copy relative to its own reference view. Frames that were
made are encoded anew for the calls that they condition. Each call has generators of its own, from the scene's seed and the
number of the call, on the CPU: the same seed gives the same frames on every device.

Public: VideoSampler, evaluations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .geometry.camera import Cameras, Views
from .model.mvldm import MVLDM
from .model.mvldm_choice import normal, sample_generator
from .video_plan import Call

Draw = Callable[[int, tuple[int, ...], tuple[int, ...]], tuple[Tensor, Tensor]]
"""(number of the call, shapes of one sample's context and target latents) -> normal numbers of both, [1, ...]"""


def evaluations(model: MVLDM, plan: Sequence[Call], steps: int = 0) -> int:
    """Noise levels that all calls of a plan go through."""
    return len(plan) * (steps or model.config.scheduler.num_inference_steps)


@dataclass
class VideoSampler:
    """A model in eval mode, and how it samples.

    offload: keep on the model's device only the half that is at work.
    on_step: called after each noise level of each call.
    """

    model: MVLDM
    offload: bool = False
    on_step: Callable[[], None] | None = None

    @torch.no_grad()
    def __call__(
        self, given: Views, cameras: Cameras, plan: Sequence[Call], *, seed: int = 0, draw: Draw | None = None
    ) -> Tensor:
        """Every frame of one scene. [1, t, 3, h, w] in [0, 1], on the CPU

        Args:
            given: the context views. [1, v_c]
            cameras: of the frames, in the same frame of coordinates. [1, t]
            plan: calls that make every frame once.
            seed: of everything that is drawn.
            draw: where normal numbers come from instead.
        """
        draw = draw or _drawing(seed)
        device, frames = given.image.device, {}
        posteriors = {}  # of frames that condition others
        with self._at_work(self.model.autoencoder, device):
            known = self.model.codec.posterior(given.image)  # [1, v_c, 2, c, h, w]
        for number, call in enumerate(plan):
            missing = [place for place in call.made if place not in posteriors]
            if missing:
                pictures = torch.stack([frames[place] for place in missing], dim=1).to(device)
                with self._at_work(self.model.autoencoder, device):
                    posteriors |= dict(zip(missing, self.model.codec.posterior(pictures).unbind(1)))
            context = torch.cat([known, *(posteriors[place][:, None] for place in call.made)], dim=1)
            pictures = self._call(number, call, context, given.cameras, cameras, draw)
            frames |= dict(zip(call.target, pictures.cpu().unbind(1)))
        return torch.stack([frames[place] for place in range(cameras.num_views)], dim=1)

    def _call(
        self, number: int, call: Call, posterior: Tensor, given: Cameras, frames: Cameras, draw: Draw
    ) -> Tensor:
        """The frames that one call makes. [1, n, 3, h, w]"""
        device, model = posterior.device, self.model
        shape = (posterior.shape[1], *posterior.shape[3:])
        noises = draw(number, shape, (len(call.target), *posterior.shape[3:]))
        posterior_noise, noise = (tensor.to(device) for tensor in noises)
        context = model.codec.draw(posterior, posterior_noise)
        made = frames.views(list(call.made))
        cameras = Cameras(
            torch.cat([given.c2w, made.c2w], dim=1),
            torch.cat([given.fxfycxcy, made.fxfycxcy], dim=1),
            *(given.height, given.width),
        )
        with self._at_work(model.denoiser, device):
            latents = model.sample(
                context,
                cameras,
                frames.views(list(call.target)),
                noise,
                reference=call.reference(given.num_views),
                on_step=self.on_step,
            )
        with self._at_work(model.autoencoder, device):
            return model.codec.decode(latents)

    @contextmanager
    def _at_work(self, part: nn.Module, device: torch.device) -> Iterator[None]:
        """With `offload` the part is on the device inside, and on the CPU afterwards."""
        if not self.offload:
            yield
            return
        nn.Module.to(part, device)
        try:
            yield
        finally:
            nn.Module.to(part, "cpu")


def _drawing(seed: int) -> Draw:
    def draw(number: int, context: tuple[int, ...], target: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        generator = [sample_generator(seed, stream=number)]
        cpu = torch.device("cpu")
        return normal(generator, context, cpu), normal(generator, target, cpu)

    return draw
