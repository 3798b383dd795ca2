"""Readers of the kinds that compare two images: metrics and the perceptual loss. Both systems share them."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from ..checkpoint import load_into
from ..loss import VGG19_CHANNELS, PerceptualLoss
from ..metrics import PSNR_CAP, psnr, ssim
from .report import Golden


def metrics(golden: Golden) -> dict:
    """PSNR and SSIM of each image."""
    pred, target = golden.inputs["prediction"], golden.inputs["target"]
    decibels = psnr(pred, target)
    return {
        "psnr": decibels.masked_fill(
            decibels >= PSNR_CAP, math.inf
        ),  # our cap stands for the original's infinity
        "ssim": ssim(pred, target),
        "ssim_of_clamped": ssim(pred.clamp(0, 1), target.clamp(0, 1)),
    }


def perceptual(golden: Golden) -> dict:
    """Perceptual loss of one pair of batches, its terms, and its gradient."""
    network = _network(golden)
    pred = golden.inputs["prediction"].clone().requires_grad_()
    target = golden.inputs["target"]
    network(pred, target).backward()
    with torch.no_grad():
        features = network.taps(pred)[1:]
    return {
        "loss": network(pred, target),
        "raw_abs_errors": network.errors(pred, target),
        "feature_means": [float(x.mean()) for x in features],
        "feature_shapes": [list(x.shape) for x in features],
        "features_prediction_last": features[-1],
        "features_prediction_first_sum": float(features[0].double().sum()),
        "grad_prediction": pred.grad,
        "grad_norm": pred.grad.norm(),
    }


def _network(golden: Golden) -> PerceptualLoss:
    if golden.state_dict:
        return perceptual_network(golden.state_dict, str(golden.path))
    if "weight_formula" not in golden.inputs:
        raise ValueError(f"{golden.path}: neither weights nor a formula for them.")
    config = golden.config
    channels = config["vgg_channels"] if "vgg_channels" in config else narrowed(config["vgg_channel_divisor"])
    network = PerceptualLoss(channels)
    state = {}
    for name, weight in network.state_dict().items():
        index = int(name.split(".")[1])
        state[name] = (
            _formula_bias(weight, index) if name.endswith("bias") else _formula_weight(weight, index)
        )
    network.load_state_dict(state)
    return network


def _formula_weight(like: Tensor, index: int) -> Tensor:
    """`inputs.weight_formula` of the golden file, for the convolution at torchvision's index."""
    n = torch.arange(like.numel(), dtype=torch.float64)
    scale = math.sqrt(4 / like[0].numel())
    return (torch.sin(0.7390851332151607 * n + index) * scale).float().view_as(like)


def _formula_bias(like: Tensor, index: int) -> Tensor:
    o = torch.arange(len(like), dtype=torch.float64)
    return (0.05 * torch.cos(1.3 * o + index)).float()


def perceptual_network(state: dict[str, Tensor], source: str) -> PerceptualLoss:
    """The perceptual loss with weights of a golden file, of any widths; layers that have no tap are left out.

    Args:
        state: names that end in `features.<i>.weight` or `.bias`.
    """
    layers: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        match = re.search(r"(?:^|\.)features\.(\d+)\.(weight|bias)$", name)
        if match is None:
            raise ValueError(f"{source}: {name} is no weight of a VGG19.")
        layers.setdefault(int(match[1]), {})[match[2]] = tensor
    widths = (len(next(iter(layer.values()))) for _, layer in sorted(layers.items()))
    network = PerceptualLoss([c if c == "M" else next(widths, 1) for c in VGG19_CHANNELS])
    used = {
        f"features.{index}.{kind}": tensor
        for index, layer in layers.items()
        if index < len(network.features)
        for kind, tensor in layer.items()
    }
    load_into(network, used, source)
    return network


def narrowed(divisor: int) -> list:
    """VGG19's widths divided by a number."""
    return [c if c == "M" else c // divisor for c in VGG19_CHANNELS]
