"""The two kinds of multi-view blocks: what they compute, who sees whom, and which settings they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from src.config import ConfigError, build
from src.model.multi_view_block import MultiViewAttention, multi_view_block

B, V, C, H, W = 2, 3, 8, 2, 3
SPATIAL = {"name": "spatial_transformer_3d", "num_heads": 2, "norm_num_groups": 4}
STANDARD = {"name": "standard", "num_heads": 2}


def settings(tree: dict) -> MultiViewAttention:
    problems: list[str] = []
    found = build(MultiViewAttention, tree, "model.denoiser.multi_view_attention", problems)
    assert not problems
    return found


def block(tree: dict) -> nn.Module:
    """With random weights throughout: a fresh one may do nothing."""
    made = multi_view_block(C, settings(tree))
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def features() -> Tensor:
    return torch.randn(B, V, C, H, W)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention written out with the matrix of all pairs, one head after another. [n, d] each"""
    width = q.shape[1] // heads
    parts = []
    for head in range(heads):
        columns = slice(head * width, (head + 1) * width)
        logits = q[:, columns] @ k[:, columns].T / math.sqrt(width)
        parts.append(torch.softmax(logits, dim=1) @ v[:, columns])
    return torch.cat(parts, dim=1)


def layer_norm(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def spatial_by_hand(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    """One sample [v, c, h, w], by the published names of the weights."""

    def attention(tokens: Tensor, name: str) -> Tensor:
        q, k, v = (tokens @ w[f"{block}.{name}.{part}.weight"].T for part in ("to_q", "to_k", "to_v"))
        return (
            attend(q, k, v, 2) @ w[f"{block}.{name}.to_out.0.weight"].T + w[f"{block}.{name}.to_out.0.bias"]
        )

    block = "transformer_blocks.0"
    groups = x.reshape(V, 4, -1)
    centred = groups - groups.mean(2, keepdim=True)
    normed = (centred / (centred.square().mean(2, keepdim=True) + 1e-6).sqrt()).reshape(x.shape)
    normed = normed * w["norm.weight"][:, None, None] + w["norm.bias"][:, None, None]
    tokens = torch.stack([view.reshape(C, -1).T for view in normed])  # [v, h w, c]
    tokens = tokens @ w["proj_in.weight"][:, :, 0, 0].T + w["proj_in.bias"]
    joined = tokens.reshape(V * H * W, C)
    joined = joined + attention(layer_norm(joined, w, f"{block}.norm1"), "attn1")
    views = []
    for view in joined.reshape(V, H * W, C):
        view = view + attention(layer_norm(view, w, f"{block}.norm2"), "attn2")
        hidden = layer_norm(view, w, f"{block}.norm3") @ w[f"{block}.ff.net.0.proj.weight"].T
        value, gate = (hidden + w[f"{block}.ff.net.0.proj.bias"]).chunk(2, dim=1)
        view = view + (value * gelu(gate)) @ w[f"{block}.ff.net.2.weight"].T + w[f"{block}.ff.net.2.bias"]
        view = view @ w["proj_out.weight"][:, :, 0, 0].T + w["proj_out.bias"]
        views.append(view.T.reshape(C, H, W))
    return x + torch.stack(views)


def standard_by_hand(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    """One sample [v, c, h, w], by the published names of the weights."""
    layer = "transformer.layers.0"
    tokens = torch.cat([view.reshape(C, -1).T for view in x])  # [v h w, c]
    q, k, v = (layer_norm(tokens, w, f"{layer}.0.norm") @ w[f"{layer}.0.fn.to_qkv.weight"].T).chunk(3, dim=1)
    tokens = (
        tokens + attend(q, k, v, 2) @ w[f"{layer}.0.fn.to_out.0.weight"].T + w[f"{layer}.0.fn.to_out.0.bias"]
    )
    hidden = layer_norm(tokens, w, f"{layer}.1.norm") @ w[f"{layer}.1.fn.net.0.weight"].T
    hidden = gelu(hidden + w[f"{layer}.1.fn.net.0.bias"])
    tokens = tokens + hidden @ w[f"{layer}.1.fn.net.3.weight"].T + w[f"{layer}.1.fn.net.3.bias"]
    return torch.stack([view.T.reshape(C, H, W) for view in tokens.reshape(V, H * W, C)])


@pytest.mark.parametrize(
    "tree,by_hand", [(SPATIAL, spatial_by_hand), (STANDARD, standard_by_hand)], ids=["spatial", "standard"]
)
def test_a_block_is_what_its_formulas_say(tree, by_hand):
    made, x = block(tree).double(), features().double()
    expected = torch.stack([by_hand(sample, made.state_dict()) for sample in x])
    torch.testing.assert_close(made(x), expected)


KINDS = [
    SPATIAL,
    STANDARD,
    SPATIAL | {"num_layers": 2},
    STANDARD | {"num_layers": 2, "d_dot": 3, "d_mlp": 5},
    STANDARD | {"num_heads": 1},
]
IDS = ["spatial", "standard", "spatial_2_layers", "standard_2_layers", "one_head"]


@pytest.mark.parametrize("tree", KINDS, ids=IDS)
def test_permuted_views_give_the_permuted_result(tree):
    made, x, order = block(tree), features(), [2, 0, 1]
    torch.testing.assert_close(made(x[:, order]), made(x)[:, order], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("tree", KINDS, ids=IDS)
def test_every_view_sees_every_other_of_its_sample_and_of_no_other_sample(tree):
    made, x = block(tree), features()
    changed = x.clone()
    changed[0, 2] += torch.randn(C, H, W)
    difference = (made(changed) - made(x)).abs().amax(dim=(2, 3, 4))
    assert (difference[0] > 1e-4).all()
    assert (difference[1] == 0).all()


def test_the_second_attention_stays_inside_a_view():
    made, x = block(SPATIAL), features()
    for parameter in made.transformer_blocks[0].attn1.parameters():
        nn.init.zeros_(parameter)
    changed = x.clone()
    changed[0, 2] += torch.randn(C, H, W)
    assert torch.equal(made(changed)[0, :2], made(x)[0, :2])


def test_a_new_spatial_transformer_does_nothing_yet_and_learns():
    made, x = multi_view_block(C, settings(SPATIAL)), features()
    assert torch.equal(made(x), x)
    made(x).square().sum().backward()
    assert made.proj_out.weight.grad.abs().sum() > 0


def test_downscaled_blocks_keep_the_size_and_refuse_what_does_not_divide():
    made = block(STANDARD | {"downscale": 2})
    assert made(torch.randn(1, 2, C, 4, 6)).shape == (1, 2, C, 4, 6)
    with pytest.raises(ValueError, match=r"4 x 5 pixels: .*downscale 2 must divide both sides"):
        made(torch.randn(1, 2, C, 4, 5))


def test_the_refinement_of_downscaled_blocks_is_added():
    made, x = block(STANDARD | {"downscale": 2}), torch.randn(1, 2, C, 4, 6)
    refined = made(x)
    for parameter in made.upscale_refinement.parameters():
        nn.init.zeros_(parameter)
    large = made(x)
    assert large.abs().sum() > 0 and not torch.allclose(large, refined)


def test_positional_encoding_of_the_original_has_no_effect(caplog: pytest.LogCaptureFixture):
    """It raises a NameError there."""
    assert settings(STANDARD | {"pos_enc": True}) == settings(STANDARD)
    assert "pos_enc has no effect" in caplog.text


@pytest.mark.parametrize("tree", [SPATIAL, STANDARD], ids=["spatial", "standard"])
def test_no_matrix_of_all_pairs_is_kept(tree):
    """16 x 16 pixels of 4 views are 1024 tokens: the matrices of two heads would be 2 million numbers."""
    made, largest = block(tree), 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        made(torch.randn(1, 4, C, 16, 16))
    assert 0 < largest <= 8 * 1024 * C


@pytest.mark.parametrize(
    "tree,message",
    [
        (SPATIAL | {"num_heads": 3}, "num_heads is 3: it must divide the width 8"),
        (SPATIAL | {"norm_num_groups": 3}, "norm_num_groups is 3: it must divide the width 8"),
        ({"name": "spatial_transformer_3d", "num_heads": 2}, "norm_num_groups is 32"),
        (SPATIAL | {"d_dot": 3}, "d_dot is 3: with num_heads 2 and a block of width 8"),
        (SPATIAL | {"downscale": 2}, "only `standard` blocks"),
        (STANDARD | {"num_heads": 3}, "num_heads is 3: it must divide the width 8"),
    ],
)
def test_settings_that_do_not_fit_the_width_are_refused(tree, message):
    with pytest.raises(ConfigError, match=message):
        multi_view_block(C, settings(tree))


def test_kinds_without_code_are_refused():
    problems: list[str] = []
    build(MultiViewAttention, {"name": "epipolar"}, "model.denoiser.multi_view_attention", problems)
    assert "expected spatial_transformer_3d or standard" in problems[0]
