"""training.fast_decode: nearly the exact pictures, the same cameras, and never in evaluation."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from raw_chunks import config, picture, scene, write_chunks

from src.data.chunks import open_chunk
from src.data.dataset import SceneDataset
from src.data.fast_pictures import decode_fast, resize_fast
from src.data.loader import training_loader
from src.data.transforms import decode_pixels, resize_and_crop
from src.data.view_settings import ViewSettings

LEAST_DB = 40


def psnr(ours: np.ndarray, exact: np.ndarray) -> float:
    error = np.square(ours.astype(np.float64) - exact).mean() / 255**2
    return -10 * np.log10(max(error, 1e-12))


def both(data: bytes, size: int, square: bool) -> tuple[np.ndarray, np.ndarray]:
    k = np.array([500.0, 510.0, 300.0, 170.0])
    fast, fast_k = resize_and_crop(decode_fast(data), k, size, 14, square, part=resize_fast)
    exact, exact_k = resize_and_crop(decode_pixels(data), k, size, 14, square)
    np.testing.assert_array_equal(fast_k, exact_k)
    assert fast.shape == exact.shape and fast.dtype == np.uint8
    return fast, exact


@pytest.mark.parametrize("square", [True, False])
def test_photos_are_nearly_the_exact_ones(shared, square):
    chunks = sorted((shared / "data/re10k_format").glob("*/*.torch"))
    photos = [
        image.numpy().tobytes()
        for path in chunks
        for entry in open_chunk(path)
        for image in entry["images"][::20]
    ]
    assert len(photos) > 15
    assert min(psnr(*both(data, 224, square)) for data in photos) > 45


@pytest.mark.parametrize("extension", [".jpg", ".png"])
@pytest.mark.parametrize("size", [(640, 360), (641, 359), (361, 640), (300, 300), (200, 120)])
def test_pictures_of_any_size_are_nearly_the_exact_ones(size, extension):
    """Larger, smaller and odd ones, with and without a grid."""
    for square in (True, False):
        assert psnr(*both(picture(*size, seed=3, extension=extension), 224, square)) > LEAST_DB


def test_cropping_moves_nothing():
    """An edge in the middle stands where it stands in the exact picture, to a tenth of a pixel."""
    pixels = np.full((360, 640, 3), 255, np.uint8)
    pixels[:, :317] = 0
    data = cv2.imencode(".png", pixels)[1].tobytes()
    fast, exact = both(data, 224, True)
    assert abs(fast[..., 0].mean(0).sum() - exact[..., 0].mean(0).sum()) / 255 < 0.1


def test_grey_palette_and_tags_are_as_in_the_exact_way():
    grey = picture(20, 12, seed=2, channels=1)
    np.testing.assert_array_equal(decode_fast(grey), decode_pixels(grey))
    buffer, tags = io.BytesIO(), Image.Exif()
    tags[0x0112] = 6  # shown turned by 90 degrees
    Image.new("RGB", (20, 12), "red").save(buffer, format="JPEG", exif=tags)
    np.testing.assert_array_equal(decode_fast(buffer.getvalue()), decode_pixels(buffer.getvalue()))


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8\xff\xd9", picture(64, 36, 0)[:-200], picture(64, 36, 0)[:-2]]
)
def test_damaged_pictures_are_judged_alike(data):
    def verdict(decode):
        try:
            return decode(data).shape
        except ValueError:
            return "refused"

    assert verdict(decode_fast) == verdict(decode_pixels)


def test_transparency_is_resized_exactly():
    pixels = np.random.default_rng(0).integers(0, 256, (36, 64, 4), np.uint8)
    exact = np.asarray(Image.fromarray(pixels).resize((32, 18), Image.Resampling.LANCZOS))[2:10, 4:20]
    np.testing.assert_array_equal(resize_fast(pixels, (32, 18), (4, 2, 20, 10)), exact)


def test_only_training_reads_fast_pictures(tmp_path):
    raw = write_chunks(tmp_path, [scene("a", size=(128, 72), seed=1)])
    fast, exact = (config(raw, fast_decode=value) for value in (True, False))
    assert ViewSettings.of(fast) == ViewSettings.of(exact)
    ours, theirs = (next(training_loader(run, rank=0, world=1)) for run in (fast, exact))
    assert not torch.equal(ours["image"], theirs["image"])
    assert torch.equal(ours["fxfycxcy"], theirs["fxfycxcy"]) and torch.equal(ours["c2w"], theirs["c2w"])


def test_cover_and_crop_is_fast_too(tmp_path):
    raw = write_chunks(tmp_path, [scene("a", size=(128, 72), seed=1)])
    run = config(raw, fast_decode=True, image_shape=[28, 42])
    data = SceneDataset(str(raw), ViewSettings.of(run, training=True))
    exact = SceneDataset(str(raw), ViewSettings.of(run))
    ours, theirs = (d.picture(d.scenes[0], 3) for d in (data, exact))
    assert ours.shape == theirs.shape == (28, 42, 3) and (ours != theirs).any()
    assert psnr(ours, theirs) > LEAST_DB
