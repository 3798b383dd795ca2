"""Learning rates, parameter groups, and when an update is made, clipped, skipped or refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from src.optim import build_optimizer, clip_or_skip, learning_rate, parameter_groups
from src.settings import Training

CPU = torch.device("cpu")
TRUE, FALSE = torch.tensor(True), torch.tensor(False)


def settings(**given: object) -> Training:
    defaults = {
        "lr": 1.0,
        "warmup": 4,
        "train_steps": 12,
        "grad_clip_norm": 1.0,
        "allowed_gradnorm_factor": 5.0,
    }
    return Training(**{**defaults, **given})


@pytest.mark.parametrize(
    "kind, expected",
    [
        (
            "cosine",
            {0: 0.0, 1: 0.25, 3: 0.75, 4: 1.0, 6: (2 + math.sqrt(2)) / 4, 8: 0.5, 10: 0.1464466094, 12: 0.0},
        ),
        ("linear", {0: 0.0, 1: 0.25, 3: 0.75, 4: 1.0, 6: 0.75, 8: 0.5, 11: 0.125, 12: 0.0, 14: 0.0}),
        ("constant", {0: 0.0, 1: 0.25, 3: 0.75, 4: 1.0, 8: 1.0, 12: 1.0}),
    ],
)
def test_rate_rises_from_zero_and_then_follows_the_schedule(kind: str, expected: dict[int, float]) -> None:
    training = settings(scheduler_type=kind)
    found = {step: learning_rate(step, training) for step in expected}
    assert found == pytest.approx(expected, abs=1e-9)


def test_rate_without_warmup_starts_at_its_peak() -> None:
    assert learning_rate(0, settings(warmup=0, lr=0.3)) == pytest.approx(0.3)


def test_warmup_as_long_as_the_run_divides_by_nothing() -> None:
    assert learning_rate(12, settings(warmup=12)) == pytest.approx(1.0)


class Small(nn.Module):
    """A matrix, a gain, a table with a leading axis of 1, and something frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(2, 3))
        self.gain = nn.Parameter(torch.ones(3))
        self.table = nn.Parameter(torch.ones(1, 4, 2))
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)
        self.again = self.matrix


def test_gains_and_biases_do_not_decay_and_frozen_ones_are_left_out() -> None:
    model = Small()
    decayed, plain = parameter_groups(model, 0.05)
    assert [id(p) for p in decayed["params"]] == [id(model.matrix), id(model.table)]
    assert [id(p) for p in plain["params"]] == [id(model.gain)]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)


def test_optimiser_takes_its_numbers_from_the_settings() -> None:
    training = settings(lr=3e-4, beta1=0.8, beta2=0.9, weight_decay=0.1)
    optimizer = build_optimizer(Small(), training, CPU)
    assert optimizer.defaults["lr"] == 3e-4
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert optimizer.defaults["eps"] == 1e-8


def ready(gradient: torch.Tensor) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    """A parameter of zeros with that gradient, under plain gradient descent with rate 1: the step shows the gradient."""
    parameter = nn.Parameter(torch.zeros_like(gradient))
    parameter.grad = gradient.clone()
    return parameter, torch.optim.SGD([parameter], lr=1.0)


def test_a_small_gradient_is_used_as_it_is() -> None:
    parameter, optimizer = ready(torch.tensor([0.3, 0.4]))
    outcome = clip_or_skip([parameter], optimizer, TRUE, settings())
    assert (outcome.stepped, outcome.finite) == (True, True)
    assert outcome.grad_norm == pytest.approx(0.5)
    torch.testing.assert_close(parameter.detach(), torch.tensor([-0.3, -0.4]))


def test_a_large_gradient_is_scaled_to_the_clip_norm() -> None:
    parameter, optimizer = ready(torch.tensor([2.4, 3.2]))  # norm 4, below 5 times the clip norm
    outcome = clip_or_skip([parameter], optimizer, TRUE, settings())
    assert outcome.stepped
    assert outcome.grad_norm == pytest.approx(4.0)
    torch.testing.assert_close(parameter.detach(), torch.tensor([-0.6, -0.8]))


