"""`training.activations`: what a step keeps of its forward pass for the backward pass, and what it computes again.

Public: PLANS, keep_activations.
"""

from __future__ import annotations

from .model.base import ViewSynthesizer
from .settings import Training

PLANS = ("speed", "products", "blocks", "memory")
"""From the fastest to the one that keeps least."""

SLICES = 8
"""Parts of a batch that `memory` recomputes one after another: what one part needs is then little beside what is kept."""


def keep_activations(model: ViewSynthesizer, training: Training, plan: str) -> None:
    """Tell the stacks of a model what one of `PLANS` means."""
    if plan == "speed":
        model.set_checkpointing(0)
    elif plan == "products":
        model.set_checkpointing(1, keep_products=True)
    elif plan == "blocks":
        model.set_checkpointing(training.grad_checkpoint_every)
    elif plan == "memory":
        # Where every process holds a share of the weights, each part would have to gather all of them.
        slices = 1 if training.parallel == "fsdp" else SLICES
        model.set_checkpointing(1, slices=slices)
    else:
        raise ValueError(f"no such plan: {plan}; there are {', '.join(PLANS)}.")
