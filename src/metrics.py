"""PSNR, SSIM and LPIPS per image, in float32 or better whatever autocast or TF32 are set to.

All take images [n, 3, h, w] in [0, 1] and return one value per image [n]. `METRICS` lists them; sums over scenes and
ranks are the evaluation's business.

Public: psnr, ssim, Lpips, load_lpips, compare, METRICS, build_metrics, PSNR_CAP.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .config import ConfigError
from .geometry.camera import full_precision
from .runtime import exact_float32
from .winograd import with_winograd

if TYPE_CHECKING:
    from .settings import Pretrained

Metric = Callable[[Tensor, Tensor], Tensor]
Pair = tuple[int, int]
"""Places of a prediction and its target among some images."""

PSNR_CAP = 100.0
"""PSNR of identical images, dB: a finite value keeps means and JSON files usable."""

_GROUP = 8
"""Images scored at once, which bounds the memory of a metric."""

_KEPT = 16
"""Images whose features LPIPS keeps for further pairs: of 0.07 GB each at 256 pixels."""


def _check(name: str, pred: Tensor, target: Tensor, smallest: int = 1) -> None:
    if pred.shape != target.shape or pred.ndim != 4 or pred.shape[1] != 3 or min(pred.shape[2:]) < smallest:
        raise ValueError(
            f"{name}: prediction {tuple(pred.shape)} and target {tuple(target.shape)} must both be "
            f"[n, 3, h, w] with h and w at least {smallest}."
        )


def psnr(pred: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, dB, after clamping both to [0, 1]; at most PSNR_CAP. [n]"""
    _check("psnr", pred, target)
    error = pred.float().clamp(0, 1) - target.float().clamp(0, 1)
    mse = error.square().mean(dim=(1, 2, 3))
    return (-10.0 * mse.log10()).clamp_max(PSNR_CAP)


# ----------------------------------------------------------------------------------------------- SSIM

_RADIUS, _SIGMA = 5, 1.5
_C1, _C2 = 0.01**2, 0.03**2  # (K * data_range) ** 2 with data_range 1


