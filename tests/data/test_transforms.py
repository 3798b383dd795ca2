"""Decoding, resizing and cropping of single pictures."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from raw_chunks import picture

from src.data.transforms import (
    checked_header,
    cover_and_crop,
    decode_image,
    image_header,
    invert_pose,
    resize_and_crop,
)
from src.geometry.camera import Cameras, pixel_rays


def test_jpeg_and_the_png_of_its_pixels_decode_alike():
    """The route through converted PNG files and OpenCV's decoder agree with ours."""
    jpeg = picture(64, 36, seed=1)
    by_opencv = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    png = cv2.imencode(".png", by_opencv)[1].tobytes()
    np.testing.assert_array_equal(decode_image(jpeg), by_opencv[..., ::-1])
    np.testing.assert_array_equal(decode_image(png), decode_image(jpeg))


def test_grey_becomes_rgb():
    image = decode_image(picture(20, 12, seed=2, channels=1))
    assert image.shape == (12, 20, 3)
    assert (image[..., 0] == image[..., 1]).all() and (image[..., 0] == image[..., 2]).all()


def test_alpha_is_laid_over_white():
    pixels = np.array([[[10, 200, 90, 0], [10, 200, 90, 255], [0, 100, 255, 102]]], dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    expected = [[[255, 255, 255], [10, 200, 90], [153, 193, 255]]]  # 255 * 0.6 + value * 0.4
    np.testing.assert_array_equal(decode_image(buffer.getvalue()), expected)


def test_orientation_tag_is_ignored():
    """Cameras belong to the stored pixels."""
    buffer = io.BytesIO()
    tags = Image.Exif()
    tags[0x0112] = 6  # shown turned by 90 degrees
    Image.new("RGB", (20, 12), "red").save(buffer, format="JPEG", exif=tags)
    assert decode_image(buffer.getvalue()).shape == (12, 20, 3)


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8\xff", b"plain text", picture(64, 36, 0)[:-200], picture(64, 36, 0, ".png")[:-90]]
)
def test_damaged_pictures_are_refused(data):
    with pytest.raises(ValueError):
        decode_image(data)


def test_sixteen_bit_pictures_become_eight_bit():
    """Nearest level: 65535 is 255, 128 is 0 and 129 is 1 of 257 steps. Pillow alone would cut off at 255."""
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 128, 129, 257 * 77, 65535]], dtype=np.uint16)).save(buffer, format="PNG")
    assert decode_image(buffer.getvalue())[0].tolist() == [[v] * 3 for v in (0, 0, 1, 77, 255)]


def test_colours_under_zero_alpha_do_not_bleed_when_resized():
    """Red beside black under alpha 0: weighted by alpha, only red and white are mixed."""
    pixels = np.zeros((8, 16, 4), dtype=np.uint8)
    pixels[:, :8] = 255, 0, 0, 255
    image, _ = cover_and_crop(pixels, np.array([1.0, 1, 8, 4]), 4, 8)
    assert image.shape == (4, 8, 3) and (image[..., 0] == 255).all()
    assert image[0, 0].tolist() == [255, 0, 0] and image[0, 7].tolist() == [255, 255, 255]


def test_header_tells_size_and_kind():
    assert image_header(picture(64, 36, 0)) == (64, 36, "JPEG")
    assert image_header(picture(36, 64, 0, ".png")) == (36, 64, "PNG")


@pytest.mark.parametrize(
    "size,image_size,square,expected,offset",
    [
        ((640, 360), 224, True, (224, 224), (84, 0)),  # spec 5.3: 392 wide, 84 px off the left
        ((640, 360), 224, False, (224, 392), (0, 0)),
        ((640, 360), 518, False, (518, 924), (0, 0)),
        ((360, 640), 224, True, (224, 224), (0, 84)),  # portrait: the width becomes 224
        ((100, 100), 224, True, (224, 224), (0, 0)),
    ],
)
def test_resized_sizes_and_intrinsics(size, image_size, square, expected, offset):
    """Intrinsics take the exact ratio of each axis; the principal point moves with the crop."""
    width, height = size
    image = np.zeros((height, width, 3), dtype=np.uint8)
    k = np.array([500.0, 510.0, 300.0, 170.0])
    out, fxfycxcy = resize_and_crop(image, k, image_size, 14, square)
    assert out.shape == (*expected, 3)
    new_width, new_height = expected[1] + 2 * offset[0], expected[0] + 2 * offset[1]
    rx, ry = new_width / width, new_height / height
    np.testing.assert_allclose(
        fxfycxcy, [500 * rx, 510 * ry, 300 * rx - offset[0], 170 * ry - offset[1]], rtol=1e-14
    )


