"""The frozen DINOv2 whose features a family may be aligned with while it trains (Efficient-LVSM).

It is no part of the model that learns from it: neither its parameters nor its checkpoints hold it.

Source: Efficient-LVSM, arXiv 2602.06478: ImageNet's normalisation, pictures resized to 336 pixels, hidden states after chosen
blocks without the last norm, patch tokens alone. There the features are resampled to 32 x 32 tokens whatever the picture;
here to the grid of the student's patches.

Public: DinoTeacher, VIT_B.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .dinov2 import Backbone, DinoV2

PATCH = 14
SIDE = 24
"""Patches along the shorter side of what the teacher sees: 336 pixels."""

VIT_B = Backbone(num_register_tokens=0)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, of RGB in [0, 1]."""


class DinoTeacher:
    """Images [b, v, 3, h, w] in [0, 1] -> {block, counted from 1: tokens [b * v, n, d]} on the grid of the student's patches.

    Args:
        blocks: whose output is wanted.
        student_patch: side of the student's patches, pixels.

    Raises:
        ValueError: there is no such block.
    """

    def __init__(self, blocks: set[int], student_patch: int, size: Backbone = VIT_B) -> None:
        if blocks and not 1 <= min(blocks) <= max(blocks) <= size.depth:
            raise ValueError(
                f"model.repa_config names block {max(blocks)} of the teacher, which has {size.depth}."
            )
        self.blocks, self.student_patch = blocks, student_patch
        self.network = DinoV2(size, PATCH, qk_norm=False).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, image: Tensor) -> dict[int, Tensor]:
        grid = [side // self.student_patch for side in image.shape[-2:]]  # rows, columns of the student
        seen = self._prepared(image.flatten(0, 1))
        rows, columns = (side // PATCH for side in seen.shape[-2:])
        features = {}
        for block, tokens in self.network.hidden_states(seen, self.blocks).items():
            tokens = (
                tokens.float().unflatten(1, (rows, columns)).permute(0, 3, 1, 2)
            )  # [b * v, d, rows, columns]
            tokens = F.interpolate(tokens, size=grid, mode="bicubic")
            features[block] = tokens.flatten(2).transpose(1, 2)
        return features

    def _prepared(self, image: Tensor) -> Tensor:
        """Normalised, the shorter side 336 pixels, the other a multiple of the patch. [n, 3, h, w]"""
        shorter = min(image.shape[-2:])
        size = [PATCH * round(SIDE * side / shorter) for side in image.shape[-2:]]
        mean, std = (torch.tensor(x, device=image.device)[:, None, None] for x in (MEAN, STD))
        return F.interpolate((image - mean) / std, size=size, mode="bicubic")
