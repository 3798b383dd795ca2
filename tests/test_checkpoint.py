"""Checkpoints are whole or refused; weights load strictly, from every published form, and never run code."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.torch_version import TorchVersion

from scripts import info
from src.checkpoint import (
    CheckpointError,
    clean_names,
    damage,
    load_into,
    load_pretrained_part,
    load_training_state,
    load_weights,
    newest_checkpoint,
    read_manifest,
    sha256,
    weights_digest,
)
from src.model import build_model, family_config
from src.saving import save_checkpoint
from src.settings import config_from_tree, load_config
from src.sizes import explain_misfit, sizes_of

DECODER_ONLY = "model.LVSM_scene_decoder_only.Images2LatentScene"
UPLVSM = "src.model.uplvsm.unposedLVSM"


class Tied(nn.Module):
    """Two names, one tensor, as `unposed.decoder_as_canonical` makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 2)
        self.second = self.first
        self.other = nn.Linear(2, 2)


def lvsm(n_layer: int = 2, d: int = 32, patch: int = 8, d_head: int = 16) -> nn.Module:
    """A tiny LVSM decoder-only."""
    tree = {
        "class_name": DECODER_ONLY,
        "image_tokenizer": {"image_size": 16, "patch_size": patch},
        "target_pose_tokenizer": {"patch_size": patch},
        "transformer": {"d": d, "d_head": d_head, "n_layer": n_layer, "use_qk_norm": True},
    }
    return build_model(config_from_tree({"model": tree}, family_config).model)


def save(folder: Path, *steps: int) -> list[Path]:
    return [
        save_checkpoint(folder, step, nn.Linear(2, 2).state_dict(), {"step": step}, {"a": 1})
        for step in steps
    ]


def separate(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors, no two in the same memory."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


# ----------------------------------------------------------------------------------------------- folders


def test_a_checkpoint_gives_back_what_was_saved(tmp_path) -> None:
    model, state = Tied(), {"numbers": [1, 2], "tensor": torch.arange(3)}
    path = save_checkpoint(tmp_path, 40, separate(model), state, {"training": {"lr": 1e-3}})
    assert path.name == "ckpt_0000000000000040"
    assert sorted(p.name for p in path.iterdir()) == [
        "checkpoint.json",
        "model.safetensors",
        "training_state.pt",
    ]
    assert damage(path) is None
    weights = load_weights(path)
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    loaded = load_training_state(path)
    assert loaded["numbers"] == [1, 2] and torch.equal(loaded["tensor"], torch.arange(3))
    manifest = read_manifest(path)
    assert (manifest["step"], manifest["config"], manifest["torch"]) == (
        40,
        {"training": {"lr": 1e-3}},
        torch.__version__,
    )
    assert not list(tmp_path.glob(".*"))


def test_a_run_folder_stands_for_its_newest_checkpoint(tmp_path) -> None:
    first, second = save(tmp_path, 9, 10)
    assert weights_digest(tmp_path) == weights_digest(second) != weights_digest(first)
    assert weights_digest(second) == read_manifest(second)["sha256"]["model.safetensors"]


@pytest.mark.parametrize("harm", ["truncated", "flipped", "missing", "unfinished", "empty manifest"])
def test_a_damaged_newest_checkpoint_falls_back_loudly(harm: str, tmp_path, caplog) -> None:
    older, newer = save(tmp_path, 1, 2)
    weights = newer / "model.safetensors"
    content = bytearray(weights.read_bytes())
    if harm == "truncated":
        weights.write_bytes(content[:-5])
    elif harm == "flipped":
        content[-1] ^= 1
        weights.write_bytes(content)
    elif harm == "missing":
        (newer / "training_state.pt").unlink()
    elif harm == "unfinished":
        (newer / "checkpoint.json").unlink()
    else:
        (newer / "checkpoint.json").write_text("")
    with caplog.at_level(logging.ERROR):
        assert newest_checkpoint(tmp_path) == older
    assert str(newer) in caplog.text and "damaged" in caplog.text
    if harm != "missing":
        with pytest.raises(CheckpointError, match="damaged"):
            load_weights(newer)


def test_a_checkpoint_without_training_state_gives_its_weights_but_is_not_gone_on_from(tmp_path) -> None:
    older, newer = save(tmp_path, 1, 2)
    (newer / "training_state.pt").unlink()
    assert newest_checkpoint(tmp_path) == older
    for path in (newer, tmp_path):
        assert weights_digest(path) == read_manifest(newer)["sha256"]["model.safetensors"]
        assert load_weights(path).keys() == {"weight", "bias"}


def test_a_file_that_cannot_be_read_is_damage_too(tmp_path, monkeypatch) -> None:
    older, newer = save(tmp_path, 1, 2)

    def broken_disk(path: Path) -> str:
        if newer in path.parents:
            raise OSError(5, "Input/output error")
        return sha256(path)

    monkeypatch.setattr("src.checkpoint.sha256", broken_disk)
    assert newest_checkpoint(tmp_path) == older


@pytest.mark.parametrize("digests", [[], {}, {"../outside": "0"}])
def test_a_manifest_that_does_not_vouch_for_the_files_is_damage(digests: object, tmp_path) -> None:
    (path,) = save(tmp_path, 1)
    manifest = json.loads((path / "checkpoint.json").read_text())
    (path / "checkpoint.json").write_text(json.dumps(manifest | {"sha256": digests}))
    assert "sha256 must give the digests" in damage(path)


def test_no_checkpoints_is_a_fresh_start_but_only_damaged_ones_are_an_error(tmp_path) -> None:
    assert newest_checkpoint(tmp_path / "new") is None
    assert newest_checkpoint(tmp_path) is None
    (path,) = save(tmp_path, 3)
    (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="all 1 checkpoints are damaged"):
        newest_checkpoint(tmp_path)


# ----------------------------------------------------------------------------------------------- files of others


def published(state: dict[str, Tensor], path: Path, form: str) -> Path:
    """Write tensors as the published trainers do."""
    if form == "model":
        content = {"model": state, "optimizer": {"state": {}, "param_groups": []}, "param_update_step": 7}
    elif form == "state_dict":
        content = {"state_dict": state, "epoch": 3, "pytorch-lightning_version": "2.0"}
    else:
        content = dict(state)
    torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    return path


@pytest.mark.parametrize("form", ["model", "state_dict", "plain", "legacy"])
def test_published_forms_load(form: str, tmp_path) -> None:
    model = lvsm()
    path = published(model.state_dict(), tmp_path / "lvsm.pt", form)
    target = lvsm()
    report = load_into(target, load_weights(path), path)
    assert report.loaded == len(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), target.state_dict().values()))


