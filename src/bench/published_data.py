"""The published way to convert and to load, kept plain, as what benchmarks compare with.

Source: LVSM and Less3Depend, process_data.py and dataset_scene.py: PNG files, Pillow's LANCZOS on whole pictures, float32
in [0, 1], stacked.

Public: SIZE, PATCH, VIEWS, BATCH, run_config, convert_to_png, load_sample.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import torch
from PIL import Image

from ..settings import Inference, RunConfig, Training
from ..settings_views import ViewSelector

SIZE, PATCH, VIEWS, BATCH = 224, 14, 8, 16
"""Of config/uplvsm_x224.yaml: pixels, pixels, views of a sample, samples of a process and step."""


def run_config(listing: Path) -> RunConfig:
    """The data settings of config/uplvsm_x224.yaml for the scenes of a `full_list.txt`; the model is a stub."""
    training = Training(
        dataset_path=str(listing),
        num_views=VIEWS,
        num_input_views=2,
        num_target_views=6,
        square_crop=True,
        batch_size_per_gpu=BATCH,
        view_selector=ViewSelector(min_frame_dist=25, max_frame_dist=192),
    )
    stub = SimpleNamespace(image_tokenizer=SimpleNamespace(image_size=SIZE, patch_size=PATCH))
    return RunConfig(model=stub, training=training, inference=Inference())


def convert_to_png(chunks: Path, target: Path) -> None:
    """Each frame decoded and written as a PNG by OpenCV, one metadata file for each scene."""
    (target / "metadata").mkdir(parents=True)
    for path in sorted(chunks.glob("*.torch")):
        for scene in torch.load(path, weights_only=True):
            folder, frames = target / "images" / scene["key"], []
            folder.mkdir(parents=True)
            for number, (data, camera) in enumerate(zip(scene["images"], scene["cameras"].numpy())):
                pixels = cv2.imdecode(data.numpy(), cv2.IMREAD_COLOR)
                height, width = pixels.shape[:2]
                cv2.imwrite(str(folder / f"{number:05d}.png"), pixels)
                frames.append(
                    {
                        "image_path": str(folder / f"{number:05d}.png"),
                        "fxfycxcy": (camera[:4].astype(np.float64) * np.array([width, height] * 2)).tolist(),
                        "w2c": [*camera[6:].reshape(3, 4).astype(np.float64).tolist(), [0, 0, 0, 1]],
                    }
                )
            (target / "metadata" / f"{scene['key']}.json").write_text(
                json.dumps({"frames": frames}, indent=4)
            )


def load_sample(
    metadata: Path, frames: list[int], size: int, patch: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Square pictures in [0, 1] and their intrinsics in pixels. [v, 3, size, size], [v, 4]"""
    entries = json.loads(metadata.read_text())["frames"]
    images, intrinsics = [], []
    for frame in frames:
        image = Image.open(entries[frame]["image_path"]).convert("RGB")
        width = round(int(size / image.height * image.width) / patch) * patch
        ratios = np.array([width / image.width, size / image.height] * 2)
        left = (width - size) // 2
        image = image.resize((width, size), Image.Resampling.LANCZOS).crop((left, 0, left + size, size))
        pixels = np.array(image) / 255.0
        images.append(torch.from_numpy(pixels).permute(2, 0, 1).float())
        intrinsics.append(np.array(entries[frame]["fxfycxcy"]) * ratios - [0, 0, left, 0])
    return torch.stack(images), torch.from_numpy(np.stack(intrinsics)).float()
