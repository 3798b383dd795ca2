"""MV-LDM's denoiser: published names, diffusers' numbers, what views know of each other, what is refused."""

from __future__ import annotations

import json
import socket

import pytest
import torch
from torch import Tensor, nn

from src.checkpoint import CheckpointError, load_into, load_weights
from src.config import ConfigError, build
from src.model import build_model, family_config
from src.model.base import ViewSynthesizer
from src.model.unet import Denoiser, MultiViewUNet
from src.model.unet_weights import from_stable_diffusion, without_unused

PLAIN = {
    "down_block_types": ["DownBlock2D"] * 2,
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["UpBlock2D"] * 2,
}
ATTENTION = {
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
TINY = {
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "num_heads": [2, 4],
    "norm_num_groups": 4,
    "cross_attention_dim": 6,
    "multi_view_attention": {"num_heads": 2, "norm_num_groups": 4},
}
NO_MEETING = dict.fromkeys(("encoder_conditioning", "mid_conditioning", "decoder_conditioning"), False)
PUBLISHED = {"up_attention": False, "keep_unused_parameters": True}
IN, OUT = 5, 4


def settings(tree: dict) -> Denoiser:
    problems: list[str] = []
    found = build(Denoiser, tree, "model.denoiser", problems)
    if problems:
        raise ConfigError(" ".join(problems))
    return found


def network(tree: dict) -> MultiViewUNet:
    """A small one in which the multi-view blocks, that start at zero, do something."""
    made = MultiViewUNet(settings(TINY | ATTENTION | tree), IN, OUT)
    for name, parameter in made.named_parameters():
        if name.startswith("cross_attn_blocks") and ".proj_out." in name:
            nn.init.normal_(parameter, std=0.3)
    return made


def views(b: int = 1, v: int = 3, h: int = 4, w: int = 6) -> Tensor:
    return torch.randn(b, v, IN, h, w)


# ------------------------------------------------------------------------------------------- published checkpoints

STANDARD = {"multi_view_attention": {"name": "standard"}}
WITHOUT_ATTENTION = {
    "down_block_types": ["DownBlock2D"] * 4,
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["UpBlock2D"] * 4,
}


def on_meta(tree: dict, in_channels: int) -> MultiViewUNet:
    with torch.device("meta"):
        return MultiViewUNet(settings(tree), in_channels, 4)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    "manifest,tree,in_channels,parameters",
    [
        ("mvldm-1.0_re10k_baseline", PUBLISHED, 11, 1_068_857_604),
        ("main_yaml_default_scratch_denoiser", STANDARD | WITHOUT_ATTENTION, 113, 616_811_204),
    ],
    ids=["mvldm-1.0", "main_yaml"],
)
def test_names_and_shapes_are_the_published_ones(manifest, tree, in_channels, parameters, shared):
    published = json.loads((shared / "parity" / "mvldm" / f"manifest_{manifest}.json").read_text("utf-8"))
    expected = {
        name.removeprefix("denoiser."): tuple(shape)
        for name, shape in published.items()
        if name.startswith("denoiser.")
    }
    made = on_meta(tree, in_channels)
    assert {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()} == expected
    assert count(made) == parameters


def test_the_parts_of_the_published_network_have_their_sizes():
    made = on_meta(PUBLISHED, 11)
    assert count(made.unet) == 865_930_884
    assert sum(count(b.attentions) for b in made.unet.up_blocks if b.attentions is not None) == 142_927_680
    assert [count(block) for block in made.cross_attn_blocks_encoder] == [
        2_259_520,
        9_024_640,
        36_071_680,
        36_071_680,
    ]


def test_a_new_network_of_that_size_has_none_of_the_unused_parameters():
    """Apart from the decoder's, 7 attention blocks: their norm2 and attention to the text, 1024 wide."""
    widths = [320] * 2 + [640] * 2 + [1280] * 3
    text = sum(2 * width + 2 * width**2 + 2 * 1024 * width + width for width in widths)
    assert count(on_meta({"up_attention": False}, 11)) == 1_068_857_604 - 142_927_680 - text


