"""Running averages of a model's trained weights, kept by a run of any family with `training.ema_decay` above 0.

After each update: average <- d average + (1 - d) weight, with d = min(decay, (1 + n) / (10 + n)) at update n, so that
the first weights are forgotten in time. Averages are float32 and lie in the training state of a checkpoint.

Public: Ema, fill_with_averages.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .parallel import like


class Ema:
    """Averages of all parameters that learn.

    averages: name of the parameter -> its average. float32
    updates: how many went into them.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.averages = {
            name: p.detach().float().clone() for name, p in model.named_parameters() if p.requires_grad
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights as they are after an update of the model that this was made from."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights = dict(model.named_parameters())
        current = [weights[name].detach().float() for name in self.averages]
        torch._foreach_lerp_(list(self.averages.values()), current, 1 - decay)

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model has the averages for weights; afterwards its own again, bit for bit."""
        own = {name: p.detach().clone() for name, p in model.named_parameters() if name in self.averages}
        _fill(model, self.averages)
        try:
            yield
        finally:
            _fill(model, own)

    def state_dict(self) -> dict[str, Any]:
        """For the training state of a checkpoint."""
        return {"updates": self.updates, "averages": self.averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from averages that `state_dict` gave.

        Raises:
            ValueError: they are of other parameters.
        """
        _check(state["averages"], self.averages)
        self.updates = int(state["updates"])
        for name, average in self.averages.items():
            average.copy_(like(state["averages"][name], average))


def fill_with_averages(model: nn.Module, state: dict[str, Any]) -> None:
    """Give a model for good the averages that `Ema.state_dict` gave.

    Raises:
        ValueError: they are of other parameters.
    """
    _check(state["averages"], {name: p for name, p in model.named_parameters() if p.requires_grad})
    _fill(model, state["averages"])


def _check(given: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Raises ValueError unless names and shapes are the same."""
    theirs, ours = ({name: tuple(t.shape) for name, t in tensors.items()} for tensors in (given, own))
    if wrong := sorted(theirs.items() ^ ours.items()):
        raise ValueError(f"averaged weights of other parameters: {wrong[0][0]} differs.")


@torch.no_grad()
def _fill(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Write tensors into the parameters of these names, whatever their type and device."""
    for name, parameter in model.named_parameters():
        if name in tensors:
            parameter.copy_(tensors[name])