def test_loss_network_is_ignored_and_wrapper_names_are_taken_out_and_both_reported(tmp_path, caplog) -> None:
    model = lvsm()
    state = {f"module._orig_mod.{n}": t for n, t in model.state_dict().items()}
    state |= {
        f"loss_computer.perceptual_loss_module.vgg.features.{i}.weight": torch.zeros(1) for i in range(3)
    }
    with caplog.at_level(logging.INFO, "src.checkpoint"):
        report = load_into(lvsm(), load_weights(published(state, tmp_path / "a.pt", "model")), "a.pt")
    assert report.ignored == {"loss_computer.": 3}
    assert report.renamed == {"module": len(model.state_dict()), "_orig_mod": len(model.state_dict())}
    assert "ignored 3 under loss_computer." in caplog.text
    assert "a.pt" in caplog.text


def test_wrappers_inside_a_name_are_taken_out() -> None:
    model = lvsm()
    state = {
        n.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."): t
        for n, t in model.state_dict().items()
    }
    assert load_into(lvsm(), state, "x").renamed["_checkpoint_wrapped_module"] > 0


def test_safetensors_load(tmp_path) -> None:
    model = lvsm()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "m.safetensors")
    load_into(lvsm(), load_weights(tmp_path / "m.safetensors"), "m")


def test_a_tied_tensor_may_stand_under_one_name_or_both_but_not_differ() -> None:
    model = Tied()
    state = model.state_dict()
    one_name = {n: t for n, t in state.items() if not n.startswith("second")}
    for given in (state, one_name):
        other = Tied()
        load_into(other, dict(given), "tied.pt")
        assert torch.equal(other.second.weight, model.first.weight)
        assert other.second.weight is other.first.weight
    with pytest.raises(CheckpointError, match=r"first.weight and second.weight differ"):
        load_into(Tied(), state | {"second.weight": torch.zeros(2, 3)}, "tied.pt")


