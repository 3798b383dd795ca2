"""Whole runs of MV-LDM with a tiny autoencoder: steps that do not depend on how samples are shared out, and scores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from tiny_run import largest_difference, losses, write_config, write_scenes

from scripts import encode_latents
from src import inference_fast, train
from src.model.vae import ImageCodec, Vae
from src.vae_files import save_vae

CODEC = {"name": "tiny", "architecture": {"block_out_channels": [8, 8, 8], "norm_num_groups": 4}}
MODEL = {
    "class_name": "src.model.mvldm.MVLDM",
    "image_size": 16,
    "vae": CODEC,
    "denoiser": {
        "block_out_channels": [16],
        "down_block_types": ["DownBlock2D"],
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": ["UpBlock2D"],
        "layers_per_block": 1,
        "num_heads": 2,
        "norm_num_groups": 4,
        "multi_view_attention": {"name": "standard", "num_heads": 2, "num_layers": 1},
    },
    "scheduler": {"num_inference_steps": 2},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mvldm")
    write_scenes(folder, num_frames=8)
    save_vae(ImageCodec(Vae(**CODEC)), folder / "vae")
    return folder


def config_of(root: Path, name: str, **training: object) -> str:
    settings = {
        "image_shape": [16, 16], "square_crop": False, "pose_frame": "none", "make_baseline_1": True, "num_views": 5,
        "num_target_views": 3, "target_has_input": False, "view_selector": {"min_frame_dist": 5, "max_frame_dist": 7},
        "batch_size_per_gpu": 4, "train_steps": 4, "ema_decay": 0.9, "keep_checkpoints": 0,
    }  # fmt: skip
    path = write_config(root / f"{name}.yaml", root / "train", root / name, **(settings | training))
    tree = yaml.safe_load(path.read_text())
    tree["model"] = MODEL
    tree["pretrained"] = {"vae": str(root / "vae")}
    tree["inference"] |= {"inference_out_dir": str(root / f"{name}_out"), "metrics": ["psnr"]}
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def test_the_same_samples_make_the_same_steps_however_they_are_accumulated(root: Path) -> None:
    """Choices and noise belong to the sample: not to the batch, the process or torch's global generator."""
    assert train.main(["--config", config_of(root, "whole")]) == 0
    assert train.main(["--config", config_of(root, "halves", batch_size_per_gpu=2, grad_accum_steps=2)]) == 0
    whole, halves = losses(root / "whole"), losses(root / "halves")
    assert whole == pytest.approx(halves, rel=1e-4)
    assert largest_difference(root / "whole", root / "halves") < 2e-4
    assert train.main(["--config", config_of(root, "other", seed=5)]) == 0
    assert losses(root / "other") != pytest.approx(whole, rel=1e-2)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(root: Path) -> None:
    assert train.main(["--config", config_of(root, "straight")]) == 0
    first = f"ckpt_{2:016d}"
    shutil.copytree(root / "straight" / first, root / "resumed" / first)
    assert train.main(["--config", config_of(root, "resumed")]) == 0
    assert largest_difference(root / "straight", root / "resumed") == 0


def test_it_learns_from_latents_computed_beforehand_and_is_scored_alike_each_time(root: Path) -> None:
    config = config_of(
        root, "run", train_steps=60, checkpoint_every=60, lr=5e-3, vae_latents="vae_latents", vis_every=60
    )
    assert encode_latents.main(["--config", config, "--dtype", "float32"]) == 0
    assert train.main(["--config", config]) == 0
    found = losses(root / "run")
    assert sum(found[step] for step in range(51, 61)) < 0.9 * sum(found[step] for step in range(1, 11))
    assert list((root / "run" / "iter_00000060").glob("supervision_*.jpg"))
    scores = []
    for words in ([], ["training.batch_size_per_gpu=1"], ["inference.sampling_seed=3"]):
        assert inference_fast.main(["--config", config, *words]) == 0
        scores.append(json.loads((root / "run_out" / "scores.json").read_text()))
    assert scores[0]["headline"]["psnr"] == pytest.approx(scores[1]["headline"]["psnr"], abs=1e-3)
    assert scores[0]["headline"]["psnr"] != pytest.approx(scores[2]["headline"]["psnr"], abs=1e-6)
    assert scores[0]["terms"]["denoising_loss"] > 0
