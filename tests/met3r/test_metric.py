"""The score on walls whose projections, coverage and occlusion are known by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from src.met3r.features import spatial_lpips
from src.met3r.flow import warp_by_flow
from src.met3r.metric import DISTANCES, Options, score_by_flow, score_into_first, symmetric
from src.met3r.points import PointMaps, estimate_camera, from_depth
from src.met3r.published import ndc_radius, published

BEST = {"cosine": 0.0, "mse": 0.0, "rmse": 0.0, "psnr": 100.0, "ssim": 1.0}


def cameras(height: int, width: int, shifts: list[float], focal: float = 24.0) -> tuple[Tensor, Tensor]:
    """Side by side, looking along z. [1, 2, 4, 4], [1, 2, 4]"""
    c2w = torch.eye(4).repeat(1, 2, 1, 1)
    c2w[0, :, 0, 3] = torch.tensor(shifts)
    return c2w, torch.tensor([focal, focal, width / 2, height / 2]).repeat(1, 2, 1)


def wall(height: int, width: int, shift: float, *, depth: float = 2.0, focal: float = 24.0) -> PointMaps:
    """A wall before two cameras, the second `shift` to the right: its pixels lie shift * focal / depth columns to the left."""
    return from_depth(torch.full((1, 2, height, width), depth), *cameras(height, width, [0.0, shift], focal))


def texture(height: int, width: int, *, seed: int = 0, channels: int = 3) -> Tensor:
    return torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(seed))


def seen_twice(height: int, width: int, columns: int, *, seed: int = 0) -> Tensor:
    """One wall as both cameras see it, the second `columns` further to the right. [1, 2, 3, h, w]"""
    paper = texture(height, width + columns, seed=seed)
    return torch.stack([paper[..., :width], paper[..., columns:]], dim=1)


def thin(distance: str) -> Options:
    """A point covers its own pixel alone, so that views come out as they went in."""
    return Options(distance=distance, radius=0.6)


# ----------------------------------------------------------------------------------------------- geometry


def test_point_maps_of_a_sphere_lie_on_it() -> None:
    """Depth of a sphere of radius 1 at (0, 0, 5) from the quadratic equation; the second camera stands at x = 0.4."""
    height, width, focal = 12, 16, 30.0
    c2w, fxfycxcy = cameras(height, width, [0.0, 0.4], focal)
    column = (torch.arange(width) + 0.5 - width / 2) / focal
    row = (torch.arange(height)[:, None] + 0.5 - height / 2) / focal
    d = torch.stack(torch.broadcast_tensors(column, row, torch.ones(())), dim=-1)  # [h, w, 3], depth 1
    depth = []
    for x in (0.0, 0.4):
        c = torch.tensor([-x, 0, 5.0])  # seen from the camera
        a, b = (d * d).sum(-1), (d * c).sum(-1)
        disc = b * b - a * ((c * c).sum() - 1)
        depth.append(torch.where(disc > 0, (b - disc.clamp_min(0).sqrt()) / a, torch.nan))
    maps = from_depth(torch.stack(depth)[None], c2w, fxfycxcy)
    distance = (maps.points - torch.tensor([0, 0, 5.0])).norm(dim=-1)
    on = distance.isfinite()
    assert on.sum() > 60
    torch.testing.assert_close(distance[on], torch.ones(int(on.sum())), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(12, 20), (15, 9)], ids=["wide", "odd-tall"])
def test_the_focal_length_is_that_of_the_first_view(size: tuple[int, int]) -> None:
    """Whatever the second view shows, and with pixels that are not square."""
    height, width = size
    z = 2 + torch.rand(1, 2, height, width, generator=torch.Generator().manual_seed(0))
    c2w, _ = cameras(height, width, [0.0, 3.0])
    camera = torch.tensor([31.0, 22.0, width / 2, height / 2])
    maps = from_depth(z, c2w, camera.repeat(1, 2, 1))
    torch.testing.assert_close(estimate_camera(maps.points[:, 0])[0], camera, atol=1e-4, rtol=0)
    unknown = replace(maps, fxfycxcy=None)
    torch.testing.assert_close(Options().rules.camera(unknown, height, width)[0], camera, atol=1e-4, rtol=0)
    assert (published().camera(unknown, height, width)[0, :2] - camera[:2]).abs().max() > 3


def test_the_camera_follows_the_size_that_is_drawn() -> None:
    camera = Options().rules.camera(wall(12, 20, 0.0), 24, 30)
    assert camera[0].tolist() == [36.0, 48.0, 15.0, 12.0]


# ----------------------------------------------------------------------------------------------- coverage and occlusion


@pytest.mark.parametrize("columns", [0, 3, 7])
def test_the_overlap_is_what_both_cameras_see(columns: int) -> None:
    """Discs narrower than a pixel: the second view's wall begins `columns` columns further right."""
    result = score_into_first(seen_twice(10, 16, columns), wall(10, 16, columns * 2.0 / 24), thin("mse"))
    expected = torch.zeros(10, 16, dtype=torch.bool)
    expected[:, columns:] = True
    assert torch.equal(result.mask[0], expected)
    assert int(result.valid) == 10 * (16 - columns) and float(result.overlap) == pytest.approx(
        (16 - columns) / 16
    )
    assert float(result.score) == pytest.approx(0, abs=1e-9)


