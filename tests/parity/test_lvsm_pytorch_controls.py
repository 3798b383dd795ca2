"""Golden files of the module API notice deliberate errors, and the published options are needed to pass them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scripts.check_parity import main
from src.model.lvsm_pytorch import cameras, mae, transformer
from src.parity import lvsm_pytorch as reader

CASES = ("lvsm_rgb_sq32", "camera_wrapper_rgba_24x40", "mae_rgba_sq24")


def failing(path: Path, capsys: pytest.CaptureFixture) -> list[str]:
    """Names of the outputs that disagree."""
    status = main([str(path)])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith("FAIL")]
    assert status == (1 if lines else 0)
    return [line.split()[0].partition("/")[2].partition("/")[2] for line in lines]


def plain_gain(self: nn.Module, x: Tensor) -> Tensor:
    return nn.functional.normalize(x, dim=-1) * x.shape[-1] ** 0.5 * self.g


def epsilon_inside(self: nn.Module, x: Tensor) -> Tensor:
    return nn.functional.rms_norm(x, x.shape[-1:], eps=1e-3) * (1 + self.g)


def gate_first(self: nn.Module, x: Tensor) -> Tensor:
    gate, up = self.proj(x).chunk(2, dim=-1)
    return up * nn.functional.gelu(gate)


def tanh_gate(self: nn.Module, x: Tensor) -> Tensor:
    up, gate = self.proj(x).chunk(2, dim=-1)
    return up * nn.functional.gelu(gate, approximate="tanh")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "owner,error",
    [("UnitOffsetRMSNorm", plain_gain), ("UnitOffsetRMSNorm", epsilon_inside), ("GatedGELU", gate_first), ("GatedGELU", tanh_gate)],
)  # fmt: skip
def test_a_wrong_layer_fails(case, owner, error: Callable, shared, monkeypatch, capsys):
    monkeypatch.setattr(getattr(transformer, owner), "forward", error)
    names = failing(shared / "parity" / "lvsm_pytorch" / f"{case}.pt", capsys)
    assert {"render", "pred_images"} & set(names)


def test_values_of_the_layer_before_instead_of_the_first_fail(shared, monkeypatch, capsys):
    def forward(self, x, first, valid):
        normed = self.norm(x)
        values = self[1].values(normed, first)
        return x + self[1](normed, values, valid), values

    monkeypatch.setattr(transformer.AttentionStep, "forward", forward)
    assert "render" in failing(shared / "parity" / "lvsm_pytorch" / "lvsm_rgb_sq32.pt", capsys)


def test_padded_tokens_that_attend_fail(shared, monkeypatch, capsys):
    """Seen in the stages of padded views only: the render must not depend on it."""
    published = transformer.Attention.forward

    def forward(self, x, values, valid):
        out = published(self, x, values, valid)
        if valid is None:
            return out
        everyone = published(self, x, values, torch.ones_like(valid))
        return torch.where(valid[..., None], out, everyone)

    monkeypatch.setattr(transformer.Attention, "forward", forward)
    names = failing(shared / "parity" / "lvsm_pytorch" / "camera_wrapper_rgba_24x40.pt", capsys)
    assert "attention_0" in names and "render" not in names


def test_our_defaults_are_not_the_published_options(shared, monkeypatch, capsys):
    class Standard(cameras.CameraWrapper):
        def __init__(self, lvsm, rays):
            super().__init__(lvsm)

    monkeypatch.setattr(reader, "CameraWrapper", Standard)
    names = failing(shared / "parity" / "lvsm_pytorch" / "camera_wrapper_rgba_24x40.pt", capsys)
    assert {"ray_map", "render"} <= set(names)


def test_another_balance_of_images_and_rays_fails(shared, monkeypatch, capsys):
    class ByKind(mae.MAE):
        def __init__(self, lvsm, **options):
            super().__init__(lvsm, **options, balance="kinds")

    monkeypatch.setattr(reader, "MAE", ByKind)
    names = failing(shared / "parity" / "lvsm_pytorch" / "mae_rgba_sq24.pt", capsys)
    assert "loss" in names and "pred_images" not in names


def test_an_extra_weight_and_a_missing_one_fail(shared, tmp_path, capsys):
    raw = torch.load(shared / "parity" / "lvsm_pytorch" / "lvsm_rgb_sq32.pt", weights_only=True)
    name = "image_and_ray_encoder.mask_ray_embed"
    removed = raw["state_dict"].pop(name)
    torch.save(raw, tmp_path / "missing.pt")
    assert main([str(tmp_path / "missing.pt")]) == 1
    assert name in capsys.readouterr().out
    raw["state_dict"] |= {name: removed, "vgg.features.0.weight": torch.zeros(2)}
    torch.save(raw, tmp_path / "extra.pt")
    assert main([str(tmp_path / "extra.pt")]) == 1
    assert "vgg.features.0.weight" in capsys.readouterr().out
