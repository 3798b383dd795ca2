"""Tiny raw chunks and configs for tests of the data rooms."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import torch

from src.settings import Inference, RunConfig, Training
from src.settings_views import ViewSelector


def picture(width: int, height: int, seed: int, extension: str = ".jpg", channels: int = 3) -> bytes:
    """A smooth random picture, encoded by OpenCV."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, channels), dtype=np.uint8)
    pixels = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(extension, pixels)[1].tobytes()


def cameras(frames: int, seed: int = 0) -> torch.Tensor:
    """Stored cameras of a path that goes to the right while the head turns. float32 [f, 18]"""
    stored = torch.zeros(frames, 18)
    stored[:, :4] = torch.tensor([0.9, 1.6, 0.52, 0.67])
    for frame in range(frames):
        angle = torch.tensor(0.02 * frame + 0.1 * seed)
        rotation = torch.eye(3)
        rotation[0, 0], rotation[0, 2] = angle.cos(), -angle.sin()
        rotation[2, 0], rotation[2, 2] = angle.sin(), angle.cos()
        centre = torch.tensor([0.1 * frame + 0.01, 0.02 * frame, 0.003 * frame**1.5])
        stored[frame, 6:] = torch.cat([rotation, (-rotation @ centre)[:, None]], dim=1).flatten()
    return stored


def scene(key: str, frames: int = 12, size: tuple[int, int] = (64, 36), seed: int = 0) -> dict:
    """One scene dict of a chunk, as pixelSplat's tools write it; size is (width, height)."""
    images = [
        torch.frombuffer(bytearray(picture(*size, 100 * seed + i)), dtype=torch.uint8) for i in range(frames)
    ]
    return {
        "url": f"https://example.org/{key}",
        "timestamps": torch.arange(frames) * 1000,
        "cameras": cameras(frames, seed),
        "key": key,
        "images": images,
    }


def encoded(data: bytes) -> torch.Tensor:
    """Bytes as a chunk stores them."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def write_chunks(folder: Path, *chunks: list[dict]) -> Path:
    """Save each list of scenes as NNNNNN.torch in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, scenes in enumerate(chunks):
        torch.save(scenes, folder / f"{number:06d}.torch")
    return folder


def config(path: str | Path | list, index: str | Path = "", **training) -> RunConfig:
    """A run's settings for 64 x 36 pictures; keyword arguments are keys of `training`."""
    defaults = {
        "num_views": 4,
        "num_input_views": 2,
        "num_target_views": 2,
        "square_crop": True,
        "batch_size_per_gpu": 2,
        "num_workers": 0,
        "view_selector": ViewSelector(min_frame_dist=4, max_frame_dist=9),
    }
    return RunConfig(
        model=SimpleNamespace(image_tokenizer=SimpleNamespace(image_size=28, patch_size=14)),
        training=Training(
            dataset_path=path if isinstance(path, list) else str(path), **{**defaults, **training}
        ),
        inference=Inference(view_idx_file_path=str(index)),
    )


def assert_same(ours: dict, theirs: dict) -> None:
    """Two samples or batches are equal, bit for bit."""
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == theirs[name].dtype and torch.equal(value, theirs[name]), name
        else:
            assert value == theirs[name], name
