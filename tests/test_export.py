"""Weights go from one form of file to another and back without a change, strictly, and never run code."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import safetensors
import torch
from test_checkpoint import DECODER_ONLY, Opens, lvsm, published
from torch import Tensor, nn

from scripts.export_weights import main
from src.checkpoint import load_into, load_weights, weights_digest
from src.model import build_model, family_config
from src.saving import save_checkpoint
from src.settings import config_from_tree, load_config, to_plain

SIZES = {"d": 32, "d_head": 16, "n_layer": 2, "use_qk_norm": True}
MODEL = {
    "class_name": DECODER_ONLY,
    "image_tokenizer": {"image_size": 16, "patch_size": 8},
    "target_pose_tokenizer": {"patch_size": 8},
    "transformer": SIZES,
}


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, nn.Module]:
    """A run folder with one checkpoint, and the model that is in it."""
    config, model = config_from_tree({"model": MODEL}, family_config), lvsm()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    averages = {name: tensor + 1 for name, tensor in weights.items()}
    state = {"ema": {"updates": 3, "averages": averages}}
    save_checkpoint(tmp_path / "run", 40, weights, state, to_plain(config))
    return tmp_path / "run", model


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def export(*words: str | Path) -> int:
    return main([str(word) for word in words])


def test_a_run_goes_to_safetensors_to_pt_and_back_without_a_change(run, tmp_path) -> None:
    folder, model = run
    first, second, third = (tmp_path / name for name in ("a.safetensors", "b.pt", "c.safetensors"))
    assert export(folder, first) == export(first, second) == export(second, third) == 0
    for path in (first, second, third):
        assert equal(load_weights(path), dict(model.state_dict()))
        target = build_model(load_config(path.with_suffix(".json"), [], family_config).model)
        assert load_into(target, load_weights(path), path).loaded == len(model.state_dict())
    assert equal(torch.load(second, weights_only=True)["model"], dict(model.state_dict()))
    assert json.loads(first.with_suffix(".json").read_text()).keys() == {"model", "training"}
    with safetensors.safe_open(first, "pt") as file:
        about = file.metadata()
    assert (about["step"], about["sha256"]) == ("40", weights_digest(folder))
    assert not list(tmp_path.glob(".*"))


def test_a_checkpoint_folder_and_its_run_give_the_same_file(run, tmp_path) -> None:
    folder, _ = run
    assert export(folder, tmp_path / "a.safetensors") == 0
    assert export(folder / f"ckpt_{40:016d}", tmp_path / "b.safetensors") == 0
    assert equal(load_weights(tmp_path / "a.safetensors"), load_weights(tmp_path / "b.safetensors"))


@pytest.mark.parametrize("form", ["model", "state_dict", "plain", "legacy"])
def test_published_forms_go_to_safetensors_without_wrappers_and_loss_networks(
    form: str, tmp_path, capsys
) -> None:
    model = lvsm()
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    state["loss_computer.vgg.weight"] = torch.zeros(3)
    path = published(state, tmp_path / ("lvsm.ckpt" if form == "state_dict" else "lvsm.pt"), form)
    (tmp_path / "lvsm.yaml").write_text(json.dumps({"model": MODEL}))
    assert export(path, tmp_path / "out.safetensors", "--config", tmp_path / "lvsm.yaml") == 0
    assert equal(load_weights(tmp_path / "out.safetensors"), dict(model.state_dict()))
    told = capsys.readouterr().out
    assert "left out: 1 tensors under loss_computer." in told
    assert f"module. taken out of {len(model.state_dict())} names" in told


def test_without_a_config_names_stay_and_the_user_is_told(tmp_path, capsys) -> None:
    state = {"module.anything": torch.randn(3), "count": torch.tensor(4)}
    torch.save({"model": state}, tmp_path / "foreign.pt")
    assert export(tmp_path / "foreign.pt", tmp_path / "out.safetensors", "--dtype", "bf16") == 0
    written = load_weights(tmp_path / "out.safetensors")
    assert equal(written, {"anything": state["module.anything"].bfloat16(), "count": state["count"]})
    assert "not compared with any model" in capsys.readouterr().out
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("dtype", "kind"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)]
)
def test_numbers_are_rounded_to_the_type_asked_for(run, dtype: str, kind: torch.dtype, tmp_path) -> None:
    folder, model = run
    assert export(folder, tmp_path / "a.safetensors", "--dtype", dtype) == 0
    expected = {name: tensor.to(kind) for name, tensor in model.state_dict().items()}
    assert equal(load_weights(tmp_path / "a.safetensors"), expected)
    load_into(lvsm(), load_weights(tmp_path / "a.safetensors"), "a")


def test_running_averages_are_exported_on_request(run, tmp_path) -> None:
    folder, model = run
    assert export(folder, tmp_path / "a.safetensors", "--averaged") == 0
    assert equal(load_weights(tmp_path / "a.safetensors"), {n: t + 1 for n, t in model.state_dict().items()})


def test_tensors_in_the_same_memory_are_written_apart(tmp_path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    state = {"a": base, "b": base, "transposed": base.t(), "part": base[1:]}
    torch.save({"model": state}, tmp_path / "a.pt")
    assert export(tmp_path / "a.pt", tmp_path / "b.safetensors") == 0
    assert equal(
        load_weights(tmp_path / "b.safetensors"), {name: t.contiguous() for name, t in state.items()}
    )


def refused(capsys: pytest.CaptureFixture, *words: str | Path) -> str:
    """The one line on which an export is refused."""
    assert export(*words) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("error: ") and "\n" not in told
    return told


def test_what_does_not_fit_is_refused_and_nothing_is_written(run, tmp_path, capsys) -> None:
    folder, model = run
    out = tmp_path / "out.safetensors"
    (tmp_path / "deep.yaml").write_text(
        json.dumps({"model": MODEL | {"transformer": SIZES | {"n_layer": 3}}})
    )
    assert "set model.transformer.n_layer: 2" in refused(
        capsys, folder, out, "--config", tmp_path / "deep.yaml"
    )
    large = {name: tensor * 0 + 1e6 for name, tensor in model.state_dict().items()}
    torch.save({"model": large}, tmp_path / "large.pt")
    assert "in fp16: " in refused(capsys, tmp_path / "large.pt", out, "--dtype", "fp16")
    torch.save({"model": {"a": torch.zeros(1), "b": Opens(tmp_path / "ran")}}, tmp_path / "evil.pt")
    assert "it holds posix.mkdir" in refused(capsys, tmp_path / "evil.pt", out)
    assert not (tmp_path / "ran").exists()
    assert "must end in .safetensors or .pt" in refused(capsys, folder, tmp_path / "out.bin")
    assert "no such checkpoint" in refused(capsys, tmp_path / "absent", out)
    assert "name another one" in refused(capsys, tmp_path / "large.pt", tmp_path / "large.pt")
    assert "no averaged weights" in refused(capsys, tmp_path / "large.pt", out, "--averaged")
    assert "need a --config" in refused(capsys, tmp_path / "large.pt", out, "model.transformer.d=8")
    assert not out.exists() and not list(tmp_path.glob(".*"))


def test_a_file_that_cannot_be_written_leaves_the_old_one(run, tmp_path, capsys, monkeypatch) -> None:
    folder, _ = run
    out = tmp_path / "out.safetensors"
    assert export(folder, out) == 0
    before = out.read_bytes()

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    assert "No space left" in refused(capsys, folder, out, "--dtype", "bf16")
    assert out.read_bytes() == before and not list(tmp_path.glob(".*"))
