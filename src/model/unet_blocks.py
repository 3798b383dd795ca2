"""The parts of Stable Diffusion's UNet: residual blocks, attention blocks, samplers, timestep embedding.

Images are [n, c, h, w] here, n = b v views. Parameter names are those of `diffusers.UNet2DConditionModel`, hence of the
published checkpoints. Attention never holds the matrix of all pairs; its softmax is in float32 whatever the autocast.

Public: timestep_embedding, TimeEmbedding, ResnetBlock, Downsample, Upsample, Attention, EmptyTextAttention,
TransformerBlock, SpatialTransformer.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

SPATIAL_NORM_EPS = 1e-6
"""Of the GroupNorm at the entrance of an attention block; that of residual blocks is a setting."""


def timestep_embedding(timestep: Tensor, d: int) -> Tensor:
    """cos(t f) then sin(t f) with d / 2 frequencies f = 10000^(-2 i / d), in float32. timestep: [n] -> [n, d]"""
    half = d // 2
    exponents = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timestep.device) / half
    angles = timestep.float()[:, None] * exponents.exp()
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """Timestep [n], a number of steps, to the vector that conditions residual blocks. [n, d_out]"""

    def __init__(self, d: int, d_out: int) -> None:
        super().__init__()
        self.d = d
        self.linear_1 = nn.Linear(d, d_out)
        self.linear_2 = nn.Linear(d_out, d_out)

    def forward(self, timestep: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(timestep_embedding(timestep, self.d))))


class ResnetBlock(nn.Module):
    """Two normalised 3x3 convolutions with a shift by the timestep between them, plus the input.

    [n, in_channels, h, w], emb [n, d_emb] -> [n, out_channels, h, w]
    """

    def __init__(self, in_channels: int, out_channels: int, d_emb: int, *, groups: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(d_emb, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        shift = self.time_emb_proj(F.silu(emb))[:, :, None, None]
        out = self.conv1(F.silu(self.norm1(x))) + shift
        out = self.conv2(F.silu(self.norm2(out)))
        return out + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    """3x3 convolution with stride 2. [n, c, h, w] -> [n, c, h / 2, w / 2]"""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Every pixel four times, then a 3x3 convolution. [n, c, h, w] -> [n, c, 2 h, 2 w]"""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Attention(nn.Module):
    """Multi-head self-attention, scale (d / num_heads)^-0.5. [n, tokens, d] -> [n, tokens, d]"""

    def __init__(self, d: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(d, d, bias=False)
        self.to_k = nn.Linear(d, d, bias=False)
        self.to_v = nn.Linear(d, d, bias=False)
        self.to_out = nn.Sequential(nn.Linear(d, d))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            rearrange(project(x), "n t (heads c) -> n heads t c", heads=self.num_heads)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        out = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(rearrange(out, "n heads t c -> n t (heads c)"))


class EmptyTextAttention(nn.Module):
    """What attention to a text does when the text is one zero token: keys and values are zero as well, so the bias of the
    last layer is all that comes out. [n, tokens, d] -> [d]

    The other parameters exist because published checkpoints hold them; they do not learn.
    """

    def __init__(self, d: int, d_text: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(d, d, bias=False).requires_grad_(False)
        self.to_k = nn.Linear(d_text, d, bias=False).requires_grad_(False)
        self.to_v = nn.Linear(d_text, d, bias=False).requires_grad_(False)
        self.to_out = nn.Sequential(nn.Linear(d, d))
        self.to_out[0].weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out[0].bias


class GatedGELU(nn.Module):
    """value * gelu(gate), exact GELU, of one projection (value | gate). [..., d] -> [..., d_hidden]"""

    def __init__(self, d: int, d_hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(d, 2 * d_hidden)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """[..., d] -> [..., d] through 4 d gated channels."""

    def __init__(self, d: int) -> None:
        super().__init__()
        # The place in the middle was a dropout: it keeps the published name of the last layer.
        self.net = nn.Sequential(GatedGELU(d, 4 * d), nn.Identity(), nn.Linear(4 * d, d))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Pre-norm attention, perhaps a second one, and a feed-forward layer. [b v, tokens, d] -> the same

    Args:
        attn1: runs on the tokens of all views of a sample together.
        attn2: runs inside each view; None: there is no second attention.
    """

    def __init__(self, d: int, attn1: nn.Module, attn2: nn.Module | None) -> None:
        super().__init__()
        self.norm1 = _norm_before(attn1, d)
        self.attn1 = attn1
        self.norm2 = None if attn2 is None else _norm_before(attn2, d)
        self.attn2 = attn2
        self.norm3 = nn.LayerNorm(d)
        self.ff = FeedForward(d)

    def forward(self, x: Tensor, num_views: int) -> Tensor:
        joined = rearrange(x, "(b v) t d -> b (v t) d", v=num_views)
        joined = joined + self.attn1(self.norm1(joined))
        x = rearrange(joined, "b (v t) d -> (b v) t d", v=num_views)
        if self.attn2 is not None:
            x = x + self.attn2(self.norm2(x))
        return x + self.ff(self.norm3(x))


def _norm_before(attention: nn.Module, d: int) -> nn.LayerNorm:
    """LayerNorm before an attention; it does not learn where its result is not looked at."""
    return nn.LayerNorm(d).requires_grad_(not isinstance(attention, EmptyTextAttention))


class SpatialTransformer(nn.Module):
    """Transformer blocks on the pixels of feature maps, plus the input. [b v, c, h, w] -> the same

    Args:
        linear_projection: the two projections are linear layers on tokens instead of 1x1 convolutions: the same map,
            weights of another shape.
    """

    def __init__(
        self, channels: int, blocks: list[TransformerBlock], *, groups: int, linear_projection: bool
    ) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=SPATIAL_NORM_EPS)
        self.proj_in = _projection(channels, linear_projection)
        self.transformer_blocks = nn.ModuleList(blocks)
        self.proj_out = _projection(channels, linear_projection)

    def forward(self, x: Tensor, num_views: int = 1) -> Tensor:
        tokens = _project(self.proj_in, rearrange(self.norm(x), "n c h w -> n (h w) c"))
        for block in self.transformer_blocks:
            tokens = block(tokens, num_views)
        return x + rearrange(_project(self.proj_out, tokens), "n (h w) c -> n c h w", h=x.shape[-2])


def _projection(channels: int, linear: bool) -> nn.Module:
    return nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)


def _project(layer: nn.Module, tokens: Tensor) -> Tensor:
    """[n, t, c] -> [n, t, c], with the weights of a linear layer or of a 1x1 convolution."""
    return F.linear(tokens, layer.weight.flatten(1), layer.bias)
