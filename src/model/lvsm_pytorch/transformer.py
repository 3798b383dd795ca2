"""The transformer of the lvsm_pytorch family: bidirectional, pre-norm, with gated feed-forward layers and a value residual.

x = x + f(norm(x)), attention and feed-forward in turn, then one final norm. No positions, no dropout, no QK norm.
Parameter names are those of x-transformers, from which the original took its stack: layers.<s>.0.0 is the norm of
sub-layer s, layers.<s>.1 the sub-layer; even ones attend.

Public: DecoderSettings, Decoder, UnitOffsetRMSNorm, UnitOffsetLayerNorm.
Original: github.com/lucidrains/lvsm-pytorch 0.1.6 on github.com/lucidrains/x-transformers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ...config import key
from ..recompute import RecomputingList


@dataclass(kw_only=True)
class DecoderSettings:
    """`decoder_kwargs`: the switches of the stack. Those not given keep their default."""

    use_rmsnorm: bool = key("RMS norms; false: layer norms", True)
    add_value_residual: bool = key("later layers mix the values of the first attention into theirs", True)
    ff_glu: bool = key("gated feed-forward layers", True)
    learned_value_residual_mix: bool = key(
        "the mix is learned, for each token and head; false: one half, as with x-transformers 1.42", True
    )
    attn_flash: bool = key("fused attention is always used", True, ignored=True)

    @classmethod
    def from_kwargs(cls, kwargs: dict | DecoderSettings | None) -> DecoderSettings:
        """Settings from a dictionary that names some of them; raises ValueError for a key that is none of them."""
        if isinstance(kwargs, DecoderSettings):
            return kwargs
        names = [f.name for f in dataclasses.fields(cls)]
        unknown = [name for name in kwargs or {} if name not in names]
        if unknown:
            raise ValueError(f"decoder_kwargs has no {unknown[0]!r}: it knows {', '.join(names)}.")
        return cls(**(kwargs or {}))


class UnitOffsetRMSNorm(nn.Module):
    """x / max(|x|, 1e-12) * sqrt(d) * (1 + g): weight decay pulls the gain to 1."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.zeros(d))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) * x.shape[-1] ** 0.5 * (1 + self.g)


