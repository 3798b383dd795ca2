"""Pictures of cameras and rays."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from src.geometry.camera import Cameras, Views, pixel_rays
from src.geometry.trajectory import interpolate, turntable
from src.scene_view import PANEL, PATH_END, PATH_START, TARGET, ray_colours, ray_picture, scene_view


def ring(num_views: int, elevation_deg: float = 30.0) -> Cameras:
    keys = Cameras(torch.eye(4).expand(1, 1, 4, 4), torch.ones(1, 1, 4), 12, 16)
    circle = {"hfov_deg": 50, "radius": (2, 2), "elevation_deg": elevation_deg, "up": (0, 0, 1)}
    return turntable(keys, num_views, **circle)


def views(cameras: Cameras) -> Views:
    return Views(torch.rand(1, cameras.num_views, 3, 12, 16), cameras)


def has(picture: np.ndarray, colour: tuple) -> bool:
    """At least the mark in the legend has exactly this colour."""
    return int((picture == colour).all(axis=2).sum()) >= 90


@pytest.mark.parametrize("num_views", [1, 2, 9, 130])
def test_any_number_of_cameras_makes_a_picture_of_both_panels(num_views: int) -> None:
    picture = scene_view(views(ring(num_views)), ring(2, 0.0), ring(30))
    assert picture.shape == (PANEL, 2 * PANEL, 3) and picture.dtype == np.uint8
    for panel in (picture[:, :PANEL], picture[:, PANEL:]):
        assert (panel[: PANEL - 40] < 200).any(axis=2).mean() > 0.002, "nothing is drawn"


def test_the_path_and_the_targets_are_drawn_when_there_are_any() -> None:
    inputs, targets = views(ring(3)), ring(4, 0.0)
    everything = scene_view(inputs, targets, interpolate(inputs.cameras, 9))
    assert has(everything, TARGET) and has(everything, PATH_START) and has(everything, PATH_END)
    bare = scene_view(inputs, targets.views([]))
    assert not has(bare, TARGET) and not has(bare, PATH_START)


def test_the_pictures_of_the_inputs_are_on_their_pyramids() -> None:
    cameras = ring(4)
    green = torch.zeros(1, 4, 3, 12, 16)
    green[:, :, 1] = 1
    picture = scene_view(Views(green, cameras), cameras.views([]))
    assert ((picture == (0, 255, 0)).all(axis=2)).sum() > 500


@pytest.mark.parametrize("centre", [0.0, 1e6])
def test_cameras_at_one_place_or_all_the_same_are_drawn(centre: float) -> None:
    c2w = torch.eye(4).repeat(1, 3, 1, 1)
    c2w[..., :3, 3] = centre
    cameras = Cameras(c2w, torch.tensor([12.0, 12, 8, 6]).expand(1, 3, 4), 12, 16)
    picture = scene_view(views(cameras), cameras, cameras)
    assert (picture[: PANEL - 40] < 200).any(axis=2).mean() > 0.002


def test_ray_colours_follow_the_formula() -> None:
    vectors = torch.tensor([[3.0, 0, 0], [0, -1.5, 0], [0, 0, 0]]).T.reshape(1, 3, 1, 3)
    red, dark, none = ray_colours(vectors)[0, :, 0].T
    torch.testing.assert_close(red, torch.tensor([0.9, 0.5, 0.5]))
    torch.testing.assert_close(dark, torch.tensor([0.5, 0.1, 0.5]) * 0.55)
    torch.testing.assert_close(none, torch.tensor([0.5, 0.5, 0.5]) * 0.1)
    assert ray_colours(torch.zeros(1, 3, 2, 2)).isfinite().all()


def test_the_picture_of_the_rays_has_three_rows_of_enlarged_views() -> None:
    cameras = ring(3)
    times = math.ceil(160 / 12)
    picture = ray_picture(views(cameras))
    assert picture.shape[1] == 3 * 16 * times and picture.shape[0] > 3 * 12 * times
    _, ray_d = pixel_rays(cameras)
    low, high = ray_colours(ray_d[0]).aminmax()
    assert low >= 0.1 - 1e-6 and high <= 0.9 + 1e-6
