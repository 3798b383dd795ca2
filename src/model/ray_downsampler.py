"""Ray maps at the resolution of latents: a small convolutional network, shared by context and target views.

Source: KaiHelli/lvsm (`downsample_rays`), whose parameter names it keeps.
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

RAY_CHANNELS, LAST_CHANNELS = 6, 16
LAYER_NORM_EPS = 1e-6


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each pixel. [n, c, h, w] -> [n, c, h, w]"""

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1)
        x = F.layer_norm(x.float(), x.shape[-1:], self.weight.float(), self.bias.float(), self.eps)
        return x.movedim(-1, 1)


class RayDownsampler(nn.Sequential):
    """Halves a ray map log2(factor) times, then maps it to `channels`. [n, 6, h, w] -> [n, channels, h / f, w / f]

    The channels in between grow linearly from 6 to 16, rounded down. `bias` is that of the convolutions; the norms
    always have one.
    """

    def __init__(self, factor: int, channels: int, *, bias: bool) -> None:
        stages = factor.bit_length() - 1  # log2 of a power of two
        widths = [
            RAY_CHANNELS + (LAST_CHANNELS - RAY_CHANNELS) * stage // max(stages, 1)
            for stage in range(stages + 1)
        ]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [
                nn.Conv2d(before, after, 2, stride=2, bias=bias),
                ChannelNorm(after, LAYER_NORM_EPS),
                nn.GELU(),
            ]
        layers.append(nn.Conv2d(widths[-1], channels, 1, bias=bias))
        super().__init__(*layers)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
