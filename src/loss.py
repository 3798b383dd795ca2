"""Image losses: mean squared error, LPIPS and the VGG19 perceptual loss, and their weighted sum.

The perceptual loss is that of LVSM (arXiv 2410.17242; github.com/Haian-Jin/LVSM, model/loss.py): a VGG19 with average
pools and the MatConvNet weights `imagenet-vgg-verydeep-19.mat`.

The loss may run under autocast, as in the original: the convolutions of the frozen networks are then bf16; differences
and means are float32 in any case.

Public: ImageLoss, build_image_loss, PerceptualLoss, load_perceptual, LOSSES.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import ConfigError
from .metrics import load_lpips

if TYPE_CHECKING:
    from .settings import Pretrained, Training

# ----------------------------------------------------------------------------------------------- VGG19

VGG19_CHANNELS = (64, 64, "M", 128, 128, "M", *4 * (256,), "M", *4 * (512,), "M", *4 * (512,), "M")
"""Widths of the 16 convolutions in torchvision's order; M is a pool."""

_VGG19_URL = "https://www.vlfeat.org/matconvnet/models/imagenet-vgg-verydeep-19.mat"
_TAPS = (4, 9, 14, 23, 32)  # features end after relu1_2, relu2_2, relu3_2, relu4_2, relu5_2
_SCALES = (1.0, 1 / 2.6, 1 / 4.8, 1 / 3.7, 1 / 5.6, 10 / 1.5)
_RGB_MEAN = (123.68, 116.779, 103.939)


class PerceptualLoss(nn.Module):
    """Weighted mean absolute differences of images and of five VGG19 feature maps; the network is frozen.

    `features` has torchvision's indices and parameter names, up to the last layer that is used.
    """

    def __init__(self, channels: tuple | list = VGG19_CHANNELS) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in channels:
            if width == "M":
                layers.append(nn.AvgPool2d(2))
            else:
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
        self.features = nn.Sequential(*layers[: _TAPS[-1]])
        self.register_buffer("rgb_mean", torch.tensor(_RGB_MEAN)[:, None, None], persistent=False)
        self.register_buffer("scales", torch.tensor(_SCALES), persistent=False)
        self.requires_grad_(False).eval()

    def taps(self, image: Tensor) -> list[Tensor]:
        """The preprocessed image (0-255 minus the mean colour) and the five feature maps. [n, 3, h, w] in [0, 1]"""
        x = 255.0 * image.float() - self.rgb_mean
        found = [x]
        for start, end in zip((0, *_TAPS), _TAPS):
            x = self.features[start:end](x)
            found.append(x)
        return found

    def errors(self, pred: Tensor, target: Tensor) -> Tensor:
        """The six mean absolute differences, not yet weighted. [6]"""
        with torch.no_grad():
            wanted = self.taps(target)
        pairs = zip(self.taps(pred), wanted)
        return torch.stack([(a.float() - b.float()).abs().mean() for a, b in pairs])

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Scalar loss over all images together. Both [n, 3, h, w] in [0, 1], h and w at least 16."""
        return (self.errors(pred, target) * self.scales).sum() / 255.0


def load_perceptual(
    vgg19_path: str, device: torch.device, channels: tuple | list = VGG19_CHANNELS
) -> PerceptualLoss:
    """The perceptual loss on `device`; nothing is downloaded.

    Args:
        vgg19_path: MatConvNet's `imagenet-vgg-verydeep-19.mat`, or `random` for seeded random weights.
        channels: widths of the network in the file.

    Raises:
        ConfigError: the file is missing, damaged or another one.
    """
    network = PerceptualLoss(channels)
    convolutions = {name: layer for name, layer in network.features.named_children() if _is_conv(layer)}
    if vgg19_path == "random":
        generator = torch.Generator().manual_seed(0)
        for layer in convolutions.values():
            fan_in = 9 * layer.in_channels
            layer.weight.normal_(0.0, (2 / fan_in) ** 0.5, generator=generator)
            layer.bias.zero_()
        return network.to(device)
    state = {}
    for index, weight, bias in _matconvnet_convolutions(Path(vgg19_path)):
        if str(index) in convolutions:  # the deeper ones have no tap
            state[f"features.{index}.weight"], state[f"features.{index}.bias"] = weight, bias
    try:
        network.load_state_dict(state)
    except RuntimeError:
        raise _unusable(Path(vgg19_path), "it does not hold the convolutions of VGG19") from None
    return network.to(device)


def _is_conv(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d)


def _matconvnet_convolutions(path: Path) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(index, weight [out, in, kh, kw], bias [out]) of each convolution of a MatConvNet file.

    The layers are listed as conv, relu, pool, so the index is that of torchvision's `features`; the fully connected
    ones follow as convolutions. Filters are stored [kh, kw, in, out].
    """
    # Imported here: only this file format needs it.
    from scipy import io
    from scipy.io.matlab import MatReadError

    if not path.is_file():
        raise ConfigError(
            f"pretrained.vgg19: {path} is missing. The perceptual loss needs it (from {_VGG19_URL}): run "
            "`python -m scripts.download_weights vgg19`, or set training.perceptual_loss_weight=0, "
            "or ask for random weights with pretrained.vgg19=random."
        )
    try:
        layers = io.loadmat(path)["layers"][0]
        for index, layer in enumerate(layers):
            fields = layer[0, 0]
            if "weights" in fields.dtype.names and fields["weights"].size == 2:
                weight, bias = fields["weights"].flat
                weight = torch.from_numpy(weight).float().permute(3, 2, 0, 1).contiguous()
                yield index, weight, torch.from_numpy(bias).float().flatten()
    except (ValueError, TypeError, LookupError, OSError, RuntimeError, zlib.error, MatReadError) as error:
        raise _unusable(path, f"not readable as a MatConvNet network: {error}") from error


