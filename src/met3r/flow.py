"""One view moved onto another by an optical flow: MEt3R without geometry. The flow comes from outside (RAFT, say).

Public: warp_by_flow, sample_at.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def flow_ends(flow: Tensor) -> Tensor:
    """Where the flow of each pixel leads: column and row, the first pixel's centre being 0. [b, 2, h, w] -> [b, h, w, 2]"""
    height, width = flow.shape[-2:]
    row, column = torch.meshgrid(
        torch.arange(height, device=flow.device), torch.arange(width, device=flow.device), indexing="ij"
    )
    return flow.movedim(1, -1) + torch.stack([column, row], dim=-1)


def sample_at(image: Tensor, ends: Tensor) -> Tensor:
    """Bilinear values at places inside the picture. [b, c, h, w], [b, h, w, 2] as `flow_ends` -> [b, c, h, w]"""
    height, width = image.shape[-2:]
    size = ends.new_tensor([max(width - 1, 1), max(height - 1, 1)])
    return F.grid_sample(
        image, ends / size * 2 - 1, mode="bilinear", padding_mode="border", align_corners=True
    )


def warp_by_flow(features: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """The second view's features as the first view sees them, and where the flow stays inside the picture.

    Args:
        features: of the second view. [b, c, h, w]
        flow: from the first view's pixels to the second's, pixels, (right, down). [b, 2, h, w]

    Returns:
        features, 0 where the flow leads out of the picture [b, c, h, w]; mask bool [b, h, w]
    """
    ends = flow_ends(flow)
    last = ends.new_tensor([flow.shape[-1] - 1, flow.shape[-2] - 1])
    mask = ((ends >= 0) & (ends <= last)).all(dim=-1)  # before any clamping
    return sample_at(features, ends) * mask[:, None], mask
