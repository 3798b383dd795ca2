"""A new model family is one module and one config: this one lives outside the tree and does the whole job."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from src import inference, inference_fast, train
from src.data.synthetic import SyntheticSet, write_set
from src.model import MODELS, register_family

FAMILY = '''
"""Throw-away family: every target pixel is a learned mixture of the mean colour of the context and of its ray."""

from dataclasses import dataclass

import torch
from torch import nn

from src.config import key
from src.geometry.camera import Cameras, Views, plucker
from src.model.base import ImageTokenizer, ViewSynthesizer


@dataclass(kw_only=True)
class Config:
    class_name: str = key("model family", "outside.Mixture")
    image_tokenizer: ImageTokenizer = key("size of the pictures")
    width: int = key("hidden units", 8, least=1)


class Mixture(ViewSynthesizer):
    def __init__(self, config):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(9, config.width), nn.GELU(), nn.Linear(config.width, 3), nn.Sigmoid())

    def encode(self, input: Views):
        return input.image.mean(dim=(1, 3, 4))  # [b, 3]

    def decode(self, scene, cameras: Cameras):
        rays = plucker(cameras).movedim(2, -1)  # [b, v, h, w, 6]
        colour = scene[:, None, None, None].expand(*rays.shape[:-1], 3)
        return self.net(torch.cat([rays, colour], dim=-1)).movedim(-1, 2)
'''

CONFIG = {
    "model": {
        "class_name": "outside.Mixture",
        "image_tokenizer": {"image_size": 16, "patch_size": 8},
        "width": 6,
    },
    "training": {
        "dataset_path": "data/train",
        "eval_dataset_path": "data/test",
        "num_views": 5,
        "num_target_views": 3,
        "view_selector": {"min_frame_dist": 4, "max_frame_dist": 5},
        "square_crop": True,
        "num_workers": 0,
        "batch_size_per_gpu": 2,
        "lr": "1e-2",
        "warmup": 0,
        "train_steps": 6,
        "perceptual_loss_weight": 0.0,
        "use_amp": False,
        "checkpoint_dir": "run",
        "checkpoint_every": 6,
        "eval_every": 6,
        "vis_every": 0,
    },
    "inference": {
        "view_idx_file_path": "data/evaluation_index.json",
        "inference_out_dir": "results",
        "metrics": ["psnr", "ssim"],
        "render_video": True,
        "render_video_config": {"num_frames": 2},
    },
}


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with data, the family's module and its config; returns the config."""
    write_set(tmp_path / "data", SyntheticSet(3, 2, 6, 24, 16, seed=0), num_processes=1)
    (tmp_path / "family_from_outside.py").write_text(FAMILY)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    register_family("outside.Mixture", "family_from_outside", "Mixture")
    yield config
    del MODELS["outside.Mixture"]
    sys.modules.pop("family_from_outside", None)


def test_a_family_from_outside_the_tree_trains_scores_and_renders(family: Path) -> None:
    command = ["--config", str(family)]
    assert train.main(command) == 0
    assert [path.name for path in Path("run").glob("ckpt_*")] == ["ckpt_0000000000000006"]

    assert (
        inference_fast.main([*command, "inference.checkpoint=run", "inference.inference_out_dir=fast"]) == 0
    )
    scores = [json.loads(path.read_text()) for path in Path("fast").glob("*.json")]
    assert len(scores) == 1
    assert "psnr" in json.dumps(scores)

    assert inference.main([*command, "inference.checkpoint=run"]) == 0
    assert len(list(Path("results").rglob("metrics.json"))) == 2
    assert list(Path("results").rglob("*.mp4"))
    assert list(Path("results").glob("*.html"))


def test_its_settings_are_checked_like_those_of_any_family(family: Path, capsys) -> None:
    assert train.main(["--config", str(family), "model.widht=3"]) == 2
    assert "unknown key model.widht. Did you mean model.width?" in capsys.readouterr().err
