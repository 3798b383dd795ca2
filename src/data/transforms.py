"""From encoded pictures and world-to-camera poses to what a model sees. Plain functions on arrays.

Source: LVSM and Less3Depend, dataset_scene.py (PIL LANCZOS, int() then rounding half to even). Beyond them: grey,
RGBA, portrait and small pictures.

Public: decode_image, decode_pixels, decode_picture, PillowPicture, over_white, image_header, checked_header, image_layout,
resize_part, resized_size, resize_and_crop, cover_and_crop, crop_middle, in_planes, mirror, mirrored_pose, invert_pose.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from PIL import Image

from .windows import Window, resize_window


class PillowPicture:
    """An RGB picture that Pillow has decoded: resized by Pillow, it need not become an array before."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.image.height, self.image.width, 3

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.image, dtype=dtype, copy=copy)


ResizePart = Callable[[np.ndarray | PillowPicture, tuple[int, int], Window], np.ndarray]
"""Picture [h, w, 3 or 4], width and height of the whole resized one, part of it that is wanted -> that part."""

FORMATS = ("JPEG", "PNG", "WEBP")
"""Decoders that are allowed to see data from a file; others of Pillow's start programs or are rarely tested."""

_BROKEN = (OSError, ValueError, SyntaxError, EOFError)
"""What Pillow raises on damaged pictures (a broken PNG is a SyntaxError)."""


class _TooLarge(ValueError):
    """A few bytes can claim a picture that fills the memory; no camera makes one of this size."""


