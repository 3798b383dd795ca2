"""A transformer in which context tokens attend to the context alone, and each target view to the context and itself.

With `attention: full` context and target attend to one another instead, as in LVSM decoder-only: nothing can be kept then,
and the context goes through the blocks with every target.

So the states of the context do not depend on what is rendered: its keys and values are computed once per scene, and any
number of targets, each by itself, read them; the result is that of one masked pass over all tokens. Parameter names are
those of KaiHelli/lvsm (`transformer.encoder.layers.<i>.{self_attn, mlp, norm1, norm2}`, `transformer.encoder.norm`).

Public: OneWaySettings, KeysValues, OneWayTransformer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import key, raise_all
from .recompute import RecomputingList

KeysValues = list[tuple[Tensor, Tensor]]
"""For each layer the context's keys and values. [b, heads, n, d_k]"""

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid,
    "leakyrelu": nn.LeakyReLU, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU, "selu": nn.SELU, "mish": nn.Mish,
    "celu": nn.CELU, "relu6": nn.ReLU6, "softplus": nn.Softplus, "softsign": nn.Softsign, "logsigmoid": nn.LogSigmoid,
    "hardswish": nn.Hardswish, "hardtanh": nn.Hardtanh, "hardsigmoid": nn.Hardsigmoid,
}  # fmt: skip
XAVIER = {"tanh", "sigmoid"}
"""Activations in front of which weights are Xavier normal; the others' are Kaiming normal."""


@dataclass(kw_only=True)
class OneWaySettings:
    """`model.transformer`, with the published names."""

    d_model: int = key("width of a token", 768, least=1)
    d_k: int = key("width of a head's queries and keys", 64, least=1)
    d_v: int = key("width of a head's values; that of the keys", 64, least=1)
    num_heads: int = key("attention heads; heads times d_k need not be d_model", 16, least=1)
    d_ff: int = key("hidden width of the MLP", 4096, least=1)
    dropout_p: float = key("dropout of attention, MLP and both branches", 0.0, least=0)
    num_encoder_layers: int = key("blocks", 6, least=1)
    bias: bool = key("biases of all linear maps and norms", False)
    activation: str = key("between the two linear maps of the MLP", "gelu", choices=(*ACTIVATIONS,))
    pre_norm: bool = key("norm before each branch instead of after it", True)
    qk_norm: int = key(
        "queries and keys: 0 as they are, 1 of unit length with a gain per head, 2 LayerNorm",
        2,
        choices=(0, 1, 2),
    )
    attention: str = key(
        "one_way: context views see the context, a target also itself; full: they see one another, as in LVSM",
        "one_way",
        choices=("one_way", "full"),
    )
    qk_exp_seq_len: int | None = key(
        "expected number of tokens, which sets the initial gain of qk_norm 1", None
    )
    num_decoder_layers: int = key("there is no decoder", 0, ignored=True)
    sdpa_kernel: str = key("torch chooses", "auto", ignored=True)

    def __post_init__(self) -> None:
        raise_all(self._problems())

    def _problems(self) -> Iterator[str]:
        if self.d_v != self.d_k:
            yield f"model.transformer.d_v is {self.d_v}: it must be d_k, which is {self.d_k}."
        if self.dropout_p >= 1:
            yield f"model.transformer.dropout_p is {self.dropout_p}: it must be below 1."
        if self.qk_norm == 1 and (self.qk_exp_seq_len or 0) < 2:
            yield (
                "model.transformer.qk_norm 1 needs qk_exp_seq_len: tokens per view times the number of views."
            )


class UnitLength(nn.Module):
    """The gain of each head, log2(l^2 - l) at first for l expected tokens."""

    def __init__(self, heads: int, length: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((heads,), math.log2(length * length - length)))

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return F.normalize(q, dim=-1) * self.weight[:, None, None].to(q.dtype), F.normalize(k, dim=-1)


class QKNorm(nn.Module):
    """What happens to queries and keys [b, heads, n, d_k] before they meet; `scale` is that of the softmax."""

    def __init__(self, s: OneWaySettings) -> None:
        super().__init__()
        self.scale = 1.0 if s.qk_norm == 1 else s.d_k**-0.5
        if s.qk_norm == 1:
            self.qk_scaling = UnitLength(s.num_heads, s.qk_exp_seq_len)
        elif s.qk_norm == 2:
            self.q_layer_norm = nn.LayerNorm(s.d_k, bias=s.bias)
            self.k_layer_norm = nn.LayerNorm(s.d_k, bias=s.bias)
        self.kind = s.qk_norm

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == 1:
            return self.qk_scaling(q, k)
        return (self.q_layer_norm(q), self.k_layer_norm(k)) if self.kind == 2 else (q, k)


class OneWayAttention(nn.Module):
    """Attention of tokens to themselves and, in front of them, to given keys and values."""

    def __init__(self, s: OneWaySettings) -> None:
        super().__init__()
        self.heads, self.dropout = s.num_heads, s.dropout_p
        self.qkv_proj = nn.Linear(s.d_model, 3 * s.num_heads * s.d_k, bias=s.bias)
        self.o_proj = nn.Linear(s.num_heads * s.d_v, s.d_model, bias=s.bias)
        self.qk_scale = QKNorm(s)
        for linear in (self.qkv_proj, self.o_proj):
            nn.init.xavier_normal_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, normed. [b, n, d] -> three times [b, heads, n, d_k]"""
        q, k, v = rearrange(
            self.qkv_proj(x), "b n (three heads c) -> three b heads n c", three=3, heads=self.heads
        )
        q, k = self.qk_scale(q, k)
        return q.to(v.dtype), k.to(v.dtype), v  # under autocast norms give float32

    def forward(self, x: Tensor, before: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            x: [b * v, n, d]
            before: keys and values of b contexts, each seen by its v views. [b, heads, m, d_k]

        Returns:
            [b * v, n, d], and the keys and values of x. [b * v, heads, n, d_k]
        """
        q, k, v = self.project(x)
        all_k, all_v = k, v
        if before is not None:
            all_k, all_v = _behind(before[0], k), _behind(before[1], v)
        out = F.scaled_dot_product_attention(
            q, all_k, all_v, dropout_p=self.dropout if self.training else 0.0, scale=self.qk_scale.scale
        )
        return self.o_proj(rearrange(out, "b heads n c -> b n (heads c)")), k, v


