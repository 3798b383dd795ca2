"""Where point maps come from: exact ones of the synthetic set, or a DUSt3R or MASt3R that the user has.

A geometry is called with what is known of a pair of frames and returns its point maps in both directions. Those two
networks are under CC BY-NC-SA and no part of this project: nothing of them is imported or fetched until their code and
weights are named.

Public: Pair, Geometry, SyntheticGeometry, PairNetwork, load_pair_network.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..config import ConfigError
from ..data.synthetic import Scene, find_scene, read_spec, scene_depth
from .points import PointMaps, from_depth


@dataclass(frozen=True)
class Pair:
    """Two frames of a video. frames: their numbers in the scene; images: in [0, 1], [1, 2, 3, h, w]."""

    scene: str
    frames: tuple[int, int]
    images: Tensor


Geometry = Callable[[Pair], tuple[PointMaps, PointMaps]]
"""Point maps in the first view's frame, and those of the swapped pair in the second's."""


class SyntheticGeometry:
    """Exact point maps of the synthetic set: depth from its rooms, its own cameras. Frames keep their numbers."""

    def __init__(self, root: Path) -> None:
        """root: of the set, with `synthetic.json`. Raises ConfigError if there is none."""
        self.root, self.spec = root, read_spec(root)
        self.scenes: dict[str, Scene] = {}
        self.depths: dict[tuple[str, int, int, int], np.ndarray] = {}

    def __call__(self, pair: Pair) -> tuple[PointMaps, PointMaps]:
        height, width = pair.images.shape[-2:]
        scene = self._scene(pair.scene)
        c2w = torch.from_numpy(np.stack([scene.c2w[self._checked(scene, f)] for f in pair.frames])).float()[
            None
        ]
        depth = torch.from_numpy(np.stack([self._depth(scene, f, height, width) for f in pair.frames]))[None]
        camera = torch.from_numpy(self._camera(scene, height, width)).float().expand(1, 2, 4)
        device = pair.images.device
        depth, c2w, camera = depth.to(device), c2w.to(device), camera.to(device)
        return from_depth(depth, c2w, camera), from_depth(depth.flip(1), c2w.flip(1), camera)

    def _scene(self, key: str) -> Scene:
        if key not in self.scenes:
            self.scenes[key] = find_scene(self.spec, key)
        return self.scenes[key]

    def _checked(self, scene: Scene, frame: int) -> int:
        if not 0 <= frame < len(scene.c2w):
            raise ConfigError(
                f"{self.root}: scene {scene.key} has frames 0 to {len(scene.c2w) - 1}, not {frame}."
            )
        return frame

    def _camera(self, scene: Scene, height: int, width: int) -> np.ndarray:
        """Of a picture that was scaled to cover height x width and cut to its centre. [4]"""
        scale = max(height / self.spec.height, width / self.spec.width)
        fx, fy, *_ = scene.fxfycxcy * scale
        return np.array([fx, fy, width / 2, height / 2])

    def _depth(self, scene: Scene, frame: int, height: int, width: int) -> np.ndarray:
        known = (scene.key, frame, height, width)
        if known not in self.depths:
            camera = self._camera(scene, height, width)
            self.depths[known] = scene_depth(scene, frame, camera, height, width)
        return self.depths[known]


# ----------------------------------------------------------------------------------------------- networks


NETWORKS = {
    "dust3r": ("dust3r.model", "AsymmetricCroCo3DStereo", "naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt"),
    "mast3r": (
        "mast3r.model",
        "AsymmetricMASt3R",
        "naver/MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric",
    ),
}
"""Name -> module and class in its code, and where its weights are on Hugging Face."""

PATCH = 16


class PairNetwork:
    """Point maps that a DUSt3R or MASt3R sees in a pair of pictures; both orders are computed."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.network, self.device = network.to(device).eval().requires_grad_(False), device

    def __call__(self, pair: Pair) -> tuple[PointMaps, PointMaps]:
        """Raises ValueError if the sides of the pictures are no multiples of 16."""
        height, width = pair.images.shape[-2:]
        if height % PATCH or width % PATCH:
            raise ValueError(
                f"pictures of {width} x {height} pixels: DUSt3R and MASt3R take sides that are multiples of {PATCH}, best "
                "with a long side of 512: use --resize 512."
            )
        images = pair.images.to(self.device) * 2 - 1
        return self._maps(images), self._maps(images.flip(1))

    @torch.no_grad()
    def _maps(self, images: Tensor) -> PointMaps:
        names = [str(i) for i in range(len(images))]
        shape = torch.tensor([images.shape[-2:]] * len(images))
        views = [{"img": images[:, i], "true_shape": shape, "instance": names, "idx": i} for i in range(2)]
        first, second = self.network(*views)
        points = torch.stack([first["pts3d"], second["pts3d_in_other_view"]], dim=1).float()
        return PointMaps(points, torch.stack([first["conf"], second["conf"]], dim=1).float())


def load_pair_network(
    name: str, code: Path | None, weights: Path | None, device: torch.device
) -> PairNetwork:
    """A network of NETWORKS from files that the user has.

    Args:
        code: checkout of its repository, with its submodules.
        weights: folder with `config.json` and `model.safetensors`.

    Raises:
        ConfigError: one of them is missing.
    """
    module, class_name, repository = NETWORKS[name]
    package = module.split(".")[0]
    if not code or not (code / package).is_dir():
        raise ConfigError(
            f"{name} needs its code: --code must name a checkout of https://github.com/naver/{name} (git clone --recursive; "
            f"CC BY-NC-SA 4.0, not for commercial use). {f'{code} has no folder {package}' if code else 'It is not given'}."
        )
    if not weights or not all((weights / file).is_file() for file in ("config.json", "model.safetensors")):
        raise ConfigError(
            f"{name} needs its weights: --weights must name a folder with config.json and model.safetensors of "
            f"https://huggingface.co/{repository}; {weights or 'no folder'} lacks them."
        )
    for folder in (code / "dust3r", code):  # MASt3R carries DUSt3R as a submodule
        if folder.is_dir() and str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    try:
        found = getattr(importlib.import_module(module), class_name)
    except ImportError as error:
        raise ConfigError(
            f"{code}: {module} cannot be imported ({error}): install what its requirements.txt names."
        ) from error
    return PairNetwork(found.from_pretrained(str(weights)), device)
