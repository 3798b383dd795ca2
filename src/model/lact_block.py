"""LaCT's blocks: lists of residual sub-layers, as `model.block_config` names them, over views that come in chunks.

Letters: b batch, v views, n tokens of a view, d width of a token.

Public: SubLayerParams, sub_layers, Block, Stack.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ConfigError, build, key
from .lact_ttt import FastWeightLayer, FastWeights
from .transformer import BlockStack, RMSNorm, attention

QK_NORM_EPS = torch.finfo(torch.float32).eps
"""Parity: the published models leave the epsilon to PyTorch, which takes this one."""

# ----------------------------------------------------------------------------------------------- settings


@dataclass(kw_only=True)
class AttentionParams:
    """`params` of the sub-layer `model.SelfAttention`."""

    head_dim: int = key("width of an attention head; divides model.dim", least=1)
    use_qk_norm: bool = key("RMS norm of queries and keys", True)
    bias: bool = key("biases of both projections", False)
    causal: bool = key("the tokens of a view have no order", False, choices=(False,))

    def make(self, d: int, muon_dtype: str) -> nn.Module:
        return SelfAttention(d, self.head_dim, qk_norm=self.use_qk_norm, bias=self.bias)


@dataclass(kw_only=True)
class FastWeightParams:
    """`params` of the sub-layer `lact_ttt.FastWeightGluMLPMultihead`."""

    head_dim: int = key("width of a fast-weight head; divides model.dim", least=1)
    inter_multi: float = key("hidden width of a fast net, in widths of its head", 1.0)
    base_lr: float = key("learning rate of a token before training", 0.01)
    muon_update_steps: int = key(
        "Newton-Schulz iterations; 0: the gradient is only divided by its norm, as published", 0, least=0
    )

    def make(self, d: int, muon_dtype: str) -> nn.Module:
        return FastWeightLayer(
            d,
            self.head_dim,
            inter_multi=self.inter_multi,
            base_lr=self.base_lr,
            steps=self.muon_update_steps,
            muon_dtype=muon_dtype,
        )


@dataclass(kw_only=True)
class MLPParams:
    """`params` of the sub-layer `model.MLP`."""

    inter_multi: float = key("hidden width, in widths of a token", 4.0)

    def make(self, d: int, muon_dtype: str) -> nn.Module:
        return MLP(d, int(d * self.inter_multi))


SubLayerParams = AttentionParams | FastWeightParams | MLPParams

SUB_LAYERS: dict[str, tuple[type, tuple[str, ...]]] = {
    "model.SelfAttention": (AttentionParams, ("l",)),
    "lact_ttt.FastWeightGluMLPMultihead": (FastWeightParams, ("vl",)),
    "model.MLP": (MLPParams, ("l", "vl")),
}
"""`type` of a sub-layer as published -> its params, and the values of `length_dim` (l: per view, vl: all views) with
which targets stay independent of one another. Nothing is imported by name."""


def sub_layers(block_config: list, d: int) -> list[SubLayerParams]:
    """The checked sub-layers of a block of width d.

    Raises:
        ConfigError: one cannot be used, or none learns.
    """
    layers = [_sub_layer(f"model.block_config.{i}", tree, d) for i, tree in enumerate(block_config)]
    if not any(isinstance(layer, FastWeightParams) for layer in layers):
        raise ConfigError(
            "model.block_config has no lact_ttt.FastWeightGluMLPMultihead: the context would not reach the targets."
        )
    return layers


def _sub_layer(where: str, tree: object, d: int) -> SubLayerParams:
    if not isinstance(tree, dict) or not {"type"} <= tree.keys() <= {"type", "length_dim", "params"}:
        raise ConfigError(f"{where} is {tree!r}: expected a section with type, length_dim, params.")
    tree = {"length_dim": "vl", "params": {}, **tree}  # as published
    if tree["type"] not in SUB_LAYERS:
        raise ConfigError(f"{where}.type {tree['type']} is unknown. Known: {', '.join(SUB_LAYERS)}.")
    schema, length_dims = SUB_LAYERS[tree["type"]]
    if tree["length_dim"] not in length_dims:
        raise ConfigError(
            f"{where}.length_dim is {tree['length_dim']!r}: {tree['type']} works with {' or '.join(length_dims)} "
            "(l: per view, vl: all views together)."
        )
    problems: list[str] = []
    params = build(schema, tree["params"], f"{where}.params", problems)
    if problems:
        raise ConfigError(" ".join(problems))
    if not isinstance(params, MLPParams) and d % params.head_dim:
        raise ConfigError(f"{where}.params.head_dim is {params.head_dim}: it does not divide model.dim {d}.")
    for name, value in vars(params).items():
        if isinstance(value, float) and value <= 0:
            raise ConfigError(f"{where}.params.{name} is {value}: it must be positive.")
    return params


# ----------------------------------------------------------------------------------------------- blocks


class SelfAttention(nn.Module):
    """Attention of each view's tokens among themselves. [b, v, n, d] -> [b, v, n, d]"""

    def __init__(self, d: int, head_dim: int, *, qk_norm: bool, bias: bool) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.to_qkv = nn.Linear(d, 3 * d, bias=bias)
        self.c_proj = nn.Linear(d, d, bias=bias)
        self.q_norm = RMSNorm(head_dim, QK_NORM_EPS) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(head_dim, QK_NORM_EPS) if qk_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        views = x.flatten(0, 1)  # [b * v, n, d]
        out = attention(self.to_qkv(views), self.head_dim, self.q_norm, self.k_norm)
        return self.c_proj(out).view_as(x)