def _open(data: bytes) -> Image.Image:
    """Pillow's picture, not decoded yet; what Pillow warns of as a decompression bomb is refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return Image.open(io.BytesIO(data), formats=FORMATS)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise _TooLarge(f"more than {Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels") from error


def image_header(data: bytes) -> tuple[int, int, str]:
    """Width, height and format ("JPEG", "PNG", ...) of an encoded picture, from its first bytes alone.

    Raises:
        ValueError: it is no picture of a known format.
    """
    try:
        with _open(data) as image:
            return _header(image)
    except _TooLarge:
        raise
    except _BROKEN as error:
        raise ValueError("not a JPEG, PNG or WebP picture") from error


def _header(image: Image.Image) -> tuple[int, int, str]:
    # MPO: a JPEG with a second one behind
    return image.width, image.height, "JPEG" if image.format == "MPO" else str(image.format)


def checked_header(data: bytes) -> tuple[int, int, str]:
    """`image_header` of a picture that `decode_image` accepts.

    Of a JPEG all its compressed data are read, but only an eighth of the size in grey is computed from them, as libjpeg
    can: nothing in the rest of its work can fail.

    Raises:
        ValueError: as `decode_image`, or as `image_header`.
    """
    try:
        with _open(data) as image:
            header = _header(image)
            if image.format == "JPEG" and image.mode in ("RGB", "L"):
                image.draft("L", (image.width // 8, image.height // 8))
                image.load()
                return header
    except _TooLarge:
        raise
    except _BROKEN as error:
        raise ValueError(f"cannot be decoded ({error})") from error
    decode_image(data)
    return header


def image_layout(data: bytes) -> tuple[str, str]:
    """Format and pixel type of an encoded picture as Pillow calls them ("JPEG", "RGB"); ("", "") if it is none."""
    try:
        with _open(data) as image:
            return str(image.format), image.mode
    except _BROKEN:
        return "", ""


def decode_image(data: bytes) -> np.ndarray:
    """Pixels of an encoded picture as RGB uint8 [h, w, 3], transparency laid over white.

    Raises:
        ValueError: damaged, cut short, or of a pixel type that has no place in 8 bits.
    """
    return over_white(decode_pixels(data))


def decode_pixels(data: bytes) -> np.ndarray:
    """Pixels of an encoded picture as uint8 [h, w, 3] RGB or, where it has transparency, [h, w, 4] RGBA (straight).

    Grey and palettes become RGB, 16 bits become 8, orientation tags are ignored (the cameras belong to the stored
    pixels). A JPEG and the PNG made of its pixels give the same array.

    Raises:
        ValueError: as `decode_image`.
    """
    try:
        with _open(data) as image:
            if image.mode.startswith("I") and image.format == "PNG":
                return _deep_grey(np.asarray(image))
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"pixels of type {image.mode}, not 8 bits")
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                return np.asarray(image.convert("RGBA"))
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except _BROKEN as error:
        raise ValueError(f"cannot be decoded ({error})") from error


def decode_picture(data: bytes) -> np.ndarray | PillowPicture:
    """`decode_pixels`; colour JPEG files stay with Pillow.

    Raises:
        ValueError: as `decode_pixels`.
    """
    try:
        with _open(data) as image:
            if image.format == "JPEG" and image.mode == "RGB":
                image.load()
                return PillowPicture(image)
    except _BROKEN as error:
        raise ValueError(f"cannot be decoded ({error})") from error
    return decode_pixels(data)


def _deep_grey(levels: np.ndarray) -> np.ndarray:
    """16-bit grey, which Pillow's own conversion would cut off at 255, as RGB. [h, w] -> uint8 [h, w, 3]"""
    grey = ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def over_white(pixels: np.ndarray) -> np.ndarray:
    """Straight alpha over white, rounded; RGB stays as it is. uint8 [h, w, 3 or 4] -> [h, w, 3]"""
    if pixels.shape[2] == 3:
        return pixels
    # 255 * 255 + 127 fits into 16 bits, and a photo may have 80 million pixels.
    rgb, alpha = pixels[..., :3].astype(np.uint16), pixels[..., 3:].astype(np.uint16)
    return ((rgb * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def resize_part(image: np.ndarray | PillowPicture, size: tuple[int, int], window: Window) -> np.ndarray:
    """`resize_window`, of any picture to an array: the exact `ResizePart`."""
    source = image.image if isinstance(image, PillowPicture) else Image.fromarray(image)
    return np.asarray(resize_window(source, size, window))


def resized_size(
    height: int, width: int, image_size: int, patch_size: int, by_height: bool = False
) -> tuple[int, int]:
    """Height and width after resizing: the shorter side becomes `image_size`, the longer a multiple of the patch.

    Published for landscape pictures: `int(image_size / h * w)`, then Python's rounding, half to even.

    Args:
        by_height: `image_size` is the height of portrait pictures too, as published; square crops of them are then
            smaller than those of landscape pictures.
    """
    landscape = width >= height or by_height
    short, long = (height, width) if landscape else (width, height)
    other = max(1, round(int(image_size / short * long) / patch_size)) * patch_size
    return (image_size, other) if landscape else (other, image_size)


def resize_and_crop(
    image: np.ndarray,
    fxfycxcy: np.ndarray,
    image_size: int,
    patch_size: int,
    square_crop: bool,
    by_height: bool = False,
    part: ResizePart = resize_part,
) -> tuple[np.ndarray, np.ndarray]:
    """Resize to `image_size` along the shorter side, then crop the centre square if asked; intrinsics follow.

    Args:
        image: RGB. uint8 [h, w, 3]
        fxfycxcy: pixels of `image`. [4]
        image_size: shorter side of the result, pixels; a multiple of `patch_size`.
        square_crop: cut the longer side to the shorter, offsets rounded down.
        by_height: as in `resized_size`.
        part: how pixels are resized.

    Returns:
        image: uint8 [h', w', 3]
        fxfycxcy: pixels of the new image; both axes keep their exact ratios, so pixels may turn slightly
            anisotropic. float64 [4]
    """
    if image_size % patch_size:
        raise ValueError(f"image_size {image_size} must be a multiple of patch_size {patch_size}.")
    height, width = image.shape[:2]
    new_height, new_width = resized_size(height, width, image_size, patch_size, by_height)
    ratios = np.array([new_width / width, new_height / height] * 2, dtype=np.float64)
    fxfycxcy = np.asarray(fxfycxcy, dtype=np.float64) * ratios
    side = min(new_height, new_width)
    crop_height, crop_width = (side, side) if square_crop else (new_height, new_width)
    left, top = (new_width - crop_width) // 2, (new_height - crop_height) // 2
    window = (left, top, left + crop_width, top + crop_height)
    return part(image, (new_width, new_height), window), fxfycxcy - np.array(
        [0, 0, left, top], dtype=np.float64
    )


def cover_and_crop(
    image: np.ndarray,
    fxfycxcy: np.ndarray,
    height: int,
    width: int,
    keep_principal_point: bool = False,
    part: ResizePart = resize_part,
) -> tuple[np.ndarray, np.ndarray]:
    """Scale a picture until it just covers height x width, then cut out the centre; intrinsics follow.

    Args:
        image: RGB, or RGBA, which is laid over white at the end: resized with the colours weighted by alpha, so that
            none bleeds in from where the picture is transparent. uint8 [h, w, 3 or 4]
        fxfycxcy: pixels of `image`. [4]
        keep_principal_point: Parity: KaiHelli/lvsm leaves it at the same fraction of the picture, which is wrong by
            half a pixel where the margins differ, and by more where it is off the centre.
        part: how pixels are resized.

    Returns:
        image: uint8 [height, width, 3]
        fxfycxcy: pixels of the new image, by the true ratio of each axis. float64 [4]

    Source: LaCT (data.py) and KaiHelli/lvsm; offsets rounded down.
    """
    old_height, old_width = image.shape[:2]
    scale = max(height / old_height, width / old_width)
    new_height, new_width = round(old_height * scale), round(old_width * scale)
    left, top = (new_width - width) // 2, (new_height - height) // 2
    window = (left, top, left + width, top + height)
    resized = part(image, (new_width, new_height), window)
    ratios = np.array([new_width / old_width, new_height / old_height] * 2, dtype=np.float64)
    moved = np.array([left, top], dtype=np.float64)
    fxfycxcy = np.asarray(fxfycxcy, dtype=np.float64) * ratios
    if keep_principal_point:
        moved = fxfycxcy[2:] * (1 - np.array([width / new_width, height / new_height]))
    fxfycxcy = fxfycxcy - np.array([0, 0, *moved])
    return over_white(resized), fxfycxcy


def in_planes(images: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of one size as models take them. uint8 [h, w, 3] each -> [v, 3, h, w]"""
    planes = np.empty((len(images), 3, *images[0].shape[:2]), np.uint8)
    for image, colours in zip(images, planes):
        if image.flags.c_contiguous:
            cv2.split(image, list(colours))  # ten times faster than copying with NumPy or torch
        else:
            colours[:] = image.transpose(2, 0, 1)
    return planes


def crop_middle(image: np.ndarray, fxfycxcy: np.ndarray, zoom: float) -> tuple[np.ndarray, np.ndarray]:
    """The middle of a picture, 1 / zoom of its sides rounded to pixels; intrinsics follow, exactly.

    Args:
        image: uint8 [h, w, 3 or 4]
        fxfycxcy: pixels of `image`. [4]
        zoom: at least 1; what remains is at least one pixel.

    Returns:
        image: uint8 [h', w', 3 or 4]
        fxfycxcy: pixels of the new image. float64 [4]
    """
    height, width = (max(1, round(side / zoom)) for side in image.shape[:2])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    moved = np.asarray(fxfycxcy, dtype=np.float64) - np.array([0, 0, left, top])
    return image[top : top + height, left : left + width], moved


def mirror(
    image: np.ndarray, fxfycxcy: np.ndarray, c2w: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The view that a mirror world shows: picture and principal point from right to left, pose with x reflected.

    The pose is S c2w S with S = diag(-1, 1, 1, 1): again a rotation, so all cameras of a scene fit together.

    Args:
        image: uint8 [h, w, 3]
        fxfycxcy: pixels of `image`. [4]
        c2w: [4, 4]
    """
    fx, fy, cx, cy = fxfycxcy
    return image[:, ::-1], np.array([fx, fy, image.shape[1] - cx, cy]), mirrored_pose(c2w)


def mirrored_pose(pose: np.ndarray) -> np.ndarray:
    """S pose S with S = diag(-1, 1, 1, 1). [..., 4, 4]"""
    signs = np.array([-1.0, 1.0, 1.0, 1.0])
    return pose * signs[:, None] * signs


def invert_pose(w2c: np.ndarray) -> np.ndarray:
    """Camera to world of world to camera, in float64. [..., 4, 4]"""
    return np.linalg.inv(np.asarray(w2c, dtype=np.float64))
