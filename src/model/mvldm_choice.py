"""What a training step of MV-LDM draws at random for one sample: which views are context, whose frame, how much noise.

Everything comes from a generator of the sample's own, so a run draws the same on any number of processes, and resumed.

Public: Choice, Sizes, choose, sample_generator, normal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .diffusion import Scheduler, shifted_levels

SEEDS = 2**62


@dataclass(frozen=True)
class Choice:
    """The draws of one sample. Views are numbered context first, then targets, as the sample came.

    context, target: views that are given, and views that are denoised.
    reference: place in (*context, *target) of the camera that becomes the identity; None: poses stay as they are.
    unconditional: the network sees the targets alone.
    level: noise level of the targets.
    """

    context: tuple[int, ...]
    target: tuple[int, ...]
    reference: int | None
    unconditional: bool
    level: int

    @property
    def shape(self) -> tuple[int, int, bool]:
        """Samples of equal shape go through the network together."""
        return len(self.context), len(self.target), self.unconditional


@dataclass(frozen=True)
class Sizes:
    """How many views a sample has, and how often what is drawn."""

    num_context: int
    num_target: int
    random_num_context: bool
    absolute_poses_probability: float
    unconditional_probability: float


def choose(generator: torch.Generator, sizes: Sizes, scheduler: Scheduler) -> Choice:
    """Draw for one sample.

    Of v context views n ~ U{1 ... v} are used. Of several the first n stay and the others are dropped; one alone is any
    of them, and the others become targets. The reference is one of the context views that are left: the original takes
    the number that a single view had among all, which may be a target now.
    """
    views = range(sizes.num_context + sizes.num_target)
    context, target = views[: sizes.num_context], views[sizes.num_context :]
    count = _below(sizes.num_context, generator) + 1 if sizes.random_num_context else sizes.num_context
    if count == 1 and sizes.num_context > 1:
        kept = _below(sizes.num_context, generator)
        chosen, denoised = (context[kept],), (*target, *(view for view in context if view != kept))
    else:
        chosen, denoised = tuple(context[:count]), tuple(target)
    reference = _below(count, generator)
    absolute = _chance(sizes.absolute_poses_probability, generator)
    unconditional = _chance(sizes.unconditional_probability, generator)
    level = int(shifted_levels(torch.rand((), generator=generator, dtype=torch.float64), scheduler))
    return Choice(chosen, denoised, None if absolute else reference, unconditional, level)


def sample_generator(seed: int, stream: int = 0) -> torch.Generator:
    """One of several independent generators of a sample, on the CPU, so that devices agree."""
    return torch.Generator().manual_seed((seed + stream * 0x9E3779B97F4A7C15) % 2**63)


def normal(generators: Sequence[torch.Generator], shape: Sequence[int], device: torch.device) -> Tensor:
    """Standard normal numbers, each sample's from its own generator. [b, *shape] float32"""
    return torch.stack([torch.randn(*shape, generator=one) for one in generators]).to(device)


def fresh_seeds(count: int) -> list[int]:
    """Seeds of samples that come without, from torch's global generator."""
    return torch.randint(SEEDS, (count,)).tolist()


def _below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))


def _chance(probability: float, generator: torch.Generator) -> bool:
    return bool(torch.rand((), generator=generator) < probability)