def _behind(context: Tensor, own: Tensor) -> Tensor:
    """Each view's own tokens behind those of its context, which is copied just once for each view.

    [b, heads, m, c], [b * v, heads, n, c] -> [b * v, heads, m + n, c]
    """
    own = own.unflatten(0, (len(context), -1))  # [b, v, heads, n, c]
    shared = context[:, None].expand(-1, own.shape[1], -1, -1, -1)
    return torch.cat([shared, own], dim=3).flatten(0, 1)


class OneWayBlock(nn.Module):
    """Attention and MLP, each with a norm before (pre-norm) or after it. Arguments and results as `OneWayAttention`."""

    def __init__(self, s: OneWaySettings) -> None:
        super().__init__()
        self.pre_norm = s.pre_norm
        self.norm1 = nn.LayerNorm(s.d_model, bias=s.bias)
        self.self_attn = OneWayAttention(s)
        self.norm2 = nn.LayerNorm(s.d_model, bias=s.bias)
        self.mlp = nn.Sequential(
            nn.Linear(s.d_model, s.d_ff, bias=s.bias),
            ACTIVATIONS[s.activation](),
            nn.Dropout(s.dropout_p),
            nn.Linear(s.d_ff, s.d_model, bias=s.bias),
        )
        self.dropout = nn.Dropout(s.dropout_p)
        for linear in (self.mlp[0], self.mlp[3]):
            _init_for(linear, s.activation)

    def forward(self, x: Tensor, before: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        attended, k, v = self.self_attn(self.norm1(x) if self.pre_norm else x, before)
        x = x + self.dropout(attended)
        if self.pre_norm:
            return x + self.dropout(self.mlp(self.norm2(x))), k, v
        x = self.norm1(x)
        return self.norm2(x + self.dropout(self.mlp(x))), k, v

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of x alone, for the last block, of whose context nothing else is read."""
        return self.self_attn.project(self.norm1(x) if self.pre_norm else x)[1:]


def _init_for(linear: nn.Linear, activation: str) -> None:
    """Weights for this activation, as published; biases 0."""
    if activation in XAVIER:
        nn.init.xavier_normal_(linear.weight, gain=nn.init.calculate_gain(activation))
    else:
        leaky = activation in ("leakyrelu", "leaky_relu")
        nn.init.kaiming_normal_(
            linear.weight, a=0.01 if leaky else 0.0, nonlinearity="leaky_relu" if leaky else "relu"
        )
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


class OneWayBlocks(RecomputingList):
    """The blocks in order."""

    def __init__(self, s: OneWaySettings) -> None:
        super().__init__(OneWayBlock(s) for _ in range(s.num_encoder_layers))

    def keys_values(self, context: Tensor) -> KeysValues:
        """Of every block, for tokens that see one another and nothing else. [b, n, d]"""
        x, found = self._through(context, None, len(self) - 1)
        return [*found, self[-1].keys_values(x)]

    def forward(self, targets: Tensor, context: KeysValues | None) -> Tensor:
        """Tokens that see the context, if any, and, within each row, one another. [b * v, n, d] -> [b * v, n, d]"""
        return self._through(targets, context, len(self))[0]

    def _through(self, x: Tensor, before: KeysValues | None, end: int) -> tuple[Tensor, KeysValues]:
        found: KeysValues = []
        step = self.checkpoint_every or max(1, end)
        for first in range(0, end, step):
            x, part = self.run_group(self._run, x, before, first, min(first + step, end))
            found += part
        return x, found

    def _run(self, x: Tensor, before: KeysValues | None, first: int, end: int) -> tuple[Tensor, KeysValues]:
        found = []
        for number in range(first, end):
            x, k, v = self[number](x, before[number] if before else None)
            found.append((k, v))
        return x, found


class _Encoder(nn.Module):
    """Holds blocks and last norm under their published names."""

    def __init__(self, s: OneWaySettings) -> None:
        super().__init__()
        self.layers = OneWayBlocks(s)
        self.norm = nn.LayerNorm(s.d_model, bias=s.bias)


class OneWayTransformer(nn.Module):
    """The blocks and the last norm."""

    def __init__(self, settings: OneWaySettings) -> None:
        super().__init__()
        self.full = settings.attention == "full"
        self.encoder = _Encoder(settings)

    def read(self, context: Tensor) -> KeysValues | Tensor:
        """Keys and values of the context in each layer; with full attention the context itself. [b, n, d]"""
        return context if self.full else self.encoder.layers.keys_values(context)

    def forward(self, targets: Tensor, context: KeysValues | Tensor) -> Tensor:
        """Tokens of target views, v for each context, after the last norm. [b * v, n, d] -> [b * v, n, d]"""
        if not self.full:
            return self.encoder.norm(self.encoder.layers(targets, context))
        n, views = targets.shape[1], len(targets) // len(context)
        tokens = torch.cat([context.repeat_interleave(views, dim=0), targets], dim=1)
        return self.encoder.norm(self.encoder.layers(tokens, None)[:, -n:])