def test_patch_must_divide_the_image_size():
    with pytest.raises(ValueError, match="multiple of patch_size"):
        resize_and_crop(np.zeros((36, 64, 3), np.uint8), np.ones(4), 30, 14, True)


def test_crop_then_rays_equals_rays_then_crop():
    image, k = np.zeros((36, 64, 3), np.uint8), np.array([60.0, 61.0, 33.0, 24.0])
    pose = torch.eye(4)[None, None]
    whole, k_whole = resize_and_crop(image, k, 28, 14, False)
    square, k_square = resize_and_crop(image, k, 28, 14, True)

    def rays(fxfycxcy, picture):
        numbers = torch.tensor(fxfycxcy, dtype=torch.float32)[None, None]
        return pixel_rays(Cameras(pose, numbers, *picture.shape[:2]))[1]

    left = (whole.shape[1] - square.shape[1]) // 2
    cut = rays(k_whole, whole)[..., left : left + square.shape[1]]
    torch.testing.assert_close(cut, rays(k_square, square), atol=1e-6, rtol=0)


def test_pose_is_inverted_in_float64():
    pose = np.eye(4)
    pose[:3, 3] = [1, -2, 3]
    np.testing.assert_array_equal(invert_pose(pose.astype(np.float32))[:3, 3], [-1, 2, -3])
    assert invert_pose(pose.astype(np.float32)).dtype == np.float64


@pytest.mark.parametrize("shape,target", [((36, 64), (24, 24)), ((64, 36), (16, 40)), ((30, 30), (30, 30))])
def test_cover_and_crop_keeps_the_rays_of_its_pixels(shape, target):
    """A pixel of the result looks where the source pixel looked that it was made from."""
    k = np.array([50.0, 51.0, shape[1] / 2 + 1.5, shape[0] / 2 - 2.0])
    row, column = np.mgrid[: shape[0], : shape[1]] + 0.5
    # a smooth picture of the ray's slopes, so that resampling keeps its meaning
    slopes = np.stack([(column - k[2]) / k[0], (row - k[3]) / k[1], 0 * row], -1)
    image = np.clip(slopes * 150 + 128, 0, 255).round().astype(np.uint8)
    out, new = cover_and_crop(image, k, *target)
    assert out.shape == (*target, 3)
    row, column = np.mgrid[: target[0], : target[1]] + 0.5
    expected = np.stack([(column - new[2]) / new[0], (row - new[3]) / new[1]], -1) * 150 + 128
    inner = (slice(2, -2), slice(2, -2))
    assert np.abs(out[..., :2] - expected)[inner].max() < 2.5


def test_a_quick_look_at_a_picture_comes_to_the_same_verdict_as_decoding_it():
    """Cut off anywhere, with wrong bytes anywhere: baseline and progressive, every subsampling, grey, PNG."""

    def verdict(look, data):
        try:
            look(data)
        except ValueError as error:
            return str(error)
        return "fine"

    rng = np.random.default_rng(0)
    pixels = Image.open(io.BytesIO(picture(120, 72, seed=5)))
    kinds = [picture(120, 72, 5, channels=1), picture(120, 72, 5, ".png")]
    for options in ({"subsampling": n} for n in (0, 1, 2)):
        for progressive in (False, True):
            buffer = io.BytesIO()
            pixels.save(buffer, format="JPEG", progressive=progressive, **options)
            kinds.append(buffer.getvalue())
    seen = set()
    for data in kinds:
        assert checked_header(data) == image_header(data) and verdict(decode_image, data) == "fine"
        for _ in range(60):
            place, broken = int(rng.integers(len(data))), bytearray(data)
            broken[place] = rng.integers(256)
            for case in (data[:place], bytes(broken), bytes(broken[:place]) + data[place + 3 :]):
                expected = verdict(decode_image, case)
                seen.add(expected == "fine")
                assert (verdict(checked_header, case) == "fine") == (expected == "fine"), expected
    assert seen == {True, False}