class UnitOffsetLayerNorm(nn.Module):
    """Layer norm without bias, times (1 + gamma)."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(d))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:]) * (1 + self.gamma)


class Attention(nn.Module):
    """Multi-head self-attention without biases; its inner width heads * dim_head is free.

    Args:
        mixes_values: this layer mixes the values of the first attention into its own.
        learned_mix: by a number for each token and head; else by one half.
    """

    def __init__(self, d: int, heads: int, dim_head: int, *, mixes_values: bool, learned_mix: bool) -> None:
        super().__init__()
        inner = heads * dim_head
        self.heads, self.mixes_values = heads, mixes_values
        self.to_q = nn.Linear(d, inner, bias=False)
        self.to_k = nn.Linear(d, inner, bias=False)
        self.to_v = nn.Linear(d, inner, bias=False)
        if mixes_values and learned_mix:
            self.to_value_residual_mix = nn.Sequential(nn.Linear(d, heads), nn.Sigmoid())
        # Parity: one head as wide as the tokens is not projected.
        self.to_out = nn.Linear(inner, d, bias=False) if heads > 1 or inner != d else nn.Identity()

    def values(self, x: Tensor, first: Tensor | None) -> Tensor:
        """Values of this layer, with those of the first attention mixed in. [b, heads, n, dim_head]

        Args:
            x: normalised tokens. [b, n, d]
            first: values of the first attention; None in that attention itself.
        """
        own = self._split(self.to_v(x))
        if not self.mixes_values:
            return own
        if not hasattr(self, "to_value_residual_mix"):
            return 0.5 * (first + own)
        mix = rearrange(self.to_value_residual_mix(x), "b n heads -> b heads n 1")
        return torch.lerp(first, own, mix.to(own.dtype))

    def forward(self, x: Tensor, values: Tensor, valid: Tensor | None) -> Tensor:
        """Attention of normalised tokens x [b, n, d] over `values`; `valid` [b, n]: tokens that exist. [b, n, d]"""
        hidden = {} if valid is None else {"attn_mask": valid[:, None, None]}  # [b, 1, 1, n]
        q, k = self._split(self.to_q(x)), self._split(self.to_k(x))
        out = F.scaled_dot_product_attention(q, k, values, **hidden)
        out = self.to_out(rearrange(out, "b heads n c -> b n (heads c)"))
        # Parity: a token that does not exist gets nothing from attention, though its feed-forward layers run.
        return out if valid is None else out.masked_fill(~valid[..., None], 0.0)

    def _split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (heads c) -> b heads n c", heads=self.heads)


class GatedGELU(nn.Module):
    """One half of a linear map times the exact GELU of the other. [b, n, d] -> [b, n, inner]"""

    def __init__(self, d: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(d, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        up, gate = self.proj(x).chunk(2, dim=-1)
        return up * F.gelu(gate)


class FeedForward(nn.Module):
    """Two linear maps with biases around a GELU, gated or not; inner width 4 d. [b, n, d] -> [b, n, d]"""

    def __init__(self, d: int, *, gated: bool) -> None:
        super().__init__()
        first = GatedGELU(d, 4 * d) if gated else nn.Sequential(nn.Linear(d, 4 * d), nn.GELU())
        self.ff = nn.Sequential(first, nn.Identity(), nn.Linear(4 * d, d))  # the original has dropout between

    def forward(self, x: Tensor) -> Tensor:
        return self.ff(x)


class SubLayer(nn.ModuleList):
    """Norm and body of one residual step; the names of its parameters need this nesting."""

    def __init__(self, norm: nn.Module, body: nn.Module) -> None:
        super().__init__([nn.ModuleList([norm]), body])

    @property
    def norm(self) -> nn.Module:
        return self[0][0]


class AttentionStep(SubLayer):
    def forward(self, x: Tensor, first: Tensor | None, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens after attention [b, n, d], and the values of the first attention of the stack."""
        normed = self.norm(x)
        values = self[1].values(normed, first)
        return x + self[1](normed, values, valid), values if first is None else first


class FeedForwardStep(SubLayer):
    def forward(self, x: Tensor) -> Tensor:
        return x + self[1](self.norm(x))


class Steps(RecomputingList):
    """Attention and feed-forward in turn; a pair counts as a block."""

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        first, pairs = None, len(self) // 2
        every = self.checkpoint_every if self.recomputes() else pairs
        for begin in range(0, pairs, every):
            x, first = self.run_group(self._run, x, first, valid, begin, begin + every)
        return x

    def _run(
        self, x: Tensor, first: Tensor | None, valid: Tensor | None, begin: int, end: int
    ) -> tuple[Tensor, Tensor | None]:
        steps = list(self)[2 * begin : 2 * end]
        for attend, feed in zip(steps[::2], steps[1::2]):
            x, first = attend(x, first, valid)
            x = feed(x)
        return x, first


class Decoder(nn.Module):
    """`depth` pairs of attention and feed-forward, and the final norm. Called a decoder, but every token sees all.

    Args:
        d: width of a token.
        dim_head: width of a head; heads * dim_head need not be d.
    """

    def __init__(self, d: int, depth: int, heads: int, dim_head: int, settings: DecoderSettings) -> None:
        super().__init__()
        norm = UnitOffsetRMSNorm if settings.use_rmsnorm else UnitOffsetLayerNorm

        def steps() -> Iterator[SubLayer]:
            for index in range(depth):
                attention = Attention(
                    d,
                    heads,
                    dim_head,
                    mixes_values=settings.add_value_residual and index > 0,
                    learned_mix=settings.learned_value_residual_mix,
                )
                yield AttentionStep(norm(d), attention)
                yield FeedForwardStep(norm(d), FeedForward(d, gated=settings.ff_glu))

        self.layers = Steps(steps())
        self.final_norm = norm(d)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Tokens [b, n, d] -> [b, n, d]; `valid` bool [b, n]: tokens that exist (None: all)."""
        return self.final_norm(self.layers(x, valid))
