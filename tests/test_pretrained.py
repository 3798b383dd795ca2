"""A model goes into one folder in the form of the hub and comes out of it by name, ready and unchanged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_export import MODEL, equal
from torch import nn

import src
from scripts import export_weights, info
from src.checkpoint import CheckpointError
from src.config import ConfigError
from src.explore.open_model import open_model
from src.export import PREPARATION
from src.geometry.camera import Cameras, Views
from src.model import build_model, family_config
from src.pretrained import from_pretrained, pretrained_config
from src.saving import save_checkpoint
from src.settings import Training, config_from_tree, load_config, to_plain

TRAINING = {
    "num_views": 5,
    "num_input_views": 3,
    "num_target_views": 2,
    "pose_norm": "context",
    "dataset_path": "../../secret",
    "use_amp": False,
}


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, nn.Module]:
    """A run folder with one checkpoint of an LVSM, and the model."""
    config = config_from_tree({"model": MODEL, "training": TRAINING}, family_config)
    torch.manual_seed(3)
    model = build_model(config.model).eval()
    save_checkpoint(tmp_path / "run", 40, model.state_dict(), {}, to_plain(config))
    return tmp_path / "run", model


@pytest.fixture
def hub(run, tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-lvsm"
    assert export_weights.main([str(run[0]), str(folder), "--to-hub", "--license", "cc0-1.0"]) == 0
    return folder


def rendered(model: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    cameras = Cameras(torch.eye(4).repeat(1, 2, 1, 1), torch.tensor([16.0, 16, 8, 8]).repeat(1, 2, 1), 16, 16)
    context = Views(torch.rand(1, 2, 3, 16, 16, generator=generator), cameras)
    with torch.inference_mode():
        return model.render(model.encode(context), cameras, 1)


def test_what_comes_out_renders_what_went_in(run, hub) -> None:
    model = src.from_pretrained(hub)
    assert equal(dict(model.state_dict()), dict(run[1].state_dict())) and not model.training
    assert torch.equal(rendered(model), rendered(run[1]))


@pytest.mark.parametrize("form", ["run", "checkpoint", "file"])
def test_every_form_that_knows_its_config_opens_by_itself(form: str, run, tmp_path) -> None:
    source = {"run": run[0], "checkpoint": run[0] / f"ckpt_{40:016d}", "file": tmp_path / "x.safetensors"}[
        form
    ]
    if form == "file":
        assert export_weights.main([str(run[0]), str(source)]) == 0
    assert torch.equal(rendered(from_pretrained(source)), rendered(run[1]))


def test_the_folder_says_how_photos_are_prepared_and_nothing_of_the_machine(hub) -> None:
    tree = json.loads((hub / "config.json").read_text())
    assert tree.keys() == {"model", "training"} and set(tree["training"]) == set(PREPARATION)
    config = pretrained_config(hub, ["training.pose_frame=none"])
    assert (config.training.num_input_views, config.training.pose_norm) == (3, "context")
    assert (config.training.dataset_path, config.training.pose_frame) == ("", "none")
    assert config.inference.checkpoint == str(hub / "model.safetensors")
    assert load_config(hub / "config.json", [], family_config).model == config.model


def test_every_setting_of_the_preparation_is_one(hub) -> None:
    assert set(PREPARATION) <= set(Training.__dataclass_fields__)


def test_sections_of_a_stranger_that_name_paths_are_not_read(hub) -> None:
    tree = json.loads((hub / "config.json").read_text())
    tree["training"]["checkpoint_dir"] = tree["inference"] = {"inference_out_dir": "/etc"}
    tree["training"]["dataset_path"] = "/etc"
    (hub / "config.json").write_text(json.dumps(tree))
    config = pretrained_config(hub)
    plain = config_from_tree({"model": MODEL}, family_config)
    assert (
        config.training.dataset_path == "" and config.training.checkpoint_dir == plain.training.checkpoint_dir
    )
    assert config.inference.inference_out_dir == plain.inference.inference_out_dir


def test_a_card_that_was_written_by_hand_stays(run, hub) -> None:
    text = (hub / "README.md").read_text()
    assert (
        "license: cc0-1.0" in text
        and "Images2LatentScene" in text
        and "3 input views, after 40 steps" in text
    )
    (hub / "README.md").write_text("mine")
    assert export_weights.main([str(run[0]), str(hub), "--to-hub"]) == 0
    assert (hub / "README.md").read_text() == "mine"


def test_a_hub_folder_is_a_source_too(run, hub, tmp_path) -> None:
    assert export_weights.main([str(hub), str(tmp_path / "back.pt")]) == 0
    assert torch.equal(rendered(from_pretrained(tmp_path / "back.pt")), rendered(run[1]))


def test_scores_stand_in_the_card_beside_their_floors(run, tmp_path) -> None:
    floors = {"mean_colour": {"mean_over_scenes": {"psnr": 9.5}}}
    report = {"headline": {"psnr": 21.25}, "floors": floors, "counts": {"evaluated": 24}}
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps(report | {"protocol": {"index_file": "a/index.json"}}))
    words = [str(run[0]), str(tmp_path / "scored"), "--to-hub", "--scores", str(scores)]
    assert export_weights.main(words) == 0
    card = (tmp_path / "scored" / "README.md").read_text()
    assert "| this model | 21.250 |" in card and "| mean colour | 9.500 |" in card and "`index.json`" in card
    scores.write_text("[]")
    assert (
        export_weights.main([str(run[0]), str(tmp_path / "other"), "--to-hub", "--scores", str(scores)]) == 2
    )


def test_an_id_of_the_hub_is_fetched_without_anything_else(hub, monkeypatch) -> None:
    asked = []

    def snapshot_download(repository: str, **how) -> str:
        asked.append((repository, how))
        return str(hub)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert isinstance(from_pretrained("someone/tiny-lvsm@v1.0"), nn.Module)
    assert asked == [
        ("someone/tiny-lvsm", {"revision": "v1.0", "allow_patterns": ["config.json", "model.safetensors"]})
    ]
    assert open_model("", "someone/tiny-lvsm", []).model is not None
    (hub / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        from_pretrained("someone/tiny-lvsm")


def test_the_hub_out_of_reach_says_what_to_do_by_hand(monkeypatch) -> None:
    def snapshot_download(repository: str, **how) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(
        CheckpointError, match=r"huggingface\.co/a/b could not be fetched \(no route\)\. Download"
    ):
        from_pretrained("a/b")


@pytest.mark.parametrize("source", ["absent", "a/b/c", "../up", "/nowhere/at/all"])
def test_what_is_neither_a_file_nor_an_id_is_refused(source: str) -> None:
    with pytest.raises(CheckpointError, match="neither there nor an id"):
        from_pretrained(source)


def test_foreign_files_are_refused_in_one_line(hub, tmp_path) -> None:
    shutil.copy(hub / "model.safetensors", tmp_path / "alone.safetensors")
    with pytest.raises(CheckpointError, match=r"alone\.safetensors comes without its config"):
        from_pretrained(tmp_path / "alone.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds neither"):
        from_pretrained(tmp_path / "empty")
    (hub / "config.json").write_text('{"architectures": ["Bert"]}')
    with pytest.raises(ConfigError, match="no section `model`"):
        from_pretrained(hub)
    (hub / "config.json").write_text('{"model"')
    with pytest.raises(ConfigError, match="no JSON"):
        from_pretrained(hub)


def test_weights_of_an_unknown_model_do_not_become_a_hub_folder(run, hub, tmp_path, capsys) -> None:
    shutil.copy(hub / "model.safetensors", tmp_path / "alone.safetensors")
    assert export_weights.main([str(tmp_path / "alone.safetensors"), str(tmp_path / "out"), "--to-hub"]) == 2
    assert "name its config with --config" in capsys.readouterr().err
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_info_names_family_size_parts_and_step(run, hub, capsys) -> None:
    numbers = sum(tensor.numel() for tensor in run[1].state_dict().values())
    for path in (run[0], run[0] / f"ckpt_{40:016d}", hub, hub / "model.safetensors"):
        assert info.main([str(path)]) == 0
        text = capsys.readouterr().out
        assert f"{numbers:,} numbers ({numbers:,} float32)" in text
        assert f"model.class_name={MODEL['class_name']}" in text and "model.transformer.n_layer=2" in text
        assert ("at step 40" in text) == ("run" in path.parts)


def test_info_points_at_numbers_that_are_none(run, tmp_path, capsys) -> None:
    state = dict(run[1].state_dict())
    name = next(iter(state))
    torch.save({"model": state | {name: torch.full_like(state[name], torch.nan)}}, tmp_path / "bad.pt")
    assert info.main([str(tmp_path / "bad.pt")]) == 0
    assert f"NOT FINITE: 1 tensors, first {name}" in capsys.readouterr().out


def test_it_takes_no_more_than_the_installed_package_asks_for(hub, repo_root) -> None:
    """`pip install .` brings what pyproject.toml lists; everything else is for training and scoring."""
    others = (
        "cv2",
        "lpips",
        "skimage",
        "PIL",
        "scipy",
        "imageio",
        "diffusers",
        "tensorboard",
        "wandb",
        "torchvision",
        "tqdm",
    )
    code = f"import sys\nsys.modules.update(dict.fromkeys({others!r}))\nimport src\nsrc.from_pretrained({str(hub)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=repo_root, check=True)
