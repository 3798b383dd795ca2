"""The weights that travel with the repository render rooms they have never seen, by the commands of the README."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from PIL import Image

from scripts import export_demo, make_synthetic
from src import inference
from src.model import build_model, family_config
from src.pretrained import from_pretrained, pretrained_config
from src.saving import save_checkpoint
from src.settings import load_config, to_plain

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "config" / "demo.yaml"
WEIGHTS = ROOT / "checkpoints" / "demo" / "model.safetensors"


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rooms")
    numbers = ["--train_scenes", "0", "--test_scenes", "2", "--num_processes", "1", "--seed", "5"]
    assert make_synthetic.main(["--output", str(folder), *numbers]) == 0
    return folder


def places(rooms: Path, output: Path) -> list[str]:
    return [
        f"training.eval_dataset_path={rooms / 'test'}",
        f"inference.view_idx_file_path={rooms / 'evaluation_index.json'}",
        f"inference.median_depth_path={rooms / 'test' / 'median_depth.json'}",
        f"inference.inference_out_dir={output}",
    ]


def test_the_file_is_as_small_as_its_card_says() -> None:
    with safetensors.safe_open(WEIGHTS, framework="pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
    assert {x.dtype for x in tensors} == {torch.bfloat16}
    count = sum(x.numel() for x in tensors)
    assert count <= 7_000_000 and WEIGHTS.stat().st_size <= 15 * 2**20
    card = WEIGHTS.with_name("README.md").read_text(encoding="utf-8")
    assert f"{count / 1e6:.2f} million parameters" in card and "plane" in card


def test_it_renders_rooms_it_has_not_seen(rooms: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    words = [*places(rooms, tmp_path), "inference.render_video_config.num_frames=3"]
    assert inference.main(["--config", str(CONFIG), *words]) == 0
    report = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert report["counts"]["evaluated"] == 2
    floors = {name: means["mean_over_scenes"]["psnr"] for name, means in report["floors"].items()}
    assert report["headline"]["psnr"] > floors["mean_of_inputs"] + 1
    for folder in sorted(tmp_path.glob("[0-9]*")):
        both = np.asarray(Image.open(folder / "gt_vs_pred.png"))
        assert both.shape[:2] == (2 * 64, 3 * 64)
        assert both[64:].std() > 10, "the render is flat"
        assert (folder / "rendered_video.mp4").stat().st_size > 0


def test_it_opens_by_the_name_of_its_folder() -> None:
    model, config = from_pretrained(WEIGHTS.parent), load_config(CONFIG, [], family_config)
    assert pretrained_config(WEIGHTS.parent).model == config.model
    assert sum(x.numel() for x in model.state_dict().values()) <= 7_000_000


def test_a_checkpoint_becomes_file_and_card_by_one_command(rooms: Path, tmp_path: Path, monkeypatch) -> None:
    """Scores in the card are those of the exported file; the made-up run here has random weights."""
    monkeypatch.chdir(ROOT)
    words = [
        *places(rooms, tmp_path / "out"),
        f"training.dataset_path={rooms / 'train'}",
        f"training.checkpoint_dir={tmp_path / 'run'}",
        f"inference.checkpoint={tmp_path / 'demo' / 'model.safetensors'}",
    ]
    config = load_config(CONFIG, words, family_config)
    torch.manual_seed(0)
    model = build_model(config.model)
    save_checkpoint(tmp_path / "run", 123, model.state_dict(), {}, to_plain(config))
    assert export_demo.main(["--config", str(CONFIG), "--hardware", "an abacus", *words]) == 0
    card = (tmp_path / "demo" / "README.md").read_text(encoding="utf-8")
    assert pretrained_config(tmp_path / "demo").model == config.model
    modes = {file.name: file.stat().st_mode for file in (tmp_path / "demo").iterdir()}
    assert len(set(modes.values())) == 1, "weights are as readable as the card"
    assert "123 steps" in card and "an abacus" in card and "(`--seed 5`" in card
    with safetensors.safe_open(tmp_path / "demo" / "model.safetensors", framework="pt") as file:
        for name, own in model.state_dict().items():
            assert torch.equal(file.get_tensor(name), own.to(torch.bfloat16))


def test_a_model_too_large_for_a_repository_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "run", 1, {"a": torch.zeros(2700, 2700)}, {}, {})
    with pytest.raises(ValueError, match="at most 7000000"):
        export_demo.export(tmp_path / "run" / "ckpt_0000000000000001", tmp_path / "model.safetensors")
