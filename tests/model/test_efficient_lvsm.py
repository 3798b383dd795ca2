"""Efficient-LVSM and the LVSM of the PRoPE paper: names, cache, alignment, and what a config may not say."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from src.checkpoint import load_into
from src.config import ConfigError, build
from src.loss import ImageLoss
from src.model import build_model, family_config
from src.model.efficient_lvsm import EfficientLVSM

EFFICIENT, PROPE = "src.model.efficient_lvsm.EfficientLVSM", "src.model.lvsm_prope.LVSMPRoPE"
LAYERS = {"use_qk_norm": True, "special_init": True, "depth_init": True}
MANIFESTS = [
    ("efficient_lvsm/manifest_efficient_lvsm_res256", {"transformer": LAYERS}, 199_070_208),
    ("efficient_lvsm/manifest_efficient_lvsm_res512", {"transformer": LAYERS}, 199_070_208),
    (
        "efficient_lvsm/manifest_train_script_6layer_repa",
        {"transformer": {**LAYERS, "n_layer": 6}, "repa_config": "8-2"},
        114_667_264,
    ),
    ("prope/manifest_lvsm_prope_6layer", {"class_name": PROPE}, 24_489_024),
]


def built(**changes: object) -> torch.nn.Module:
    family = changes.pop("class_name", EFFICIENT)
    section = {"class_name": family, "image_tokenizer": {"image_size": 256, "patch_size": 8}, **changes}
    if family == EFFICIENT:
        section.setdefault("target_pose_tokenizer", {"patch_size": section["image_tokenizer"]["patch_size"]})
    problems: list[str] = []
    config = build(family_config(family), section, "model", problems)
    if problems:
        raise ConfigError(" ".join(problems))
    return build_model(config)


def tiny(**changes: object) -> EfficientLVSM:
    """Two layers on patches of 4 pixels, with weights as after training."""
    sizes = {"d": 16, "d_head": 8, "n_layer": 2, **LAYERS}
    model = built(image_tokenizer={"image_size": 8, "patch_size": 4}, transformer=sizes, **changes)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.2 * torch.randn_like(p)
    return model


@pytest.mark.parametrize("manifest,changes,count", MANIFESTS, ids=[row[0] for row in MANIFESTS])
def test_names_and_shapes_are_the_published_ones(manifest, changes, count, shared):
    published = json.loads((shared / "parity" / f"{manifest}.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        model = built(**changes)
    assert {name: list(x.shape) for name, x in model.state_dict().items()} == published
    assert sum(p.numel() for p in model.parameters()) == count


# ----------------------------------------------------------------------------------------------- cache


def test_views_can_be_added_dropped_and_reordered(make_views):
    model, input, cameras = tiny().eval(), make_views(3), make_views(2).cameras
    with torch.no_grad():
        single = [
            model.encode(type(input)(input.image[:, i : i + 1], input.cameras.views(slice(i, i + 1))))
            for i in range(3)
        ]
        expected = model.decode(model.encode(input), cameras)
        grown = single[0].appended(single[1]).appended(single[2])
        torch.testing.assert_close(model.decode(grown, cameras), expected, atol=1e-6, rtol=0)
        reordered = single[2].appended(single[0]).appended(single[1])
        torch.testing.assert_close(model.decode(reordered, cameras), expected, atol=1e-6, rtol=0)
        two = model.decode(single[0].appended(single[2]), cameras)
        torch.testing.assert_close(model.decode(grown.drop_view(1), cameras), two, atol=1e-6, rtol=0)
        assert (two - expected).abs().max() > 1e-3
        # Rendering left no trace, and any number of scenes can be held.
        torch.testing.assert_close(model.decode(grown, cameras), expected, atol=1e-6, rtol=0)


def test_targets_do_not_see_one_another(make_views):
    model, input, cameras = tiny().eval(), make_views(2), make_views(3).cameras
    scene = model.encode(input)
    alone = [model.decode(scene, cameras.views(slice(i, i + 1))) for i in range(3)]
    torch.testing.assert_close(torch.cat(alone, dim=1), model.decode(scene, cameras), atol=1e-6, rtol=0)


def test_a_view_of_the_context_is_encoded_by_itself(make_views):
    model, input = tiny().eval(), make_views(2)
    before = model.encode(input)
    input.image[:, 1] = torch.rand_like(input.image[:, 1])
    after = model.encode(input)
    first = slice(before.tokens[0])
    for one, other in zip(before.keys, after.keys):
        assert torch.equal(one[:, :, first], other[:, :, first])
        assert not torch.equal(one, other)


# ----------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("depth_init", [True, False])
def test_both_streams_start_with_the_same_deviations(depth_init):
    """The original leaves the input stream at PyTorch's default."""
    sizes = {"d": 128, "d_head": 16, "n_layer": 3, "special_init": True, "depth_init": depth_init}
    model = built(transformer=sizes)
    for i in range(3):
        std = 0.02 / (2 * (i + 1 if depth_init else 3)) ** 0.5
        for block in (model.input_self_attn_blocks[i], model.self_cross_blocks[i]):
            linears = [m for m in block.modules() if isinstance(m, torch.nn.Linear)]
            assert len(linears) in (4, 7)
            for linear in linears:
                assert linear.weight.std().item() == pytest.approx(std, rel=0.05)


