"""What a score is worth: images anybody gets from the context without learning anything.

A model must beat the first three; the plane warp knows one number of the scene's geometry and is the mark to aim at.

Public: FLOORS, Shown, floor_images, nearest_input, plane_warp.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .geometry.camera import Cameras, Views

FLOORS = {
    "nearest_input": "nearest input, copied",
    "mean_of_inputs": "mean of the inputs",
    "mean_colour": "mean colour",
    "plane_warp": "nearest input, warped through a plane at the median depth",
}
"""Name in reports -> what it is."""

SAME_DISTANCE = 1e-4
"""Centres whose distances differ by less than this share of the largest count as equally near."""


class Shown(NamedTuple):
    """What stands for each target view: images[column], so that one image may stand for many.

    images: [b, k, 3, h, w]; column: [b, v_t]
    """

    images: Tensor
    column: Tensor

    @classmethod
    def each(cls, images: Tensor) -> Shown:
        """An image of its own for every target. [b, v_t, 3, h, w]"""
        return cls(images, torch.arange(images.shape[1]).expand(images.shape[:2]))


def floor_images(input: Views, target: Cameras, plane_depth: Tensor | None = None) -> dict[str, Shown]:
    """The floors of every target view, in [0, 1], keys as in FLOORS.

    Args:
        input: context views.
        target: cameras of the targets, in the frame of the input cameras.
        plane_depth: median depth of each scene, in the units of these cameras; none: no plane warp. [b]
    """
    nearest = nearest_input(input.cameras, target)
    only = torch.zeros_like(nearest)
    colour = input.image.mean(dim=(1, 3, 4), keepdim=True)
    images = {
        "nearest_input": Shown(input.image, nearest),
        "mean_of_inputs": Shown(input.image.mean(dim=1, keepdim=True), only),
        "mean_colour": Shown(colour.expand(-1, -1, -1, target.height, target.width), only),
    }
    if plane_depth is not None:
        images["plane_warp"] = Shown.each(plane_warp(input, target, plane_depth, nearest))
    return images


def nearest_input(input: Cameras, target: Cameras) -> Tensor:
    """Column of the input whose camera centre is nearest; of equally near ones the smallest view angle. [b, v_t]"""
    distance = torch.cdist(
        target.c2w[..., :3, 3], input.c2w[..., :3, 3], compute_mode="donot_use_mm_for_euclid_dist"
    )  # [b, v_t, v_i]
    turn = -torch.einsum("bti,bsi->bts", target.c2w[..., :3, 2], input.c2w[..., :3, 2])  # - cos of the angle
    slack = SAME_DISTANCE * distance.amax(dim=(1, 2), keepdim=True)
    near = distance <= distance.amin(dim=2, keepdim=True) + slack
    return turn.masked_fill(~near, torch.inf).argmin(dim=2)


def plane_warp(input: Views, target: Cameras, depth: Tensor, nearest: Tensor) -> Tensor:
    """An input seen through a plane parallel to each target image, bilinear; outside the input its border repeats.

    Args:
        input: context views; cameras in the frame of `target`.
        target: cameras to look through.
        depth: distance of the plane along the target's viewing axis, camera units. [b]
        nearest: column of the input to warp. [b, v_t]

    Returns:
        [b, v_t, 3, h, w] in [0, 1]
    """
    height, width = target.height, target.width
    device = target.c2w.device
    fx, fy, cx, cy = target.fxfycxcy[..., None, None].unbind(2)  # each [b, v_t, 1, 1]
    y, x = torch.meshgrid(
        torch.arange(height, device=device) + 0.5, torch.arange(width, device=device) + 0.5, indexing="ij"
    )  # [h, w]
    x, y = (x - cx) / fx, (y - cy) / fy  # [b, v_t, h, w], at depth 1
    points = torch.stack([x, y, torch.ones_like(x)], dim=-1) * depth.to(x)[:, None, None, None, None]

    source = _pick(input.cameras.c2w, nearest)  # [b, v_t, 4, 4]
    relative = torch.linalg.inv(source) @ target.c2w  # target camera -> source camera
    points = torch.einsum("bvij,bvhwj->bvhwi", relative[..., :3, :3], points)
    points = points + relative[..., None, None, :3, 3]

    fx, fy, cx, cy = _pick(input.cameras.fxfycxcy, nearest)[..., None, None].unbind(2)
    z = points[..., 2].clamp(min=1e-6)  # what lies behind the source lands far outside, on its border
    column = (fx * points[..., 0] / z + cx) / input.cameras.width
    row = (fy * points[..., 1] / z + cy) / input.cameras.height
    grid = torch.stack([column, row], dim=-1) * 2 - 1  # [b, v_t, h, w, 2]; -1 and 1 are the outer edges
    warped = F.grid_sample(
        _pick(input.image, nearest).flatten(0, 1),
        grid.flatten(0, 1),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    return warped.unflatten(0, nearest.shape)


def _pick(values: Tensor, column: Tensor) -> Tensor:
    """Per target the entry of the chosen view: [b, v_i, ...] and [b, v_t] -> [b, v_t, ...]."""
    return values[torch.arange(len(values), device=values.device)[:, None], column]
