"""Low-rank adapters of frozen weights: W becomes W + scale * (B A), as torch parametrisations.

The scale is alpha / sqrt(rank) ("rank-stabilised"). Parameter names are those of the published latent LVSM:
`<layer>.parametrizations.weight.original` and `<layer>.parametrizations.weight.<number of the set>.lora_A`, `.lora_B`.
Several sets can lie on the same layers; each has a name and can be switched on and off.

Papers: LoRA, arXiv 2106.09685; rsLoRA, arXiv 2312.03732. Source of names and shapes: KaiHelli/lvsm, src/model/lora.

Public: LoraOfType, Lora (settings), LowRank, add_lora, lora_layers, lora_names, set_enabled, merge, remove, is_adapted,
adapter_tensors, load_adapter, with_adapter_names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..config import ConfigError, key

DEFAULT = "default"
ORIGINAL = "parametrizations.weight.original"
OBSOLETE = "lora_dropout_mask"
"""Entries of old published files that hold nothing."""


@dataclass(kw_only=True)
class LoraOfType:
    """Adapters of one type of layer."""

    lora_rank: int = key("rank of the update; 0: none", 0, least=0)
    lora_alpha: float = key("strength: the update is scaled by alpha / sqrt(rank)", 2.0)
    lora_dropout_p: float = key(
        "share of the inputs that a training step leaves out of the update", 0.0, least=0
    )

    def __post_init__(self) -> None:
        if self.lora_dropout_p >= 1:
            raise ConfigError(f"lora_dropout_p is {self.lora_dropout_p}: it must be below 1.")


@dataclass(kw_only=True)
class Lora:
    """Which layers are adapted; the keys are names of torch's layers, as published."""

    Linear: LoraOfType = key("fully connected layers", LoraOfType)
    Conv2d: LoraOfType = key("convolutions", LoraOfType)
    Embedding: LoraOfType = key("embeddings", LoraOfType)

    @property
    def active(self) -> bool:
        """Whether there is any adapter at all."""
        return any(part.lora_rank for part in vars(self).values())


class LowRank(nn.Module):
    """The update of one weight: a parametrisation W -> W + scale * (B A), computed in float32.

    lora_A [rank, fan_in] starts as a Linear's weight, lora_B [out, rank] at zero: the layer starts unchanged. fan_in
    are all axes of W but the first; of an embedding [entries, width] they are the entries, and the update is
    transposed. The factors are float32 whatever the type of W: in bf16 small updates would vanish.
    """

    def __init__(self, weight: Tensor, settings: LoraOfType, name: str, *, transposed: bool = False) -> None:
        super().__init__()
        out, fan_in = weight.shape[0], weight[0].numel()
        if transposed:
            out, fan_in = fan_in, out
        rank, device = settings.lora_rank, weight.device
        self.lora_A = nn.Parameter(torch.empty(rank, fan_in, device=device, dtype=torch.float32))
        self.lora_B = nn.Parameter(torch.zeros(out, rank, device=device, dtype=torch.float32))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.name, self.transposed, self.enabled = name, transposed, True
        self.scale, self.dropout = settings.lora_alpha / math.sqrt(rank), settings.lora_dropout_p

    def forward(self, weight: Tensor) -> Tensor:
        if not self.enabled:
            return weight
        a = self.lora_A
        if self.dropout and self.training:
            a = a * F.dropout(a.new_ones(a.shape[1]), self.dropout)  # whole columns: inputs of the layer
        update = self.lora_B @ a
        update = (update.T if self.transposed else update).reshape(weight.shape)
        return (weight.float() + self.scale * update).to(weight.dtype)


# ----------------------------------------------------------------------------------------------- on a module


def add_lora(module: nn.Module, settings: Lora, name: str = DEFAULT) -> int:
    """Put a set of adapters on all layers below `module` of the types that `settings` names; how many there are.

    All parameters of `module` but the adapters are frozen.

    Raises:
        ValueError: a set of this name is already there.
    """
    if name in lora_names(module):
        raise ValueError(f"there is already a set of adapters called {name}.")
    module.requires_grad_(False)
    count = 0
    for layer in list(module.modules()):
        for kind in (nn.Linear, nn.Conv2d, nn.Embedding):
            chosen = getattr(settings, kind.__name__)
            if isinstance(layer, kind) and chosen.lora_rank:
                low_rank = LowRank(layer.weight, chosen, name, transposed=kind is nn.Embedding)
                parametrize.register_parametrization(layer, "weight", low_rank)
                count += 1
    for _, low_rank in lora_layers(module):
        low_rank.requires_grad_(True)
    return count