class Opens:
    """Unpickling this makes a folder: what a malicious checkpoint would do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["model", "legacy"])
def test_a_pickle_with_code_is_refused_and_does_not_run(form: str, tmp_path) -> None:
    trap = tmp_path / "ran"
    path = published({"a": torch.zeros(1), "b": Opens(trap)}, tmp_path / "evil.pt", form)
    with pytest.raises(
        CheckpointError, match=r"evil.pt is refused: it holds posix.mkdir.*\.safetensors"
    ) as error:
        load_weights(path)
    assert not trap.exists()
    assert "\n" not in str(error.value)


def test_pickles_are_not_opened_by_a_torch_that_they_can_lead_astray(tmp_path, monkeypatch) -> None:
    path = published(lvsm().state_dict(), tmp_path / "lvsm.pt", "model")
    safetensors.torch.save_file(lvsm().state_dict(), tmp_path / "lvsm.safetensors")
    for version, refused in (("2.9.1", True), ("2.10.0", False), ("2.14.1+cpu", False)):
        monkeypatch.setattr(torch, "__version__", TorchVersion(version))
        if refused:
            with pytest.raises(CheckpointError, match=r"lvsm.pt is not opened by torch 2.9.1.*2.10 or newer"):
                load_weights(path)
        else:
            load_weights(path)
        load_weights(tmp_path / "lvsm.safetensors")


@pytest.mark.parametrize("name", ["a.pt", "b.safetensors"])
@pytest.mark.parametrize("cut", [0.0, 0.5, 0.98])
def test_a_cut_off_file_is_called_damaged(name: str, cut: float, tmp_path) -> None:
    path, state = tmp_path / name, {"w": torch.randn(50, 50)}
    if name == "a.pt":
        torch.save({"model": state}, path)
    else:
        safetensors.torch.save_file(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * cut)])
    with pytest.raises(CheckpointError, match=f"{name} is damaged") as error:
        load_weights(path)
    assert "\n" not in str(error.value)


def test_what_holds_no_weights_is_refused(tmp_path) -> None:
    torch.save({"epoch": 3}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a.pt holds no tensors by name.*\(epoch\)"):
        load_weights(tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_weights(tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match=r"Name one of its files: a.pt"):
        load_weights(tmp_path)


def test_weights_with_nan_are_refused() -> None:
    state = lvsm().state_dict()
    state["image_token_decoder.1.weight"][0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"image_token_decoder.1.weight holds NaN"):
        load_into(lvsm(), state, "bad.pt")


# ----------------------------------------------------------------------------------------------- misfits


def test_the_wrong_number_of_layers_is_named_with_the_setting_that_fits() -> None:
    with pytest.raises(CheckpointError) as error:
        load_into(lvsm(n_layer=2), lvsm(n_layer=4).state_dict(), "lvsm.pt")
    assert (
        "lvsm.pt has transformer_blocks 0-3, the config makes 0-1: set model.transformer.n_layer: 4."
        in str(error.value)
    )
    assert "16 tensors are unexpected: transformer_blocks.2.attn.fc.weight" in str(error.value)


def test_other_widths_and_patches_are_named_with_the_settings_that_fit() -> None:
    with pytest.raises(CheckpointError) as error:
        load_into(lvsm(d=64, patch=8, d_head=32), lvsm(d=32, patch=4, d_head=16).state_dict(), "lvsm.pt")
    for setting in (
        "transformer.d: 32 (not 64)",
        "transformer.d_head: 16 (not 32)",
        "image_tokenizer.patch_size: 4 (not 8)",
    ):
        assert f"model.{setting}" in str(error.value)
    assert "have another shape" in str(error.value)


def test_a_missing_and_a_foreign_tensor_are_named() -> None:
    state = lvsm().state_dict()
    state["surprise"] = state.pop("transformer_input_layernorm.weight")
    with pytest.raises(
        CheckpointError, match=r"1 tensors are missing: transformer_input_layernorm.weight"
    ) as error:
        load_into(lvsm(), state, "lvsm.pt")
    assert "1 tensors are unexpected: surprise." in str(error.value)


def test_a_file_of_another_family_is_recognised() -> None:
    found = {"transformer_encoder.0.norm1.weight": (8,), "transformer_decoder.0.norm1.weight": (8,)}
    message = explain_misfit(found, shapes(lvsm().state_dict()), "x.pt")
    assert "x.pt has transformer_encoder, which this family has not: set another model.class_name." in message


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        (
            "lvsm/manifest_scene_decoder_only_256",
            {"n_layer": 24, "d": 768, "d_head": 64, "patch_size": 8, "use_qk_norm": True},
        ),
        (
            "lvsm/manifest_scene_encoder_decoder_256",
            {"encoder_n_layer": 12, "decoder_n_layer": 12, "d": 768, "d_head": 64, "patch_size": 8}
            | {"n_latent_vectors": 3072, "use_qk_norm": True},
        ),
        (
            "uplvsm/manifest_uplvsm_x224",
            {"encoder_n_layer": 6, "estimator_n_layer": 4, "decoder_n_layer": 14, "d": 768, "d_head": 64}
            | {
                "n_latent_vectors": 1024,
                "patch_size": 14,
                "use_qk_norm": True,
                "dino_qknorm": True,
                "depth": 12,
            }
            | {"embed_dim": 768, "num_heads": 12, "img_size": 518, "num_register_tokens": 4, "mlp_ratio": 4},
        ),
        ("uplvsm/manifest_ptlvsm_x224", {"n_layer": 24, "d": 768, "patch_size": 14, "depth": 12}),
    ],
)
def test_sizes_are_read_off_the_tensors_of_published_files(
    manifest: str, expected: dict, shared: Path
) -> None:
    content = json.loads((shared / "parity" / f"{manifest}.json").read_text())
    found = sizes_of({name: tuple(shape) for name, shape in content.items()})
    by_name = {setting.rpartition(".")[2]: value for setting, value in found.items()}
    assert expected.items() <= by_name.items()


@pytest.mark.parametrize(
    ("manifest", "config", "ignored"),
    [
        ("lvsm/manifest_scene_decoder_only_256", "lvsm_decoder_only_256", 0),
        ("lvsm/manifest_scene_encoder_decoder_256", "lvsm_encoder_decoder_256", 0),
        ("lvsm/manifest_scene_decoder_only_12layer", "lvsm_decoder_only_1gpu", 0),
        ("uplvsm/manifest_uplvsm_x224", "uplvsm_x224", 66),
        ("uplvsm/manifest_uplvsm_x518", "uplvsm_x518", 66),
        ("uplvsm/manifest_ptlvsm_x224", "ptlvsm_x224", 66),
    ],
)
def test_the_config_of_every_published_file_makes_exactly_its_tensors(
    manifest: str, config: str, ignored: int, shared: Path, repo_root: Path
) -> None:
    model_config = load_config(repo_root / "config" / f"{config}.yaml", [], family_config).model
    with torch.device("meta"):
        model = build_model(model_config)
        content = json.loads((shared / "parity" / f"{manifest}.json").read_text())
        state = {name: torch.empty(shape) for name, shape in content.items()}
    clean, report = clean_names(state, manifest)
    assert explain_misfit(shapes(clean), shapes(model.state_dict()), manifest) == ""
    assert report.ignored.total() == ignored and not report.renamed


def test_the_inspecting_script_prints_settings_that_fit(tmp_path, capsys) -> None:
    model = lvsm(n_layer=3, d=64, patch=4, d_head=32)
    path = save_checkpoint(tmp_path, 7, model.state_dict(), {}, {"model": {"class_name": DECODER_ONLY}})
    assert info.main([str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"model.class_name={DECODER_ONLY}" in lines and "model.transformer.n_layer=3" in lines
    assert "model.image_tokenizer.patch_size=4" in lines and "model.transformer.use_qk_norm=true" in lines
    assert info.main([str(tmp_path / "absent.pt")]) == 2


# ----------------------------------------------------------------------------------------------- pretrained parts


@pytest.fixture
def uplvsm() -> nn.Module:
    """A tiny UP-LVSM with QK norm in its backbone."""
    tree = {
        "class_name": UPLVSM,
        "image_tokenizer": {
            "image_size": 28,
            "patch_size": 14,
            "backbone": {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 42},
        },
        "target_pose_tokenizer": {"patch_size": 14},
        "transformer": {"d": 32, "d_head": 16, "encoder_n_layer": 1, "estimator_n_layer": 1}
        | {"decoder_n_layer": 1, "n_latent_vectors": 4, "use_qk_norm": True},
    }
    return build_model(config_from_tree({"model": tree}, family_config).model)


def dinov2_file(model: nn.Module, path: Path) -> dict[str, Tensor]:
    """A file as Meta publishes it: no QK norm gains, one mask token more."""
    prefix = model.pretrained_parts["dinov2"]
    state = {
        n.removeprefix(prefix): torch.randn_like(t)
        for n, t in model.state_dict().items()
        if n.startswith(prefix)
    }
    state = {n: t for n, t in state.items() if not n.endswith(("q_norm.weight", "k_norm.weight"))}
    state["mask_token"] = torch.zeros(1, 32)
    torch.save(state, path)
    return state


def test_a_pretrained_backbone_fills_its_part_alone(uplvsm: nn.Module, tmp_path) -> None:
    before = {name: tensor.clone() for name, tensor in uplvsm.state_dict().items()}
    given, prefix = dinov2_file(uplvsm, tmp_path / "dino.pth"), uplvsm.pretrained_parts["dinov2"]
    load_pretrained_part(uplvsm, prefix, tmp_path / "dino.pth", "dinov2")
    for name, tensor in uplvsm.state_dict().items():
        part = name.removeprefix(prefix)
        expected = given[part] if name.startswith(prefix) and part in given else before[name]
        assert torch.equal(tensor, expected), name


def test_a_pretrained_file_that_is_absent_or_does_not_fit_is_an_error_with_the_remedy(
    uplvsm: nn.Module, tmp_path
) -> None:
    path, prefix = tmp_path / "dino.pth", uplvsm.pretrained_parts["dinov2"]
    with pytest.raises(CheckpointError, match=r"python -m scripts.download_weights dinov2.*=random"):
        load_pretrained_part(uplvsm, prefix, path, "dinov2")
    state = dinov2_file(uplvsm, path)
    del state["norm.bias"]
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"1 tensors are missing: image_tokenizer.1.dino_vit.norm.bias"):
        load_pretrained_part(uplvsm, prefix, path, "dinov2")
