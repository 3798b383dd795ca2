"""Convolutions of 3 x 3 with a quarter of the multiplications, for processors, where these are what takes the time.

Winograd's F(4x4, 3x3): a tile of 4 x 4 results needs 36 products for each pair of channels instead of 144, at the price of
cheap sums before and after. Results differ from the direct ones by rounding, a few millionths of their spread.

Source: Lavin and Gray, arXiv 1509.09308, points 0, 1, -1, 2, -2.

Public: Winograd, with_winograd.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

_INPUT = torch.tensor(
    [
        [4.0, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_KERNEL_24 = torch.tensor([[6.0, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]])
"""24 times the transform, to be exact."""

_OUTPUT = torch.tensor([[1.0, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
"""Of one axis; of both together they are their Kronecker products."""

FEWEST_CHANNELS = 64
"""With fewer, the sums cost more than the products."""

STRIP = 196
"""Tiles in work at once: what stands between input and output of a layer then stays in the cache."""


class Winograd(nn.Module):
    """A convolution of 3 x 3, stride 1, padding 1, whose weights are not learned."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        kernel, weight = _KERNEL_24.double() / 24, conv.weight.detach().double()
        weight = torch.einsum("ia,kcab,jb->ijck", kernel, weight, kernel).flatten(0, 1)
        self.register_buffer("weight", weight.float())  # [36, c, k]
        self.register_buffer("bias", conv.bias.detach())
        self.register_buffer("input", torch.kron(_INPUT, _INPUT))  # [36, 36]
        self.register_buffer("output", torch.kron(_OUTPUT, _OUTPUT))  # [16, 36]

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, h, w] -> [n, k, h, w], with channels last in memory"""
        n, c, height, width = x.shape
        down, across, k = -(-height // 4), -(-width // 4), len(self.bias)  # tiles
        x = x.permute(0, 2, 3, 1)
        result = x.new_empty(n, 4 * down, 4 * across, k)
        step = max(1, STRIP // (n * across))
        padded = x.new_zeros(n, 4 * step + 2, 4 * across + 2, c)
        for top in range(0, down, step):
            rows = min(step, down - top)
            part = x[:, max(0, 4 * top - 1) : 4 * (top + rows) + 1]
            above = int(top == 0)
            padded[:, above : above + part.shape[1], 1 : width + 1] = part
            padded[:, above + part.shape[1] :] = 0
            tiles = padded[:, : 4 * rows + 2].unfold(1, 6, 4).unfold(2, 6, 4)
            tiles = tiles.permute(4, 5, 0, 1, 2, 3).reshape(36, -1)  # [6 * 6, n * rows * across * c]
            products = (self.input @ tiles).view(36, -1, c) @ self.weight  # [36, n * rows * across, k]
            parts = (self.output @ products.view(36, -1)).view(4, 4, n, rows, across, k)
            strip = result[:, 4 * top : 4 * (top + rows)].view(n, rows, 4, across, 4, k)
            torch.add(parts.permute(2, 3, 0, 4, 1, 5), self.bias, out=strip)
        return result[:, :height, :width].permute(0, 3, 1, 2)


def with_winograd(network: nn.Module) -> nn.Module:
    """A copy of a frozen network in which `Winograd` does the convolutions that it can do faster."""
    network = copy.deepcopy(network)
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d) and _fits(module):
            network.set_submodule(name, Winograd(module))
    return network


def _fits(conv: nn.Conv2d) -> bool:
    return (
        (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
        and conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and conv.bias is not None
        and conv.in_channels >= FEWEST_CHANNELS
    )