def test_building_needs_no_network_connection(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert network(PUBLISHED)(views(), torch.tensor([3])).shape == (1, 3, OUT, 4, 6)


@pytest.mark.parametrize("up_attention", [False, True])
def test_a_published_checkpoint_computes_the_same_without_its_unused_parameters(up_attention):
    full = network(PUBLISHED | {"up_attention": up_attention})
    lean = network({"up_attention": up_attention})
    lean.load_state_dict(without_unused(full.state_dict(), lean.state_dict().keys()))
    x, timestep = views(), torch.tensor([500])
    torch.testing.assert_close(lean(x, timestep), full(x, timestep), atol=1e-6, rtol=1e-5)
    assert without_unused(full.state_dict(), full.state_dict().keys()).keys() == full.state_dict().keys()


def test_a_file_of_stable_diffusion_fills_the_unet_but_for_its_first_and_last_layer():
    """With a text that is empty, a UNet computes the same when its attention to the text is folded into a bias."""
    source, made = network(NO_MEETING | {"keep_unused_parameters": True}), network(NO_MEETING)
    given = from_stable_diffusion(source.unet.state_dict(), "unet.")
    given = without_unused(given, made.state_dict().keys())
    missing, unexpected = made.load_state_dict(given, strict=False)
    assert not unexpected
    assert set(missing) == {f"unet.conv_{end}.{kind}" for end in ("in", "out") for kind in ("weight", "bias")}
    made.unet.conv_in, made.unet.conv_out = source.unet.conv_in, source.unet.conv_out
    x, timestep = views(), torch.tensor([500])
    torch.testing.assert_close(made(x, timestep), source(x, timestep), atol=1e-6, rtol=1e-5)
    others = made.state_dict()
    assert from_stable_diffusion(others, "denoiser.unet.") is others


def test_attention_of_the_decoder_is_held_but_not_run_or_run_or_absent():
    published, new, without = network(PUBLISHED), network({}), network({"up_attention": False})
    x, timestep = views(), torch.tensor([500])
    before = {made: made(x, timestep) for made in (published, new)}
    for made in before:
        for parameter in made.unet.up_blocks[1].attentions.parameters():
            nn.init.zeros_(parameter)
    assert torch.equal(published(x, timestep), before[published])
    assert not torch.allclose(new(x, timestep), before[new])
    assert without.unet.up_blocks[1].attentions is None


def family(**denoiser: object) -> ViewSynthesizer:
    """The smallest MV-LDM."""
    section = {"class_name": "src.model.mvldm.MVLDM", "image_size": 32, "vae": {"name": "tiny"}}
    section["denoiser"] = TINY | ATTENTION | denoiser
    return build_model(build(family_config(section["class_name"]), section, "model", []))


def test_a_lightning_file_loads_with_or_without_averaged_weights(tmp_path):
    """Nothing but `state_dict` counts; `ema.*` may be absent. Both layouts of the network take the file."""
    source = family(**PUBLISHED)
    state = source.state_dict()
    averaged = {
        f"ema.module.{name.removeprefix('denoiser.')}": tensor + 1
        for name, tensor in state.items()
        if name.startswith("denoiser.")
    }
    for number, extra in enumerate(({}, averaged | {"ema.n_averaged": torch.tensor(3)})):
        path = tmp_path / f"{number}.ckpt"
        torch.save(
            {"state_dict": state | extra, "global_step": 7, "epoch": 0, "optimizer_states": [{}]}, path
        )
        for wanted in (family(**PUBLISHED), family(up_attention=False)):
            load_into(wanted, load_weights(path), path)
            x, timestep = torch.randn(1, 2, 11, 4, 4), torch.tensor([500])
            torch.testing.assert_close(wanted.denoiser(x, timestep), source.denoiser(x, timestep))


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_every_other_name_is_taken_strictly(change, tmp_path):
    state = family(**PUBLISHED).state_dict()
    if change == "missing":
        del state["denoiser.unet.conv_in.bias"]
    else:
        state["denoiser.unet.class_embedding.bias"] = torch.zeros(1)
    torch.save({"state_dict": state}, tmp_path / "file.ckpt")
    with pytest.raises(CheckpointError, match=r"conv_in\.bias|class_embedding\.bias"):
        load_into(family(**PUBLISHED), load_weights(tmp_path / "file.ckpt"), "file.ckpt")


# ------------------------------------------------------------------------------------------- the UNet of one view

DIFFUSERS = [
    {},
    {"use_linear_projection": False},
    {"layers_per_block": 2, "norm_eps": 1e-3},
    {"only_cross_attention": True},
    PLAIN,
    PLAIN | {"mid_block_type": "UNetMidBlock2DCrossAttn"},
    {
        "block_out_channels": [8, 16, 24],
        "num_heads": [1, 2, 3],
        "layers_per_block": [1, 2, 1],
        "cross_attention_dim": [5, 6, 7],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"],
    },
]


@pytest.mark.parametrize("tree", DIFFUSERS)
def test_without_multi_view_blocks_it_is_the_unet_of_diffusers_with_an_empty_text(tree):
    diffusers = pytest.importorskip("diffusers")
    tree = TINY | ATTENTION | tree
    ours = network(tree | NO_MEETING | {"keep_unused_parameters": True})
    same = {
        name: tree[name] for name in tree if name not in ("num_heads", "multi_view_attention", *NO_MEETING)
    }
    theirs = diffusers.UNet2DConditionModel(
        in_channels=IN,
        out_channels=OUT,
        attention_head_dim=tree["num_heads"],  # the number of heads, by its name there
        **{"use_linear_projection": True} | same,
    )
    theirs.load_state_dict(ours.unet.state_dict())
    x, timestep = views(v=2, h=8, w=4), torch.tensor([[0, 731]])
    width = tree["cross_attention_dim"]
    if isinstance(width, list):  # one text cannot have several widths: every level gets its own zeros
        for module in theirs.modules():
            if type(module).__name__ == "Attention" and module.is_cross_attention:
                module.register_forward_pre_hook(
                    lambda module, args, kwargs: (
                        args,
                        kwargs | {"encoder_hidden_states": torch.zeros(2, 1, module.to_k.in_features)},
                    ),
                    with_kwargs=True,
                )
        width = width[0]
    expected = theirs(x[0], timestep[0], torch.zeros(2, 1, width)).sample
    torch.testing.assert_close(ours(x, timestep)[0], expected, atol=1e-5, rtol=1e-5)


def test_without_multi_view_blocks_views_know_nothing_of_each_other():
    made, x = network(NO_MEETING), views()
    alone = torch.cat([made(x[:, view : view + 1], torch.tensor([7])) for view in range(3)], dim=1)
    torch.testing.assert_close(made(x, torch.tensor([7])), alone, atol=1e-6, rtol=1e-5)


# ------------------------------------------------------------------------------------------- several views

FAMILIES = [{}, PLAIN, {"multi_view_attention": {"name": "standard", "num_heads": 2}}]


@pytest.mark.parametrize("tree", FAMILIES, ids=["attention", "plain", "standard"])
def test_permuted_views_of_one_role_permute_the_result(tree):
    """Context and targets differ by the mask, which is a channel, and by the timestep."""
    made, x, order = network(tree), views(v=5), [1, 0, 4, 2, 3]
    timestep = torch.tensor([[0, 0, 500, 500, 500]])
    torch.testing.assert_close(made(x[:, order], timestep), made(x, timestep)[:, order], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("only", ["encoder_conditioning", "mid_conditioning", "decoder_conditioning"])
def test_each_family_of_blocks_lets_views_meet_and_can_be_left_out(only):
    made, x = network(NO_MEETING | {only: True}), views()
    place = only.removesuffix("_conditioning")
    stacks = {name.split(".")[0] for name in made.state_dict() if name.startswith("cross_attn")}
    assert stacks == {f"cross_attn_blocks_{place}"}
    changed = x.clone()
    changed[:, 2] += torch.randn_like(changed[:, 2])
    difference = (made(changed, torch.tensor([7])) - made(x, torch.tensor([7]))).abs()
    assert (difference[0, :2].amax(dim=(1, 2, 3)) > 1e-5).all()


def test_the_number_of_views_is_free():
    made = network({})
    for v in (1, 2, 6):
        assert made(views(v=v), torch.tensor([7])).shape == (1, v, OUT, 4, 6)


def test_one_timestep_is_that_of_all_views_and_each_view_can_have_its_own():
    made, x = network({}), views(b=2)
    per_sample = made(x, torch.tensor([3, 700]))
    assert torch.equal(per_sample, made(x, torch.tensor([[3, 3, 3], [700, 700, 700]])))
    other = made(x, torch.tensor([[0, 3, 3], [700, 700, 700]]))
    assert not torch.allclose(other[0], per_sample[0])
    torch.testing.assert_close(other[1], per_sample[1])


def test_skips_hold_the_features_before_the_views_met():
    """The last level of the decoder is the only other place where views could hear of each other at full size."""
    made, x = network(NO_MEETING | {"encoder_conditioning": True}), views()
    nn.init.zeros_(made.unet.down_blocks[0].downsamplers[0].conv.weight)
    nn.init.zeros_(made.cross_attn_blocks_encoder[1].proj_out.weight)
    changed = x.clone()
    changed[:, 2] += torch.randn_like(changed[:, 2])
    before, after = made(x, torch.tensor([7])), made(changed, torch.tensor([7]))
    torch.testing.assert_close(after[:, :2], before[:, :2], atol=1e-6, rtol=1e-5)


# ------------------------------------------------------------------------------------------- size of the latents


def test_blocks_above_the_largest_side_rest_and_it_is_said(caplog: pytest.LogCaptureFixture):
    """4 x 6 at the first level, 2 x 3 at the second; the middle has no limit."""
    wide, limited = network({"max_attention_side": 6}), network({"max_attention_side": 5}).eval()
    limited.load_state_dict(wide.state_dict())
    x, timestep = views(), torch.tensor([7])
    assert not torch.allclose(limited(x, timestep), wide(x, timestep))
    assert caplog.text.count("exceed model.denoiser.max_attention_side 5") == 1
    for stack, level in (("encoder", 0), ("decoder", 1)):
        block = getattr(wide, f"cross_attn_blocks_{stack}")[level]
        nn.init.zeros_(block.proj_out.weight)
        nn.init.zeros_(block.proj_out.bias)
    assert torch.equal(limited(x, timestep), wide(x, timestep))


def test_in_training_no_block_may_rest():
    with pytest.raises(ValueError, match=r"4 x 6 exceed .*2 levels would not learn. Set it to 6"):
        network({"max_attention_side": 2}).train()(views(), torch.tensor([7]))
    network({"max_attention_side": 2} | NO_MEETING).train()(views(), torch.tensor([7]))


def test_without_a_limit_no_block_rests(caplog: pytest.LogCaptureFixture):
    unlimited, wide = network({"max_attention_side": 0}), network({"max_attention_side": 40})
    wide.load_state_dict(unlimited.state_dict())
    x = views(v=2, h=2, w=40)
    assert torch.equal(unlimited(x, torch.tensor([7])), wide(x, torch.tensor([7])))
    assert not caplog.text


def test_the_full_network_runs_on_a_device_that_is_no_gpu_at_the_published_size():
    """On `meta`, where a tensor made for another device would raise."""
    made = on_meta(PUBLISHED, 11)
    out = made(
        torch.empty(1, 5, 11, 32, 32, device="meta"), torch.zeros(1, 5, dtype=torch.long, device="meta")
    )
    assert out.shape == (1, 5, 4, 32, 32)


@pytest.mark.parametrize(
    "shape,timestep,message",
    [
        ((1, 2, IN, 5, 4), [7], "latents of 5 x 4: with 2 levels both sides must be multiples of 2"),
        ((1, 2, IN + 1, 4, 4), [7], r"expected \[b, v, 5, h, w\]"),
        ((2, IN, 4, 4), [7], r"expected \[b, v, 5, h, w\]"),
        ((1, 2, IN, 4, 4), [7, 7, 7], r"timestep is \(3,\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(shape, timestep, message):
    with pytest.raises(ValueError, match=message):
        network({})(torch.zeros(shape), torch.tensor(timestep))


# ------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    "tree", [*FAMILIES, {"up_attention": False}], ids=["attention", "plain", "standard", "no_up"]
)
def test_every_parameter_of_a_new_network_gets_a_gradient(tree):
    made = network(tree)
    made(views(b=2), torch.tensor([3, 700])).square().sum().backward()
    without = [n for n, p in made.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


def test_what_a_published_network_never_uses_is_frozen_and_the_rest_learns():
    """So DistributedDataParallel need not look for parameters without gradient."""
    made = network(PUBLISHED)
    made(views(b=2), torch.tensor([3, 700])).square().sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None and bool(parameter.grad.any())), name
    frozen = [name for name, parameter in made.named_parameters() if not parameter.requires_grad]
    assert any(name.startswith("unet.up_blocks.1.attentions") for name in frozen)
    assert any("attn2.to_k" in name for name in frozen)
    assert not any(name.startswith("cross_attn_blocks") for name in frozen)


def test_recomputed_activations_change_nothing_but_memory():
    made, x, results, kept = network({}), views(), [], []

    def pack(tensor: Tensor) -> Tensor:
        kept[-1] += tensor.numel()
        return tensor

    for every in (0, 1):
        for module in made.modules():
            if hasattr(module, "checkpoint_every"):
                module.checkpoint_every = every
        made.zero_grad()
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = made.train()(x, torch.tensor([7]))
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad.clone() for p in made.parameters())])
    for plain, recomputed in zip(*results):
        torch.testing.assert_close(recomputed, plain)
    assert kept[1] < kept[0] / 3


# ------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "tree,message",
    [
        ({"block_out_channels": [8, 16, 16]}, "has 2 entries, model.denoiser.block_out_channels has 3"),
        ({"block_out_channels": [8, 18]}, "has 18, which model.denoiser.norm_num_groups 4 does not divide"),
        ({"num_heads": [3, 4]}, "has 8, which model.denoiser.num_heads 3 does not divide"),
        ({"num_heads": [2, 4.5]}, "num_heads has 4.5: expected a whole number"),
        ({"layers_per_block": 0}, "layers_per_block has 0"),
        ({"down_block_types": ["DownBlock2D", "AttnDownBlock2D"]}, "has 'AttnDownBlock2D': expected"),
        ({"mid_block_type": "None"}, "mid_block_type is 'None': expected"),
        ({"only_cross_attention": True}, "attention to no text is of no use"),
        ({"block_out_channels": []}, "block_out_channels is empty"),
        (
            {"multi_view_attention": {"num_heads": 3, "norm_num_groups": 4}},
            "num_heads is 3: it must divide the width 8",
        ),
    ],
)
def test_settings_that_make_no_network_are_refused(tree, message):
    with pytest.raises(ConfigError, match=message):
        settings(TINY | ATTENTION | tree)