def is_adapted(module: nn.Module) -> bool:
    """Whether this very layer carries adapters."""
    return parametrize.is_parametrized(module, "weight") and any(
        isinstance(part, LowRank) for part in module.parametrizations.weight
    )


def lora_layers(module: nn.Module, name: str = "") -> Iterator[tuple[str, LowRank]]:
    """(name of the layer, update) of every adapter below `module`, or of those of one set."""
    for path, layer in module.named_modules():
        if is_adapted(layer):
            for part in layer.parametrizations.weight:
                if name in ("", part.name):
                    yield path, part


def lora_names(module: nn.Module) -> list[str]:
    """Names of the sets below `module`, in the order in which they were added."""
    return list(dict.fromkeys(part.name for _, part in lora_layers(module)))


def set_enabled(module: nn.Module, enabled: bool, name: str = "") -> None:
    """Switch one set, or all, on or off; the weights stay. ValueError if there is no such set."""
    parts = list(lora_layers(module, name))
    if name and not parts:
        raise ValueError(
            f"no set of adapters is called {name}. There are: {', '.join(lora_names(module)) or 'none'}."
        )
    for _, part in parts:
        part.enabled = enabled


def merge(module: nn.Module) -> None:
    """Write the updates of all enabled sets into the weights and take the adapters off; the function is unchanged."""
    _take_off(module, leave_parametrized=True)


def remove(module: nn.Module) -> None:
    """Take all adapters off; the layers are again what they were before."""
    _take_off(module, leave_parametrized=False)


def _take_off(module: nn.Module, *, leave_parametrized: bool) -> None:
    layers = [layer for layer in module.modules() if is_adapted(layer)]
    with torch.no_grad():
        for layer in layers:
            layer.eval()  # no dropout in what is merged
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=leave_parametrized)
            layer.weight.requires_grad_(False)


# ----------------------------------------------------------------------------------------------- tensors by name


def adapter_tensors(module: nn.Module, name: str = DEFAULT) -> dict[str, Tensor]:
    """The factors of one set: `<layer>.lora_A`, `<layer>.lora_B` -> tensor."""
    found = {}
    for path, part in lora_layers(module, name):
        found[f"{path}.lora_A"], found[f"{path}.lora_B"] = part.lora_A.detach(), part.lora_B.detach()
    return found


def load_adapter(module: nn.Module, tensors: dict[str, Tensor], name: str = DEFAULT) -> None:
    """Fill a set from what `adapter_tensors` returned; ValueError if names or shapes differ."""
    own = adapter_tensors(module, name)
    wrong = sorted(own.keys() ^ tensors.keys())
    wrong += sorted(n for n in own.keys() & tensors.keys() if own[n].shape != tensors[n].shape)
    if wrong:
        raise ValueError(
            f"these adapters belong to other layers or have another rank; first difference: {wrong[0]}."
        )
    with torch.no_grad():
        for path, part in lora_layers(module, name):
            part.lora_A.copy_(tensors[f"{path}.lora_A"])
            part.lora_B.copy_(tensors[f"{path}.lora_B"])


def with_adapter_names(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a file, also of one without adapters, under the names of a module that has them.

    `<layer>.weight` is taken for the original weight, adapters that the file lacks keep their present values, and
    masks that old files carry are dropped.
    """
    own = module.state_dict()
    state = {name: tensor for name, tensor in state.items() if name.rpartition(".")[2] != OBSOLETE}
    for name in own:
        plain = name.replace(ORIGINAL, "weight")
        if plain != name and name not in state and plain in state:
            state[name] = state.pop(plain)
    if not any(name.endswith(".lora_A") for name in state):
        state |= {name: tensor for name, tensor in own.items() if name.endswith((".lora_A", ".lora_B"))}
    return state
