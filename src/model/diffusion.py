"""The diffusion process: how noise is added to latents, and how it is taken away again. Pure functions in float32.

A noise level is a whole number t in [0, T). `Schedule.signal[t]` is the share of the signal's power that is left there,
abar_t = prod (1 - beta_s), s <= t: a noisy latent is sqrt(abar) x + sqrt(1 - abar) noise.

The network predicts the noise (`epsilon`, as published) or `v_prediction` = sqrt(abar) noise - sqrt(1 - abar) x, which says
something of the picture where nothing but noise is left. At the end of a schedule with `zero_terminal_snr` only the
latter does.

Sources: DDPM, arXiv 2006.11239; DDIM, arXiv 2010.02502; v prediction, arXiv 2202.00512; guidance, arXiv 2207.12598;
zero terminal SNR and trailing spacing, arXiv 2305.08891; shift of the levels, arXiv 2403.03206.

Public: Scheduler (settings), Schedule, shifted_levels, guided.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import ConfigError, key

EPSILON, V_PREDICTION = "epsilon", "v_prediction"
LINEAR, SCALED_LINEAR, COSINE = "linear", "scaled_linear", "cosine"
LEADING, TRAILING = "leading", "trailing"

LARGEST_BETA = 0.999
"""Of the cosine schedule, whose last level would else keep nothing at all."""


@dataclass(kw_only=True)
class Scheduler:
    """`model.scheduler`: the noise levels, and which of them a sample goes through. Names as in diffusers."""

    num_train_timesteps: int = key("noise levels T", 1000, least=1)
    num_inference_steps: int = key("levels that a sample goes through", 70, least=1)
    beta_schedule: str = key(
        "how the variance of added noise grows over the levels",
        LINEAR,
        choices=(LINEAR, SCALED_LINEAR, COSINE),
    )
    beta_start: float = key("of the first level (not cosine)", 1e-4)
    beta_end: float = key("of the last level (not cosine)", 0.02)
    zero_terminal_snr: bool = key("leave nothing but noise at the last level; needs v_prediction", False)
    prediction_type: str = key("what the network predicts", EPSILON, choices=(EPSILON, V_PREDICTION))
    timestep_spacing: str = key(
        "levels of a sample: leading ends at level 0 and begins below the last level, trailing begins at it",
        LEADING,
        choices=(LEADING, TRAILING),
    )
    timestep_shift: float = key(
        "above 1, training draws noisy levels more often: u -> s u / (1 + (s - 1) u), u uniform", 1.0
    )

    def __post_init__(self) -> None:
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ConfigError(
                f"model.scheduler.beta_start is {self.beta_start} and beta_end is {self.beta_end}: expected "
                "0 < beta_start <= beta_end < 1."
            )
        if self.num_inference_steps > self.num_train_timesteps:
            raise ConfigError(
                f"model.scheduler.num_inference_steps is {self.num_inference_steps}: there are only "
                f"{self.num_train_timesteps} levels (num_train_timesteps)."
            )
        if self.zero_terminal_snr and self.prediction_type != V_PREDICTION:
            raise ConfigError(
                "model.scheduler.zero_terminal_snr leaves no picture in which noise could be told from it: set "
                f"model.scheduler.prediction_type: {V_PREDICTION}."
            )
        if self.timestep_shift <= 0:
            raise ConfigError(
                f"model.scheduler.timestep_shift is {self.timestep_shift}: it must be positive."
            )


class Schedule:
    """The noise levels that `Scheduler` describes. Arithmetic runs in float32, or in float64 if given.

    signal: abar of every level, on the CPU. [T] float32
    """

    def __init__(self, settings: Scheduler) -> None:
        self.settings = settings
        self.signal = (1 - _betas(settings)).cumprod(0)
        if settings.zero_terminal_snr:
            self.signal = _without_signal_at_the_end(self.signal)

    def add_noise(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """Latents at noise levels `level` [b], [b, v, c, h, w]: sqrt(abar) x + sqrt(1 - abar) noise."""
        kept, added = self._roots(level, latents)
        return kept * latents + added * noise

    def target(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """What the network should say of `add_noise(latents, noise, level)`. [b, v, c, h, w]"""
        if self.settings.prediction_type == EPSILON:
            return noise
        kept, added = self._roots(level, latents)
        return kept * noise - added * latents

    def timesteps(self, steps: int) -> list[int]:
        """The levels of a sample of so many steps, noisiest first.

        leading: (n - 1 - i) (T // n), i = 0 ... n - 1; trailing: round(T - i T / n) - 1.
        """
        total = self.settings.num_train_timesteps
        if not 1 <= steps <= total:
            raise ValueError(f"{steps} steps: expected 1 to {total}, the number of noise levels.")
        if self.settings.timestep_spacing == LEADING:
            return [i * (total // steps) for i in reversed(range(steps))]
        return [round(total - i * total / steps) - 1 for i in range(steps)]

    def step(self, noisy: Tensor, prediction: Tensor, level: int, next_level: int | None) -> Tensor:
        """One step of DDIM with eta 0, from `level` to a less noisy one (None: to the clean latent). Same shape

        The estimate of the clean latent is not clipped.
        """
        clean, noise = self.split(noisy, prediction, level)
        kept = 1.0 if next_level is None else float(self.signal[next_level])
        return math.sqrt(kept) * clean + math.sqrt(1 - kept) * noise

    def split(self, noisy: Tensor, prediction: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """The clean latent and the noise that a prediction at `level` stands for. Each of the shape of `noisy`"""
        kept, added = math.sqrt(float(self.signal[level])), math.sqrt(1 - float(self.signal[level]))
        noisy, prediction = _at_least_float32(noisy), _at_least_float32(prediction)
        if self.settings.prediction_type == EPSILON:
            return (noisy - added * prediction) / kept, prediction
        return kept * noisy - added * prediction, kept * prediction + added * noisy

    def _roots(self, level: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar) and sqrt(1 - abar), each [b, 1, 1, 1, 1]"""
        signal = self.signal.to(level.device)[level].view(-1, *[1] * (latents.ndim - 1))
        return signal.sqrt(), (1 - signal).sqrt()


def shifted_levels(uniform: Tensor, settings: Scheduler) -> Tensor:
    """Noise levels of numbers drawn uniformly from [0, 1). Same shape, int64 in [0, T)"""
    shift, total = settings.timestep_shift, settings.num_train_timesteps
    share = shift * uniform / (1 + (shift - 1) * uniform)
    return (share * total).long().clamp_max(total - 1)


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: away from what the network says without context. Same shape"""
    return unconditional + scale * (conditional - unconditional)


def _betas(settings: Scheduler) -> Tensor:
    """Variance of the noise that each level adds. [T] float32"""
    first, last, total = settings.beta_start, settings.beta_end, settings.num_train_timesteps
    if settings.beta_schedule == LINEAR:
        return torch.linspace(first, last, total)
    if settings.beta_schedule == SCALED_LINEAR:
        return torch.linspace(first**0.5, last**0.5, total).square()
    ends = torch.arange(total + 1, dtype=torch.float64) / total
    left = torch.cos((ends + 0.008) / 1.008 * math.pi / 2).square()  # arXiv 2102.09672
    return (1 - left[1:] / left[:-1]).clamp_max(LARGEST_BETA).float()


def _without_signal_at_the_end(signal: Tensor) -> Tensor:
    """abar shifted and scaled in its root so that the last is 0 and the first stays. [T]"""
    root = signal.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
