"""LaCT's fast-weight layer: a small gated MLP that is trained inside the forward pass and then read.

The layer's memory is the net f(x) = (SiLU(x w0) * (x w2)) w1, one per head. It learns from all tokens at hand in a single
step: the gradient of the loss -sum_i rate_i <f(k_i), v_i> is orthogonalised by Newton-Schulz and added, and the columns get
back the norms they had. What was learnt is a `FastWeights`, whose size does not depend on the number of tokens.

The gradient is a sum over tokens, so it may be summed over chunks of tokens; and it does not depend on their order.

Letters: b batch, t tokens, d width of a head, m hidden width of the fast net (d * inter_multi).

Paper: "Test-Time Training Done Right", arXiv 2505.23884. Original repository: a1600012888/LaCT, lact_nvs/lact_ttt.py.

Public: FastWeights, Lesson, FastWeightLayer, newton_schulz, fast_gradient, stepped, fast_net.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..geometry.camera import full_precision
from .transformer import RMSNorm

NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NORM_EPS = 1e-5
"""Added to the norms of queries, keys and weight columns, and epsilon of the output norm."""


class FastWeights(NamedTuple):
    """Weights of the fast nets, or a change of them; float32.

    w0, w2: [b, heads, d, m]
    w1: [b, heads, m, d]
    """

    w0: Tensor
    w1: Tensor
    w2: Tensor


class Lesson(NamedTuple):
    """What the fast nets learn of a token: the answer v to the key k, at one rate for each of the three weights.

    k, v: [b, heads, t, d]
    rates: positive float32, for w0, w1 and w2. three of [b, heads, t, 1]
    """

    k: Tensor
    v: Tensor
    rates: tuple[Tensor, Tensor, Tensor]


def newton_schulz(matrix: Tensor, steps: int, dtype: str) -> Tensor:
    """The nearest (semi-)orthogonal matrix, roughly: strong singular values become 0.7 to 1.2. [..., rows, columns]

    Args:
        steps: iterations; 0 only divides by the Frobenius norm, as published. The scale of `matrix` is lost in any case.
        dtype: bfloat16, as published and fast on GPUs; float32; or auto: float32 on a CPU and bfloat16 elsewhere. Which
            directions below its resolution are blown up is chaotic in bfloat16: two machines agree to some 20 %.

    Source: Muon (Jordan et al., 2024), with its coefficients of the fixed quintic iteration.
    """
    half = dtype == "bfloat16" or (dtype == "auto" and matrix.device.type != "cpu")
    x = matrix.bfloat16() if half else _at_least_float32(matrix)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT  # the smaller Gram matrix
    a, b, c = NS_COEFFICIENTS
    with full_precision(x.device):  # autocast would overrule `dtype`
        x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
        for _ in range(steps):
            gram = x @ x.mT
            x = a * x + (b * gram + (c * gram) @ gram) @ x
    return x.mT if tall else x


def fast_net(x: Tensor, weights: FastWeights) -> Tensor:
    """(SiLU(x w0) * (x w2)) w1. [b, heads, t, d] -> [b, heads, t, d]"""
    return (F.silu(x @ weights.w0) * (x @ weights.w2)) @ weights.w1


def fast_gradient(weights: FastWeights, lesson: Lesson) -> FastWeights:
    """Descent direction of -sum_i rate_i <f(k_i), v_i>, each weight with its own rates. A sum over tokens."""
    k, v, (rate0, rate1, rate2) = lesson
    g, u = k @ weights.w0, k @ weights.w2  # each [b, heads, t, m]
    s = torch.sigmoid(g)
    gate = g * s
    d_hidden = v @ weights.w1.mT
    d_gate = d_hidden * u * s * (1 + g * (1 - s))
    return FastWeights(
        w0=(k * rate0).mT @ d_gate,
        w1=(gate * u * rate1).mT @ v,
        w2=(k * rate2).mT @ (d_hidden * gate),
    )


def column_norms(weights: FastWeights) -> FastWeights:
    """Norms over the input dimension; no gradient flows through them. [b, heads, 1, m] or [b, heads, 1, d]"""
    return FastWeights(*(w.detach().norm(dim=-2, keepdim=True) for w in weights))


def stepped(
    weights: FastWeights, gradient: FastWeights, norms: FastWeights, steps: int, dtype: str
) -> FastWeights:
    """`weights` after one orthogonalised step along `gradient`, with columns of the given norms."""
    moved = [w + newton_schulz(g, steps, dtype) for w, g in zip(weights, gradient)]
    return FastWeights(*(w / (w.norm(dim=-2, keepdim=True) + NORM_EPS) * n for w, n in zip(moved, norms)))


class FastWeightLayer(nn.Module):
    """`learn` from some tokens, `read` with any; what is known in between is the caller's to keep.

    The parameters `w0`, `w1`, `w2` are the fast weights before anything was learnt.

    Args:
        dim: width of a token.
        head_dim: width of a fast-weight head; divides dim.
        inter_multi: hidden width of a fast net, in widths of its head.
        base_lr: rate of every token where the projection that makes rates gives 0.
        steps: Newton-Schulz iterations.
        muon_dtype: their number type, see `newton_schulz`.
    """

    def __init__(
        self, dim: int, head_dim: int, *, inter_multi: float, base_lr: float, steps: int, muon_dtype: str
    ) -> None:
        super().__init__()
        self.head_dim, self.steps, self.muon_dtype = head_dim, steps, muon_dtype
        self.heads = dim // head_dim
        hidden = int(head_dim * inter_multi)
        self.rate_shift = base_lr + math.log(-math.expm1(-base_lr))  # softplus(rate_shift) = base_lr
        self.w0 = nn.Parameter(torch.empty(self.heads, head_dim, hidden))
        self.w1 = nn.Parameter(torch.empty(self.heads, hidden, head_dim))
        self.w2 = nn.Parameter(torch.empty(self.heads, head_dim, hidden))
        for w in (self.w0, self.w1, self.w2):
            nn.init.normal_(w, std=math.sqrt(2 / w.shape[1]))
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.c_proj = nn.Linear(dim, dim, bias=False)
        self.lr_fc = nn.Linear(dim, 3 * self.heads)
        self.o_norm = RMSNorm(head_dim, NORM_EPS)

    def initial(self, batch: int) -> FastWeights:
        """The learned starting point, for each sample."""
        return FastWeights(*(w.expand(batch, *w.shape) for w in (self.w0, self.w1, self.w2)))

    def learn(
        self, chunks: Iterable[Tensor], weights: FastWeights, norms: FastWeights | None = None
    ) -> FastWeights:
        """One step from all tokens of all chunks together; it does not matter how they are cut.

        Args:
            chunks: [b, t, dim] each, one after another: an iterator may compute them when they are asked for.
            weights: what was known before.
            norms: column norms that the result gets; None: those of `weights`.
        """
        total = None
        for x in chunks:
            gradient = FastWeights(*map(_at_least_float32, fast_gradient(weights, self.lesson(x))))
            total = FastWeights(*map(torch.add, total, gradient)) if total else gradient
        if total is None:
            return weights
        return stepped(weights, total, norms or column_norms(weights), self.steps, self.muon_dtype)

    def read(self, x: Tensor, weights: FastWeights) -> Tensor:
        """What the fast nets say to the queries of x. [b, t, dim] -> [b, t, dim]"""
        out = self.o_norm(fast_net(self.queries(x), weights))
        return self.c_proj(rearrange(out, "b heads t d -> b t (heads d)"))

    def queries(self, x: Tensor) -> Tensor:
        """[b, t, dim] -> unit vectors [b, heads, t, d]"""
        return _unit(self._projected(x, 0, 1)[0])

    def lesson(self, x: Tensor) -> Lesson:
        """[b, t, dim] -> keys (unit vectors), values and rates."""
        k, v = self._projected(x, 1, 3)
        with full_precision(x.device):
            weight, bias = map(_at_least_float32, (self.lr_fc.weight, self.lr_fc.bias))
            rates = F.softplus(F.linear(_at_least_float32(x), weight, bias) + self.rate_shift)
        rates = rearrange(rates, "b t (three heads) -> three b heads t 1", three=3)
        return Lesson(_unit(k), v, tuple(rates))

    def _projected(self, x: Tensor, first: int, end: int) -> Tensor:
        """Thirds `first` to `end` of (q | k | v), all through SiLU. [thirds, b, heads, t, d]"""
        dim = x.shape[-1]
        x = F.silu(F.linear(x, self.to_qkv.weight[first * dim : end * dim]))
        return rearrange(x, "b t (thirds heads d) -> thirds b heads t d", thirds=end - first, d=self.head_dim)


def _unit(x: Tensor) -> Tensor:
    return x / (x.norm(dim=-1, keepdim=True) + NORM_EPS)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
