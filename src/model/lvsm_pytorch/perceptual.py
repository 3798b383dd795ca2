"""VGG-16 features for the published perceptual loss: the classifier of torchvision's network up to its second ReLU.

The original feeds images as they are, without ImageNet normalisation, and compares one vector of 4096 numbers: nothing
like the perceptual loss of the paper, which the trainer offers (`training.perceptual_loss_weight`).

The weights are buffers outside of the state_dict: they move with the model, are never trained and never saved with it.

Public: Vgg16Features, load_vgg16.
"""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST_SIDE = 32
"""Five poolings leave nothing of smaller images."""

_CONVOLUTIONS = (0, 2, "pool", 5, 7, "pool", 10, 12, 14, "pool", 17, 19, 21, "pool", 24, 26, 28, "pool")
"""Index in torchvision's `features` of each convolution."""
_GRID = 7
_NAMES = [f"features.{i}" for i in _CONVOLUTIONS if i != "pool"] + ["classifier.0", "classifier.3"]


class Vgg16Features(nn.Module):
    """Images [n, 3, h, w], sides at least 32, to vectors [n, 4096]."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        """`state`: torchvision's state_dict of vgg16, of any widths; what lies behind the second ReLU is left out.

        Raises:
            ValueError: a tensor is missing.
        """
        super().__init__()
        missing = [f"{n}.{kind}" for n in _NAMES for kind in ("weight", "bias") if f"{n}.{kind}" not in state]
        if missing:
            raise ValueError(f"no weights of torchvision's vgg16: {missing[0]} is missing.")
        for name in _NAMES:
            for kind in ("weight", "bias"):
                self.register_buffer(_flat(name, kind), state[f"{name}.{kind}"], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if min(images.shape[-2:]) < SMALLEST_SIDE:
            raise ValueError(
                f"the perceptual loss needs images of at least {SMALLEST_SIDE} x {SMALLEST_SIDE} pixels, not "
                f"{images.shape[-2]} x {images.shape[-1]}: set perceptual_loss_weight=0."
            )
        x = images.to(self._weight("features.0").dtype)
        for index in _CONVOLUTIONS:
            if index == "pool":
                x = F.max_pool2d(x, 2)
            else:
                name = f"features.{index}"
                x = F.conv2d(x, self._weight(name), self._weight(name, "bias"), padding=1).relu()
        x = F.adaptive_avg_pool2d(x, _GRID).flatten(1)
        for name in ("classifier.0", "classifier.3"):
            x = F.linear(x, self._weight(name), self._weight(name, "bias")).relu()
        return x

    def _weight(self, name: str, kind: str = "weight") -> Tensor:
        return self.get_buffer(_flat(name, kind))


def _flat(name: str, kind: str) -> str:
    return f"{name}.{kind}".replace(".", "_")  # a buffer's name has no dots


def load_vgg16(path: str | Path) -> Vgg16Features:
    """The network with the weights of torchvision's `vgg16-397923af.pth`; nothing is downloaded.

    Raises:
        ValueError: no such file, or it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"the perceptual loss needs the weights of torchvision's vgg16, but there is no {path}: "
            "`python -m scripts.download_weights vgg16` fetches them; perceptual_loss_weight=0 does without."
        )
    try:
        return Vgg16Features(torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, EOFError, UnpicklingError, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} does not hold the weights of torchvision's vgg16: {reason}") from error