def _unusable(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"pretrained.vgg19: {path} ({path.stat().st_size} bytes) is cut off or another file: {why}. "
        "Delete it and run `python -m scripts.download_weights vgg19`."
    )


# ----------------------------------------------------------------------------------------------- weighted sum

Term = Callable[[Tensor, Tensor], Tensor]


class MeanLpips(nn.Module):
    """LPIPS as a term of the loss: the mean over all images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """[n, 3, h, w] twice -> []"""
        return self.network(pred, target).mean()


LOSSES: dict[str, Callable[[Pretrained, torch.device], nn.Module]] = {
    "lpips": lambda pretrained, device: MeanLpips(load_lpips(pretrained.vgg16, device)),
    "perceptual": lambda pretrained, device: load_perceptual(pretrained.vgg19, device),
}
"""Name of a term beside l2 -> how to build it; `training.<name>_loss_weight` weighs it."""


class ImageLoss:
    """`l2_weight * MSE + sum of weight * term`, with every term reported."""

    def __init__(
        self, l2_weight: float, terms: dict[str, tuple[float, Term]], starts: dict[str, int] | None = None
    ) -> None:
        """`terms`: name of `LOSSES` -> (weight, function of two image batches [n, 3, h, w]). `starts`: name -> first
        step at which it counts, where that is not the first of all.
        """
        self.l2_weight, self.terms, self.starts = l2_weight, terms, starts or {}

    def at(self, step: int) -> ImageLoss:
        """The loss of optimiser step `step`, from 0: terms that start later are switched off."""
        active = {name: term for name, term in self.terms.items() if step >= self.starts.get(name, 0)}
        return self if len(active) == len(self.terms) else ImageLoss(self.l2_weight, active)

    def __call__(self, pred: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Scalar terms of a batch of renders.

        Args:
            pred: renders in [0, 1]. [b, v, 3, h, w]
            target: photos in [0, 1]; a fourth channel (alpha) is left out. [b, v, 3 or 4, h, w]

        Returns:
            `loss`, to minimise, and without graph `l2_loss`, `psnr` (dB, of the mean error of the whole batch),
            `<term>_loss` and `norm_<term>_loss` (divided by l2_loss); 0 for a term that is switched off.
        """
        pred = pred.flatten(0, 1)
        target = target.flatten(0, 1)[:, :3].float()
        if self.l2_weight > 0:
            l2 = F.mse_loss(pred.float(), target)
        else:
            l2 = pred.new_tensor(1e-8, dtype=torch.float32)  # Parity: the original reports this constant
        loss = self.l2_weight * l2
        report = {"l2_loss": l2.detach(), "psnr": -10.0 * l2.detach().log10()}
        for name in LOSSES:
            term = torch.zeros_like(l2)
            if name in self.terms:
                weight, function = self.terms[name]
                term = function(pred, target)
                loss = loss + weight * term
            report[f"{name}_loss"] = term.detach()
            report[f"norm_{name}_loss"] = report[f"{name}_loss"] / report["l2_loss"]
        return {"loss": loss, **report}


def build_image_loss(training: Training, pretrained: Pretrained, device: torch.device) -> ImageLoss:
    """The loss that the weights in `training` ask for; networks with weight 0 are not built.

    Raises:
        ConfigError: all weights are 0, or a file of pretrained weights is missing or damaged.
    """
    weights = {name: getattr(training, f"{name}_loss_weight") for name in LOSSES}
    if not any(w > 0 for w in (training.l2_loss_weight, *weights.values())):
        names = ", ".join(f"training.{name}_loss_weight" for name in ("l2", *weights))
        raise ConfigError(
            f"{names} are all 0: there is nothing to minimise. Give one of them a value above 0."
        )
    terms = {name: (w, LOSSES[name](pretrained, device)) for name, w in weights.items() if w > 0}
    if training.l2_loss_weight <= 0 and training.lpips_start_step > 0 and set(terms) == {"lpips"}:
        raise ConfigError(
            f"training.lpips_start_step is {training.lpips_start_step}, but LPIPS is the only term of the loss: nothing "
            "would be minimised before. Set training.l2_loss_weight above 0."
        )
    return ImageLoss(training.l2_loss_weight, terms, {"lpips": training.lpips_start_step})