def test_the_norm_is_that_of_all_parameters_together() -> None:
    one, _ = ready(torch.tensor([3.0]))
    other, _ = ready(torch.tensor([4.0]))
    optimizer = torch.optim.SGD([one, other], lr=1.0)
    outcome = clip_or_skip([one, other], optimizer, TRUE, settings())
    assert outcome.grad_norm == pytest.approx(5.0)
    torch.testing.assert_close(torch.cat([one, other]).detach(), torch.tensor([-0.6, -0.8]))


@pytest.mark.parametrize(
    "gradient, loss_finite, finite",
    [
        ([3.0, 4.1], TRUE, True),
        ([float("nan"), 1.0], TRUE, False),
        ([float("inf"), 1.0], TRUE, False),
        ([0.3, 0.4], FALSE, False),
    ],
    ids=["norm above the limit", "NaN gradient", "infinite gradient", "loss not finite"],
)
def test_a_bad_step_changes_nothing_but_clears_the_gradients(
    gradient: list[float], loss_finite: torch.Tensor, finite: bool
) -> None:
    parameter, optimizer = ready(torch.tensor(gradient))
    outcome = clip_or_skip([parameter], optimizer, loss_finite, settings())
    assert (outcome.stepped, outcome.finite) == (False, finite)
    assert parameter.grad is None
    assert torch.equal(parameter.detach(), torch.zeros(2))


def test_a_step_after_a_bad_one_is_not_poisoned() -> None:
    parameter, optimizer = ready(torch.tensor([float("nan"), 1.0]))
    clip_or_skip([parameter], optimizer, TRUE, settings())
    (parameter * torch.tensor([0.1, 0.2])).sum().backward()
    assert clip_or_skip([parameter], optimizer, TRUE, settings()).stepped
    torch.testing.assert_close(parameter.detach(), torch.tensor([-0.1, -0.2]))


def test_adamw_makes_the_textbook_step() -> None:
    """Two steps written out: decoupled decay on the matrix, none on the gain, bias-corrected moments."""
    model, training = Small(), settings(lr=0.1, beta1=0.9, beta2=0.95, weight_decay=0.5, grad_clip_norm=100.0)
    optimizer = build_optimizer(model, training, CPU)
    w, g, m, v = torch.ones(2), torch.ones(2), torch.zeros(2), torch.zeros(2)  # (matrix entry, gain entry)
    for step in (1, 2):
        for parameter in (model.matrix, model.gain):
            parameter.grad = torch.full_like(parameter, float(step))
        clip_or_skip(model.parameters(), optimizer, TRUE, training)
        g = torch.full((2,), float(step))
        w = w - 0.1 * torch.tensor([0.5, 0.0]) * w
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        w = w - 0.1 * (m / (1 - 0.9**step)) / ((v / (1 - 0.95**step)).sqrt() + 1e-8)
    torch.testing.assert_close(torch.stack([model.matrix[0, 0], model.gain[0]]).detach(), w)


@pytest.mark.parametrize(
    "warmup,expected",
    [
        (3, {0: 1e-6, 1: (1e-6 + 4e-4) / 2, 2: 4e-4, 6: (4e-4 + 2e-6) / 2, 10: 2e-6, 40: 2e-6}),
        (1, {0: 4e-4, 10: 2e-6, 11: 2e-6}),  # a warm-up of one step divides by nothing
        (0, {10: 2e-6}),
    ],
)
def test_cosine_min_goes_from_the_initial_rate_to_the_smallest_and_stays_there(warmup, expected):
    """Warm-up, half of the cosine at (k - warmup + 1) / (steps - warmup) = 1/2, and the end."""
    steps = 11 if warmup == 3 else 10
    training = Training(
        lr=4e-4, initial_lr=1e-6, min_lr=2e-6, scheduler_type="cosine_min", warmup=warmup, train_steps=steps
    )
    for step, rate in expected.items():
        assert learning_rate(step, training) == pytest.approx(rate, rel=1e-9), step
