"""Cameras and rays, for every model family.

Frames: OpenCV axes (x right, y down, z forward); `c2w` is camera to world. Intrinsics `fxfycxcy` are in pixels of the
image they travel with; the centre of pixel (column i, row j) is at (i + 0.5, j + 0.5).

Everything here runs in float32 (or float64 if given), with autocast off: in bf16 a ray is wrong by up to a pixel.

Public: Cameras, Views, pixel_rays, plucker, normalize_cameras.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Cameras:
    """Posed pinhole cameras of images that all have the same size.

    c2w: camera to world, OpenCV axes. [b, v, 4, 4] float
    fxfycxcy: focal lengths and principal point, pixels of the height x width image. [b, v, 4] float
    height, width: image size, pixels.
    """

    c2w: Tensor
    fxfycxcy: Tensor
    height: int
    width: int

    def __post_init__(self) -> None:
        if (
            self.fxfycxcy.ndim != 3
            or self.fxfycxcy.shape[2] != 4
            or self.c2w.shape != (*self.fxfycxcy.shape[:2], 4, 4)
        ):
            raise ValueError(
                f"Cameras: c2w {tuple(self.c2w.shape)} and fxfycxcy {tuple(self.fxfycxcy.shape)} "
                "must be [b, v, 4, 4] and [b, v, 4]."
            )

    @property
    def num_views(self) -> int:
        return self.c2w.shape[1]

    def views(self, index: slice | list[int] | Tensor) -> Cameras:
        """The same views of every sample, e.g. `cameras.views(slice(0, 4))`."""
        return Cameras(self.c2w[:, index], self.fxfycxcy[:, index], self.height, self.width)


@dataclass
class Views:
    """Images with their cameras. image: [b, v, 3, h, w] in [0, 1]."""

    image: Tensor
    cameras: Cameras