def test_files_of_an_aligned_training_load_into_a_model_that_only_renders():
    trained, model = tiny(repa_config="3-1", projector_dim=8), tiny()
    state = {f"_orig_mod.{name}": x for name, x in trained.state_dict().items()}
    state["loss_computer.vgg.features.0.weight"] = torch.zeros(2)
    load_into(model, state, "ckpt.pt")
    for name, x in model.state_dict().items():
        assert torch.equal(x, trained.state_dict()[name])
    with pytest.raises(ValueError, match="repa_projector"):
        load_into(trained, model.state_dict(), "ckpt.pt")


def test_weights_of_other_sizes_are_refused_with_the_sizes_that_fit():
    sizes = {"d": 24, "d_head": 12, "n_layer": 3, "use_qk_norm": True}
    other = built(image_tokenizer={"image_size": 8, "patch_size": 4}, transformer=sizes)
    with pytest.raises(
        ValueError, match=r"set model\.transformer\.n_layer: 2.*d: 16 \(not 24\).*d_head: 8 \(not 12\)"
    ):
        load_into(other, tiny().state_dict(), "ckpt.pt")


# ----------------------------------------------------------------------------------------------- alignment


@pytest.mark.parametrize("kind", ["sl1", "l2", "cos"])
def test_alignment_is_the_mean_over_streams_pairs_and_views(kind, make_views):
    changes = {"repa_config": "8-1, 8-2 11-2", "projector_dim": 12, "proj_loss_type": kind}
    model, input, target = tiny(**changes).train(), make_views(2), make_views(3)
    labels = {
        id(x.image): {b: torch.randn(2 * x.image.shape[1], 4, 768) for b in (8, 11)} for x in (input, target)
    }
    model.teacher = lambda image: labels[id(image)]
    result = model(input, target)
    terms = model.objective(result, target, ImageLoss(1.0, {}))

    x, parts = model.rgbp_tokenizer, []
    _, inputs = model._encode(input)
    _, targets = model._decode(model.encode(input), target.cameras)
    for name, stream, views in (("input", inputs, input), ("target", targets, target)):
        for teacher, student in ((8, 1), (8, 2), (11, 2)):
            x = stream[student - 1]
            for layer in model.repa_projector[name][str(teacher)][str(student)]:
                x = layer(x)
            label = labels[id(views.image)][teacher]
            for one, other in zip(x, label):
                error = (one - other).abs()
                parts.append(
                    {
                        "sl1": torch.where(error < 1, 0.5 * error**2, error - 0.5).mean(),
                        "l2": (error**2).mean(),
                        "cos": -(F.normalize(one, dim=-1) * F.normalize(other, dim=-1)).sum(-1).mean(),
                    }[kind]
                )
    assert len(parts) == 3 * (4 + 6)
    torch.testing.assert_close(terms["proj_loss"], torch.stack(parts).mean())
    torch.testing.assert_close(terms["loss"], terms["l2_loss"] + 0.5 * terms["proj_loss"])
    terms["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_alignment_without_a_teacher_is_refused_in_training_alone(make_views):
    model, views = tiny(repa_config="8-2", projector_dim=8), make_views(2)
    with pytest.raises(ConfigError, match="model has none"):
        model.train()(views, views)
    assert "proj_loss" not in model.eval()(views, views)
    assert not any(name.startswith("teacher") for name in model.state_dict())


def test_features_of_another_grid_are_refused(make_views):
    model, views = tiny(repa_config="8-2", projector_dim=8).train(), make_views(2)
    model.teacher = lambda image: {8: torch.zeros(4, 9, 768)}
    with pytest.raises(ValueError, match="grid of our patches"):
        model(views, views)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"repa_config": "1"}, "model.repa_config is 1: expected pairs such as 8-2"),
        ({"repa_config": "8-13"}, "there is no layer 13, model.transformer.n_layer is 12"),
        ({"proj_loss_type": "l1"}, "expected sl1 or l2 or cos"),
        ({"target_pose_tokenizer": {"patch_size": 16}}, "same patch size in both"),
        ({"class_name": PROPE, "transformer": {"d": 60, "d_head": 12}}, "d_head is 12: model.camera prope"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        built(**changes)