class MLP(nn.Module):
    """Two linear maps without biases around an exact GELU. [..., d] -> [..., d]"""

    def __init__(self, d: int, hidden: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(d, hidden, bias=False)
        self.c_proj = nn.Linear(hidden, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


class SubLayer(nn.Module):
    """A norm and what follows it on the residual branch. Chunks as in `Block`."""

    def __init__(self, d: int, f: nn.Module) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(d, bias=False)
        self.f = f

    def forward(
        self,
        chunks: list[Tensor],
        known: FastWeights | None,
        norms: FastWeights | None,
        num_learn: int,
        drop: bool = False,
    ) -> tuple[list[Tensor], FastWeights | None]:
        """Tokens, and what is known afterwards; of other layers than fast-weight layers nothing is known.

        drop: go on without the chunks that were learnt from.
        """
        if not isinstance(self.f, FastWeightLayer):
            return [x + self.f(self.ln(x)) for x in chunks], None
        known = self.f.learn((self._sequence(x) for x in chunks[:num_learn]), known, norms)
        chunks = chunks[num_learn if drop else 0 :]
        return [x + self.f.read(self._sequence(x), known).view_as(x) for x in chunks], known

    def _sequence(self, x: Tensor) -> Tensor:
        """[b, v, n, d] -> normed tokens [b, v * n, d]"""
        return self.ln(x).flatten(1, 2)


class Block(nn.Module):
    """Residual sub-layers, over a sequence that comes in chunks of whole views.

    A chunk is [b, v, n, d]; chunks may differ in v and n. Everything but learning concerns one view or one token, and
    learning sums over tokens: how the views are cut into chunks does not change the result.
    """

    def __init__(self, d: int, layers: list[SubLayerParams], muon_dtype: str) -> None:
        super().__init__()
        self.module_list = nn.ModuleList(SubLayer(d, params.make(d, muon_dtype)) for params in layers)

    @property
    def fast_layers(self) -> dict[int, FastWeightLayer]:
        """Position in `module_list` -> layer."""
        return {
            i: layer.f for i, layer in enumerate(self.module_list) if isinstance(layer.f, FastWeightLayer)
        }

    def forward(
        self,
        chunks: list[Tensor],
        known: list[FastWeights],
        norms: list[FastWeights] | None,
        num_learn: int,
        last: bool,
    ) -> tuple[list[Tensor], list[FastWeights]]:
        """Learn from the first `num_learn` chunks and read with all.

        Args:
            known: of each fast-weight layer, before.
            norms: of the columns after learning; None: as before.
            last: no block follows, so nobody reads the context any more once the last fast weights are known: from
                there on the chunks that were learnt from are left out.

        Returns:
            tokens, and what each fast-weight layer knows afterwards.
        """
        learned: list[FastWeights] = []
        for layer in self.module_list:
            if not isinstance(layer.f, FastWeightLayer):
                chunks, _ = layer(chunks, None, None, num_learn)
                continue
            number = len(learned)
            drop = last and number == len(known) - 1
            chunks, now = layer(chunks, known[number], norms[number] if norms else None, num_learn, drop)
            learned.append(now)
        return chunks, learned


class Stack(BlockStack):
    """All blocks. Arguments as in `Block`, one list for each block.

    Of the tokens only those of chunks that were not learnt from come back.
    """

    def forward(
        self,
        chunks: list[Tensor],
        known: list[list[FastWeights]],
        norms: list[list[FastWeights]] | None,
        num_learn: int,
    ) -> tuple[list[Tensor], list[list[FastWeights]]]:
        every, learned = self.checkpoint_every if self.recomputes() else len(self), []
        for first in range(0, len(self), every):
            end = min(first + every, len(self))
            chunks, now = self.run_group(self._run, chunks, first, end, known, norms, num_learn)
            learned += now
        return chunks, learned

    def _run(
        self,
        chunks: list[Tensor],
        first: int,
        end: int,
        known: list[list[FastWeights]],
        norms: list[list[FastWeights]] | None,
        num_learn: int,
    ) -> tuple[list[Tensor], list[list[FastWeights]]]:
        learned = []
        for i in range(first, end):
            last = i == len(self) - 1
            chunks, now = self[i](chunks, known[i], norms[i] if norms else None, num_learn, last)
            learned.append(now)
        return chunks, learned