def test_what_the_second_view_cannot_see_does_not_count() -> None:
    """A small square at depth 1 before a wall at depth 4. From 0.5 to the right the square (focal length 24) stands 12
    columns and the wall 3 columns further left: the wall's columns 8 to 11 of the first view are behind it there.
    """
    height, width = 9, 24
    depth = torch.full((1, 2, height, width), 4.0)
    depth[:, 0, 3:6, 20:24] = 1
    depth[:, 1, 3:6, 8:12] = 1
    images = torch.full((1, 2, 3, height, width), 0.25)
    images[:, 0, :, 3:6, 20:24] = 1
    images[:, 1, :, 3:6, 8:12] = 1
    maps = from_depth(depth, *cameras(height, width, [0.0, 0.5]))
    result = score_into_first(images, maps, thin("mse"))
    expected = torch.ones(height, width, dtype=torch.bool)
    expected[:, :3] = False  # left of the second view
    expected[3:6, 11:15] = False  # behind the square in the second view, three columns further left there
    assert torch.equal(result.mask[0], expected)
    assert float(result.score) == pytest.approx(0, abs=1e-9)
    hidden = depth.clone()
    hidden[:, 1] = 4  # the second view sees the wall where the first sees the square
    maps = from_depth(hidden, *cameras(height, width, [0.0, 0.5]))
    sees_through = score_into_first(images, maps, thin("mse"))
    assert not sees_through.mask[0, 3:6, 20:24].any() and sees_through.mask[0, 3:6, 11:15].all()


def test_a_surface_before_the_first_views_counts() -> None:
    """Nothing hides it: the first view should have seen it."""
    depth = torch.full((1, 2, 6, 6), 4.0)
    depth[:, 1, 2:4, 2:4] = 2
    maps = from_depth(depth, *cameras(6, 6, [0.0, 0.0]))
    assert score_into_first(torch.rand(1, 2, 3, 6, 6), maps, thin("mse")).mask.all()


def test_small_pictures_overlap() -> None:
    """The published radius is a fraction of a pixel there, and hardly anything is drawn."""
    # Two columns between the views, half a column beside the grid.
    maps = wall(64, 64, 1.5 * 3 / 64, depth=3.0, focal=64.0)
    images = seen_twice(64, 64, 2)
    assert float(score_into_first(images, maps, Options(distance="mse")).overlap) > 0.95
    tiny = Options(distance="mse", radius=ndc_radius(0.01, 64, 64), rules=published())
    assert float(score_into_first(images, maps, tiny).overlap) < 0.2


# ----------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("distance", BEST)
@pytest.mark.parametrize("size", [(12, 12), (9, 14)], ids=["square", "wide"])
def test_a_picture_agrees_with_itself(distance: str, size: tuple[int, int]) -> None:
    images = texture(*size)[:, None].expand(1, 2, -1, -1, -1)
    result = score_into_first(images, wall(*size, 0.0), Options(distance=distance))
    assert float(result.score) == pytest.approx(BEST[distance], abs=1e-6) and float(result.overlap) == 1


