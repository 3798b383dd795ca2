"""30 frames of one scene by the models that encode a scene once, against the published way and against encoding each time.

The published way computes all tokens of every block, four targets at a time. Width as published; half the depth and small
pictures, so that a row takes less than a minute: tokens of targets and of the scene stay in the published proportion.

Public: measure.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from ..geometry.camera import Cameras, Views
from ..model.base import ViewSynthesizer
from ..model.transformer import BlockStack
from .measure import build_section, scene
from .ratio import Place, Row

FRAMES, PUBLISHED_CHUNK, INPUTS = 30, 4, 2
PUBLISHED_TARGET, AGAIN_TARGET = 1.15, 1.5
TOLERANCE = 1e-5
"""Of a colour in [0, 1]."""

TRANSFORMER = {"use_qk_norm": True, "special_init": True, "depth_init": True}
SECTIONS: dict[str, tuple[int, dict]] = {
    "LVSM encoder-decoder": (
        64,
        {
            "class_name": "model.LVSM_scene_encoder_decoder.Images2LatentScene",
            "image_tokenizer": {"image_size": 64, "patch_size": 8},
            "target_pose_tokenizer": {"patch_size": 8},
            "transformer": {
                **TRANSFORMER,
                "encoder_n_layer": 6,
                "decoder_n_layer": 6,
                "n_latent_vectors": 192,
            },
        },
    ),
    "UP-LVSM": (
        112,
        {
            "class_name": "src.model.uplvsm.unposedLVSM",
            "image_tokenizer": {"image_size": 112, "patch_size": 14, "backbone": {"depth": 6}},
            "target_pose_tokenizer": {"patch_size": 14},
            "transformer": {
                **TRANSFORMER,
                "encoder_n_layer": 3,
                "estimator_n_layer": 2,
                "decoder_n_layer": 7,
                "n_latent_vectors": 256,
            },
        },
    ),
}
"""Name -> side of the pictures, and the section `model`."""


@torch.inference_mode()
def measure(_: Place) -> list[Row]:
    """Two rows for each model; one turn, in processor time."""
    torch.manual_seed(0)
    return [row for name, (size, section) in SECTIONS.items() for row in _rows(name, size, section)]


def _rows(name: str, size: int, section: dict) -> list[Row]:
    model, input = build_section(section), scene(INPUTS, size, "cpu")
    cameras = scene(FRAMES, size, "cpu").cameras
    model.render(model.encode(input), cameras.views(slice(PUBLISHED_CHUNK)))  # warms up
    ways: dict[str, Callable[[], Tensor]] = {
        "published": lambda: _published(model, input, cameras),
        "ours": lambda: model.render(model.encode(input), cameras, PUBLISHED_CHUNK),
        "again": lambda: _encoding_each_time(model, input, cameras),
    }
    seconds, images = {}, {}
    for way, render in tqdm(ways.items(), desc=name, leave=False):
        begin = time.process_time()
        images[way] = render()
        seconds[way] = time.process_time() - begin
    rows = [("published", "published way", PUBLISHED_TARGET), ("again", "encoding for each", AGAIN_TARGET)]
    return [
        Row(
            f"{FRAMES} frames, {name}, against {what}",
            f"{FRAMES / seconds[way]:.2f} frames/s",
            f"{FRAMES / seconds['ours']:.2f} frames/s",
            seconds[way] / seconds["ours"],
            target,
            _same(images["ours"], images[way]),
        )
        for way, what, target in rows
    ]


def _published(model: ViewSynthesizer, input: Views, cameras: Cameras) -> Tensor:
    stacks = [module for module in model.modules() if isinstance(module, BlockStack)]
    for stack in stacks:
        stack.skip_unused = False
    images = model.render(model.encode(input), cameras, PUBLISHED_CHUNK)
    for stack in stacks:
        stack.skip_unused = True
    return images


def _encoding_each_time(model: ViewSynthesizer, input: Views, cameras: Cameras) -> Tensor:
    frames = (cameras.views(slice(i, i + 1)) for i in range(cameras.num_views))
    return torch.cat([model.render(model.encode(input), frame) for frame in frames], dim=1)


def _same(images: Tensor, others: Tensor) -> str:
    worst = float((images - others).abs().max())
    return f"colours within {max(worst, 1e-9):.0e}" if worst <= TOLERANCE else ""
