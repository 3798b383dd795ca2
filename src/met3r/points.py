"""Point maps: where in space each pixel of two views lies, seen from the first; and the camera that they imply.

Public: PointMaps, from_depth, estimate_camera.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry.camera import full_precision


@dataclass(frozen=True)
class PointMaps:
    """Surfaces of b pairs of views, all in the camera frame of the pair's first view (OpenCV axes).

    points: [b, 2, h, w, 3]
    confidence: above 1, as DUSt3R has it; only the published focal length reads it. [b, 2, h, w]
    fxfycxcy: camera of the first view, pixels of the h x w map; None: not known. [b, 4]
    """

    points: Tensor
    confidence: Tensor
    fxfycxcy: Tensor | None = None

    def __post_init__(self) -> None:
        b, two, h, w, three = self.points.shape
        wrong_camera = self.fxfycxcy is not None and self.fxfycxcy.shape != (b, 4)
        if (two, three) != (2, 3) or self.confidence.shape != (b, 2, h, w) or wrong_camera:
            raise ValueError(
                f"PointMaps: points {tuple(self.points.shape)} and confidence {tuple(self.confidence.shape)} must be "
                "[b, 2, h, w, 3] and [b, 2, h, w], fxfycxcy [b, 4]."
            )


def from_depth(depth: Tensor, c2w: Tensor, fxfycxcy: Tensor) -> PointMaps:
    """Exact point maps of views whose depth and cameras are known.

    Args:
        depth: along the optical axis, in the units of the cameras, at the pixel centres. [b, 2, h, w]
        c2w: camera to world. [b, 2, 4, 4]
        fxfycxcy: pixels of the h x w pictures. [b, 2, 4]
    """
    height, width = depth.shape[-2:]
    with full_precision(depth.device):
        fx, fy, cx, cy = fxfycxcy[..., None, None].unbind(2)  # each [b, 2, 1, 1]
        column = torch.arange(width, device=depth.device) + 0.5
        row = torch.arange(height, device=depth.device)[:, None] + 0.5
        own = torch.stack([(column - cx) / fx * depth, (row - cy) / fy * depth, depth], dim=-1)
        to_first = torch.linalg.inv(c2w[:, :1].double()) @ c2w.double()  # [b, 2, 4, 4]
        to_first = to_first.to(depth.dtype)
        points = torch.einsum("bvij,bvhwj->bvhwi", to_first[..., :3, :3], own)
        points = points + to_first[:, :, None, None, :3, 3]
    return PointMaps(points, torch.full_like(depth, 2.0), fxfycxcy[:, 0])


def estimate_camera(points: Tensor) -> Tensor:
    """The camera that sees a point map in its own frame: median over the pixels of the focal lengths that fit each one.

    The principal point is taken to be the centre of the picture.

    Args:
        points: in the frame of the view whose pixels they are. [b, h, w, 3]

    Returns:
        fxfycxcy, pixels. [b, 4]; NaN where no pixel says anything.
    """
    b, height, width, _ = points.shape
    column = torch.arange(width, device=points.device) + 0.5 - width / 2
    row = (torch.arange(height, device=points.device) + 0.5 - height / 2)[:, None]
    x, y, z = points.unbind(-1)  # each [b, h, w]
    known = points.isfinite().all(dim=-1) & (z > 0)
    focal = []
    for offset, across in ((column, x), (row, y)):
        votes = torch.where(known & (offset != 0) & (across != 0), offset * z / across, torch.nan)
        focal.append(votes.flatten(1).nanmedian(dim=1).values)
    centre = points.new_tensor([width / 2, height / 2]).expand(b, 2)
    return torch.cat([torch.stack(focal, dim=-1), centre], dim=-1)
