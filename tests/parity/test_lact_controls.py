"""Deliberate errors in LaCT are noticed by its golden files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from scripts.check_parity import main
from src.model import build_model, lact_ttt
from src.model.lact_ttt import FastWeightLayer
from src.parity import measure

CASES = ("obj_1head_r2", "scene_2head_r4_nonsquare")


def failed(shared: Path, case: str, capsys: pytest.CaptureFixture) -> bool:
    """Whether the check ends badly and says FAIL of a tensor in float32."""
    status = main([str(shared / "parity" / "lact" / f"{case}.pt")])
    lines = capsys.readouterr().out.splitlines()
    return status == 1 and any("/ns_fp32." in line and line.endswith("FAIL") for line in lines)


def output_norm(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, FastWeightLayer):
            module.o_norm.eps = 1e-2


def fewer_steps(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, FastWeightLayer):
            module.steps -= 1


def another_base_rate(model: nn.Module) -> None:
    """A factor common to all rates would make no difference; added before the softplus, it changes their ratios."""
    for module in model.modules():
        if isinstance(module, FastWeightLayer):
            module.rate_shift += 3.0


@pytest.mark.parametrize("error", [output_norm, fewer_steps, another_base_rate])
@pytest.mark.parametrize("case", CASES)
def test_a_wrong_constant_fails(
    case: str,
    error: Callable[[nn.Module], None],
    shared: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    def build_wrongly(config: object) -> nn.Module:
        model = build_model(config)
        error(model)
        return model

    monkeypatch.setattr(measure, "build_model", build_wrongly)
    assert failed(shared, case, capsys)


@pytest.mark.parametrize("name,value", [("NS_COEFFICIENTS", (3.4445, -4.7750, 2.03)), ("NORM_EPS", 1e-3)])
def test_a_wrong_constant_of_the_fast_weights_fails(
    name: str, value: object, shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(lact_ttt, name, value)
    assert failed(shared, CASES[0], capsys)


def test_normalised_values_fail(
    shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Keys and queries have unit length, values have not."""
    plain = FastWeightLayer.lesson

    def wrongly(self: FastWeightLayer, x: torch.Tensor) -> lact_ttt.Lesson:
        lesson = plain(self, x)
        return lesson._replace(v=nn.functional.normalize(lesson.v, dim=-1))

    monkeypatch.setattr(FastWeightLayer, "lesson", wrongly)
    assert failed(shared, CASES[1], capsys)
