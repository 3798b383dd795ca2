"""Pre-training by masking in the shared trainer, and other families that start from its weights."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import yaml
from tiny_run import records, write_config, write_scenes
from torch import nn

from src import inference_fast, train
from src.checkpoint import CheckpointError, load_into, load_weights
from src.config import build
from src.geometry.camera import Cameras, Views
from src.geometry.rotation import decode_pose
from src.model import build_model, family_config
from src.model.base import ViewSynthesizer
from src.model.lvsm_pytorch.translation import as_shared_blocks
from src.warm_start import start_from

SIZES = {"dim": 32, "max_image_size": 16, "patch_size": 8, "depth": 2, "heads": 2, "dim_head": 16}
LVSM = {
    "class_name": "model.LVSM_scene_decoder_only.Images2LatentScene",
    "image_tokenizer": {"image_size": 16, "patch_size": 8},
    "target_pose_tokenizer": {"patch_size": 8},
    "transformer": {"d": 32, "d_head": 16, "n_layer": 2},
}


@pytest.fixture(autouse=True)
def logging_left_alone():
    """`main` sets up logging for its process; the tests' own handlers come back."""
    root, ours = logging.getLogger(), logging.getLogger("src")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], root.level, level = before
    ours.setLevel(level)


def model(class_name: str, **changes: object) -> ViewSynthesizer:
    """A tiny model of the module API's families, weights away from their initial values."""
    return built({**SIZES, "class_name": class_name, **changes})


def built(section: dict) -> ViewSynthesizer:
    problems: list[str] = []
    config = build(family_config(section["class_name"]), section, "model", problems)
    assert not problems, problems
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def views(num_views: int) -> Views:
    fxfycxcy = torch.tensor([16.0, 16.0, 8.0, 8.0]).expand(2, num_views, 4)
    cameras = Cameras(decode_pose(torch.randn(2, num_views, 7)), fxfycxcy.contiguous(), 16, 16)
    return Views(torch.rand(2, num_views, 3, 16, 16), cameras)


def saved(model: nn.Module, folder: Path) -> Path:
    path = folder / "weights.pt"
    torch.save({"model": model.state_dict()}, path)
    return path


def config_file(folder: Path, section: dict, **training: object) -> Path:
    path = write_config(
        folder / "config.yaml",
        write_scenes(folder / "data"),
        folder / "run",
        **{"eval_every": 20, **training},
    )
    tree = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**tree, "model": section}))
    return path


# ----------------------------------------------------------------------------------------------- in the trainer


def test_pretraining_lowers_both_losses_on_the_evaluation_scenes_and_starts_an_lvsm(tmp_path):
    """The scenes are those of training: a matter of the loop. docs/module_api.md has figures on unseen ones."""
    config = config_file(
        tmp_path,
        {**SIZES, "class_name": "lvsm_pytorch.MAE"},
        num_input_views=4,
        num_target_views=1,
        train_steps=60,
        checkpoint_every=60,
        vis_every=60,
    )
    assert train.main(["--config", str(config)]) == 0
    first, *_, last = (entry["headline"] for entry in records(tmp_path / "run", "eval"))
    assert last["mae_image_loss"] < first["mae_image_loss"]
    assert last["mae_ray_loss"] < 0.8 * first["mae_ray_loss"]
    assert "psnr" in last
    assert list((tmp_path / "run").glob("iter_*/supervision_*.jpg"))

    second = tmp_path / "second"
    pretrained = f"training.init_from={tmp_path / 'run'}"
    section = {**SIZES, "class_name": "lvsm_pytorch.LVSM"}
    config = config_file(second, section, train_steps=1, checkpoint_every=1, warmup=5)  # the first rate is 0
    assert train.main(["--config", str(config), pretrained]) == 0
    before, after = load_weights(tmp_path / "run"), load_weights(second / "run")
    assert before.keys() - after.keys() == {"unpatchify_to_rays.0.weight", "unpatchify_to_rays.0.bias"}
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())


def test_a_run_with_checkpoints_of_its_own_does_not_start_over(tmp_path):
    section = {**SIZES, "class_name": "lvsm_pytorch.LVSM"}
    config = config_file(tmp_path, section, train_steps=2, eval_every=0)
    weights = f"training.init_from={saved(built(section), tmp_path)}"
    assert train.main(["--config", str(config), weights]) == 0
    trained = load_weights(tmp_path / "run")
    assert train.main(["--config", str(config), weights, "training.train_steps=3"]) == 0
    moved = max((trained[n] - t).abs().max().item() for n, t in load_weights(tmp_path / "run").items())
    assert 0 < moved < 0.01


def test_scoring_reports_both_losses_of_the_masks(tmp_path, capsys):
    section = {**SIZES, "class_name": "lvsm_pytorch.MAE"}
    config = config_file(tmp_path, section, num_input_views=4, num_target_views=1)
    out = f"inference.inference_out_dir={tmp_path / 'scores'}"
    assert inference_fast.main(["--config", str(config), "inference.checkpoint=random", out]) == 0
    assert "mae_image_loss" in (text := capsys.readouterr().out) and "mae_ray_loss" in text