@pytest.mark.parametrize("distance", BEST)
def test_a_pixel_that_moves_raises_the_score(distance: str) -> None:
    images, maps = seen_twice(12, 16, 3), wall(12, 16, 3 * 2.0 / 24)
    before = score_into_first(images, maps, thin(distance)).score
    changed = images.clone()
    changed[0, 1, :, 5, 6] = 1 - changed[0, 1, :, 5, 6]
    result = score_into_first(changed, maps, thin(distance))
    assert (result.score < before) if distance in ("psnr", "ssim") else (result.score > before)
    assert int((result.score_map - score_into_first(images, maps, thin("mse")).score_map).abs().argmax()) > 0
    changed = images.clone()
    changed[0, 1, :, 5, 15] = 9  # right of what the first camera sees: columns 16 to 18 of it
    assert torch.equal(score_into_first(changed, maps, thin(distance)).score, before)


def test_scores_by_hand() -> None:
    """Constant colours 0.2 and 0.5: mse 0.09, rmse 0.3, psnr 10.46 dB; vectors at right angles: cosine 1."""
    flat = torch.stack([torch.full((1, 3, 8, 8), 0.2), torch.full((1, 3, 8, 8), 0.5)], dim=1)
    maps = wall(8, 8, 0.0)
    for distance, expected in {"mse": 0.09, "rmse": 0.3, "psnr": -10 * math.log10(0.09)}.items():
        assert float(score_into_first(flat, maps, Options(distance=distance)).score) == pytest.approx(
            expected, 1e-5
        )
    crossed = torch.zeros(1, 2, 2, 8, 8)
    crossed[:, 0, 0], crossed[:, 1, 1] = 3.0, 0.1
    assert float(score_into_first(crossed, maps, Options()).score) == pytest.approx(1)
    assert (
        float(score_into_first(crossed * torch.tensor([1.0, -1])[:, None, None], maps, Options()).score) == 1
    )


def test_ssim_looks_at_the_overlap_alone() -> None:
    images, maps = seen_twice(14, 18, 4), wall(14, 18, 4 * 2.0 / 24)
    assert float(score_into_first(images, maps, thin("ssim")).score) == pytest.approx(1, abs=1e-5)
    old = replace(thin("ssim"), rules=published())
    assert float(score_into_first(images, replace(maps, fxfycxcy=None), old).score) < 0.9


def test_lpips_comes_from_a_network_that_is_given() -> None:
    options = Options(distance="lpips", lpips=spatial_lpips("random", torch.device("cpu")))
    images, maps = seen_twice(32, 32, 4), wall(32, 32, 4 * 2.0 / 24)
    same = score_into_first(images, maps, replace(options, radius=0.6))
    assert same.score_map.shape == (1, 32, 32) and float(same.score) == pytest.approx(0, abs=1e-6)
    images[:, 1] = texture(32, 32, seed=9)
    assert float(score_into_first(images, maps, options).score) > 0.01
    with pytest.raises(ValueError, match="lpips"):
        Options(distance="lpips")


def batch(*parts: PointMaps) -> PointMaps:
    points, confidence, camera = (
        torch.cat([getattr(p, n) for p in parts]) for n in ("points", "confidence", "fxfycxcy")
    )
    return PointMaps(points, confidence, camera)


@pytest.mark.parametrize("distance", BEST)
def test_items_of_a_batch_are_independent(distance: str) -> None:
    maps = [wall(10, 16, shift * 2.0 / 24) for shift in (0, 3, 6)]
    images = torch.cat([seen_twice(10, 16, k, seed=k) for k in (1, 3, 5)])
    together = score_into_first(images, batch(*maps), Options(distance=distance))
    for i in range(3):
        alone = score_into_first(images[i : i + 1], maps[i], Options(distance=distance))
        torch.testing.assert_close(together.score[i : i + 1], alone.score)
    assert together.score.unique().numel() == 3


