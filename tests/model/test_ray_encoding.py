"""Encodings of rays: order of the numbers, count of the channels, units."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from src.config import ConfigError
from src.geometry.camera import Cameras
from src.model.ray_encoding import RayEncoding, encode_rays

HEIGHT, WIDTH = 2, 3


def cameras(*, scale: float = 1.0) -> Cameras:
    """Two views that are turned about the y axis and moved; `scale` makes their matrices no rotations."""
    c2w = torch.eye(4).repeat(1, 2, 1, 1)
    for view, angle in enumerate((0.4, -0.3)):
        cos, sin = math.cos(angle), math.sin(angle)
        c2w[0, view, :3, :3] = scale * torch.tensor([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
        c2w[0, view, :3, 3] = torch.tensor([0.5, -0.2, 0.1 + view])
    fxfycxcy = torch.tensor([2.5, 2.0, 1.4, 1.1]).repeat(1, 2, 1)
    return Cameras(c2w, fxfycxcy, HEIGHT, WIDTH)


def ray(given: Cameras, view: int, row: int, column: int) -> tuple[Tensor, Tensor]:
    """Origin and direction of one pixel, by K^-1 and a matrix product, in float64."""
    fx, fy, cx, cy = given.fxfycxcy[0, view].double()
    k = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float64)
    in_camera = torch.linalg.inv(k) @ torch.tensor([column + 0.5, row + 0.5, 1.0], dtype=torch.float64)
    c2w = given.c2w[0, view].double()
    return c2w[:3, 3], c2w[:3, :3] @ (in_camera / in_camera.norm())


@pytest.mark.parametrize("scale", [1.0, 1.7], ids=["rotation", "no_rotation"])
def test_raw_rays_have_unit_length_before_they_are_rotated(scale: float):
    given = cameras(scale=scale)
    encoded = encode_rays(given, RayEncoding())
    assert encoded.shape == (1, 2, 6, HEIGHT, WIDTH)
    for view, row, column in itertools.product(range(2), range(HEIGHT), range(WIDTH)):
        expected = torch.cat(ray(given, view, row, column)).float()
        torch.testing.assert_close(encoded[0, view, :, row, column], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(encoded[:, :, 3:].norm(dim=2), torch.full((1, 2, HEIGHT, WIDTH), scale))


def test_directions_are_rounded_as_the_originals():
    """Octaves make a rounding up to 1e4 times as large: the mean difference is that of a last rotation, 1e-8, not 3e-8."""
    g = torch.Generator().manual_seed(3)
    height, width, views = 12, 20, 40
    k = torch.eye(3).repeat(views, 1, 1)
    k[:, 0, 0], k[:, 1, 1] = 0.6 + 0.6 * torch.rand(2, views, generator=g)
    k[:, :2, 2] = 0.5 + 0.02 * torch.randn(views, 2, generator=g)
    c2w = torch.eye(4).repeat(views, 1, 1)
    c2w[:, :3, :3] = torch.linalg.qr(torch.randn(views, 3, 3, generator=g))[0]

    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    own = torch.einsum("vij,hwj->vhwi", k.inverse(), torch.stack([x, y, torch.ones_like(x)], dim=-1))
    published = torch.einsum("vij,vhwj->vihw", c2w[:, :3, :3], own / own.norm(dim=-1, keepdim=True))

    pixels = torch.stack(
        [k[:, 0, 0] * width, k[:, 1, 1] * height, k[:, 0, 2] * width, k[:, 1, 2] * height], dim=-1
    )
    encoded = encode_rays(Cameras(c2w[None], pixels[None].double(), height, width), RayEncoding())
    assert (encoded[0, :, 3:] - published).abs().mean() < 2e-8


def test_the_moment_takes_the_place_of_the_origin():
    given = cameras()
    encoded = encode_rays(given, RayEncoding(use_plucker=True))
    origin, direction = ray(given, 1, 1, 2)
    expected = torch.cat([torch.linalg.cross(origin, direction), direction]).float()
    torch.testing.assert_close(encoded[0, 1, :, 1, 2], expected, atol=1e-6, rtol=0)


def test_octaves_go_by_coordinate_then_frequency_then_phase():
    given = cameras()
    encoded = encode_rays(
        given, RayEncoding(use_ray_encoding=True, num_origin_octaves=3, num_direction_octaves=2)
    )
    origin, direction = ray(given, 0, 1, 0)
    expected = [
        function(2 * math.pi * 2**k * float(x))
        for half, octaves in ((origin, 3), (direction, 2))
        for x in half
        for k in range(octaves)
        for function in (math.sin, math.cos)
    ]
    torch.testing.assert_close(encoded[0, 0, :, 1, 0], torch.tensor(expected), atol=1e-5, rtol=0)


def test_srt_octaves_are_all_sines_then_all_cosines_of_half_the_frequency():
    given = cameras()
    settings = RayEncoding(
        use_ray_encoding=True, srt_ray_encoding=True, num_origin_octaves=3, num_direction_octaves=2
    )
    origin, direction = ray(given, 1, 0, 2)
    expected = [
        function(math.pi * 2**k * float(x))
        for half, octaves in ((origin, 3), (direction, 2))
        for function in (math.sin, math.cos)
        for x in half
        for k in range(octaves)
    ]
    found = encode_rays(given, settings)[0, 1, :, 0, 2]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=0)


SWITCHES = [
    (octaves, srt, plucker, origin, direction)
    for octaves, srt, plucker in itertools.product([False, True], repeat=3)
    for origin, direction in itertools.product([0, 4], [0, 3])
    if origin + direction or not srt
]


@pytest.mark.parametrize("octaves,srt,plucker,origin,direction", SWITCHES)
def test_the_count_of_channels_is_right_for_all_switches(octaves, srt, plucker, origin, direction):
    """The original counts 3 too few where a half without octaves stays raw, and its first convolution crashes."""
    settings = RayEncoding(
        use_ray_encoding=octaves,
        srt_ray_encoding=srt,
        use_plucker=plucker,
        num_origin_octaves=origin,
        num_direction_octaves=direction,
    )
    assert encode_rays(cameras(), settings).shape[2] == settings.channels


def test_a_half_without_octaves_stays_raw():
    given = cameras()
    raw = encode_rays(given, RayEncoding())
    half = encode_rays(
        given, RayEncoding(use_ray_encoding=True, num_origin_octaves=0, num_direction_octaves=2)
    )
    assert half.shape[2] == 3 + 12
    assert torch.equal(half[:, :, :3], raw[:, :, :3])


def test_srt_without_any_octave_is_refused():
    with pytest.raises(ConfigError, match="num_origin_octaves and num_direction_octaves are both 0"):
        RayEncoding(srt_ray_encoding=True, num_origin_octaves=0, num_direction_octaves=0)


def test_autocast_does_not_touch_rays():
    settings = RayEncoding(use_ray_encoding=True, use_plucker=True)
    expected = encode_rays(cameras(), settings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encode_rays(cameras(), settings), expected)
