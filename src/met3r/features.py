"""What of two pictures is compared: their colours, or what a vision transformer says of them.

Features are functions of images [n, 3, h, w] in [0, 1] to [n, c, h, w]. Nothing is downloaded.

Public: FEATURES, load_features, colours, VitFeatures, FeatUp, spatial_lpips.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint import load_weights
from ..config import ConfigError
from ..metrics import load_lpips
from ..model.dinov2 import Backbone, DinoV2

Features = Callable[[Tensor], Tensor]

FEATURES = ("colours", "dino16", "dinov2")

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_VITS = {
    "dino16": (
        Backbone(embed_dim=384, num_heads=6, img_size=224, num_register_tokens=0),
        16,
        "dino_deitsmall16_pretrain.pth of https://github.com/facebookresearch/dino",
    ),
    "dinov2": (
        Backbone(embed_dim=768, num_heads=12, img_size=518, num_register_tokens=4),
        14,
        "dinov2_vitb14_reg4_pretrain.pth: `python -m scripts.download_weights dinov2`",
    ),
}
"""Name -> size, patch side in pixels, and the file of its weights."""


def colours(images: Tensor) -> Tensor:
    """The colours themselves."""
    return images


def imagenet_normalised(images: Tensor) -> Tensor:
    mean, deviation = (images.new_tensor(x)[:, None, None] for x in (_MEAN, _DEVIATION))
    return (images - mean) / deviation


class VitFeatures:
    """Patch tokens of a DINO transformer, interpolated to the pixels (`upsampler: bilinear` of the original)."""

    def __init__(self, network: DinoV2, upsample: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        """upsample: (tokens [n, c, h', w'], images in [0, 1]) -> [n, c, h'', w'']; then bilinear to the pixels."""
        self.network, self.upsample = network.eval().requires_grad_(False), upsample

    def __call__(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        patch = self.network.patch_size
        grid = [max(1, round(side / patch)) for side in (height, width)]
        fitted = images
        if (height, width) != (grid[0] * patch, grid[1] * patch):
            size = [side * patch for side in grid]
            fitted = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
        tokens = self.network(imagenet_normalised(fitted))  # [n, patches, c]
        low = tokens.transpose(1, 2).unflatten(2, grid)
        if self.upsample:
            low = self.upsample(low, fitted)
        return F.interpolate(low, size=(height, width), mode="bilinear", align_corners=False)


class FeatUp:
    """FeatUp's joint bilateral upsampler, from its own code and weights, guided by the normalised picture.

    (The original of MEt3R guides it with the picture in [0, 1], which FeatUp was not trained for.)
    """

    def __init__(self, code: Path, weights: Path, channels: int) -> None:
        """Raises ConfigError where code or weights are missing or of another form."""
        if not (code / "featup").is_dir() or not weights.is_file():
            raise ConfigError(
                f"FeatUp needs its code and weights: {code} must be a checkout of https://github.com/mhamilton723/FeatUp "
                f"and {weights} its file dino16_jbu_stack_cocostuff.ckpt."
            )
        if str(code) not in sys.path:
            sys.path.insert(0, str(code))
        try:
            build = importlib.import_module("featup.upsamplers").get_upsampler
        except ImportError as error:
            raise ConfigError(
                f"{code}: FeatUp cannot be imported ({error}): install its requirements."
            ) from error
        self.network: nn.Module = build("jbu_stack", channels)
        state = load_weights(weights)
        own = {
            name.removeprefix("upsampler."): t for name, t in state.items() if name.startswith("upsampler.")
        }
        self.network.load_state_dict(own)
        self.network.eval().requires_grad_(False)

    def __call__(self, low: Tensor, images: Tensor) -> Tensor:
        return self.network.to(low.device)(low, imagenet_normalised(images))


def load_features(
    name: str, weights: Path | None, device: torch.device, *, featup: tuple[Path, Path] | None = None
) -> Features:
    """Features by name.

    Args:
        name: one of FEATURES.
        weights: file of the transformer.
        featup: code and weights of FeatUp, for dino16.

    Raises:
        ConfigError: no such features, or their file is missing or another one.
    """
    if name == "colours":
        return colours
    if name not in _VITS:
        raise ConfigError(f"features {name} are unknown. Choose from {', '.join(FEATURES)}.")
    size, patch, file = _VITS[name]
    if not weights or not weights.is_file():
        raise ConfigError(
            f"features {name} need --feature_weights FILE: {file}; {weights or 'none'} was given."
        )
    with torch.device("meta"):  # no random numbers that the file replaces
        network = DinoV2(size, patch, qk_norm=False)
    _load_vit(network, weights)
    upsample = FeatUp(*featup, channels=size.embed_dim) if featup else None
    return VitFeatures(network.to(device), upsample)


def _load_vit(network: DinoV2, path: Path) -> None:
    """Published weights. The first DINO has no LayerScale: gains of 1 do nothing."""
    given = {name: tensor for name, tensor in load_weights(path).items() if name != "mask_token"}
    own = network.state_dict()
    if not any(".ls1." in name for name in given):
        gains = {name for name in own if ".ls1." in name or ".ls2." in name}
        given |= {name: torch.ones(own[name].shape) for name in gains}
    wrong = sorted(
        (own.keys() ^ given.keys()) | {n for n in own.keys() & given.keys() if own[n].shape != given[n].shape}
    )
    if wrong:
        raise ConfigError(
            f"{path} is no file of this transformer: {len(wrong)} tensors do not fit, first {wrong[0]}."
        )
    network.load_state_dict(given, assign=True)


def spatial_lpips(vgg16_path: str, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """LPIPS of every pixel, VGG trunk: images in [0, 1] [b, 3, h, w] twice -> [b, h, w].

    Raises:
        ConfigError: the weights are missing.
    """
    network = load_lpips(vgg16_path, device).network
    network.spatial = True
    return lambda first, second: network(first, second, normalize=True)[:, 0]
