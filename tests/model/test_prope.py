"""Cameras inside attention: the matrices, what they leave unchanged, and how encodings are put together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from src.geometry.camera import Cameras
from src.geometry.rotation import decode_pose
from src.model.prope import CameraEncoding, camera_encoding, projections

B, HEADS, D_HEAD, PATCH = 2, 3, 16, 8


def cameras(num_views: int, height: int = 16, width: int = 24) -> Cameras:
    intrinsics = torch.tensor([20.0, 22.0, 11.0, 9.0]) * (1 + 0.1 * torch.rand(B, num_views, 4))
    return Cameras(decode_pose(torch.randn(B, num_views, 7)), intrinsics, height, width)


def heads(num_tokens: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.randn(3, B, HEADS, num_tokens, D_HEAD, dtype=dtype))


def attend(encoding: CameraEncoding, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return encoding.back(F.scaled_dot_product_attention(*encoding.turn(q, k, v)))


def test_a_projection_takes_points_to_their_place_in_the_image():
    """Pixel (x, y) of a w x h image lies at (x / w - 1/2, y / h - 1/2)."""
    views = cameras(3)
    forward, _ = projections(views)
    point = torch.randn(B, 3, 3)
    inside = torch.linalg.inv(views.c2w) @ torch.cat([point, torch.ones(B, 3, 1)], -1)[..., None]
    x, y, z = inside[..., :3, 0].unbind(-1)
    fx, fy, cx, cy = views.fxfycxcy.unbind(-1)
    expected = torch.stack([(fx * x + cx * z) / 24 - z / 2, (fy * y + cy * z) / 16 - z / 2, z], dim=-1)
    found = (forward @ torch.cat([point, torch.ones(B, 3, 1)], -1)[..., None])[..., :3, 0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("intrinsics", [True, False])
def test_the_closed_inverse_is_the_inverse(intrinsics):
    views = cameras(3)
    views = replace(views, c2w=views.c2w.double(), fxfycxcy=views.fxfycxcy.double())
    forward, inverse = projections(views, intrinsics=intrinsics)
    assert forward.dtype == torch.float64
    torch.testing.assert_close(forward @ inverse, torch.eye(4).double().expand_as(forward), atol=1e-6, rtol=0)
    if not intrinsics:
        torch.testing.assert_close(inverse, views.c2w)


@pytest.mark.parametrize("kind", ["prope", "gta"])
def test_the_operator_is_that_of_the_paper_written_out(kind):
    """One token after another, one group of four numbers after another."""
    views, (q, k, v) = cameras(2), heads(2 * 6)
    encoding = camera_encoding(views, PATCH, D_HEAD, kind)
    turned = encoding.turn(q, k, v)
    forward, inverse = projections(views, intrinsics=kind == "prope")
    for token in range(12):
        view, row, column = token // 6, token % 6 // 3, token % 3
        for x, found, matrix in (
            (q, turned[0], forward.mT),
            (k, turned[1], inverse),
            (v, turned[2], inverse),
        ):
            for first in (0, 4):
                expected = torch.einsum("bij,bhj->bhi", matrix[:, view], x[:, :, token, first : first + 4])
                torch.testing.assert_close(
                    found[:, :, token, first : first + 4], expected, atol=1e-5, rtol=1e-5
                )
            for first, position in ((8, column), (12, row)):
                for f in (0, 1):
                    angle = torch.tensor(position * 100.0 ** (-f / 2))
                    one, two = x[:, :, token, first + f], x[:, :, token, first + 2 + f]
                    pair = found[:, :, token, first + f], found[:, :, token, first + 2 + f]
                    torch.testing.assert_close(pair[0], one * angle.cos() + two * angle.sin())
                    torch.testing.assert_close(pair[1], two * angle.cos() - one * angle.sin())


def test_moving_the_world_changes_nothing_but_the_scale_does():
    views, qkv = cameras(3), heads(18)
    moved = views.at(decode_pose(torch.randn(7)[None])[0] @ views.c2w)
    scaled = views.c2w.clone()
    scaled[..., :3, 3] *= 3
    results = [attend(camera_encoding(c, PATCH, D_HEAD), *qkv) for c in (views, moved, views.at(scaled))]
    torch.testing.assert_close(results[1], results[0], atol=1e-4, rtol=1e-4)
    assert (results[2] - results[0]).abs().max() > 0.1


def test_keys_and_values_depend_on_their_own_view_alone():
    views, (q, k, v) = cameras(3), heads(18)
    together = camera_encoding(views, PATCH, D_HEAD).turn_keys(k, v)
    for i in range(3):
        alone = camera_encoding(views.views(slice(i, i + 1)), PATCH, D_HEAD)
        tokens = slice(6 * i, 6 * i + 6)
        for one, other in zip(alone.turn_keys(k[:, :, tokens], v[:, :, tokens]), together):
            torch.testing.assert_close(one, other[:, :, tokens])
    torch.testing.assert_close(camera_encoding(views, PATCH, D_HEAD).turn(q, k, v)[1:], together)


def test_views_of_different_sizes_in_one_sequence():
    large, small = cameras(2), cameras(1, 8, 16)
    q, k, v = heads(12 + 2)
    joined = camera_encoding(large, PATCH, D_HEAD).joined(camera_encoding(small, PATCH, D_HEAD))
    turned = joined.turn(q, k, v)
    for part, tokens in ((large, slice(12)), (small, slice(12, 14))):
        alone = camera_encoding(part, PATCH, D_HEAD).turn(*(x[:, :, tokens] for x in (q, k, v)))
        for one, other in zip(alone, turned):
            torch.testing.assert_close(one, other[:, :, tokens])
    assert attend(joined, q, k, v).shape == q.shape


def test_folded_and_repeated_encodings_follow_their_tokens():
    views, (q, _, _) = cameras(2), heads(12)
    encoding = camera_encoding(views, PATCH, D_HEAD)
    expected = encoding.turn_queries(q)
    folded = q.unflatten(2, (2, 6)).transpose(1, 2).flatten(0, 1)  # [b * v, heads, n, c]
    found = encoding.folded().turn_queries(folded).unflatten(0, (B, 2)).transpose(1, 2).flatten(2, 3)
    torch.testing.assert_close(found, expected)
    repeated = encoding.repeated(3).turn_queries(q.repeat_interleave(3, dim=0))
    torch.testing.assert_close(repeated, expected.repeat_interleave(3, dim=0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_type_of_the_tokens_stays_and_the_work_is_done_in_float32(dtype):
    views, qkv = cameras(2), heads(12, dtype)
    encoding = camera_encoding(views, PATCH, D_HEAD)
    with torch.autocast("cpu", torch.bfloat16):
        found = encoding.turn(*qkv)
    expected = encoding.turn(*(x.float() for x in qkv))
    for one, other in zip(found, expected):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other.to(dtype))


def test_what_cannot_be_encoded_is_refused():
    assert camera_encoding(cameras(1), PATCH, D_HEAD, "none") is None
    with pytest.raises(ValueError, match="multiple of 8, not 12"):
        camera_encoding(cameras(1), PATCH, 12)
    with pytest.raises(ValueError, match=r"cape is unknown\. Known: prope, gta, none"):
        camera_encoding(cameras(1), PATCH, D_HEAD, "cape")
