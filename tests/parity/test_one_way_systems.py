"""Deliberate errors in PRoPE and Efficient-LVSM are noticed, and files with other switches are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from scripts.check_parity import main
from src.model import build_model, efficient_lvsm, lvsm_prope, prope
from src.model.transformer import RMSNorm
from src.parity import measure
from src.parity import prope as prope_reader

EFFICIENT = ("efficient_lvsm/two_in_three_tgt_sq32", "efficient_lvsm/repa_sl1_nonsquare")
PROPE = "prope/lvsm_prope_camray"
MODELS = (*EFFICIENT, PROPE)
OPERATORS = ("prope/op_self_intrinsics", "prope/op_cross_intrinsics")


def layer_norm_eps(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6


def rms_norm_eps(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, RMSNorm):
            module.eps = 1e-6


@pytest.mark.parametrize("error", [layer_norm_eps, rms_norm_eps])
@pytest.mark.parametrize("case", MODELS)
def test_a_wrong_constant_in_the_model_fails(case, error, shared, monkeypatch, capsys):
    def build_wrongly(config: object) -> nn.Module:
        model = build_model(config)
        error(model)
        return model

    monkeypatch.setattr(measure, "build_model", build_wrongly)
    assert main([str(shared / "parity" / f"{case}.pt")]) == 1
    assert any(
        line.endswith("FAIL")
        for line in capsys.readouterr().out.splitlines()
        if "render" in line or "stream" in line
    )


def test_a_range_or_an_order_of_rays_that_is_lvsms_fails(shared, monkeypatch, capsys):
    file = str(shared / "parity" / f"{PROPE}.pt")
    rays = lvsm_prope.LVSMPRoPE._rays
    monkeypatch.setattr(lvsm_prope.LVSMPRoPE, "_rays", lambda self, c: rays(self, c).roll(3, 2))
    assert main([file]) == 1
    assert "/render " in "".join(
        line for line in capsys.readouterr().out.splitlines() if line.endswith("FAIL")
    )


def wrong_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prope, "ROPE_BASE", 99.0)


def swapped_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    rotation = prope._patch_rotation
    monkeypatch.setattr(prope, "_patch_rotation", lambda *args: tuple(x.flip(1) for x in rotation(*args)))


def without_intrinsics(monkeypatch: pytest.MonkeyPatch) -> None:
    encoding = prope_reader.camera_encoding
    monkeypatch.setattr(prope_reader, "camera_encoding", lambda *args: encoding(*args[:3], "gta"))


@pytest.mark.parametrize("error", [wrong_base, swapped_axes, without_intrinsics])
@pytest.mark.parametrize("case", OPERATORS)
def test_a_wrong_operator_fails(case, error, shared, monkeypatch, capsys):
    error(monkeypatch)
    assert main([str(shared / "parity" / f"{case}.pt")]) == 1
    assert any(line.endswith("FAIL") for line in capsys.readouterr().out.splitlines() if "/output " in line)


def test_targets_that_read_the_layer_before_fail(shared, monkeypatch, capsys):
    """Inputs of the same layer are read after their own step, not before."""
    block = efficient_lvsm.SelfBlock.forward
    monkeypatch.setattr(efficient_lvsm.SelfBlock, "forward", lambda self, x: block(self, x) * 0.5 + 0.5 * x)
    assert main([str(shared / "parity" / f"{EFFICIENT[0]}.pt")]) == 1
    assert "FAIL" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------- other switches


def changed(path: Path, folder: Path, change: Callable[[dict], None]) -> str:
    raw = torch.load(path, weights_only=True)
    change(raw)
    torch.save(raw, folder / path.name)
    return str(folder / path.name)


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("wrong", ["changed", "missing", "unexpected"])
def test_wrong_weights_fail(case, wrong, shared, tmp_path, capsys):
    def mutate(raw: dict) -> None:
        state = raw["state_dict"]
        name = next(name for name in state if name.startswith(("image_token_decoder", "output_layer")))
        if wrong == "changed":
            state[name][5, 3] += 1e-2
        elif wrong == "missing":
            del state[name]
        else:
            state["another.weight"] = torch.zeros(2)

    assert main([changed(shared / "parity" / f"{case}.pt", tmp_path, mutate)]) == 1
    assert "FAIL" in capsys.readouterr().out


def reading(path: Path, folder: Path, change: Callable[[dict], None], capsys) -> str:
    """Verdict of the run itself for a file whose stored numbers belong to other switches: they differ, no more."""
    main([changed(path, folder, change)])
    out = capsys.readouterr().out
    assert "(run)" not in out and " 0 unchecked" in out, out
    return out


def test_models_of_prope_are_read_with_other_switches(shared, tmp_path, capsys):
    def without_norms(raw: dict) -> None:
        raw["config"] |= {"qk_norm": False, "pos_enc": "gta", "ray_encoding": "plucker"}
        for part in (raw["state_dict"], raw["outputs"]["grad_norms"]):
            for name in [name for name in part if "_norm.weight" in name and "self_attn" in name]:
                del part[name]

    assert "FAIL" in reading(shared / "parity" / f"{PROPE}.pt", tmp_path, without_norms, capsys)


def test_operators_are_read_without_intrinsics_and_without_their_matrices(shared, tmp_path, capsys):
    def bare(raw: dict) -> None:
        raw["config"]["use_intrinsics"] = False
        del raw["inputs"]["K_query"], raw["inputs"]["K_key"]

    assert "FAIL" in reading(shared / "parity" / f"{OPERATORS[1]}.pt", tmp_path, bare, capsys)


@pytest.mark.parametrize("kind", ["l2", "cos"])
def test_other_kinds_of_alignment_are_read(kind, shared, tmp_path, capsys):
    """Only the losses and gradients differ; renders stay those of the file."""
    path = shared / "parity" / f"{EFFICIENT[1]}.pt"
    out = reading(path, tmp_path, lambda raw: raw["config"].update(proj_loss_type=kind), capsys)
    wrong = [line for line in out.splitlines() if line.endswith("FAIL")]
    assert wrong and all("loss" in line or "grad_norms" in line for line in wrong)
