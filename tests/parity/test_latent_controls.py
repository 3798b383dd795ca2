"""Deliberate errors in a latent model and its codec are noticed by the golden files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from scripts.check_parity import main
from src.model import build_model
from src.model import lvsm_latent as family
from src.model.lora import LowRank
from src.model.ray_downsampler import ChannelNorm
from src.parity import measure

PIXEL, LATENT, ADAPTED = "pixel_qknorm2_masked", "latent_deterministic", "latent_lora"


def layer_norm_eps(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm) and not isinstance(module, ChannelNorm):
            module.eps = 1e-6


def channel_norm_eps(model: nn.Module) -> None:
    for module in model.downsample_rays:
        if isinstance(module, ChannelNorm):
            module.eps = 1e-3


def tanh_gelu(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "tanh"


def another_range(model: nn.Module) -> None:
    model.vae.settings.image_range = "minus_one_to_one"


def another_scale(model: nn.Module) -> None:
    model.vae.scale = 0.18215


def lora_scale(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, LowRank):
            module.scale *= 0.99


@pytest.mark.parametrize(
    "case,error",
    [
        (PIXEL, layer_norm_eps),
        (PIXEL, tanh_gelu),
        (LATENT, layer_norm_eps),
        (LATENT, channel_norm_eps),
        (LATENT, tanh_gelu),
        (LATENT, another_range),
        (LATENT, another_scale),
        (ADAPTED, lora_scale),
    ],
)
def test_a_wrong_constant_or_convention_fails(
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
    assert main([str(shared / "parity" / "lvsm_latent" / f"{case}.pt")]) == 1
    image = next(line for line in capsys.readouterr().out.splitlines() if "/image " in line)
    assert image.endswith("FAIL")


def test_the_order_of_direction_and_moment_matters(
    shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    right = family.plucker
    monkeypatch.setattr(family, "plucker", lambda cameras, order: right(cameras, order="moment_first"))
    assert main([str(shared / "parity" / "lvsm_latent" / f"{LATENT}.pt")]) == 1
    assert "/image " in (out := capsys.readouterr().out) and "FAIL" in out


def test_drawn_noise_other_than_the_files_fails(shared: Path, tmp_path: Path) -> None:
    raw = torch.load(
        shared / "parity" / "lvsm_latent" / "latent_stochastic_precomputed.pt", weights_only=True
    )
    raw["inputs"]["encoder_noise"][0] += 1e-3
    torch.save(raw, tmp_path / "changed.pt")
    assert main([str(tmp_path / "changed.pt")]) == 1
