"""LVSM with a view mask: what attends to what, exact caching, sizes, and what a section may not say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from src.config import build
from src.geometry.camera import Cameras, Views
from src.geometry.rotation import decode_pose
from src.loss import ImageLoss
from src.model import build_model
from src.model.lvsm_latent import LVSM, Config
from src.model.one_way import ACTIVATIONS, OneWaySettings, OneWayTransformer

CLASS = "src.model.lvsm_latent.LVSM"
TINY_VAE = {"name": "tiny", "architecture": {"block_out_channels": [8, 8, 8], "norm_num_groups": 4}}
SIZES = {"d_model": 24, "d_k": 8, "d_v": 8, "num_heads": 4, "d_ff": 32, "num_encoder_layers": 3}
IMAGE_LOSS = ImageLoss(1.0, {})


def make(patch_size: int = 4, vae: dict | None = None, lora: dict | None = None, **sizes: object) -> LVSM:
    factor = 4 if vae else 1
    section = {
        "class_name": CLASS,
        "image_size": 8 * factor,
        "patch_size": patch_size,
        "transformer": {**SIZES, **sizes},
        "vae": vae or {},
        "lora": lora or {},
    }
    problems: list[str] = []
    config = build(Config, section, "model", problems)
    assert not problems, problems
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    return model


def make_views(v: int, height: int = 8, width: int = 12, b: int = 2) -> Views:
    focal = torch.tensor([width, width, width / 2, height / 2], dtype=torch.float32)
    cameras = Cameras(decode_pose(torch.randn(b, v, 7)), focal.expand(b, v, 4).clone(), height, width)
    return Views(torch.rand(b, v, 3, height, width), cameras)


VARIANTS = [
    {},
    {"qk_norm": 0, "bias": True},
    {"qk_norm": 1, "qk_exp_seq_len": 30, "pre_norm": False},
    {"activation": "relu", "pre_norm": False, "bias": True},
]


@pytest.mark.parametrize("sizes", VARIANTS)
@torch.no_grad()
def test_reading_the_cache_equals_one_masked_pass_over_all_tokens(sizes: dict) -> None:
    transformer = OneWayTransformer(OneWaySettings(**{**SIZES, **sizes})).eval()
    context, targets = torch.randn(2, 10, 24), torch.randn(2, 3, 5, 24)
    cached = transformer(targets.flatten(0, 1), transformer.read(context)).unflatten(0, (2, 3))

    view = torch.cat([torch.zeros(10), torch.arange(1, 4).repeat_interleave(5)])
    mask = (view[None] == 0) | (view[None] == view[:, None])  # dense, as the original has it
    x = torch.cat([context, targets.flatten(1, 2)], dim=1)
    for block in transformer.encoder.layers:
        y = block.norm1(x) if block.pre_norm else x
        q, k, v = block.self_attn.project(y)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=block.self_attn.qk_scale.scale)
        x = x + block.self_attn.o_proj(out.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x)) if block.pre_norm else block.norm1(x)
        if not block.pre_norm:
            x = block.norm2(x + block.mlp(x))
    expected = transformer.encoder.norm(x)[:, 10:].unflatten(1, (3, 5))
    torch.testing.assert_close(cached, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("vae", [None, TINY_VAE], ids=["pixels", "latents"])
@torch.no_grad()
def test_a_target_is_the_same_alone_in_chunks_and_among_others(vae: dict | None) -> None:
    model = make(vae=vae, patch_size=2).eval()
    side = (8, 12) if vae is None else (16, 24)
    input, target = make_views(3, *side), make_views(5, *side)
    scene = model.encode(input)
    whole = model.render(scene, target.cameras)
    assert whole.shape == target.image.shape and whole.min() >= 0 and whole.max() <= 1
    torch.testing.assert_close(model.render(scene, target.cameras, chunk=2), whole, atol=2e-5, rtol=0)
    alone = model.render(scene, target.cameras.views(slice(3, 4)))
    torch.testing.assert_close(alone, whole[:, 3:4], atol=2e-5, rtol=0)
    torch.testing.assert_close(model(input, target).render, whole, atol=2e-5, rtol=0)


@torch.no_grad()
def test_the_order_of_context_views_does_not_matter_and_their_number_may_vary() -> None:
    model = make().eval()
    input, target = make_views(3), make_views(2)
    turned = Views(input.image[:, [2, 0, 1]], input.cameras.views([2, 0, 1]))
    torch.testing.assert_close(model(turned, target).render, model(input, target).render, atol=1e-5, rtol=0)
    for count in (1, 5):
        assert model(make_views(count), target).render.shape == target.image.shape


@pytest.mark.parametrize("vae", [None, TINY_VAE], ids=["pixels", "latents"])
def test_every_trained_parameter_gets_a_gradient_with_and_without_recomputation(vae: dict | None) -> None:
    model = make(vae=vae, patch_size=2).train()
    side = (8, 12) if vae is None else (16, 24)
    input, target = make_views(2, *side), make_views(2, *side)
    input.posterior = target.posterior = (
        None if vae is None else torch.rand(2, 2, 2, 4, 4, 6) * torch.tensor([1.0, 0.0]).reshape(2, 1, 1, 1)
    )
    gradients = []
    for every in (0, 1, 2):
        model.set_checkpointing(every)
        model.zero_grad()
        result = model(input, target)
        assert ("render" in result) == (vae is None)  # training on latents decodes nothing
        model.objective(result, target, IMAGE_LOSS)["loss"].backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], atol=1e-6, rtol=1e-4)


def test_the_losses_are_weighted_as_the_section_says() -> None:
    model = make(vae={**TINY_VAE, "latent_loss_weight": 0.5, "image_loss_weight": 0.25}, patch_size=2).eval()
    input, target = make_views(2, 16, 24), make_views(2, 16, 24)
    result = model(input, target)
    terms = model.objective(result, target, IMAGE_LOSS)
    latent = F.mse_loss(result.latent, model.vae.latents(target))
    image = F.mse_loss(result.render, target.image)
    torch.testing.assert_close(terms["loss"], 0.5 * latent + 0.25 * image)
    torch.testing.assert_close(terms["latent_loss"], latent.detach())


def test_with_adapters_nothing_else_learns_or_changes_mode() -> None:
    lora = {"Linear": {"lora_rank": 1}, "Conv2d": {"lora_rank": 1, "lora_dropout_p": 0.5}}
    model = make(vae={**TINY_VAE, "image_loss_weight": 1.0}, patch_size=2, lora=lora, dropout_p=0.5).train()
    assert {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad} == {
        "lora_A",
        "lora_B",
    }
    assert not model.transformer.encoder.layers[0].training
    part = model.vae.vae.decoder.conv_in.parametrizations.weight[0]
    assert part.training and not model.eval().vae.vae.decoder.conv_in.parametrizations.weight[0].training


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_all_activations_can_be_built(activation: str) -> None:
    assert torch.isfinite(make(activation=activation)(make_views(1), make_views(1)).render).all()


MANIFESTS = [
    ("lvsm_base_192_p8", 8, "", 6, False, 57_520_128),
    ("lvsm_reference_24layer_p8", 8, "", 24, False, 227_419_392),
    ("lvsm_vae_sd35_p4", 4, "sd35", 6, False, 57_423_570 + 83_819_683),
    ("lvsm_vae_sd35_p6", 6, "sd35", 6, False, 58_406_610 + 83_819_683),
    ("lvsm_vae_sd35_p8", 8, "sd35", 6, False, 59_782_866 + 83_819_683),
    ("lvsm_vae_sd35_p24", 24, "sd35", 6, False, 84_948_690 + 83_819_683),
    ("lvsm_vae_sd35_p4_lora", 4, "sd35", 6, True, 57_423_570 + 83_819_683 + 1_026_200),
    ("lvsm_vae_sd15_p4", 4, "sd15", 6, False, 56_833_554 + 83_653_863),
]


@pytest.mark.parametrize("name,patch,vae,layers,adapted,count", MANIFESTS, ids=[row[0] for row in MANIFESTS])
def test_names_and_shapes_are_the_published_ones(
    name, patch, vae, layers, adapted, count, shared: Path
) -> None:
    published = json.loads((shared / "parity" / "lvsm_latent" / f"manifest_{name}.json").read_text())
    section = {
        "class_name": CLASS,
        "image_size": 192,
        "patch_size": patch,
        "transformer": {"num_encoder_layers": layers},
        "vae": {"name": vae, "image_loss_weight": 1.0},
        "lora": {kind: {"lora_rank": 8} for kind in ("Linear", "Conv2d")} if adapted else {},
    }
    with torch.device("meta"):
        model = build_model(build(Config, section, "model", []))
    assert {n: tuple(t.shape) for n, t in model.state_dict().items()} == {
        n: tuple(s) for n, s in published.items()
    }
    assert sum(p.numel() for p in model.parameters()) == count


def test_lightnings_prefix_and_missing_adapters_are_no_obstacle() -> None:
    lora = {"Conv2d": {"lora_rank": 1}}
    plain = make(vae=TINY_VAE, patch_size=2)
    adapted = make(vae={**TINY_VAE, "image_loss_weight": 1.0}, patch_size=2, lora=lora)
    state = {f"model.{name}": tensor for name, tensor in plain.state_dict().items()}
    assert plain.with_own_names(state).keys() == plain.state_dict().keys()
    assert adapted.with_own_names(state).keys() == adapted.state_dict().keys()


@pytest.mark.parametrize(
    "change,message",
    [
        ({"patch_size": 5}, "image_size is 8: expected a multiple of .*patch_size, which is 5"),
        ({"transformer": {"d_v": 32}}, "d_v is 32: it must be d_k, which is 64"),
        ({"transformer": {"qk_norm": 1}}, "qk_norm 1 needs qk_exp_seq_len"),
        ({"transformer": {"activation": "gleu"}}, "activation is 'gleu'"),
        ({"vae": {"name": "tiny"}}, "image_size is 8: expected a multiple of .*patch_size, which is 16"),
        ({"lora": {"Conv2d": {"lora_rank": 2}}}, "set model.vae.name"),
        ({"transformer": {"attention": "causal"}}, "attention is 'causal': expected one_way or full"),
        (
            {"image_size": 16, "vae": {"name": "tiny"}, "image_range": "minus_one_to_one"},
            "set model.vae.image_range instead",
        ),
        (
            {"image_size": 16, "vae": {"name": "tiny"}, "lora": {"Conv2d": {"lora_rank": 2}}},
            "image_loss_weight is 0",
        ),
    ],
)
def test_sections_that_contradict_themselves_are_refused(change: dict, message: str) -> None:
    problems: list[str] = []
    assert (
        build(Config, {"class_name": CLASS, "image_size": 8, "patch_size": 4, **change}, "model", problems)
        is None
    )
    assert len(problems) == 1 and re.search(message, problems[0]), problems


def test_pictures_that_patches_do_not_tile_are_refused() -> None:
    model = make(vae=TINY_VAE, patch_size=2).eval()
    with pytest.raises(ValueError, match="16 x 20"):
        model(make_views(1, 16, 20), make_views(1, 16, 20))
