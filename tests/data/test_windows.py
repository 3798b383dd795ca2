"""Parts of resized pictures: equal, bit for bit, to resizing the whole and cropping."""

from __future__ import annotations

import io
import random
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from src.data.transforms import (
    PillowPicture,
    cover_and_crop,
    decode_picture,
    decode_pixels,
    in_planes,
    over_white,
    resize_and_crop,
    resized_size,
)
from src.data.windows import exact_span, resize_window

COMMON = [(640, 360), (1280, 720), (1920, 1080), (960, 540), (540, 960), (512, 512), (270, 480), (656, 352)]
"""Widths and heights of RealEstate10K, DL3DV, ACID and phones."""


def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    """Independent levels: nothing hides a weight that is off."""
    return np.random.default_rng(width * 7919 + height).integers(0, 256, (height, width, channels), np.uint8)


def plain(image: np.ndarray, size: tuple[int, int], window: tuple[int, int, int, int]) -> np.ndarray:
    left, top, right, bottom = window
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    return resized[top:bottom, left:right]


def odd_sizes(count: int, seed: int) -> list[tuple[int, int]]:
    rng = random.Random(seed)
    return [(rng.randint(20, 400), rng.randint(20, 400)) for _ in range(count)]


@pytest.mark.parametrize("channels", [3, 4])
def test_any_window_of_any_resize_is_that_of_the_whole(channels):
    rng = random.Random(channels)
    for width, height in odd_sizes(80, channels):
        image = noise(width, height, channels)
        # with common factors, so that grids exist, and without
        ratio = Fraction(rng.randint(1, 12), rng.choice([2, 3, 4, 5, 7, 8, 12, 49]))
        size = tuple(max(2, int(side * ratio) if rng.random() < 0.7 else side) for side in (width, height))
        left, right = sorted(rng.sample(range(size[0] + 1), 2))
        top, bottom = sorted(rng.sample(range(size[1] + 1), 2))
        window = (left, top, right, bottom)
        ours = np.asarray(resize_window(Image.fromarray(image), size, window))
        np.testing.assert_array_equal(
            ours, plain(image, size, window), err_msg=f"{image.shape} {size} {window}"
        )


@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("image_size,patch", [(224, 14), (256, 8), (128, 16), (252, 14)])
def test_training_pictures_are_those_of_the_plain_way(image_size, patch, square):
    """Pixels and intrinsics, bit for bit; the plain way is that of the published code."""
    for width, height in [*COMMON, *odd_sizes(6, image_size)]:
        image, k = noise(width, height), np.array([500.0, 510.0, 0.51 * width, 0.48 * height])
        ours, fxfycxcy = resize_and_crop(image, k, image_size, patch, square)
        new_height, new_width = resized_size(height, width, image_size, patch)
        side = min(new_height, new_width)
        crop_width, crop_height = (side, side) if square else (new_width, new_height)
        left, top = (new_width - crop_width) // 2, (new_height - crop_height) // 2
        window = (left, top, left + crop_width, top + crop_height)
        np.testing.assert_array_equal(ours, plain(image, (new_width, new_height), window))
        rx, ry = new_width / width, new_height / height
        assert fxfycxcy.tolist() == [500.0 * rx, 510.0 * ry, k[2] * rx - left, k[3] * ry - top]


@pytest.mark.parametrize("channels", [3, 4])
def test_covering_pictures_are_those_of_the_plain_way(channels):
    for width, height in [*COMMON, *odd_sizes(6, 3)]:
        image = noise(width, height, channels)
        ours, _ = cover_and_crop(image, np.ones(4), 144, 256)
        scale = max(144 / height, 256 / width)
        size = round(width * scale), round(height * scale)
        left, top = (size[0] - 256) // 2, (size[1] - 144) // 2
        expected = plain(image, size, (left, top, left + 256, top + 144))
        np.testing.assert_array_equal(ours, over_white(expected))


@pytest.mark.parametrize("sampling", [0, 1, 2], ids=["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_pictures_that_stay_with_pillow_are_those_of_arrays(mode, sampling):
    for width, height in [(640, 360), (361, 203), (64, 36)]:
        buffer = io.BytesIO()
        picture = Image.fromarray(noise(width, height)).convert(mode)
        picture.save(buffer, format="JPEG", subsampling=sampling)
        kept, array = decode_picture(buffer.getvalue()), decode_pixels(buffer.getvalue())
        assert isinstance(kept, PillowPicture) == (mode == "RGB")
        assert kept.shape == array.shape
        np.testing.assert_array_equal(np.asarray(kept), array)
        for square in (True, False):
            ours, plainly = (resize_and_crop(p, np.ones(4), 56, 14, square)[0] for p in (kept, array))
            np.testing.assert_array_equal(ours, plainly)
            np.testing.assert_array_equal(
                cover_and_crop(kept, np.ones(4), 28, 42)[0], cover_and_crop(array, np.ones(4), 28, 42)[0]
            )


def test_damaged_pictures_are_judged_as_by_decoding_to_an_array():
    buffer = io.BytesIO()
    Image.fromarray(noise(64, 36)).save(buffer, format="JPEG")
    for data in (b"", buffer.getvalue()[:-200], buffer.getvalue()[:30]):
        reasons = []
        for decode in (decode_picture, decode_pixels):
            with pytest.raises(ValueError) as caught:
                decode(data)
            reasons.append(str(caught.value))
        assert reasons[0] == reasons[1] or "cannot be decoded" in reasons[0]


def test_planes_hold_the_pictures_however_they_lie_in_memory():
    image = noise(30, 20)
    planar = np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0)
    planes = in_planes([image, image[:, ::-1], planar, noise(40, 30)[5:25, 5:35]])
    assert planes.shape == (4, 3, 20, 30)
    for found, wanted in zip(planes, [image, image[:, ::-1], image, noise(40, 30)[5:25, 5:35]]):
        np.testing.assert_array_equal(found.transpose(1, 2, 0), wanted)


def test_spans_begin_and_end_on_the_grid_of_the_reduced_ratio():
    assert exact_span(84, 308, 640, 392) == (49, 343)  # 80 : 49
    assert exact_span(100, 200, 360, 224) == (98, 203)  # 45 : 28, and quarters are exact: every 7th
    assert exact_span(84, 308, 641, 393) == (0, 393)  # nothing in common but 0 and the end
    assert exact_span(1, 391, 640, 392) == (0, 392)


def test_less_is_computed_than_the_whole(monkeypatch):
    """640x360 to a square of 224: 294 columns instead of 392, and rows only for the 224 that remain."""
    computed = []
    resize = Image.Image.resize

    def counted(self, size, *args, **options):
        computed.append(size)
        return resize(self, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", counted)
    resize_and_crop(noise(640, 360), np.ones(4), 224, 14, True)
    assert computed == [(294, 360), (224, 224)]
