"""The blocks that let the views of a sample see each other: two kinds, one table. [b, v, c, h, w] -> the same

`spatial_transformer_3d` is the published one (after MVDream): attention over the pixels of all views, attention inside each
view, feed-forward; its last layer starts at zero, so that a pretrained UNet is not disturbed. `standard` is a plain
pre-norm transformer over all pixels of all views. Neither knows the place of a pixel or the number of a view: the
permutation of views permutes the result.

Public: MultiViewAttention (settings), MULTI_VIEW_BLOCKS, multi_view_block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import ConfigError, key
from .unet_blocks import Attention, SpatialTransformer, TransformerBlock

WHERE = "model.denoiser.multi_view_attention"


@dataclass(kw_only=True)
class MultiViewAttention:
    """`model.denoiser.multi_view_attention`."""

    name: str = key(
        "kind of block; standard: a plain transformer",
        "spatial_transformer_3d",
        choices=("spatial_transformer_3d", "standard"),
    )
    num_heads: int = key("attention heads of every block", 8, least=1)
    num_layers: int = key("transformer layers of every block", 1, least=1)
    norm_num_groups: int = key("spatial_transformer_3d: groups of the norm at the entrance", 32, least=1)
    d_dot: int = key(
        "width of a head; 0: block width / num_heads, the only possibility of spatial_transformer_3d",
        0,
        least=0,
    )
    d_mlp: int = key("standard: hidden width of the MLP; 0: width * d_mlp_multiplier", 0, least=0)
    d_mlp_multiplier: int = key(
        "standard: hidden width of the MLP over its width; spatial_transformer_3d always has 4", 1, least=1
    )
    downscale: int = key("standard: works on feature maps that are smaller by this factor", 1, least=1)
    pos_enc: bool = key("the original never worked with it", False, ignored=True)
    num_octaves: int = key("belongs to pos_enc", 0, ignored=True)
    grid_sample_type: str = key("belongs to code that was never published", "", ignored=True)

    def check_width(self, width: int) -> None:
        """Raises ConfigError if blocks of `width` channels cannot be built."""
        if not self.d_dot and width % self.num_heads:
            raise ConfigError(f"{WHERE}.num_heads is {self.num_heads}: it must divide the width {width}.")
        if self.name == "standard":
            return
        if self.d_dot and self.d_dot * self.num_heads != width:
            raise ConfigError(
                f"{WHERE}.d_dot is {self.d_dot}: with num_heads {self.num_heads} and a block of width {width} it must "
                "be 0 (width / num_heads)."
            )
        if width % self.norm_num_groups:
            raise ConfigError(
                f"{WHERE}.norm_num_groups is {self.norm_num_groups}: it must divide the width {width}."
            )
        if self.downscale > 1:
            raise ConfigError(
                f"{WHERE}.downscale is {self.downscale}: only `standard` blocks have it; set 1."
            )


# ----------------------------------------------------------------------------------------------- spatial_transformer_3d


class SpatialTransformer3D(SpatialTransformer):
    """Source: MVDream, arXiv 2308.16512; MEt3R, arXiv 2501.06336, section 4."""

    def __init__(self, channels: int, settings: MultiViewAttention) -> None:
        blocks = [
            TransformerBlock(
                channels, Attention(channels, settings.num_heads), Attention(channels, settings.num_heads)
            )
            for _ in range(settings.num_layers)
        ]
        super().__init__(channels, blocks, groups=settings.norm_num_groups, linear_projection=False)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor) -> Tensor:
        b, v = x.shape[:2]
        return super().forward(x.flatten(0, 1), num_views=v).unflatten(0, (b, v))


# ----------------------------------------------------------------------------------------------- standard


class FusedAttention(nn.Module):
    """Multi-head self-attention with one projection (q | k | v). [b, n, d] -> the same"""

    def __init__(self, d: int, num_heads: int, d_head: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = nn.Linear(d, 3 * num_heads * d_head, bias=False)
        one_full_head = num_heads == 1 and d_head == d
        self.to_out = nn.Identity() if one_full_head else nn.Sequential(nn.Linear(num_heads * d_head, d))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(
            self.to_qkv(x), "b n (three heads c) -> three b heads n c", three=3, heads=self.num_heads
        )
        return self.to_out(rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n c -> b n (heads c)"))


class MLP(nn.Module):
    """Two linear maps around an exact GELU. [b, n, d] -> the same"""

    def __init__(self, d: int, d_hidden: int) -> None:
        super().__init__()
        # The place after the GELU was a dropout: it keeps the published name of the last layer.
        self.net = nn.Sequential(nn.Linear(d, d_hidden), nn.GELU(), nn.Identity(), nn.Linear(d_hidden, d))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class PreNorm(nn.Module):
    """x + fn(norm(x)). [b, n, d] -> the same"""

    def __init__(self, d: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(self.norm(x))


class Transformer(nn.Module):
    """Layers of attention and MLP. [b, n, d] -> the same"""

    def __init__(self, d: int, settings: MultiViewAttention) -> None:
        super().__init__()
        d_head = settings.d_dot or d // settings.num_heads
        d_mlp = settings.d_mlp or d * settings.d_mlp_multiplier
        self.layers = nn.ModuleList(
            nn.Sequential(
                PreNorm(d, FusedAttention(d, settings.num_heads, d_head)), PreNorm(d, MLP(d, d_mlp))
            )
            for _ in range(settings.num_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class StandardBlock(nn.Module):
    """Transformer over the pixels of all views, if asked for on smaller maps.

    Source: Scene Representation Transformer, arXiv 2111.13152; the code is pixelSplat's.
    """

    def __init__(self, channels: int, settings: MultiViewAttention) -> None:
        super().__init__()
        self.transformer = Transformer(channels, settings)
        self.downscale = settings.downscale
        if self.downscale > 1:
            self.downscaler = nn.Conv2d(channels, channels, self.downscale, self.downscale)
            self.upscaler = nn.ConvTranspose2d(channels, channels, self.downscale, self.downscale)
            self.upscale_refinement = nn.Sequential(
                nn.Conv2d(channels, 2 * channels, 7, padding=3),
                nn.GELU(),
                nn.Conv2d(2 * channels, channels, 7, padding=3),
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.downscale == 1:
            return self._attend(x)
        b, v, _, h, w = x.shape
        if h % self.downscale or w % self.downscale:
            raise ValueError(
                f"feature map of {h} x {w} pixels: {WHERE}.downscale {self.downscale} must divide both sides."
            )
        small = self.downscaler(x.flatten(0, 1)).unflatten(0, (b, v))
        large = self.upscaler(self._attend(small).flatten(0, 1))
        return (large + self.upscale_refinement(large)).unflatten(0, (b, v))

    def _attend(self, x: Tensor) -> Tensor:
        v, h = x.shape[1], x.shape[3]
        tokens = self.transformer(rearrange(x, "b v c h w -> b (v h w) c"))
        return rearrange(tokens, "b (v h w) c -> b v c h w", v=v, h=h)


MULTI_VIEW_BLOCKS: dict[str, Callable[[int, MultiViewAttention], nn.Module]] = {
    "spatial_transformer_3d": SpatialTransformer3D,
    "standard": StandardBlock,
}
"""`multi_view_attention.name` -> module made from (channels, settings)."""


def multi_view_block(channels: int, settings: MultiViewAttention) -> nn.Module:
    """A block of the kind that the settings name; raises ConfigError if they do not fit its width."""
    settings.check_width(channels)
    return MULTI_VIEW_BLOCKS[settings.name](channels, settings)
