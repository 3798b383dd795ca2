"""The transformer that all families share: pre-norm blocks of attention and an MLP, and the stack of them.

Parameter names inside a block are those of the published checkpoints: norm1, attn.{to_qkv, fc, q_norm,
k_norm}, norm2, mlp.mlp.{0, 2}.

Public: TransformerSettings, RMSNorm, attention, Attention, Block, BlockStack, transformer_stack.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import key, raise_all
from .prope import CameraEncoding
from .recompute import RecomputingList

ALL = slice(None)


@dataclass(kw_only=True)
class TransformerSettings:
    """`model.transformer`; a family adds how many layers its stacks have."""

    d: int = key("width of a token", 768)
    d_head: int = key("width of an attention head; divides d", 64)
    special_init: bool = key("smaller initial weights in deep stacks", False)
    depth_init: bool = key(
        "with special_init: by the place of the block instead of the depth of the stack", False
    )
    use_qk_norm: bool = key("RMS norm of queries and keys", False)
    init_std: float = key(
        "deviation of the initial linear weights of blocks; narrow models learn faster with 0.02 (768 / d)^0.5",
        0.02,
    )

    def __post_init__(self) -> None:
        raise_all(self._problems())

    def _problems(self) -> Iterator[str]:
        for name, value in vars(self).items():
            if type(value) is int and value < 1:
                yield f"model.transformer.{name} is {value}: expected at least 1."
        if self.init_std <= 0:
            yield f"model.transformer.init_std is {self.init_std}: it must be positive."
        if self.d_head > 0 and self.d % self.d_head:
            yield (
                f"model.transformer.d is {self.d}, which model.transformer.d_head {self.d_head} does not "
                "divide."
            )


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) in float32, rounded to the type of x, then times a gain."""

    def __init__(self, d: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normed = F.rms_norm(x.float(), x.shape[-1:], eps=self.eps)
        return normed.to(x.dtype) * self.weight.to(x.dtype)


def attention(
    qkv: Tensor,
    d_head: int,
    q_norm: nn.Module,
    k_norm: nn.Module,
    cameras: CameraEncoding | None = None,
    used: slice = ALL,
) -> Tensor:
    """Full multi-head attention on the fused projection (q | k | v), scale d_head^-0.5.

    Args:
        qkv: a head is d_head consecutive channels of q, k and v. [b, n, 3 d]
        q_norm, k_norm: applied to each head's queries and keys [b, heads, n, d_head].
        cameras: of these tokens; None: attention does not know them.
        used: the tokens whose result is wanted; they attend to all.

    Returns:
        Of the tokens `used`. [b, n, d]
    """
    q, k, v = rearrange(qkv, "b n (three heads c) -> three b heads n c", three=3, c=d_head)
    q, k = q_norm(q), k_norm(k)
    if cameras is not None:
        q, k, v = cameras.turn(q, k, v)
        out = cameras.back(F.scaled_dot_product_attention(q, k, v))[:, :, used]
    else:
        out = F.scaled_dot_product_attention(q[:, :, used], k, v)
    return rearrange(out, "b heads n c -> b n (heads c)")


class Attention(nn.Module):
    """Self-attention over all tokens, without biases. [b, n, d] -> [b, n, d], of the tokens `used`"""

    def __init__(self, d: int, d_head: int, qk_norm_eps: float | None) -> None:
        super().__init__()
        self.d_head = d_head
        self.to_qkv = nn.Linear(d, 3 * d, bias=False)
        self.fc = nn.Linear(d, d, bias=False)
        self.q_norm = nn.Identity() if qk_norm_eps is None else RMSNorm(d_head, qk_norm_eps)
        self.k_norm = nn.Identity() if qk_norm_eps is None else RMSNorm(d_head, qk_norm_eps)

    def forward(self, x: Tensor, cameras: CameraEncoding | None = None, used: slice = ALL) -> Tensor:
        return self.fc(attention(self.to_qkv(x), self.d_head, self.q_norm, self.k_norm, cameras, used))


class MLP(nn.Module):
    """Two linear maps without biases around an exact GELU. [b, n, d] -> [b, n, d]"""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d, bias=False), nn.GELU(), nn.Linear(4 * d, d, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class Block(nn.Module):
    """Pre-norm transformer block. [b, n, d] -> [b, n, d], of the tokens `used`

    Args:
        qk_norm_eps: epsilon of the RMS norm of queries and keys; None: no such norm.
        init_std: standard deviation of all initial linear weights.
    """

    def __init__(self, d: int, d_head: int, *, qk_norm_eps: float | None, init_std: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d, bias=False)
        self.attn = Attention(d, d_head, qk_norm_eps)
        self.norm2 = nn.LayerNorm(d, bias=False)
        self.mlp = MLP(d)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=init_std)

    def forward(self, x: Tensor, cameras: CameraEncoding | None = None, used: slice = ALL) -> Tensor:
        x = x[:, used] + self.attn(self.norm1(x), cameras, used)
        return x + self.mlp(self.norm2(x))


class BlockStack(RecomputingList):
    """Blocks that run one after another.

    Arguments beside the tokens, such as the encoding of their cameras, go to every block. A family whose blocks do
    not simply follow one another calls them by `run_group`.

    skip_unused: the last block computes only the tokens that are used; parity files store all of them.
    """

    skip_unused = True

    def forward(self, x: Tensor, *more: Any, used: slice = ALL) -> Tensor:
        """Of the tokens `used` alone (only blocks of this module can leave out the others). [b, n, d] -> [b, n, d]"""
        last = used if self.skip_unused else ALL
        every = self.checkpoint_every if self.recomputes() else len(self)
        if self.slices > 1 and not more:
            every *= 2  # as slices are small, two blocks at a time cost less than the stream between them
        for first in range(0, len(self), every):
            group = list(self)[first : first + every]
            run = partial(_in_turn, group, last if group[-1] is self[-1] else ALL)
            x = self._sliced(run, x) if not more else self.run_group(run, x, *more)
        return x if last is used else x[:, used]

    def _sliced(self, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """A group that knows of the samples in a batch nothing but their tokens: one part of them after another."""
        if self.slices == 1 or not self.recomputes():
            return self.run_group(run, x)
        return torch.cat([self.run_group(run, part) for part in x.chunk(self.slices)])


def _in_turn(blocks: Sequence[nn.Module], used: slice, x: Tensor, *more: Any) -> Tensor:
    *others, last = blocks
    for block in others:
        x = block(x, *more)
    return last(x, *more) if used == ALL else last(x, *more, used=used)


def transformer_stack(num_layers: int, settings: TransformerSettings, *, qk_norm_eps: float) -> BlockStack:
    """A freshly initialised stack. As published, special_init scales all four linear maps of a block."""

    def init_std(index: int) -> float:
        if not settings.special_init:
            return settings.init_std
        return settings.init_std / math.sqrt(2 * (index + 1 if settings.depth_init else num_layers))

    return BlockStack(
        Block(
            settings.d,
            settings.d_head,
            qk_norm_eps=qk_norm_eps if settings.use_qk_norm else None,
            init_std=init_std(index),
        )
        for index in range(num_layers)
    )
