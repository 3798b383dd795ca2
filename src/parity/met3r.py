"""Golden files of mvldm with MEt3R: point maps, features and flow are given, the score and its maps come out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..met3r.metric import DISTANCES, Options, PairScore, score_by_flow, score_into_first
from ..met3r.points import PointMaps
from ..met3r.published import ndc_radius, published, ssim_channels
from .report import Golden


def consistency_metric(golden: Golden) -> dict:
    """One entry for each distance of the file, and `raft`."""
    inputs, config = golden.inputs, golden.config
    colours = (inputs["images"] + 1) / 2
    low = inputs["low_res_features"].clone().requires_grad_()
    features = _upsampled(low, colours.shape[-2:], config["upsampler"]).unflatten(0, (len(colours), 2))
    maps = PointMaps(inputs["pts3d"], inputs["conf"])
    size = _size(config["img_size"], colours.shape[-2:])
    options = Options(
        radius=ndc_radius(config["radius"], *size),
        points_per_pixel=config["points_per_pixel"],
        size=size,
        rules=published(config["eps"]),
    )
    computed: dict[str, dict] = {}
    for name in golden.outputs:
        if name == "raft":
            computed[name] = _by_flow(features, inputs["flow"], options)
        elif name in DISTANCES and name != "lpips":
            options = replace(options, distance=name)
            given = features if options.chosen().of_features else colours
            computed[name] = _by_points(given, maps, options, low)
    return computed


def _size(img_size: int | list[int] | None, own: tuple[int, int]) -> tuple[int, int]:
    """A number makes a square picture of whatever comes in."""
    if img_size is None:
        return own[0], own[1]
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    return int(height), int(width)


def _upsampled(low: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    align = {} if mode == "nearest" else {"align_corners": False}
    return F.interpolate(low, size=size, mode=mode, **align)


def _by_points(given: Tensor, maps: PointMaps, options: Options, low: Tensor) -> dict[str, Any]:
    result = score_into_first(given, maps, options)
    height, width = result.mask.shape[1:]
    ndc = options.rules.camera(maps, height, width)[:, :2] * 2 / min(height, width)
    found: dict[str, Any] = _maps(result) | {
        "overlap_mask": result.mask.float(),
        "projections": result.projections,
        "focal_ndc": ndc.repeat_interleave(2, dim=0),
        "zbuf_nearest": torch.where(result.depth.isinf(), -1.0, result.depth).flatten(0, 1),
    }
    if options.distance == "ssim":
        found["score_map"] = ssim_channels(*result.projections.unbind(dim=1))[:, 0]
    if options.chosen().of_features:
        (found["grad_features"],) = torch.autograd.grad(result.score.sum(), low, retain_graph=True)
    return found


def _by_flow(features: Tensor, flow: Tensor, options: Options) -> dict[str, Any]:
    result = score_by_flow(features, flow, replace(options, distance="cosine"))
    return _maps(result) | {
        "warped_features": result.projections[:, 1],
        "mask": result.mask[:, None].float(),
    }


def _maps(result: PairScore) -> dict[str, Any]:
    return {"score": result.score, "score_map": result.score_map}
