"""Deliberate errors in MV-LDM's denoiser, its rays and its guidance are noticed by the golden files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.check_parity import main
from src.geometry.camera import Cameras, rebase
from src.model import diffusion, ray_encoding, unet, unet_blocks
from src.model.mvldm_choice import Choice
from src.parity import measure, mvldm

DENOISER, STANDARD, PIPELINE = "denoiser_c2t3", "standard_attention_c1t2", "pipeline_c2t3"


def set_eps(kind: type, old: float, new: float) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        changed = [m for m in model.denoiser.modules() if isinstance(m, kind) and m.eps == old]
        assert changed
        for module in changed:
            module.eps = new

    return change


def run_up_attention(model: nn.Module) -> None:
    for block in model.denoiser.unet.up_blocks:
        block.attends = block.attentions is not None


def forget_the_text_bias(model: nn.Module) -> None:
    for name, parameter in model.denoiser.unet.named_parameters():
        if name.endswith("attn2.to_out.0.bias"):
            nn.init.zeros_(parameter)


def other_heads(model: nn.Module) -> None:
    for module in model.denoiser.modules():
        if isinstance(module, unet_blocks.Attention):
            module.num_heads *= 2


def rest_at_the_top(model: nn.Module) -> None:
    model.denoiser.settings.max_attention_side = 3


def freeze_the_middle(model: nn.Module) -> None:
    model.denoiser.unet.mid_block.requires_grad_(False)


def another_latent_scale(model: nn.Module) -> None:
    model.codec.scale = 0.183


def other_levels(model: nn.Module) -> None:
    model.schedule.signal = model.schedule.signal * 0.999


MODEL_ERRORS = [
    (DENOISER, set_eps(nn.GroupNorm, 1e-6, 1e-5), "conditional.out"),
    (DENOISER, set_eps(nn.LayerNorm, 1e-5, 1e-6), "conditional.multiview_encoder_1"),
    (STANDARD, set_eps(nn.LayerNorm, 1e-5, 1e-4), "conditional.out"),
    (DENOISER, run_up_attention, "conditional.out"),
    (DENOISER, forget_the_text_bias, "conditional.out"),
    (DENOISER, other_heads, "conditional.out"),
    (DENOISER, rest_at_the_top, "conditional.out"),
    (DENOISER, freeze_the_middle, "train_two_context.grad_norms.unet.mid_block.resnets.1.conv2.weight"),
    (DENOISER, other_levels, "ddim_prev_sample"),
    (PIPELINE, another_latent_scale, "latents"),
]


def failed(path: Path, capsys: pytest.CaptureFixture) -> set[str]:
    """Names of the entries that fail, which some must."""
    assert main([str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    return {line.split()[0].split("/")[-1] for line in lines if line.endswith("FAIL")}


@pytest.mark.parametrize("case,error,entry", MODEL_ERRORS)
def test_a_wrong_constant_in_the_model_fails(case, error, entry, shared, monkeypatch, capsys):
    def load_wrongly(tree: dict, state: dict[str, Tensor], source: str) -> nn.Module:
        model = measure.model_with(tree, state, source)
        error(model)
        return model

    monkeypatch.setattr(mvldm, "model_with", load_wrongly)
    assert entry in failed(shared / "parity" / "mvldm" / f"{case}.pt", capsys)


def test_an_approximate_gelu_fails(shared, monkeypatch, capsys):
    exact = F.gelu
    monkeypatch.setattr(unet_blocks.F, "gelu", lambda x: exact(x, approximate="tanh"))
    assert "conditional.out" in failed(shared / "parity" / "mvldm" / f"{DENOISER}.pt", capsys)


def test_skips_of_the_features_after_the_views_met_fail(shared, monkeypatch, capsys):
    meet = unet._meet

    def onto_the_skips(stack, index, x, num_views):
        met = meet(stack, index, x, num_views)
        x.data.copy_(met)  # `x` is the tensor that the encoder has put on the skips
        return met

    monkeypatch.setattr(unet, "_meet", onto_the_skips)
    assert "conditional.out" in failed(shared / "parity" / "mvldm" / f"{DENOISER}.pt", capsys)


def test_guidance_the_wrong_way_round_fails(shared, monkeypatch, capsys):
    monkeypatch.setattr(
        mvldm, "guided", lambda with_context, alone, scale: diffusion.guided(alone, with_context, scale)
    )
    found = failed(shared / "parity" / "mvldm" / f"{DENOISER}.pt", capsys)
    assert {"cfg_pred", "ddim_prev_sample", "ddim_last_step"} <= found
    assert "conditional.out" not in found


def test_the_reader_takes_the_reference_view_of_the_original():
    """View 1 of two is kept alone, so the others follow as targets: number 1 of the new list is the first target."""
    given = {
        "n_context": 1,
        "kept_context_view": 1,
        "decisions": {"absolute_poses": False, "unconditional": False},
    }
    choice = mvldm._choice(given, num_context=2, num_views=5, level=7)
    assert (choice.context, choice.target, choice.reference) == ((1,), (2, 3, 4, 0), 1)


def test_poses_that_the_reader_moves_are_those_that_the_model_would():
    g = torch.Generator().manual_seed(2)
    c2w = torch.eye(4).repeat(2, 4, 1, 1)
    c2w[..., :3, :3] = torch.linalg.qr(torch.randn(2, 4, 3, 3, generator=g))[0]
    c2w[..., :3, 3] = torch.randn(2, 4, 3, generator=g)
    given = Cameras(c2w, torch.ones(2, 4, 4), 4, 4)
    choices = [Choice((1,), (2, 3, 0), reference=1, unconditional=False, level=level) for level in (3, 9)]
    moved, left = mvldm._moved_as_published(given, choices)
    torch.testing.assert_close(moved.c2w, rebase(c2w, c2w[:, 2]), atol=1e-6, rtol=0)
    assert [(choice.reference, choice.level) for choice in left] == [(None, 3), (None, 9)]
    absolute = [replace(choice, reference=None) for choice in choices]
    assert mvldm._moved_as_published(given, absolute) == (given, absolute)


@pytest.mark.parametrize(
    "name,wrong,entries",
    [
        ("_octaves", ray_encoding._srt, {"nerf", "nerf_plucker", "nerf_no_origin_octaves"}),
        ("_srt", ray_encoding._octaves, {"srt", "srt_plucker"}),
        ("_powers_of_two", lambda x, octaves: 1.0 + torch.arange(octaves), {"nerf", "srt"}),
    ],
)
def test_another_encoding_of_rays_fails(name, wrong, entries, shared, monkeypatch, capsys):
    monkeypatch.setattr(ray_encoding, name, wrong)
    found = failed(shared / "parity" / "mvldm" / "ray_encodings.pt", capsys)
    assert entries <= found
    assert "raw" not in found


def test_a_missing_and_an_unexpected_weight_fail(shared, tmp_path, capsys):
    path, name = shared / "parity" / "mvldm" / f"{DENOISER}.pt", "denoiser.unet.conv_in.bias"
    raw = torch.load(path, weights_only=True)
    bias = raw["state_dict"].pop(name)
    torch.save(raw, tmp_path / "missing.pt")
    assert main([str(tmp_path / "missing.pt")]) == 1
    assert name in capsys.readouterr().out
    raw["state_dict"] |= {name: bias, "denoiser.unet.class_embedding.bias": bias}
    torch.save(raw, tmp_path / "unexpected.pt")
    assert main([str(tmp_path / "unexpected.pt")]) == 1
    assert "class_embedding" in capsys.readouterr().out
