"""One frame of a scene as models see it: picture and camera after resizing and cropping.

Public: Resize, ViewReader, View.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from .fast_pictures import decode_fast, resize_fast
from .overlap import fields_of_view_deg
from .scene import FrameError, Scene, SceneError
from .transforms import (
    cover_and_crop,
    crop_middle,
    decode_picture,
    decode_pixels,
    invert_pose,
    over_white,
    resize_and_crop,
)
from .view_settings import ViewSettings

Resize = Callable[[np.ndarray, np.ndarray, int, int, bool], tuple[np.ndarray, np.ndarray]]


class View(NamedTuple):
    """picture: uint8 [h, w, 3]; fxfycxcy: its pixels. [4]; c2w: in the data set's own world. [4, 4]

    enlarged: whether the stored picture was smaller than this one.
    """

    picture: np.ndarray
    fxfycxcy: np.ndarray
    c2w: np.ndarray
    enlarged: bool


class ViewReader:
    """Reads frames as the settings of a run want them.

    Args:
        resize: parity files replace it by the published ways of resizing.
        expected_shape: height and width that all stored pictures must have; None: any.
    """

    def __init__(
        self,
        settings: ViewSettings,
        resize: Resize = resize_and_crop,
        expected_shape: tuple[int, int] | None = None,
    ) -> None:
        self.settings, self.resize, self.expected_shape = settings, resize, expected_shape
        self.decode = decode_picture if resize is resize_and_crop else decode_pixels
        self.cover = cover_and_crop
        if settings.fast_decode:
            self.decode, self.cover = decode_fast, partial(cover_and_crop, part=resize_fast)
            self.resize = partial(resize, part=resize_fast)

    def __call__(self, scene: Scene, frame: int, check_scene: bool = False, zoom: float = 1.0) -> View:
        """One frame of a scene.

        Args:
            check_scene: also refuse the scene if one of its cameras sees more than `training.max_fov`.
            zoom: enlarge the middle so many times.

        Raises:
            FrameError: this frame cannot be used. SceneError: the scene cannot.
        """
        if reason := scene.missing(frame):
            raise FrameError(f"frame {frame}: {reason}")
        try:
            image = self.decode(scene.encoded(frame))
        except ValueError as error:
            raise FrameError(f"frame {frame}: {error}") from error
        fxfycxcy, w2c = scene.camera(frame)  # after its picture, whose size it may follow
        height, width = image.shape[:2]
        if self.expected_shape and (height, width) != self.expected_shape:
            wanted = "x".join(map(str, self.expected_shape[::-1]))
            raise SceneError(f"a picture is {width}x{height}, not {wanted} as meta.json states")
        if check_scene and self.settings.max_fov:
            self._check_field_of_view(scene, height, width)
        s = self.settings
        if zoom > 1:
            image, fxfycxcy = crop_middle(np.asarray(image), fxfycxcy, zoom)
        if s.image_shape:
            height, width = s.image_shape
            small = image.shape[0] < height or image.shape[1] < width
            image, fxfycxcy = self.cover(image, fxfycxcy, height, width, s.keep_principal_point)
        else:
            small = min(image.shape[:2]) < s.image_size
            image = over_white(image)
            image, fxfycxcy = self.resize(image, fxfycxcy, s.image_size, s.patch_size, s.square_crop)
        return View(image, fxfycxcy, invert_pose(w2c), small)

    def _check_field_of_view(self, scene: Scene, height: int, width: int) -> None:
        """Raises SceneError if a camera of the scene sees too much, all pictures being height x width."""
        frames = [frame for frame in range(scene.num_frames) if not scene.missing(frame)]
        fxfycxcy = np.stack([scene.camera(frame)[0] for frame in frames])
        widest = fields_of_view_deg(fxfycxcy / [width, height, width, height]).max()
        if widest > self.settings.max_fov:
            raise SceneError(
                f"field of view {widest:.1f} degrees, above training.max_fov {self.settings.max_fov:g}"
            )