def test_held_out_losses_are_of_one_hidden_view_at_a_time_and_count_each_view_once():
    mae, input, target = model("lvsm_pytorch.MAE").eval(), views(2), views(2)
    repeated = Views(
        torch.cat([input.image[:, :1], target.image], dim=1),
        Cameras(
            torch.cat([input.cameras.c2w[:, :1], target.cameras.c2w], dim=1),
            input.cameras.fxfycxcy[:, [0, 1, 1]],
            16,
            16,
        ),
    )
    terms = mae.held_out_terms(input, target)
    assert terms["mae_ray_loss"].shape == (2,)
    torch.testing.assert_close(mae.held_out_terms(input, repeated), terms, atol=1e-6, rtol=1e-5)

    everything = Cameras(
        torch.cat([input.cameras.c2w, target.cameras.c2w], dim=1),
        input.cameras.fxfycxcy.repeat(1, 2, 1),
        16,
        16,
    )
    images, rays = torch.cat([input.image, target.image], dim=1), mae.ray_map(everything)
    none = torch.zeros(2, 4, dtype=torch.bool)
    errors = []
    for view in range(4):
        hidden = none.clone()
        hidden[:, view] = True
        errors.append(
            mae.mae(images, rays, image_mask=hidden, ray_mask=none, return_loss_breakdown=True)[1][0]
        )
    torch.testing.assert_close(torch.stack(errors).mean(dim=(0, 2, 3, 4)), terms["mae_image_loss"])


def test_no_weight_of_the_pretraining_family_is_left_without_a_gradient():
    mae = model("lvsm_pytorch.MAE").train()
    result = mae(views(4), views(1))
    mae.objective(result, views(1), None)["loss"].backward()
    assert [name for name, p in mae.named_parameters() if p.grad is None] == []


# ----------------------------------------------------------------------------------------------- what is taken


@pytest.mark.parametrize("prefix", ["", "lvsm.", "mae.lvsm."])
def test_files_of_every_published_form_load_strictly(prefix):
    family = model("lvsm_pytorch.LVSM")
    state = {f"{prefix}{name}": tensor for name, tensor in family.lvsm.state_dict().items()}
    other = model("lvsm_pytorch.LVSM")
    load_into(other, state, "file")
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), family.parameters()))


def test_a_file_with_axial_tables_says_what_to_set(tmp_path):
    state = model("lvsm_pytorch.LVSM", add_axial_pos_emb=True).state_dict()
    with pytest.raises(CheckpointError, match=r"model\.add_axial_pos_emb: true"):
        load_into(model("lvsm_pytorch.LVSM"), state, "file")


def test_a_file_of_other_sizes_says_what_to_set():
    changes = {
        "dim": 48,
        "depth": 3,
        "patch_size": 4,
        "decoder_kwargs": {"ff_glu": False, "use_rmsnorm": False},
    }
    state = model("lvsm_pytorch.LVSM", **changes).state_dict()
    with pytest.raises(CheckpointError) as error:
        load_into(model("lvsm_pytorch.LVSM"), state, "file")
    for setting in ("dim: 48", "depth: 3", "patch_size: 4", "ff_glu: false", "use_rmsnorm: false"):
        assert setting in str(error.value)


def test_another_width_fits_nothing_and_is_refused(tmp_path):
    path = saved(model("lvsm_pytorch.MAE"), tmp_path)
    with pytest.raises(CheckpointError, match="none of its 34 tensors fits this model"):
        start_from(model("lvsm_pytorch.LVSM", dim=24, dim_head=10, patch_size=4, max_input_images=9), path)


def test_other_depths_take_what_is_there_and_say_what_is_not(tmp_path):
    path = saved(model("lvsm_pytorch.MAE"), tmp_path)
    report = start_from(model("lvsm_pytorch.LVSM", depth=3), path)
    assert len(report.taken) == 32
    assert all(".layers.4." in name or ".layers.5." in name for name in report.fresh)
    assert "took 32 of the model's 44 tensors" in str(report)


def test_an_lvsm_takes_attention_norms_patches_and_head_of_a_pretrained_model(tmp_path):
    path = saved(model("lvsm_pytorch.MAE"), tmp_path)
    report = start_from(built(LVSM), path)
    assert [n for n in report.fresh if "mlp" not in n] == ["transformer_input_layernorm.weight"]
    assert report.misshaped == report.unused == []


def test_translated_blocks_compute_the_same_where_both_families_have_the_parts():
    """Layer norms, no gate, no value residual, no biases: then a pair of sub-layers is a block of LVSM."""
    plain = {"use_rmsnorm": False, "add_value_residual": False, "ff_glu": False}
    source = model("lvsm_pytorch.LVSM", decoder_kwargs=plain)
    with torch.no_grad():
        for name, parameter in source.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
    target = built(LVSM)
    translated = as_shared_blocks(source.state_dict())
    assert target.load_state_dict(translated, strict=False).missing_keys == [
        "transformer_input_layernorm.weight"
    ]
    x = torch.randn(2, 5, 32)
    decoder = source.lvsm.image_and_ray_encoder.decoder
    torch.testing.assert_close(target.transformer_blocks(x), decoder.layers(x, None), atol=1e-5, rtol=0)

    posed = views(2)
    rays = source.ray_map(posed.cameras)
    encoder = source.lvsm.image_and_ray_encoder
    tokens = encoder.plucker_rays_to_patch_tokens(rays).flatten(0, 1).flatten(1, 2)
    torch.testing.assert_close(target.target_pose_tokenizer(rays), tokens, atol=1e-5, rtol=0)
    tokens = tokens + encoder.images_to_patch_tokens(posed.image).flatten(0, 1).flatten(1, 2)
    unshifted = torch.cat(
        [2 * posed.image, rays], dim=2
    )  # the shift by -1 becomes a bias, which LVSM has not
    torch.testing.assert_close(target.image_tokenizer(unshifted), tokens, atol=1e-5, rtol=0)
    image = source.lvsm.unpatchify_to_image(decoder.final_norm(x[:, :4]).unflatten(1, (2, 2)))
    there = target.image_token_decoder(x[:, :4], 1, 16, 16)[:, 0]
    torch.testing.assert_close(there, image, atol=1e-5, rtol=0)