def test_both_directions_give_the_same_whichever_view_is_first() -> None:
    images, shift = seen_twice(12, 18, 2), 4 * 2.0 / 24
    there, back = wall(12, 18, shift), wall(12, 18, -shift)
    options = Options(distance="rmse")
    one = score_into_first(images, there, options), score_into_first(images.flip(1), back, options)
    other = score_into_first(images.flip(1), back, options), score_into_first(images, there, options)
    assert torch.equal(symmetric(*one), symmetric(*other)) and one[0].score != one[1].score


def test_no_overlap_is_no_score() -> None:
    """Not 0, which would be perfect; and it does not spoil the gradient of others in the batch."""
    images = torch.rand(2, 2, 3, 8, 8, requires_grad=True)
    maps = batch(wall(8, 8, 0.0), wall(8, 8, 5.0))
    result = score_into_first(images, maps, Options(distance="rmse"))
    assert result.score.isnan().tolist() == [False, True] and result.valid.tolist() == [64, 0]
    assert result.overlap.tolist() == [1, 0]
    result.score.nanmean().backward()
    assert images.grad.isfinite().all() and images.grad[0].abs().sum() > 0 and (images.grad[1] == 0).all()
    old = Options(distance="mse", rules=published())
    assert float(score_into_first(images.detach(), maps, old).score[1]) == 0
    assert symmetric(result, result).isnan().tolist() == [False, True]


@pytest.mark.parametrize("distance", ["cosine", "rmse", "ssim"])
def test_the_score_falls_along_its_gradient(distance: str) -> None:
    images, maps = torch.rand(1, 2, 3, 10, 12), wall(10, 12, 0.21)
    images.requires_grad_()
    options = Options(distance=distance)
    score = score_into_first(images, maps, options).score.sum()
    (slope,) = torch.autograd.grad(score, images)
    step = 1e-2 * slope / slope.norm() * (-1 if distance != "ssim" else 1)
    moved = score_into_first(images + step, maps, options).score.sum()
    assert (moved < score) if distance != "ssim" else (moved > score)


def test_features_and_point_maps_must_fit() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        score_into_first(torch.zeros(1, 2, 3, 8, 9), wall(8, 8, 0.0), Options())
    with pytest.raises(ValueError, match="PointMaps"):
        PointMaps(torch.zeros(1, 2, 4, 4, 3), torch.ones(1, 2, 4, 5))
    with pytest.raises(ValueError, match="Choose from " + ", ".join(DISTANCES)):
        Options(distance="l2")


# ----------------------------------------------------------------------------------------------- optical flow


def test_a_flow_moves_the_second_view_onto_the_first() -> None:
    """Everything moves two columns to the left, so the flow is -2; the first two columns lead out of the picture."""
    images = seen_twice(6, 10, 2)
    flow = torch.zeros(1, 2, 6, 10)
    flow[:, 0] = -2
    warped, mask = warp_by_flow(images[:, 1], flow)
    assert not mask[..., :2].any() and mask[..., 2:].all()
    torch.testing.assert_close(warped[..., 2:], images[:, 0, ..., 2:])
    result = score_by_flow(images, flow, Options(distance="mse"))
    assert float(result.score) == pytest.approx(0, abs=1e-9) and int(result.valid) == 48
    old = score_by_flow(images, flow, Options(distance="mse", rules=published()))
    assert float(old.score) > 1e-3 and float(old.overlap) == 1  # regions outside are scored


def test_a_flow_that_leads_nowhere_has_no_score() -> None:
    assert score_by_flow(
        torch.rand(1, 2, 3, 5, 5), torch.full((1, 2, 5, 5), 9.0), Options(distance="mse")
    ).score.isnan()


def test_a_flows_scores_are_those_of_each_item() -> None:
    """The published ones are the mean of the batch, for every item."""
    images = torch.cat([seen_twice(6, 10, 2), torch.rand(1, 2, 3, 6, 10)])
    flow = torch.zeros(2, 2, 6, 10)
    ours = score_by_flow(images, flow, Options(distance="mse")).score
    errors = (images[:, 0] - images[:, 1]).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(ours, errors)
    old = score_by_flow(images, flow, Options(distance="mse", rules=published())).score
    torch.testing.assert_close(old, errors.mean().expand(2, 1), atol=1e-5, rtol=1e-5)
