"""Winograd's convolutions: the results of the direct ones, to rounding."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from src import winograd
from src.winograd import Winograd, with_winograd


def both(n: int, c: int, k: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ours, the direct ones, and those in float64."""
    conv, x = nn.Conv2d(c, k, 3, padding=1), torch.rand(n, c, height, width) - 0.5
    with torch.no_grad():
        return Winograd(conv)(x), conv(x), conv.double()(x.double())


@pytest.mark.parametrize(
    "height, width", [(8, 8), (12, 40), (13, 7), (1, 1), (2, 9), (57, 61)], ids=lambda side: str(side)
)
@pytest.mark.parametrize("n, strip", [(1, 196), (3, 196), (2, 1), (1, 11)])
def test_it_is_the_direct_convolution(n, strip, height, width, monkeypatch):
    """In strips of any height, with sides that are no multiples of a tile."""
    monkeypatch.setattr(winograd, "STRIP", strip)
    ours, direct, exact = both(n, 5, 7, height, width)
    assert ours.shape == direct.shape
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=3e-6)


def test_rounding_is_a_few_times_that_of_the_direct_one():
    ours, direct, exact = both(1, 256, 256, 28, 28)
    error, usual = ((x - exact).square().mean().sqrt() / exact.std() for x in (ours, direct))
    assert error < 5 * usual and error < 5e-6


def test_only_convolutions_that_fit_are_replaced():
    network = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1),  # too few channels
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1, stride=2),
        nn.Conv2d(64, 64, 3),
        nn.Conv2d(64, 64, 3, padding=1, groups=2),
        nn.Conv2d(64, 64, 1),
    )
    fast = with_winograd(network)
    assert [type(new) is not type(old) for new, old in zip(fast, network)] == [0, 1, 0, 0, 0, 0, 0]
    x = torch.rand(2, 3, 21, 18)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), network(x), rtol=0, atol=1e-5)
