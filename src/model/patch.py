"""Images and Pluecker maps to patch tokens, and tokens back to images.

A view is cut into p x p patches, row-major; inside a patch the vector runs over (pixel row, pixel column,
channel), channel fastest, unless a family says otherwise (PATCH_ORDERS).

Public: PATCH_ORDERS, Patchify, unpatchify, patch_tokenizer, PixelHead, check_size.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn


def check_size(height: int, width: int, patch_size: int) -> None:
    """Raises ValueError, with the nearest size that fits, if patches do not tile a height x width image."""
    if height % patch_size or width % patch_size:
        fitting = [max(1, round(side / patch_size)) * patch_size for side in (height, width)]
        raise ValueError(
            f"an image of {height} x {width} pixels (height x width) cannot be cut into "
            f"{patch_size} x {patch_size} patches; {fitting[0]} x {fitting[1]} would fit."
        )


PATCH_ORDERS = {"channel_last": "(ph pw c)", "channel_first": "(c ph pw)"}
"""Name of an order of the numbers in a patch vector -> that order, slowest first."""


class Patchify(nn.Module):
    """[b, v, c, h, w] -> [b * v, n, p * p * c], the patch vector in one of PATCH_ORDERS."""

    def __init__(self, patch_size: int, order: str = "channel_last") -> None:
        super().__init__()
        self.patch_size = patch_size
        self.pattern = f"b v c (hh ph) (ww pw) -> (b v) (hh ww) {PATCH_ORDERS[order]}"

    def forward(self, x: Tensor) -> Tensor:
        p = self.patch_size
        check_size(*x.shape[-2:], p)
        return rearrange(x, self.pattern, ph=p, pw=p)


def unpatchify(
    patches: Tensor, patch_size: int, num_views: int, height: int, width: int, order: str = "channel_last"
) -> Tensor:
    """What Patchify cut, laid out again. [b * v, n, p * p * c] -> [b, v, c, h, w]"""
    return rearrange(
        patches,
        f"(b v) (hh ww) {PATCH_ORDERS[order]} -> b v c (hh ph) (ww pw)",
        **{"v": num_views, "hh": height // patch_size, "ww": width // patch_size},
        **{"ph": patch_size, "pw": patch_size},
    )


def patch_tokenizer(channels: int, patch_size: int, d: int) -> nn.Sequential:
    """Linear map of patches, no bias. [b, v, c, h, w] -> [b * v, n, d]"""
    linear = nn.Linear(channels * patch_size**2, d, bias=False)
    nn.init.normal_(linear.weight, std=0.02)
    return nn.Sequential(Patchify(patch_size), linear)


class PixelHead(nn.Sequential):
    """Norm, linear map and sigmoid: one token to one patch of RGB pixels in [0, 1]."""

    def __init__(self, d: int, patch_size: int) -> None:
        super().__init__(nn.LayerNorm(d, bias=False), nn.Linear(d, 3 * patch_size**2, bias=False))
        nn.init.normal_(self[1].weight, std=0.02)
        self.patch_size = patch_size

    def forward(self, tokens: Tensor, num_views: int, height: int, width: int) -> Tensor:
        """[b * v, n, d] -> [b, v, 3, h, w], float32 even under autocast: bf16 would cost grey levels."""
        pixels = super().forward(tokens).float().sigmoid()
        return unpatchify(pixels, self.patch_size, num_views, height, width)
