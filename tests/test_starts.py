"""What begins later in a run than its first step: LPIPS, and the limit on gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from src.config import ConfigError
from src.loss import ImageLoss, build_image_loss
from src.optim import build_optimizer, clip_or_skip
from src.settings import Pretrained, Training

CPU = torch.device("cpu")


def images() -> tuple[Tensor, Tensor]:
    return torch.rand(1, 2, 3, 8, 8), torch.rand(1, 2, 3, 8, 8)


def test_a_term_counts_from_its_step_on() -> None:
    calls = []

    def term(pred: Tensor, target: Tensor) -> Tensor:
        calls.append(len(pred))
        return torch.tensor(0.25)

    loss, pair = ImageLoss(1.0, {"lpips": (2.0, term)}, {"lpips": 5}), images()
    squared = (pair[0] - pair[1]).square().mean()
    before, after = loss.at(4)(*pair), loss.at(5)(*pair)
    torch.testing.assert_close(before["loss"], squared)
    torch.testing.assert_close(after["loss"], squared + 0.5)
    assert (before["lpips_loss"], after["lpips_loss"]) == (0.0, 0.25)
    assert calls == [2]  # the network does not run before


def test_a_loss_that_would_have_no_term_at_first_is_refused() -> None:
    training = Training(
        l2_loss_weight=0.0, perceptual_loss_weight=0.0, lpips_loss_weight=1.0, lpips_start_step=3
    )
    with pytest.raises(ConfigError, match="LPIPS is the only term"):
        build_image_loss(training, Pretrained(vgg16="random"), CPU)


def update(gradient: float, *, clip: bool) -> tuple[Tensor, bool]:
    """A weight of 1 after one update, and whether it was made; norms above 4 are too large."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    training = Training(lr=0.1, weight_decay=0.0, grad_clip_norm=1.0, allowed_gradnorm_factor=4.0)
    model.weight.grad = torch.tensor([[gradient]])
    optimizer = build_optimizer(model, training, CPU)
    outcome = clip_or_skip(model.parameters(), optimizer, torch.tensor(True), training, clip=clip)
    assert outcome.grad_norm == pytest.approx(gradient, nan_ok=True)
    assert model.weight.grad is None
    return model.weight.detach(), outcome.stepped


@pytest.mark.parametrize(
    "gradient,clip,stepped",
    [(3.9, True, True), (4.1, True, False), (4.1, False, True), (math.inf, False, False)],
)
def test_without_the_limit_only_what_is_not_finite_is_skipped(
    gradient: float, clip: bool, stepped: bool
) -> None:
    weight, done = update(gradient, clip=clip)
    assert done == stepped
    assert (float(weight) != 1.0) == stepped
