"""One-way attention against the same network written out in plain tensors, with one dense mask over all tokens."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.config import build
from src.geometry.camera import Cameras, Views
from src.geometry.rotation import decode_pose
from src.model import build_model, family_config
from src.model.one_way import OneWaySettings, OneWayTransformer

D, D_K, HEADS, CONTEXT, OWN, TARGETS = 12, 5, 3, 7, 4, 3
LATENT, LVSM = "src.model.lvsm_latent.LVSM", "model.LVSM_scene_decoder_only.Images2LatentScene"

VARIANTS = [
    {"qk_norm": qk_norm, "pre_norm": pre_norm, "bias": bias, "qk_exp_seq_len": 9, "activation": activation}
    for (qk_norm, pre_norm, bias), activation in zip(
        itertools.product((0, 1, 2), (True, False), (True, False)), itertools.cycle(("gelu", "tanh", "silu"))
    )
]


def transformer(**changes: object) -> OneWayTransformer:
    sizes = {"d_model": D, "d_k": D_K, "d_v": D_K, "num_heads": HEADS, "d_ff": 17, "num_encoder_layers": 3}
    model = OneWayTransformer(OneWaySettings(**{**sizes, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def layer_norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    y = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weights[f"{name}.weight"]
    return y + weights.get(f"{name}.bias", 0.0)


def linear(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)


def attention(x: Tensor, weights: dict[str, Tensor], name: str, mask: Tensor, qk_norm: int) -> Tensor:
    q, k, v = linear(x, weights, f"{name}.qkv_proj").chunk(3, dim=-1)
    heads = []
    for head in range(HEADS):
        part = slice(head * D_K, (head + 1) * D_K)
        query, key, scale = q[..., part], k[..., part], D_K**-0.5
        if qk_norm == 1:
            query, key = (x / x.square().sum(-1, keepdim=True).sqrt() for x in (query, key))
            query, scale = query * weights[f"{name}.qk_scale.qk_scaling.weight"][head], 1.0
        if qk_norm == 2:
            query = layer_norm(query, weights, f"{name}.qk_scale.q_layer_norm")
            key = layer_norm(key, weights, f"{name}.qk_scale.k_layer_norm")
        scores = (scale * query @ key.mT).masked_fill(~mask, -math.inf)
        heads.append(scores.softmax(-1) @ v[..., part])
    return linear(torch.cat(heads, dim=-1), weights, f"{name}.o_proj")


def written_out(weights: dict[str, Tensor], context: Tensor, targets: Tensor, variant: dict) -> Tensor:
    """One pass over all tokens. [b, n, d], [b, v, n, d] -> [b, v, n, d]"""
    view = torch.cat([torch.zeros(CONTEXT), torch.arange(1, TARGETS + 1).repeat_interleave(OWN)])
    mask = (view[None] == 0) | (view[None] == view[:, None])  # i may read j
    act = {"gelu": lambda x: x / 2 * (1 + torch.erf(x / 2**0.5)), "tanh": torch.tanh, "silu": F.silu}
    x = torch.cat([context, targets.flatten(1, 2)], dim=1)
    for layer in range(3):
        name = f"encoder.layers.{layer}"

        def mlp(y: Tensor, name: str = name) -> Tensor:
            return linear(
                act[variant["activation"]](linear(y, weights, f"{name}.mlp.0")), weights, f"{name}.mlp.3"
            )

        def attend(y: Tensor, name: str = name) -> Tensor:
            return attention(y, weights, f"{name}.self_attn", mask, variant["qk_norm"])

        if variant["pre_norm"]:
            x = x + attend(layer_norm(x, weights, f"{name}.norm1"))
            x = x + mlp(layer_norm(x, weights, f"{name}.norm2"))
        else:
            x = layer_norm(x + attend(x), weights, f"{name}.norm1")
            x = layer_norm(x + mlp(x), weights, f"{name}.norm2")
    return layer_norm(x, weights, "encoder.norm")[:, CONTEXT:].unflatten(1, (TARGETS, OWN))


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(str(x) for x in v.values()))
def test_cached_targets_are_those_of_one_masked_pass_and_so_are_the_gradients(variant: dict) -> None:
    model = transformer(**variant)
    context = torch.randn(2, CONTEXT, D, requires_grad=True)
    targets = torch.randn(2, TARGETS, OWN, D, requires_grad=True)
    weights = dict(model.named_parameters())
    expected = written_out(weights, context, targets, variant)
    found = model(targets.flatten(0, 1), model.read(context)).unflatten(0, (2, TARGETS))
    torch.testing.assert_close(found, expected, atol=5e-6, rtol=0)

    learned, probe = [context, targets, *weights.values()], torch.randn_like(found)
    gradients = [torch.autograd.grad((y * probe).sum(), learned) for y in (found, expected)]
    for name, ours, theirs in zip(["context", "targets", *weights], *gradients, strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm() + 1e-5, name  # a bias of keys has none


@torch.no_grad()
def test_number_and_order_of_targets_do_not_matter() -> None:
    model, context, targets = (
        transformer(),
        torch.randn(2, CONTEXT, D),
        torch.randn(2, TARGETS, OWN, D),
    )
    state = model.read(context)
    together = model(targets.flatten(0, 1), state).unflatten(0, (2, TARGETS))
    for index in range(TARGETS):
        torch.testing.assert_close(model(targets[:, index], state), together[:, index], atol=2e-6, rtol=0)
    turned = model(targets[:, [2, 0, 1]].flatten(0, 1), state).unflatten(0, (2, TARGETS))
    torch.testing.assert_close(turned, together[:, [2, 0, 1]], atol=2e-6, rtol=0)


@torch.no_grad()
def test_dropout_acts_in_training_alone() -> None:
    model, context, targets = transformer(dropout_p=0.5), torch.randn(1, CONTEXT, D), torch.randn(1, OWN, D)
    model.eval()
    torch.testing.assert_close(
        model(targets, model.read(context)), model(targets, model.read(context)), atol=0, rtol=0
    )
    model.train()
    state = model.read(context)
    assert (model(targets, state) - model(targets, state)).abs().max() > 1e-3


def test_initial_weights_are_the_published_ones() -> None:
    """Deviations worked out from fan-in and fan-out; the gain of qk_norm 1 is log2(l^2 - l)."""
    sizes = {"d_model": 96, "d_k": 32, "d_v": 32, "num_heads": 4, "d_ff": 256, "num_encoder_layers": 1}
    layer = OneWayTransformer(
        OneWaySettings(**sizes, bias=True, qk_norm=1, qk_exp_seq_len=64)
    ).encoder.layers[0]
    expected = {
        layer.self_attn.qkv_proj: (2 / (96 + 384)) ** 0.5,
        layer.self_attn.o_proj: (2 / (128 + 96)) ** 0.5,
        layer.mlp[0]: (2 / 96) ** 0.5,
        layer.mlp[3]: (2 / 256) ** 0.5,
    }
    for module, deviation in expected.items():
        assert module.weight.std().item() == pytest.approx(deviation, rel=0.05)
        assert not module.bias.any()
    gain = layer.self_attn.qk_scale.qk_scaling.weight
    torch.testing.assert_close(gain, torch.full((4,), math.log2(64 * 63)))


# ----------------------------------------------------------------------------------------------- the family


def family(class_name: str, **section: object) -> nn.Module:
    problems: list[str] = []
    config = build(family_config(class_name), {"class_name": class_name, **section}, "model", problems)
    assert not problems, problems
    return build_model(config).eval()


def some_views(num_views: int) -> Views:
    focal = torch.tensor([12.0, 12.0, 6.0, 4.0]).expand(2, num_views, 4)
    cameras = Cameras(decode_pose(torch.randn(2, num_views, 7)), focal, 8, 12)
    return Views(torch.rand(2, num_views, 3, 8, 12), cameras)


LIKE_LVSM = {"ray_order": "moment_first", "patch_order": "channel_last", "image_range": "minus_one_to_one"}
SIZES = {"d_model": 16, "d_k": 8, "d_v": 8, "num_heads": 2, "d_ff": 64, "num_encoder_layers": 2, "qk_norm": 0}


def as_latent(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """LVSM's weights under this family's names."""
    renamed = {
        "image_tokenizer.1": "tokenize_input.1",
        "target_pose_tokenizer.1": "tokenize_target.1",
        "transformer_input_layernorm": "norm_in",
        "image_token_decoder.0": "norm_out",
        "image_token_decoder.1": "untokenize_output.0",
        "transformer_blocks": "transformer.encoder.layers",
        "attn.to_qkv": "self_attn.qkv_proj",
        "attn.fc": "self_attn.o_proj",
        "mlp.mlp.0": "mlp.0",
        "mlp.mlp.2": "mlp.3",
    }
    for old, new in renamed.items():
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    return state


@torch.no_grad()
def test_with_full_attention_and_lvsms_conventions_it_is_lvsm_decoder_only() -> None:
    patches = {
        "image_tokenizer": {"image_size": 8, "patch_size": 4},
        "target_pose_tokenizer": {"patch_size": 4},
    }
    lvsm = family(LVSM, **patches, transformer={"d": 16, "d_head": 8, "n_layer": 2, "init_std": 0.2})
    ours = family(LATENT, image_size=8, patch_size=4, **LIKE_LVSM, transformer={**SIZES, "attention": "full"})
    ours.transformer.encoder.norm = nn.Identity()  # LVSM has one norm at the end, not two
    ours.load_state_dict(as_latent(lvsm.state_dict()))
    input, target = some_views(3), some_views(2)
    expected = lvsm(input, target).render
    torch.testing.assert_close(ours(input, target).render, expected, atol=1e-6, rtol=0)
    for name, other in (("ray_order", "direction_first"), ("patch_order", "channel_first")):
        wrong = family(
            LATENT,
            image_size=8,
            patch_size=4,
            **{**LIKE_LVSM, name: other},
            transformer={**SIZES, "attention": "full"},
        )
        wrong.transformer.encoder.norm = nn.Identity()
        wrong.load_state_dict(ours.state_dict())
        assert (wrong(input, target).render - expected).abs().max() > 1e-3


@pytest.mark.parametrize("mask", ["one_way", "full"])
@torch.no_grad()
def test_moving_one_target_camera_changes_that_image_alone(mask: str) -> None:
    model = family(LATENT, image_size=8, patch_size=4, transformer={**SIZES, "attention": mask})
    input, target = some_views(2), some_views(3)
    scene = model.encode(input)
    before = model.decode(scene, target.cameras)
    c2w = target.cameras.c2w.clone()
    c2w[:, 1] = decode_pose(torch.randn(2, 7))
    change = (model.decode(scene, target.cameras.at(c2w)) - before).abs().amax(dim=(2, 3, 4))  # [b, v]
    assert (change[:, 1] > 1e-3).all() and not change[:, [0, 2]].any()
    chunked = model.render(scene, target.cameras, chunk=1)
    torch.testing.assert_close(chunked, before, atol=1e-6, rtol=0)
