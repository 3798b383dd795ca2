"""Our code reproduces the golden files of LVSM and UP-LVSM; deliberate errors are noticed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from scripts.check_parity import main
from src.model import build_model
from src.model.transformer import RMSNorm
from src.parity import measure

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "parity"
SYSTEMS = ("lvsm", "uplvsm", "lact", "efficient_lvsm", "prope", "lvsm_latent", "lvsm_pytorch", "mvldm")
FILES = sorted(path for system in SYSTEMS for path in (FOLDER / system).glob("*.pt"))
ABSENT = pytest.mark.skip(reason=f"needs golden files in {FOLDER}, which are not there")


@pytest.mark.parametrize(
    "path",
    FILES or [pytest.param(Path("golden files"), marks=ABSENT)],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_our_numbers_are_the_originals(path: Path, capsys: pytest.CaptureFixture) -> None:
    status = main([str(path)])
    out = capsys.readouterr().out
    wrong = [line for line in out.splitlines() if line.endswith(("FAIL", "unchecked"))]
    assert status == 0, "\n".join([*wrong, out.splitlines()[-1]])


# ----------------------------------------------------------------------------------------------- negative controls

CASES = (
    "lvsm/decoder_only_base",
    "lvsm/encoder_decoder_base",
    "uplvsm/uplvsm_train_sq42",
    "uplvsm/ptlvsm_train_sq42",
)


def layer_norm_eps(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6 if module.eps == 1e-5 else 1e-5


def rms_norm_eps(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, RMSNorm):
            module.eps = 1e-6


def tanh_gelu(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "tanh"


@pytest.mark.parametrize("error", [layer_norm_eps, rms_norm_eps, tanh_gelu])
@pytest.mark.parametrize("case", CASES)
def test_a_wrong_constant_in_the_model_fails(
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
    assert main([str(shared / "parity" / f"{case}.pt")]) == 1
    render = next(line for line in capsys.readouterr().out.splitlines() if "/render " in line)
    assert render.endswith("FAIL")


def changed(path: Path, folder: Path, change: Callable[[dict], None]) -> str:
    raw = torch.load(path, weights_only=True)
    change(raw)
    copy = folder / path.name
    torch.save(raw, copy)
    return str(copy)


@pytest.mark.parametrize("case", CASES)
def test_one_wrong_weight_fails(
    case: str, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def mutate(raw: dict) -> None:
        raw["state_dict"]["image_token_decoder.1.weight"][5, 3] += 1e-3

    assert main([changed(shared / "parity" / f"{case}.pt", tmp_path, mutate)]) == 1
    assert "FAIL" in capsys.readouterr().out


@pytest.mark.parametrize("case", CASES)
def test_a_missing_and_an_unexpected_weight_fail(
    case: str, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = shared / "parity" / f"{case}.pt"
    name = "image_token_decoder.0.weight"
    assert main([changed(path, tmp_path, lambda raw: raw["state_dict"].pop(name))]) == 1
    assert name in capsys.readouterr().out
    extra = {"image_token_decoder.7.weight": torch.zeros(2)}
    assert main([changed(path, tmp_path, lambda raw: raw["state_dict"].update(extra))]) == 1
    assert "image_token_decoder.7.weight" in capsys.readouterr().out


@pytest.mark.parametrize("case", CASES)
def test_a_required_output_that_we_do_not_compute_is_unchecked(
    case: str, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = changed(
        shared / "parity" / f"{case}.pt", tmp_path, lambda raw: raw["outputs"].update(depth=torch.zeros(2))
    )
    assert main([path]) == 1
    assert "0 FAIL" in (out := capsys.readouterr().out) and "1 unchecked" in out
