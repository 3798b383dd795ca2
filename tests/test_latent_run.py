"""Whole runs of a latent model with a tiny autoencoder: training, latents computed beforehand, adapters, scoring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from tiny_run import losses, write_config, write_scenes

from scripts import encode_latents, lora
from src import inference_fast, train
from src.checkpoint import load_weights, newest_checkpoint
from src.data.batch import Batch, split_views
from src.data.loader import training_loader
from src.model import family_config
from src.model.vae import ImageCodec, Vae
from src.settings import load_config
from src.vae_files import save_vae

CLASS = "src.model.lvsm_latent.LVSM"
SMALL = {"block_out_channels": [8, 8, 8], "norm_num_groups": 4}
CODEC = {"name": "tiny", "architecture": SMALL}
ADAPTED = {
    "vae": {**CODEC, "latent_loss_weight": 0.0, "image_loss_weight": 1.0},
    "lora": {"Linear": {"lora_rank": 2}, "Conv2d": {"lora_rank": 2}},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with scenes in `train/` and an autoencoder in `vae/`."""
    write_scenes(tmp_path)
    save_vae(ImageCodec(Vae(**CODEC)), tmp_path / "vae")
    return tmp_path


def config_of(root: Path, name: str, model: dict | None = None, **training: Any) -> str:
    path = write_config(root / f"{name}.yaml", root / "train", root / name, **training)
    tree = yaml.safe_load(path.read_text())
    tree["model"] = {
        "class_name": CLASS,
        "image_size": 16,
        "patch_size": 2,
        "transformer": {
            "d_model": 32,
            "d_k": 16,
            "d_v": 16,
            "num_heads": 2,
            "d_ff": 64,
            "num_encoder_layers": 2,
        },
        "vae": CODEC,
        **(model or {}),
    }
    tree["pretrained"] = {"vae": str(root / "vae")}
    tree["inference"] |= {"inference_out_dir": str(root / f"{name}_out"), "metrics": ["psnr"]}
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def test_a_latent_model_learns_and_is_scored(root: Path) -> None:
    config = config_of(root, "run", train_steps=40, vis_every=20, checkpoint_every=20)
    assert train.main(["--config", config]) == 0
    found = losses(root / "run")
    assert sum(found[step] for step in range(36, 41)) < 0.9 * sum(found[step] for step in range(1, 6))
    assert list((root / "run" / "iter_00000040").glob("supervision_*.jpg"))
    assert inference_fast.main(["--config", config]) == 0
    first = json.loads((root / "run_out" / "scores.json").read_text())
    assert first["counts"]["evaluated"] == 6
    assert inference_fast.main(["--config", config, "training.seed=5"]) == 0  # no noise in evaluation
    assert json.loads((root / "run_out" / "scores.json").read_text())["headline"] == first["headline"]


def test_weights_of_the_autoencoder_are_read_from_their_folder_and_never_change(root: Path) -> None:
    config = config_of(root, "run", train_steps=2)
    assert train.main(["--config", config]) == 0
    given = safetensors.torch.load_file(root / "vae" / "diffusion_pytorch_model.safetensors")
    saved = load_weights(root / "run")
    assert all(torch.equal(saved[f"vae.vae.{name}"], tensor) for name, tensor in given.items())


def test_latents_computed_beforehand_reach_the_model(root: Path, capsys: pytest.CaptureFixture) -> None:
    config = config_of(root, "run", train_steps=2, vae_latents="vae_latents")
    assert train.main(["--config", config]) == 2
    assert "encode_latents" in capsys.readouterr().err
    assert encode_latents.main(["--config", config, "--dtype", "float32", "training.vae_latents="]) == 0
    batch = Batch(next(training_loader(load_config(config, [], family_config), rank=0, world=1)))
    assert batch.vae_latents.shape == (2, 4, 2, 4, 4, 4)
    input, target = split_views(batch, batch.num_input)
    assert torch.equal(input.posterior, batch.vae_latents[:, :2])
    assert target.posterior.shape == (2, 2, 2, 4, 4, 4)
    assert train.main(["--config", config]) == 0
    on_the_fly = config_of(root, "fly", train_steps=2)
    assert train.main(["--config", on_the_fly]) == 0
    assert losses(root / "run") == pytest.approx(losses(root / "fly"), rel=1e-4)


def test_latents_of_another_autoencoder_are_refused(root: Path, capsys: pytest.CaptureFixture) -> None:
    config = config_of(root, "run", train_steps=2)
    assert encode_latents.main(["--config", config]) == 0
    save_vae(ImageCodec(Vae(**CODEC)), root / "vae")
    assert train.main(["--config", config, "training.vae_latents=vae_latents"]) == 2
    assert "another autoencoder" in capsys.readouterr().err


def test_adapters_alone_learn_resume_and_merge_into_the_same_scores(root: Path) -> None:
    assert train.main(["--config", config_of(root, "plain", train_steps=2)]) == 0
    start = {"resume_ckpt": str(root / "plain"), "reset_training_state": True, "lr": 1e-2}
    straight = config_of(root, "straight", ADAPTED, train_steps=4, **start)
    assert train.main(["--config", straight]) == 0
    before, after = load_weights(root / "plain"), load_weights(root / "straight")
    for name, tensor in after.items():
        plain = name.replace("parametrizations.weight.original", "weight")
        if plain in before:
            assert torch.equal(tensor, before[plain]), name
    assert max(t.abs().max() for name, t in after.items() if name.endswith("lora_B")) > 0

    resumed = config_of(root, "resumed", ADAPTED, train_steps=4, **start)
    assert (
        train.main(["--config", resumed, "training.train_steps=2", "training.scheduler_type=constant"]) == 0
    )
    assert newest_checkpoint(root / "resumed").name.endswith("2")
    assert train.main(["--config", resumed, "training.scheduler_type=constant"]) == 0
    again = config_of(root, "again", ADAPTED, train_steps=4, scheduler_type="constant", **start)
    assert train.main(["--config", again]) == 0
    assert losses(root / "resumed") == losses(root / "again")

    merged, adapter = root / "merged.safetensors", root / "adapter.safetensors"
    common = ["--config", straight, "--checkpoint"]
    assert lora.main(["merge", *common, str(root / "straight"), "--output", str(merged)]) == 0
    assert lora.main(["export", *common, str(root / "straight"), "--output", str(adapter)]) == 0
    exported = safetensors.torch.load_file(adapter)
    assert all(name.endswith(("lora_A", "lora_B")) for name in exported)
    other = root / "other.safetensors"
    words = ["merge", *common, str(root / "plain"), "--adapter", str(adapter), "--output", str(other)]
    assert lora.main(words) == 0
    torch.testing.assert_close(safetensors.torch.load_file(other), safetensors.torch.load_file(merged))

    assert inference_fast.main(["--config", straight]) == 0
    assert inference_fast.main(["--config", config_of(root, "m"), f"inference.checkpoint={merged}"]) == 0
    scores = [
        json.loads((root / f"{n}_out" / "scores.json").read_text())["headline"] for n in ("straight", "m")
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_adapters_without_an_image_loss_are_refused(root: Path, capsys: pytest.CaptureFixture) -> None:
    assert train.main(["--config", config_of(root, "x", {**ADAPTED, "vae": CODEC})]) == 2
    assert "image_loss_weight" in capsys.readouterr().err
    assert train.main(["--config", config_of(root, "y", {"lora": ADAPTED["lora"], "vae": {}})]) == 2
    assert "model.vae.name" in capsys.readouterr().err
