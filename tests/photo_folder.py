"""A converted data set of textured photographs with known cameras, and a tiny run config for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from textured_world import FXFYCXCY, HEIGHT, WIDTH, photograph, pose

from src.data.import_formats import import_from
from src.data.importing import ImportOptions

UP_LVSM = {
    "class_name": "src.model.uplvsm.unposedLVSM",
    "image_tokenizer": {
        "image_size": 18, "patch_size": 6,
        "backbone": {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 12, "num_register_tokens": 2},
    },
    "target_pose_tokenizer": {"patch_size": 6},
    "transformer": {
        "d": 16, "d_head": 8, "encoder_n_layer": 1, "estimator_n_layer": 1, "decoder_n_layer": 1, "n_latent_vectors": 8,
    },
}  # fmt: skip
LVSM = {
    "class_name": "src.model.kvlvsm.KVLVSM",
    "image_tokenizer": {"image_size": 24, "patch_size": 8},
    "target_pose_tokenizer": {"patch_size": 8},
    "transformer": {"d": 32, "d_head": 16, "n_layer": 2},
}


def write_photos(folder: Path, num: int = 4) -> list[Path]:
    """Photos of the textured world and their `opencv_cameras.json`."""
    folder.mkdir(parents=True)
    entries = []
    for number in range(num):
        Image.fromarray(photograph(pose(number))).save(folder / f"photo_{number}.png")
        numbers = dict(zip(("fx", "fy", "cx", "cy"), FXFYCXCY.tolist()))
        entries.append(
            {
                **numbers,
                "w": WIDTH,
                "h": HEIGHT,
                "w2c": pose(number).tolist(),
                "file_path": f"photo_{number}.png",
            }
        )
    (folder / "opencv_cameras.json").write_text(json.dumps(entries))
    return sorted(folder.glob("*.png"))


def write_data_set(root: Path, num: int = 4) -> Path:
    """The same, converted; returns `full_list.txt`."""
    write_photos(root / "raw" / "room", num)
    import_from(ImportOptions(root / "raw", root / "set", "opencv"), 1)
    index = {"room": {"context": [0, num - 1], "target": list(range(1, num - 1))}}
    (root / "index.json").write_text(json.dumps(index))
    return root / "set" / "full_list.txt"


def write_config(path: Path, model: dict, **training: object) -> Path:
    """YAML of a tiny model; weights are random (`inference.checkpoint: random`)."""
    settings = {
        "num_views": 4, "num_input_views": 2, "num_target_views": 2, "square_crop": True, "pose_norm": "context",
        "view_selector": {"min_frame_dist": 2, "max_frame_dist": 3}, "use_amp": False, "num_workers": 0,
        "perceptual_loss_weight": 0.0, **training,
    }  # fmt: skip
    model = json.loads(json.dumps(model))
    tree = {
        "model": model,
        "training": settings,
        "inference": {"checkpoint": "random", "metrics": ["psnr"], "render_video_config": {"num_frames": 4}},
    }
    path.write_text(yaml.safe_dump(tree))
    return path


def centre(number: int) -> np.ndarray:
    """Of the camera of a photo, world coordinates."""
    return np.linalg.inv(pose(number))[:3, 3]