def ssim(pred: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of each image, not clamped. [n]

    Equal to scikit-image's `structural_similarity(win_size=11, gaussian_weights=True, channel_axis=0, data_range=1)`:
    Gaussian window of sigma 1.5, sample covariance, mean over the pixels at least 5 away from the border.
    """
    _check("ssim", pred, target, smallest=2 * _RADIUS + 1)
    groups = zip(pred.split(_GROUP), target.split(_GROUP))
    return torch.cat([_ssim(a.double(), b.double()) for a, b in groups]).float()


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    """In float64: the variances are differences of nearly equal numbers. [n, 3, h, w] -> [n]"""
    mean_x, mean_y = _window(x), _window(y)  # [n, 3, h - 10, w - 10]
    size = (2 * _RADIUS + 1) ** 2
    sample = size / (size - 1)  # sample covariance
    var_x = sample * (_window(x * x) - mean_x * mean_x)
    var_y = sample * (_window(y * y) - mean_y * mean_y)
    cov = sample * (_window(x * y) - mean_x * mean_y)
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x * mean_x + mean_y * mean_y + _C1)
    structure = (2 * cov + _C2) / (var_x + var_y + _C2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _window(x: Tensor) -> Tensor:
    """Gaussian mean around every pixel that has a whole window. [n, c, h, w] -> [n, c, h - 10, w - 10]"""
    offsets = torch.arange(-_RADIUS, _RADIUS + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / _SIGMA) ** 2)
    weights = (weights / weights.sum()).tolist()
    for dim in (2, 3):
        length = x.shape[dim] - 2 * _RADIUS
        mean = weights[0] * x.narrow(dim, 0, length)
        for i, weight in enumerate(weights[1:], start=1):
            mean.add_(x.narrow(dim, i, length), alpha=weight)
        x = mean
    return x


# ----------------------------------------------------------------------------------------------- LPIPS

_VGG16_SHA256 = "397923af"  # the published file carries it in its name
_VGG16_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"


class Lpips(nn.Module):
    """LPIPS v0.1 with a VGG16 trunk: linear heads from the `lpips` package, trunk weights given. Frozen."""

    def __init__(self, trunk: dict[str, Tensor]) -> None:
        """`trunk`: `features.<i>.weight` and `.bias` of torchvision's VGG16; other keys are ignored."""
        super().__init__()
        # Imported here: it brings torchvision, which runs without LPIPS should not wait for.
        import lpips

        # On meta: the package would otherwise fill 138 million numbers at random first.
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # its torchvision calls are of an old form
            network = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
        network.scaling_layer = lpips.ScalingLayer()  # its buffers are constants, lost on meta
        heads_file = Path(lpips.__file__).parent / "weights" / "v0.1" / "vgg.pth"
        heads = torch.load(heads_file, map_location="cpu", weights_only=True)
        state = network.state_dict()
        for name in state:
            if name.startswith("net."):
                _, _, index, kind = name.split(".")  # net.slice<k>.<index in features>.<kind>
                state[name] = trunk[f"features.{index}.{kind}"].float()
            elif name.startswith("lin"):
                state[name] = heads[name.replace("lins.", "lin")]  # each head is listed under two names
        network.load_state_dict(state, assign=True)
        self.network = network.eval().requires_grad_(False)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Distance of each pair of images in [0, 1], computed in float32. [n, 3, h, w] -> [n]"""
        _check("lpips", pred, target, smallest=16)  # four poolings
        if not torch.is_grad_enabled() or not (pred.requires_grad or target.requires_grad):
            return self.compare(torch.cat([pred, target]), [(i, len(pred) + i) for i in range(len(pred))])
        groups = zip(pred.float().split(_GROUP), target.float().split(_GROUP))
        with full_precision(pred.device), exact_float32():
            return torch.cat([self.network(a, b, normalize=True).flatten() for a, b in groups])

    @torch.no_grad()
    def compare(self, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        """As `forward`, of pairs among images; what the network sees in an image is kept from its first pair to its last.

        [n, 3, h, w] -> [len(pairs)]
        """
        last = {place: number for number, pair in enumerate(pairs) for place in pair}
        seen: dict[int, tuple[Tensor, ...]] = {}
        distances = []
        with full_precision(images.device), exact_float32():
            for number, pair in enumerate(pairs):
                if not seen.keys() >= set(pair):
                    ahead = dict.fromkeys(place for later in pairs[number:] for place in later)
                    new = [place for place in ahead if place not in seen][: self._at_once]
                    seen |= zip(new, self._see(images[new].float()))
                distances.append(self._distance(*(seen[place] for place in pair)))
                seen = {place: maps for place, maps in seen.items() if last[place] > number}
                seen = dict(list(seen.items())[-_KEPT:])  # the others are looked at again
        return torch.cat(distances)

    def _see(self, images: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """For each image its features after each stage, of length 1 at each pixel: [1, c, h', w']. [n, 3, h, w] in [0, 1]"""
        x, maps = self.network.scaling_layer(2 * images - 1), []
        for stage in self._stages:
            x = stage(x)
            maps.append((x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10)).split(1))
        return zip(*maps)

    def _distance(self, first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> Tensor:
        heads = zip(self.network.lins, first, second)
        return sum(head((a - b).square_()).mean(dim=(1, 2, 3)) for head, a, b in heads)

    @cached_property
    def _stages(self) -> list[nn.Module]:
        """The trunk in the five parts after which images are compared; on processors with fewer multiplications."""
        trunk = self.network.net
        return list((with_winograd(trunk) if self._on_processor else trunk).children())

    @property
    def _at_once(self) -> int:
        """Images that the network sees together: processors have less cache, other devices more to do at once."""
        return 2 if self._on_processor else _GROUP

    @property
    def _on_processor(self) -> bool:
        return next(self.network.parameters()).device.type == "cpu"


def load_lpips(vgg16_path: str, device: torch.device) -> Lpips:
    """LPIPS on `device`; nothing is downloaded.

    Args:
        vgg16_path: torchvision's `vgg16-397923af.pth`, or `random` for a trunk of random weights (tests).

    Raises:
        ConfigError: the file is missing, or is not that file.
    """
    trunk = _random_trunk() if vgg16_path == "random" else _read_trunk(Path(vgg16_path))
    return Lpips(trunk).to(device)


def _read_trunk(path: Path) -> dict[str, Tensor]:
    again = (
        "run `python -m scripts.download_weights vgg16`, or leave LPIPS out: "
        "inference.metrics: [psnr, ssim], training.lpips_loss_weight: 0."
    )
    if not path.is_file():
        raise ConfigError(
            f"pretrained.vgg16: {path} is missing. LPIPS needs it (from {_VGG16_URL}); to get it, {again}"
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(_VGG16_SHA256):
        raise ConfigError(
            f"pretrained.vgg16: {path} ({path.stat().st_size} bytes) has sha256 {digest[:8]}..., expected "
            f"{_VGG16_SHA256}...: it is cut off or another file. Delete it and {again}"
        )
    return torch.load(path, map_location="cpu", weights_only=True)


def _random_trunk() -> dict[str, Tensor]:
    """The convolutions of VGG16 with seeded random weights that keep the scale of the activations."""
    generator = torch.Generator().manual_seed(0)
    widths = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256}
    widths |= dict.fromkeys((17, 19, 21, 24, 26, 28), 512)
    trunk, before = {}, 3
    for index, width in widths.items():
        noise = torch.randn(width, before, 3, 3, generator=generator)
        trunk[f"features.{index}.weight"] = noise * (2 / (9 * before)) ** 0.5
        trunk[f"features.{index}.bias"] = torch.zeros(width)
        before = width
    return trunk


# ----------------------------------------------------------------------------------------------- table


def compare(metric: Metric, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """A metric of many pairs among few images. [n, 3, h, w] -> [len(pairs)]"""
    if isinstance(metric, Lpips):
        return metric.compare(images, pairs)
    groups = (pairs[start : start + _GROUP] for start in range(0, len(pairs), _GROUP))
    return torch.cat(
        [metric(images[[a for a, _ in group]], images[[b for _, b in group]]) for group in groups]
    )


METRICS: dict[str, Callable[[Pretrained, torch.device], Metric]] = {
    "psnr": lambda pretrained, device: psnr,
    "ssim": lambda pretrained, device: ssim,
    "lpips": lambda pretrained, device: load_lpips(pretrained.vgg16, device),
}
"""Name in `inference.metrics` -> how to build it."""


def build_metrics(names: list[str], pretrained: Pretrained, device: torch.device) -> dict[str, Metric]:
    """The named metrics, in that order, each `(pred [n, 3, h, w], target) -> [n]`.

    Raises:
        ConfigError: a file that a metric needs is missing, or no such metric.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise ConfigError(
            f"inference.metrics: {unknown[0]} is not a metric. Choose from {', '.join(METRICS)}."
        )
    return {name: METRICS[name](pretrained, device) for name in names}
