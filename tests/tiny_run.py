"""A data set and a config so small that a training step takes milliseconds; for tests of whole runs.

Public: write_scenes, write_config, tiny_config, records, losses, largest_difference.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor

from src.checkpoint import load_weights
from src.model import family_config
from src.settings import RunConfig, load_config

WIDTH, HEIGHT = 20, 16


def _picture(scene: int, frame: int, form: str) -> Tensor:
    """File of a smooth coloured pattern that moves from frame to frame. uint8 [n]"""
    y, x = np.mgrid[:HEIGHT, :WIDTH] / HEIGHT
    waves = [np.sin(4 * x + 2 * scene + k + 0.3 * frame) * np.cos(3 * y * (k + 1) + scene) for k in range(3)]
    pixels = np.uint8(127.5 + 120 * np.stack(waves, axis=2))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, quality=95)
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def _camera(frame: int) -> list[float]:
    """RealEstate10K's 18 numbers: normalised intrinsics, two zeros, world to camera [3, 4]."""
    return [0.9, 1.1, 0.5, 0.5, 0, 0, 1, 0, 0, -0.1 * frame, 0, 1, 0, 0.02 * frame, 0, 0, 1, 0.05 * frame]


def write_scenes(root: Path, num_scenes: int = 6, num_frames: int = 6, form: str = "JPEG") -> Path:
    """`root/train/` with one chunk, and `root/index.json`: three targets per scene. Returns `root/train`.

    form: of the pictures, JPEG or PNG, which every library decodes alike.
    """
    scenes = [
        {
            "url": "",
            "timestamps": torch.arange(num_frames),
            "cameras": torch.tensor([_camera(frame) for frame in range(num_frames)]),
            "key": f"scene{scene}",
            "images": [_picture(scene, frame, form) for frame in range(num_frames)],
        }
        for scene in range(num_scenes)
    ]
    (root / "train").mkdir(parents=True)
    torch.save(scenes, root / "train" / "000000.torch")
    (root / "train" / "index.json").write_text(json.dumps({s["key"]: "000000.torch" for s in scenes}))
    index = {s["key"]: {"context": [0, num_frames - 1], "target": [1, 2, 3]} for s in scenes}
    (root / "index.json").write_text(json.dumps(index))
    return root / "train"


def write_config(path: Path, data: Path, run: Path, **training: Any) -> Path:
    """YAML of a tiny LVSM decoder-only run on `data` that writes to `run`; `training` replaces settings."""
    settings = {
        "dataset_path": str(data),
        "eval_dataset_path": str(data),
        "checkpoint_dir": str(run),
        "num_views": 4,
        "num_input_views": 2,
        "num_target_views": 2,
        "view_selector": {"min_frame_dist": 3, "max_frame_dist": 5},
        "square_crop": True,
        "batch_size_per_gpu": 2,
        "num_workers": 0,
        "lr": 2e-3,
        "warmup": 2,
        "train_steps": 6,
        "grad_checkpoint_every": 0,
        "perceptual_loss_weight": 0.0,
        "use_amp": False,
        "eval_every": 0,
        "vis_every": 0,
        "checkpoint_every": 2,
        "print_every": 1,
        **training,
    }
    tree = {
        "model": {
            "class_name": "model.LVSM_scene_decoder_only.Images2LatentScene",
            "image_tokenizer": {"image_size": 16, "patch_size": 8},
            "target_pose_tokenizer": {"patch_size": 8},
            "transformer": {"d": 32, "d_head": 16, "n_layer": 2, "use_qk_norm": True},
        },
        "training": settings,
        "inference": {"view_idx_file_path": str(data.parent / "index.json"), "metrics": ["psnr", "ssim"]},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(tree))
    return path


def tiny_config(path: Path) -> RunConfig:
    """The checked config of a file that `write_config` wrote."""
    return load_config(path, [], family_config)


def records(run: Path, kind: str = "train") -> list[dict]:
    """Records of one kind in a run's `log.jsonl`, in the order written."""
    lines = (run / "log.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


def losses(run: Path) -> dict[int, float]:
    """Step -> loss, from `log.jsonl`; a step that was done twice counts with its last value."""
    return {entry["step"]: entry["loss"] for entry in records(run)}


def largest_difference(a: Path, b: Path) -> float:
    """Between the weights of two runs' newest checkpoints."""
    first, second = load_weights(a), load_weights(b)
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)
