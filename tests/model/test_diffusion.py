"""The diffusion process against numbers of the original, against formulas written out, and against itself."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from src.config import ConfigError
from src.model.diffusion import Schedule, Scheduler, guided, shifted_levels


def test_the_published_schedule_keeps_these_shares_of_the_signal() -> None:
    signal = Schedule(Scheduler()).signal
    expected = {0: 0.99990, 500: 0.077797, 966: 7.777e-5, 999: 4.036e-5}
    for level, value in expected.items():
        assert signal[level].item() == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize(
    ("steps", "first", "second", "last"),
    [(70, 966, 952, 0), (50, 980, 960, 0), (25, 960, 920, 0), (3, 666, 333, 0)],
)
def test_leading_levels_are_those_of_the_original(steps: int, first: int, second: int, last: int) -> None:
    levels = Schedule(Scheduler()).timesteps(steps)
    assert (levels[0], levels[1], levels[-1], len(levels)) == (first, second, last, steps)


@pytest.mark.parametrize("steps", [1, 3, 7, 50, 999, 1000])
def test_trailing_levels_begin_at_the_last_and_never_repeat(steps: int) -> None:
    levels = Schedule(Scheduler(timestep_spacing="trailing")).timesteps(steps)
    assert levels[0] == 999 and levels[-1] >= 0
    assert all(a > b for a, b in itertools.pairwise(levels))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine"])
def test_the_true_prediction_leads_from_any_level_back_to_the_latent(prediction: str, schedule: str) -> None:
    process = Schedule(Scheduler(prediction_type=prediction, beta_schedule=schedule))
    torch.manual_seed(0)
    clean, noise = (
        torch.randn(2, 1, 3, 4, 4, dtype=torch.float64),
        torch.randn(2, 1, 3, 4, 4, dtype=torch.float64),
    )
    level = torch.tensor([300, 300])
    noisy, truth = process.add_noise(clean, noise, level), process.target(clean, noise, level)
    found, added = process.split(noisy, truth, 300)
    torch.testing.assert_close(found, clean, atol=1e-5, rtol=0)
    torch.testing.assert_close(added, noise, atol=1e-5, rtol=0)
    torch.testing.assert_close(process.step(noisy, truth, 300, None), clean, atol=1e-5, rtol=0)
    halfway = process.add_noise(clean, noise, torch.tensor([120, 120]))
    torch.testing.assert_close(process.step(noisy, truth, 300, 120), halfway, atol=1e-5, rtol=0)


def test_a_sample_of_a_known_gaussian_has_its_mean_and_deviation() -> None:
    """For data N(m, s^2) the best prediction is known: DDIM with it must end at that distribution."""
    process = Schedule(Scheduler(beta_schedule="cosine", zero_terminal_snr=True, prediction_type="v_prediction",
                                 timestep_spacing="trailing"))  # fmt: skip
    mean, deviation = 0.7, 0.3
    x = torch.randn(20000, generator=torch.Generator().manual_seed(1))
    levels = process.timesteps(200)
    for level, following in zip(levels, [*levels[1:], None]):
        a = float(process.signal[level])
        kept, added = math.sqrt(a), math.sqrt(1 - a)
        clean = mean + kept * deviation**2 / (a * deviation**2 + 1 - a) * (x - kept * mean)
        noise = (x - kept * clean) / added
        x = process.step(x, kept * noise - added * clean, level, following)
    assert x.mean().item() == pytest.approx(mean, abs=0.01)
    assert x.std().item() == pytest.approx(deviation, abs=0.01)


def test_zero_terminal_snr_keeps_the_first_level_and_nothing_of_the_signal_at_the_last() -> None:
    plain = Schedule(Scheduler(prediction_type="v_prediction"))
    zero = Schedule(Scheduler(prediction_type="v_prediction", zero_terminal_snr=True))
    assert zero.signal[-1] == 0 and zero.signal[0] == pytest.approx(plain.signal[0].item(), rel=1e-6)
    assert (zero.signal.diff() < 0).all()


def test_a_larger_shift_draws_noisier_levels_and_one_draws_them_evenly() -> None:
    uniform = torch.linspace(0, 1, 10001)[:-1]
    even = shifted_levels(uniform, Scheduler())
    assert (
        even.min() == 0 and even.max() == 999 and even.float().mean().item() == pytest.approx(499.5, abs=0.5)
    )
    shifted = shifted_levels(torch.tensor([0.0, 0.5, 0.99999]), Scheduler(timestep_shift=3.0))
    assert shifted.tolist() == [0, 750, 999]


def test_guidance_of_one_is_the_conditional_and_of_zero_the_unconditional_prediction() -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 5.0])
    assert torch.equal(guided(a, b, 1.0), a) and torch.equal(guided(a, b, 0.0), b)
    assert torch.equal(guided(a, b, 3.0), torch.tensor([3.0, -4.0]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"zero_terminal_snr": True}, "prediction_type"),
        ({"num_inference_steps": 1001}, "num_inference_steps"),
        ({"beta_start": 0.5, "beta_end": 0.1}, "beta_start"),
        ({"timestep_shift": 0.0}, "timestep_shift"),
    ],
)
def test_settings_that_make_no_process_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Scheduler(**wrong)
