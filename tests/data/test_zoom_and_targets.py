"""Zoomed samples keep exact cameras; targets are context views as often as asked; numbers of context views from a list."""

from __future__ import annotations

import itertools
import random

import cv2
import numpy as np
import pytest
import torch
from raw_chunks import config, encoded, scene, write_chunks

from src.config import ConfigError
from src.data.dataset import SceneDataset
from src.data.loader import BatchNumbers, ContextCounts
from src.data.transforms import crop_middle
from src.data.view_settings import ViewSettings
from src.geometry.camera import Cameras, pixel_rays


@pytest.fixture
def raw(tmp_path):
    return write_chunks(tmp_path / "raw", [scene("one", frames=12)])


def sample(folder, seed: int, num_input: int = 2, **training) -> dict:
    settings = ViewSettings.of(config(folder, **training))
    return SceneDataset(str(folder), settings).training_sample(0, num_input, 0, random.Random(seed))


def rays(fxfycxcy, height, width):
    camera = Cameras(torch.eye(4).double()[None, None], torch.tensor(fxfycxcy)[None, None], height, width)
    return pixel_rays(camera)[1][0, 0]


@pytest.mark.parametrize("zoom", [1.0, 1.3, 2.71, 3.0, 500.0])
@pytest.mark.parametrize("size", [(36, 64), (7, 5)], ids=["wide", "odd"])
def test_every_pixel_of_the_cropped_middle_keeps_its_ray(size, zoom):
    height, width = size
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    fxfycxcy = np.array([50.0, 61.0, 0.4 * width, 0.6 * height])
    small, intrinsics = crop_middle(image, fxfycxcy, zoom)
    h, w = small.shape[:2]
    assert (h, w) == (max(1, round(height / zoom)), max(1, round(width / zoom)))
    top, left = (height - h) // 2, (width - w) // 2
    assert (small == image[top : top + h, left : left + w]).all()
    expected = rays(fxfycxcy, height, width)[:, top : top + h, left : left + w]
    torch.testing.assert_close(rays(intrinsics, h, w), expected, rtol=0, atol=1e-15)


def test_one_zoom_for_all_views_of_a_sample_and_another_for_the_next(raw):
    """Pictures of 64 x 36 become squares: the focal lengths grow by 36 / rows left, times the usual ratio."""
    rows_left = set()
    for seed in range(40):
        plain = sample(raw, seed, square_crop=True)
        ours = sample(raw, seed, square_crop=True, zoom_max=3.0)
        assert (
            ours["index"].tolist() == plain["index"].tolist() and ours["image"].shape == plain["image"].shape
        )
        factor = ours["fxfycxcy"][:, 1] / plain["fxfycxcy"][:, 1]
        assert (factor == factor[0]).all()
        rows = 36 / factor[0].item()
        assert rows == pytest.approx(round(rows), abs=1e-4) and 12 <= round(rows) <= 36
        rows_left.add(round(rows))
        assert torch.equal(ours["c2w"], plain["c2w"])
    assert len(rows_left) > 12 and min(rows_left) < 15 and max(rows_left) > 33


def test_a_zoomed_picture_shows_what_its_cameras_say(tmp_path):
    """A picture that is a linear ramp of the viewing direction stays one: grey = 100 + 200 x / z, before and after."""
    made = scene("ramp", frames=12)
    fx, _, cx, _ = made["cameras"][0, :4].tolist()
    x = (np.arange(64) + 0.5 - 64 * cx) / (64 * fx)
    ramp = np.broadcast_to((100 + 200 * x)[None, :, None], (36, 64, 3)).clip(0, 255).round().astype(np.uint8)
    made["cameras"][:, :4] = made["cameras"][0, :4]
    made["images"] = [encoded(cv2.imencode(".png", ramp)[1].tobytes()) for _ in range(12)]
    raw = write_chunks(tmp_path / "raw", [made])
    for seed in range(6):
        ours = sample(raw, seed, square_crop=True, zoom_max=2.0)
        f, _, c, _ = ours["fxfycxcy"][0].tolist()
        width = ours["image"].shape[-1]
        expected = 100 + 200 * (np.arange(width) + 0.5 - c) / f
        inner = slice(4, width - 4)
        assert np.abs(ours["image"][0, 0, width // 2].numpy() - expected)[inner].max() < 3


def test_without_zoom_the_draws_are_those_of_old(raw):
    """Runs that do not ask for it see the samples they always saw."""
    plain, ours = sample(raw, 3), sample(raw, 3, zoom_max=1.0, target_has_input_share=1.0)
    assert torch.equal(plain["image"], ours["image"]) and torch.equal(plain["target_idx"], ours["target_idx"])


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.2, 0.1, 0.3), (1.0, 1, 1)])
def test_targets_are_drawn_from_all_views_as_often_as_asked(raw, share, low, high):
    options = {
        "num_views": 8,
        "num_target_views": 4,
        "target_has_input": True,
        "target_has_input_share": share,
    }
    data = SceneDataset(str(raw), ViewSettings.of(config(raw, **options)))
    mixed, number = 0, 100
    for seed in range(number):
        columns = data.training_sample(0, 4, 0, random.Random(seed))["target_idx"].tolist()
        assert len(set(columns)) == 4
        mixed += min(columns) < 4
    # Of all draws of 4 among 8 views, 1 in 70 has no context view by chance.
    assert low * number - 6 <= mixed <= high * number


def test_numbers_of_context_views_come_from_the_list_alike_on_all_ranks(raw):
    def sizes(rank: int, world: int) -> list[int]:
        training = config(raw, input_view_choices=[1, 3, 6], num_views=8, num_target_views=2).training
        numbers = BatchNumbers(training, ContextCounts(training), rank, world, 0)
        return [batch[0][1] for batch in itertools.islice(numbers, 60)]

    assert set(sizes(0, 2)) == {1, 3, 6}
    assert sizes(0, 2) == sizes(1, 2)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"zoom_max": 2.0, "square_crop": False}, "square_crop"),
        ({"target_has_input_share": 1.5}, "a part, 0 to 1"),
        ({"input_view_choices": [2, 9], "num_views": 8}, "from 1 to 8"),
        (
            {
                "input_view_choices": [2, 4],
                "num_views": 8,
                "num_target_views": 6,
                "target_has_input_share": 0.5,
            },
            "from 1 to 2",
        ),
        ({"input_view_choices": [2], "dynamic_input_view_num": True}, "drop the second"),
        ({"input_view_choices": [2], "view_sampler": "boundedv2"}, "input_view_choices"),
    ],
)
def test_settings_that_no_sample_can_meet_are_refused(raw, training, message):
    with pytest.raises(ConfigError, match=message):
        config(raw, **training)
