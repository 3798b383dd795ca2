"""Drawing points: every number here follows from a drawing on paper."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from src.met3r.splat import Splat, project, splat


def draw(points: list[list[float]], values: list[float], *, size=(5, 7), radius=1.5, **options) -> Splat:
    """Points whose x and y are pixels at depth 1 of a camera with focal length 1 in the corner: [x z, y z, z]."""
    cloud = torch.tensor([[[x * z, y * z, z] for x, y, z in points]], dtype=torch.float64)
    camera = torch.tensor([[1.0, 1, 0, 0]], dtype=torch.float64)
    features = torch.tensor(values, dtype=torch.float64)[None, None]
    return splat(cloud, features, camera, *size, radius=radius, **options)


def test_points_land_where_the_pinhole_puts_them() -> None:
    """x / z * fx + cx by hand; what is behind the camera or nowhere has no positive depth."""
    points = torch.tensor([[[1.0, -0.5, 2], [0, 0, -1], [float("nan"), 0, 1]]])
    pixels, depth = project(points, torch.tensor([[8.0, 4, 3, 2]]))
    assert pixels[0, 0].tolist() == [7, 1] and depth[0, 0] == 2
    assert (depth[0, 1:] <= 0).all() and pixels.isfinite().all()


def test_a_disc_covers_the_pixels_within_its_radius_with_falling_opacity() -> None:
    """Centre (3.5, 2.5), radius 1.5: the pixel itself, 4 neighbours at distance 1, 4 at sqrt 2; those at 2 are free."""
    drawn = draw([[3.5, 2.5, 1]], [2.0], normalize=False)
    expected = torch.zeros(5, 7, dtype=torch.float64)
    for row in range(5):
        for column in range(7):
            squared = (column - 3) ** 2 + (row - 2) ** 2
            if squared < 2.25:
                expected[row, column] = 2 * (1 - squared / 2.25)
    torch.testing.assert_close(drawn.image[0, 0], expected)
    assert drawn.hit.sum() == 9 and torch.equal(drawn.hit[0], expected > 0)
    assert (drawn.depth[0][drawn.hit[0]] == 1).all() and drawn.depth[0][~drawn.hit[0]].isinf().all()


def test_nearer_points_are_laid_over_farther_ones() -> None:
    """Opacities 1 - 0.25 / 2.25 of the near and 1 of the far point: near * 8/9 + far * 1/9, whatever their order."""
    for order in ([0, 1], [1, 0]):
        points, values = [[3.0, 2.5, 1.0], [3.5, 2.5, 4.0]], [10.0, 1.0]
        drawn = draw([points[i] for i in order], [values[i] for i in order], normalize=False)
        assert float(drawn.image[0, 0, 2, 3]) == pytest.approx(10 * 8 / 9 + 1 / 9)
        assert drawn.depth[0, 2, 3] == 1


def test_only_the_nearest_points_are_kept() -> None:
    points = [[3.5, 2.5, z] for z in (3.0, 1.0, 2.0)]
    moved = [[x + 0.5, y, z] for x, y, z in points]  # opacity 8/9 each
    drawn = draw(moved, [30.0, 10.0, 20.0], normalize=False, points_per_pixel=2)
    assert float(drawn.image[0, 0, 2, 3]) == pytest.approx(8 / 9 * (10 + 20 / 9))


def test_normalised_weights_give_a_surface_its_own_colour() -> None:
    drawn = draw([[2.7, 2.1, 1], [3.9, 2.2, 1.1]], [0.4, 0.4])
    torch.testing.assert_close(
        drawn.image[drawn.hit[:, None]], torch.full((int(drawn.hit.sum()),), 0.4).double()
    )
    assert (drawn.image[~drawn.hit[:, None]] == 0).all()


def test_clouds_do_not_see_each_other() -> None:
    g = torch.Generator().manual_seed(0)
    points = torch.rand(3, 40, 3, generator=g) * torch.tensor([8.0, 6, 1]) + torch.tensor([0.0, 0, 1])
    features, camera = torch.rand(3, 2, 40, generator=g), torch.tensor([[1.0, 1, 0, 0]]).repeat(3, 1)
    together = splat(points, features, camera, 6, 8, radius=1.2)
    for i in range(3):
        alone = splat(points[i : i + 1], features[i : i + 1], camera[:1], 6, 8, radius=1.2)
        torch.testing.assert_close(together.image[i : i + 1], alone.image)
        torch.testing.assert_close(together.depth[i : i + 1], alone.depth)


@pytest.mark.parametrize("radius", [0.3, 1.0, 2.6])
def test_every_pixel_meets_the_points_that_a_search_over_all_finds(radius: float) -> None:
    g = torch.Generator().manual_seed(1)
    pixels = (
        torch.rand(1, 60, 2, generator=g, dtype=torch.float64) * torch.tensor([13.0, 11]) - 2
    )  # some outside
    points = torch.cat([pixels, torch.ones(1, 60, 1)], dim=-1)
    drawn = splat(
        points, torch.ones(1, 1, 60).double(), torch.tensor([[1.0, 1, 0, 0]]).double(), 7, 9, radius=radius
    )
    for row in range(7):
        for column in range(9):
            near = min(math.dist((column + 0.5, row + 0.5), p) for p in pixels[0].tolist())
            assert bool(drawn.hit[0, row, column]) == (near < radius)


@pytest.mark.parametrize("normalize", [True, False])
def test_gradients_are_those_of_finite_differences(normalize: bool) -> None:
    g = torch.Generator().manual_seed(2)
    points = torch.rand(1, 12, 3, generator=g, dtype=torch.float64) * 3 + torch.tensor([0.0, 0, 1])
    features = torch.rand(1, 2, 12, generator=g, dtype=torch.float64)

    def image(points: Tensor, features: Tensor, camera: Tensor) -> Tensor:
        return splat(points, features, camera, 4, 4, radius=1.3, normalize=normalize).image

    camera = torch.tensor([[2.0, 2, 0.3, 0.1]], dtype=torch.float64)
    inputs = tuple(x.requires_grad_() for x in (points, features, camera))
    assert torch.autograd.gradcheck(image, inputs)


def test_points_behind_the_camera_do_not_spoil_gradients() -> None:
    points = torch.tensor([[[0.0, 0, -1], [1, 1, 1], [float("inf"), 0, 1]]], requires_grad=True)
    drawn = splat(
        points, torch.ones(1, 1, 3), torch.tensor([[1.0, 1, 1, 1]]), 3, 3, radius=1.1, normalize=False
    )
    drawn.image.sum().backward()
    assert points.grad.isfinite().all() and drawn.hit.any()


def test_shapes_that_do_not_fit_are_told() -> None:
    with pytest.raises(ValueError, match=r"\[n, c, p\]"):
        splat(torch.zeros(1, 4, 3), torch.zeros(1, 2, 5), torch.zeros(1, 4), 3, 3, radius=1)
    with pytest.raises(ValueError, match="radius 0"):
        splat(torch.zeros(1, 4, 3), torch.zeros(1, 2, 4), torch.zeros(1, 4), 3, 3, radius=0)
