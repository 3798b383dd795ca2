"""The published way to score, kept plain, as what `src.inference_fast` is compared with.

Source: LVSM and Less3Depend, inference.py, dataset_scene.py and metric_utils.py: PNG files, Pillow's LANCZOS, float32, read
by the process that computes; scikit-image's SSIM and the `lpips` package image by image; a file for each scene. The scene
is encoded once, as they do. Unlike them metrics run in float32, and so does the model here, and floors can be scored too.

Public: Scores, score_scenes.
"""

from __future__ import annotations

import json
from pathlib import Path

import lpips
import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from ..floors import Shown, floor_images
from ..geometry.camera import Cameras, Views
from ..geometry.frames import normalize_cameras
from ..model.base import ViewSynthesizer
from ..settings import Training
from .published_data import PATCH, SIZE, load_sample

Scores = dict[str, list[float]]
"""Metric -> value of each target view."""


@torch.no_grad()
def score_scenes(
    model: ViewSynthesizer,
    network: lpips.LPIPS,
    png: Path,
    index: dict[str, dict],
    output: Path,
    *,
    floors: bool,
) -> dict[str, dict[str, Scores]]:
    """Scene of an evaluation index -> method -> scores; writes `<output>/<scene>.json`.

    Args:
        network: LPIPS.
        png: folder of `published_data.convert_to_png`.
        index: scene -> {"context": frames, "target": frames}
        floors: also score what anybody gets from the inputs.
    """
    results = {}
    for scene, entry in index.items():
        metadata, count = png / "metadata" / f"{scene}.json", len(entry["context"])
        frames = [*entry["context"], *entry["target"]]
        images, intrinsics = load_sample(metadata, frames, SIZE, PATCH)
        poses = _poses(metadata, frames)
        input, target = (
            Views(images[None, part], Cameras(poses[None, part], intrinsics[None, part], SIZE, SIZE))
            for part in (slice(count), slice(count, None))
        )
        shown = {"render": Shown.each(model(input, target).render)}
        if floors:
            shown |= floor_images(input, target.cameras)
        results[scene] = {
            method: _score(network, image.images[0, image.column[0]], target.image[0])
            for method, image in shown.items()
        }
        (output / f"{scene}.json").write_text(json.dumps(results[scene], indent=4))
    return results


def _poses(metadata: Path, frames: list[int]) -> Tensor:
    """Camera to world in the frame of the average camera. [v, 4, 4]"""
    entries = json.loads(metadata.read_text())["frames"]
    c2w = np.stack([np.linalg.inv(np.array(entries[frame]["w2c"])) for frame in frames])
    return normalize_cameras(torch.from_numpy(c2w.astype(np.float32)), Training.scene_scale_factor)


def _score(network: lpips.LPIPS, render: Tensor, truth: Tensor) -> Scores:
    scores: Scores = {"psnr": [], "ssim": [], "lpips": []}
    for pred, target in zip(render, truth):
        mse = (pred.clamp(0, 1) - target.clamp(0, 1)).square().mean()
        scores["psnr"].append((-10 * mse.log10()).item())
        scores["ssim"].append(
            float(
                structural_similarity(
                    pred.numpy(),
                    target.numpy(),
                    win_size=11,
                    gaussian_weights=True,
                    channel_axis=0,
                    data_range=1.0,
                )
            )
        )
        scores["lpips"].append(network(pred[None], target[None], normalize=True).item())
    return scores
