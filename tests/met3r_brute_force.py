"""MEt3R a second time: written from PyTorch3D's conventions, every point against every pixel, one item at a time.

It is for checking `src/met3r` alone: quadratic, in NDC units, without anything of ours.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import correlate1d
from torch import Tensor

BACKGROUND = -10000.0


def published_outputs(config: dict, inputs: dict, distances: tuple[str, ...]) -> dict:
    """What the golden files of kind consistency_metric hold, for any batch and picture size."""
    images = inputs["images"]
    b, _, _, h, w = images.shape
    size = config["img_size"]
    raster = (h, w) if size is None else (size, size) if isinstance(size, int) else tuple(size)
    align = {} if config["upsampler"] == "nearest" else {"align_corners": False}
    low = inputs["low_res_features"].clone().requires_grad_()
    features = F.interpolate(low, size=(h, w), mode=config["upsampler"], **align).reshape(b, 2, -1, h, w)
    focal = [_focal(inputs["pts3d"][i], inputs["conf"][i]) for i in range(b)]
    found: dict = {}
    for name in distances:
        values = features if name == "cosine" else (images + 1) / 2
        drawn, depths = [], []
        for i in range(b):
            for v in range(2):
                picture, depth = _rasterise(inputs["pts3d"][i, v], values[i, v], focal[i], raster, config)
                drawn.append(picture)
                depths.append(depth)
        drawn = torch.stack(drawn).unflatten(0, (b, 2))  # [b, 2, c, H, W]
        mask = (drawn != BACKGROUND).all(dim=2).all(dim=1).float()
        drawn = torch.where(drawn == BACKGROUND, 0.0, drawn)
        score_map, channels = _maps(name, drawn, config["eps"])
        score = torch.stack(
            [(score_map[i] * mask[i]).sum() / (mask[i].sum() + config["eps"]) for i in range(b)]
        )
        found[name] = {"score": score.detach(), "score_map": channels.detach()}
        if name == "cosine":
            score.sum().backward()
            found[name] |= {
                "overlap_mask": mask,
                "projections": drawn.detach(),
                "focal_ndc": torch.stack(focal).repeat_interleave(2, dim=0),
                "zbuf_nearest": torch.stack(depths),
                "grad_features": low.grad.clone(),
            }
    return found


def _focal(points: Tensor, confidence: Tensor) -> Tensor:
    h, w = confidence.shape[1:]
    c = (confidence - 0.999).numpy()[..., None]
    x, y, z = np.moveaxis((c * points.numpy()).sum(0) / c.sum(0), -1, 0)
    column, row = np.meshgrid(np.arange(w) - w / 2, np.arange(h) - h / 2)
    with np.errstate(all="ignore"):
        votes = [column * z / x, row * z / y]
    lower = [np.sort(v[~np.isnan(v)])[(np.count_nonzero(~np.isnan(v)) - 1) // 2] for v in votes]
    return torch.tensor([1 + lower[0] / w, 1 + lower[1] / h], dtype=torch.float32)


def _rasterise(points: Tensor, values: Tensor, focal: Tensor, raster: tuple[int, int], config: dict):
    """One cloud as PyTorch3D draws it: x to the left, y up. values [c, h, w] -> picture [c, H, W], nearest depth [H, W]"""
    height, width = raster
    x, y, z = points.double().reshape(-1, 3).unbind(1)
    left, up = -focal[0].double() * x / z, -focal[1].double() * y / z
    shorter = min(height, width)
    columns = (1 - (2 * torch.arange(width).double() + 1) / width) * width / shorter
    rows = (1 - (2 * torch.arange(height).double() + 1) / height) * height / shorter
    squared = (columns[None, :, None] - left) ** 2 + (rows[:, None, None] - up) ** 2  # [H, W, p]
    covered = (squared < config["radius"] ** 2) & (z >= 0)
    depth = torch.where(covered, z, torch.inf)
    nearest, index = depth.sort(dim=-1)
    nearest, index = nearest[..., : config["points_per_pixel"]], index[..., : config["points_per_pixel"]]
    alpha = 1 - squared.gather(-1, index) / config["radius"] ** 2
    alpha = torch.where(nearest.isfinite(), alpha, 0.0).float()
    picture, light = torch.zeros(len(values), height, width), torch.ones(height, width)
    for k in range(index.shape[-1]):
        picture = picture + (light * alpha[..., k]) * values.flatten(1)[:, index[..., k]]
        light = light * (1 - alpha[..., k])
    empty = nearest[..., 0].isinf()
    return torch.where(empty, BACKGROUND, picture), torch.where(empty, -1.0, nearest[..., 0]).float()


def _maps(name: str, drawn: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The map behind the score, and the one that is returned."""
    one, two = drawn.unbind(dim=1)
    if name == "cosine":
        product = torch.einsum("bchw,bchw->bhw", one, two)
        map = 1 - product / ((one**2).sum(1).sqrt() * (two**2).sum(1).sqrt() + eps)
        return map, map
    if name == "ssim":
        channels = torch.from_numpy(_ssim(one.numpy().astype(float), two.numpy().astype(float))).float()
        return channels.mean(1), channels[:, 0]
    error = (one - two).abs()
    map = {
        "mse": (error**2).mean(1),
        "rmse": (error**2).mean(1) ** 0.5,
        "psnr": 20 * (255 / (error.mean(1) + eps)).log10(),
    }[name]
    return map, map


def _ssim(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Per channel, the range that of the whole batch."""
    span = max(np.ptp(one), np.ptp(two))
    weights = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weights /= weights.sum()

    def blur(x: np.ndarray) -> np.ndarray:
        return correlate1d(correlate1d(x, weights, axis=2, mode="mirror"), weights, axis=3, mode="mirror")

    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    a, b = blur(one), blur(two)
    var_a, var_b = np.maximum(blur(one**2) - a**2, 0), np.maximum(blur(two**2) - b**2, 0)
    return (
        (2 * a * b + c1) * (2 * (blur(one * two) - a * b) + c2) / ((a**2 + b**2 + c1) * (var_a + var_b + c2))
    )
