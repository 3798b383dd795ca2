"""Pictures and videos from tensors."""

from __future__ import annotations

from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from PIL import Image

from src.visualize import LABEL_HEIGHT, save_image, save_video, sheet, to_uint8


def test_eight_bit_levels_are_the_nearest_and_clipped() -> None:
    values = torch.tensor([-1.0, 0.0, 0.4 / 255, 0.6 / 255, 100.49 / 255, 254.51 / 255, 1.0, 7.0, torch.nan])
    levels = to_uint8(values.expand(3, 1, 9))
    assert levels.shape == (1, 9, 3)
    assert levels[0, :, 0].tolist() == [0, 0, 0, 1, 100, 255, 255, 255, 0]


def test_a_picture_survives_the_way_through_floats_and_png(tmp_path: Path) -> None:
    original = torch.randint(0, 256, (3, 7, 5), dtype=torch.uint8)
    save_image(tmp_path / "new" / "a.png", original.float() / 255)
    assert np.array_equal(
        np.asarray(Image.open(tmp_path / "new" / "a.png")), original.permute(1, 2, 0).numpy()
    )


def test_a_sheet_has_views_side_by_side_and_rows_below_each_other() -> None:
    top, bottom = torch.rand(3, 3, 4, 6), torch.rand(2, 3, 4, 6)
    picture = sheet([top, bottom])
    assert picture.shape == (8, 18, 3)
    assert np.array_equal(picture[:4, 6:12], to_uint8(top[1]))
    assert np.array_equal(picture[4:, :6], to_uint8(bottom[0]))
    assert (picture[4:, 12:] == 255).all()


def test_labels_add_a_strip_above_each_row() -> None:
    picture = sheet([torch.zeros(1, 3, 4, 80)] * 2, ["truth", "render"])
    assert picture.shape == (2 * (LABEL_HEIGHT + 4), 80, 3)
    assert picture[:LABEL_HEIGHT].min() < 100, "no text in the strip"
    assert (picture[LABEL_HEIGHT : LABEL_HEIGHT + 4] == 0).all()


def test_a_sheet_with_too_few_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="2 rows and 1 labels"):
        sheet([torch.zeros(1, 3, 4, 4)] * 2, ["truth"])


def test_a_video_of_odd_size_plays_with_even_sides(tmp_path: Path) -> None:
    frames = [np.full((33, 47, 3), level, dtype=np.uint8) for level in (0, 128, 255)]
    save_video(tmp_path / "a.mp4", iter(frames), fps=30)
    with imageio.get_reader(tmp_path / "a.mp4") as reader:
        played = [np.asarray(frame).mean() for frame in reader]
        assert reader.get_meta_data()["size"] == (48, 34)
        assert reader.get_meta_data()["fps"] == 30
    assert np.allclose(played, [0, 128, 255], atol=3)


def test_a_video_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def broken() -> object:
        yield np.zeros((32, 32, 3), dtype=np.uint8)
        raise RuntimeError("the model failed")

    with pytest.raises(RuntimeError, match="the model failed"):
        save_video(tmp_path / "a.mp4", broken())
    assert list(tmp_path.iterdir()) == []
