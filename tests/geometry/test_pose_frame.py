"""Laws of the common frame of a sample's cameras."""

from __future__ import annotations

import pytest
import torch

from src.geometry.frames import POSE_FRAMES, mean_rotation_frame, normalize_cameras
from src.geometry.rotation import decode_pose


def walk(num_views: int = 5) -> torch.Tensor:
    """Cameras that look roughly the same way from scattered places. [v, 4, 4]"""
    code = torch.cat(
        [torch.randn(num_views, 3), torch.randn(num_views, 3) * 0.2, torch.ones(num_views, 1)], -1
    )
    return decode_pose(code)


def test_result_does_not_depend_on_the_world_frame():
    c2w, moved = walk(), decode_pose(torch.randn(7))
    torch.testing.assert_close(
        normalize_cameras(moved @ c2w, 1.35), normalize_cameras(c2w, 1.35), atol=1e-5, rtol=0
    )


def test_result_does_not_depend_on_the_unit_of_length():
    c2w = walk()
    larger = c2w.clone()
    larger[:, :3, 3] *= 40
    torch.testing.assert_close(
        normalize_cameras(larger, 1.35), normalize_cameras(c2w, 1.35), atol=1e-5, rtol=0
    )


def test_centres_have_zero_mean_and_the_stated_extent():
    centres = normalize_cameras(walk(), 1.35)[:, :3, 3]
    torch.testing.assert_close(centres.mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(centres.abs().max(), torch.tensor(1 / 1.35))


def test_relative_rotations_are_kept():
    c2w = walk()
    new = normalize_cameras(c2w, 1.35)
    before = c2w[0, :3, :3].T @ c2w[1, :3, :3]
    torch.testing.assert_close(new[0, :3, :3].T @ new[1, :3, :3], before, atol=1e-5, rtol=0)


def test_a_reference_makes_the_frame_independent_of_the_other_views():
    c2w, others = walk(), walk()
    both = [normalize_cameras(torch.cat([c2w[:2], x]), 1.35, slice(0, 2))[:2] for x in (c2w[2:], others[2:])]
    torch.testing.assert_close(both[0], both[1], atol=0, rtol=0)
    torch.testing.assert_close(both[0], normalize_cameras(c2w[:2], 1.35))


def test_cameras_in_one_place_keep_their_scale():
    c2w = walk()
    c2w[:, :3, 3] = torch.tensor([1000.1, -37.3, 5.7])
    new = normalize_cameras(c2w, 1.35)
    assert new.isfinite().all()
    assert new[:, :3, 3].abs().max() < 1e-4


def test_one_camera_becomes_the_identity():
    torch.testing.assert_close(normalize_cameras(walk(1), 1.35), torch.eye(4)[None], atol=1e-5, rtol=0)


def test_cameras_that_face_opposite_ways_take_the_axes_of_the_first():
    about_y = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]))
    c2w = torch.stack([torch.eye(4), about_y])
    c2w[1, 0, 3] = 2.0
    new = normalize_cameras(c2w, 1.0)
    torch.testing.assert_close(new[:, :3, :3], c2w[:, :3, :3])
    torch.testing.assert_close(new[:, :3, 3], torch.tensor([[-1.0, 0, 0], [1.0, 0, 0]]))


def test_mean_rotation_frame_does_not_depend_on_world_frame_unit_or_quaternion_sign():
    c2w, moved = walk(), decode_pose(torch.randn(7))
    larger = moved @ c2w
    larger[:, :3, 3] *= 7
    torch.testing.assert_close(
        mean_rotation_frame(larger, 1.0), mean_rotation_frame(c2w, 1.0), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("scale_factor", [1.0, 1.35])
def test_mean_rotation_frame_fills_a_centred_box(scale_factor):
    centres = mean_rotation_frame(walk(), scale_factor, slice(0, 3))[:3, :3, 3]
    torch.testing.assert_close(centres.amax(0), -centres.amin(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(centres.abs().max(), torch.tensor(1 / scale_factor))


def test_mean_rotation_of_two_cameras_is_half_way():
    """Cameras turned by -20 and +60 degrees about y: seen from their mean they stand at -40 and +40."""
    angles = torch.deg2rad(torch.tensor([-20.0, 60.0]))
    zero = torch.zeros(2)
    c2w = decode_pose(torch.stack([zero, zero, zero, zero, (angles / 2).sin(), zero, (angles / 2).cos()], -1))
    new = mean_rotation_frame(c2w, 1.0)
    sines = torch.deg2rad(torch.tensor([-40.0, 40.0])).sin()
    torch.testing.assert_close(new[:, 0, 2], sines, atol=1e-6, rtol=0)


def test_one_camera_and_coincident_cameras_are_not_scaled():
    others = walk(4)
    new = mean_rotation_frame(others, 1.0, slice(0, 1))
    torch.testing.assert_close(new, torch.linalg.inv(others[0]) @ others, atol=1e-5, rtol=1e-5)
    coincident = others.clone()
    coincident[:, :3, 3] = torch.tensor([3.0, -2.0, 5.0])
    assert mean_rotation_frame(coincident, 1.0)[:, :3, 3].abs().max() < 1e-5


def test_objects_stay_where_they_are():
    c2w = walk()
    assert POSE_FRAMES["none"](c2w, 1.35, slice(2)) is c2w
