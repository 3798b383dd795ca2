"""Laws of pixel rays and Pluecker maps."""

from __future__ import annotations

import pytest
import torch

from src.geometry.camera import Cameras, Views, pixel_rays, plucker, rebase
from src.geometry.rotation import decode_pose


def random_cameras(height: int, width: int) -> Cameras:
    """2 x 3 cameras with centres off the origin, unequal focal lengths and an off-centre principal point."""
    focal = torch.rand(2, 3, 2) * width + width
    centre = torch.rand(2, 3, 2) * height
    return Cameras(decode_pose(torch.randn(2, 3, 7)), torch.cat([focal, centre], -1), height, width)


@pytest.mark.parametrize("height,width", [(32, 32), (24, 40)], ids=["square", "wide"])
def test_ray_passes_through_its_pixel_centre(height, width):
    """Points along each ray project back to (column + 0.5, row + 0.5)."""
    cameras = random_cameras(height, width)
    ray_o, ray_d = pixel_rays(cameras)
    points = (ray_o + 3.7 * ray_d).double().flatten(3)  # [b, v, 3, h * w], world
    w2c = torch.linalg.inv(cameras.c2w.double())
    x, y, z = (w2c[..., :3, :3] @ points + w2c[..., :3, 3:]).unbind(2)
    fx, fy, cx, cy = cameras.fxfycxcy.double()[..., None].unbind(2)
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    expected_column = (column.flatten() + 0.5).expand_as(x).double()
    expected_row = (row.flatten() + 0.5).expand_as(y).double()
    torch.testing.assert_close(fx * x / z + cx, expected_column, atol=1e-3, rtol=0)
    torch.testing.assert_close(fy * y / z + cy, expected_row, atol=1e-3, rtol=0)
    assert (z > 0).all()


def test_directions_have_unit_length_and_the_moment_comes_first():
    cameras = random_cameras(6, 9)
    ray_o, ray_d = pixel_rays(cameras)
    torch.testing.assert_close(ray_d.norm(dim=2), torch.ones(2, 3, 6, 9))
    (ox, oy, oz), (dx, dy, dz) = ray_o.unbind(2), ray_d.unbind(2)
    moment = torch.stack([oy * dz - oz * dy, oz * dx - ox * dz, ox * dy - oy * dx], dim=2)
    torch.testing.assert_close(plucker(cameras), torch.cat([moment, ray_d], dim=2))


def test_rays_stay_float32_under_autocast():
    """In bf16 they would be off by up to a pixel."""
    cameras = random_cameras(16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = plucker(cameras)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, plucker(cameras), atol=0, rtol=0)


def test_norm_floor_bounds_the_divisor():
    cameras = random_cameras(4, 4)
    cameras.c2w[..., :3, :3] *= 1e-6
    _, floored = pixel_rays(cameras, norm_floor=1e-3)
    assert floored.norm(dim=2).max() < 0.01
    _, exact = pixel_rays(cameras)
    torch.testing.assert_close(exact.norm(dim=2), torch.ones(2, 3, 4, 4))


def test_rebase_makes_the_reference_the_identity_and_keeps_relative_poses():
    c2w = decode_pose(torch.randn(2, 3, 7))
    moved = rebase(c2w, c2w[:, 0])
    torch.testing.assert_close(moved[:, 0], torch.eye(4).expand(2, 4, 4), atol=1e-6, rtol=0)
    relative = torch.linalg.inv(c2w[:, 1].double()) @ c2w[:, 2].double()
    relative_moved = torch.linalg.inv(moved[:, 1].double()) @ moved[:, 2].double()
    torch.testing.assert_close(relative_moved, relative, atol=1e-5, rtol=0)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="must be"):
        Cameras(torch.eye(4), torch.ones(1, 1, 4), 8, 8)
    cameras = random_cameras(8, 8)
    with pytest.raises(ValueError, match="resizes or crops"):
        Views(torch.zeros(2, 3, 3, 8, 9), cameras)
