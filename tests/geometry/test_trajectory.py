"""Laws of camera paths."""

from __future__ import annotations

import pytest
import torch

from src.geometry.camera import Cameras
from src.geometry.rotation import decode_pose
from src.geometry.trajectory import TRAJECTORIES, interpolate


def random_cameras(num_views: int) -> Cameras:
    return Cameras(decode_pose(torch.randn(2, num_views, 7)), torch.rand(2, num_views, 4) * 50 + 10, 24, 40)


def test_key_cameras_stand_at_the_ends_of_every_transition():
    cameras = random_cameras(3)
    path = interpolate(cameras, 5)
    assert (path.num_views, path.height, path.width) == (10, 24, 40)
    for frame, view in [(0, 0), (4, 1), (5, 1), (9, 2)]:
        torch.testing.assert_close(path.c2w[:, frame], cameras.c2w[:, view], atol=1e-6, rtol=0)
        torch.testing.assert_close(path.fxfycxcy[:, frame], cameras.fxfycxcy[:, view])


def test_middle_frame_is_half_way():
    cameras = random_cameras(2)
    path = interpolate(cameras, 3)
    torch.testing.assert_close(path.c2w[:, 1, :3, 3], cameras.c2w[:, :, :3, 3].mean(1))
    torch.testing.assert_close(path.fxfycxcy[:, 1], cameras.fxfycxcy.mean(1))
    first, middle, last = path.c2w[:, :, :3, :3].unbind(1)
    torch.testing.assert_close(first.mT @ middle, middle.mT @ last, atol=1e-5, rtol=0)


def test_every_frame_is_a_rigid_pose():
    c2w = interpolate(random_cameras(4), 7, loop=True).c2w
    torch.testing.assert_close(c2w[..., :3, :3] @ c2w[..., :3, :3].mT, torch.eye(3).expand(2, 28, 3, 3))
    torch.testing.assert_close(c2w[..., 3, :], torch.tensor([0.0, 0, 0, 1]).expand(2, 28, 4))


def test_loop_returns_to_the_first_camera():
    cameras = random_cameras(3)
    path = interpolate(cameras, 4, loop=True)
    assert path.num_views == 12
    torch.testing.assert_close(path.c2w[:, -1], cameras.c2w[:, 0], atol=1e-6, rtol=0)


def test_order_visits_the_nearest_remaining_camera_of_each_sample():
    cameras = random_cameras(4)
    cameras.c2w[0, :, :3, 3] = torch.tensor([[0.0, 0, 0], [3, 0, 0], [1, 0, 0], [2, 0, 0]])
    cameras.c2w[1, :, :3, 3] = torch.tensor([[0.0, 0, 0], [1, 0, 0], [3, 0, 0], [2, 0, 0]])
    path = interpolate(cameras, 2, order=True)
    assert path.c2w[0, :, 0, 3].tolist() == [0, 1, 1, 2, 2, 3]
    assert path.c2w[1, :, 0, 3].tolist() == [0, 1, 1, 2, 2, 3]
    torch.testing.assert_close(path.fxfycxcy[0, -1], cameras.fxfycxcy[0, 1])


def test_a_single_camera_stands_still():
    cameras = random_cameras(1)
    path = interpolate(cameras, 3)
    torch.testing.assert_close(path.c2w, cameras.c2w.expand(2, 3, 4, 4), atol=1e-6, rtol=0)


def test_no_frames_are_refused():
    with pytest.raises(ValueError, match="num_frames is 0"):
        interpolate(random_cameras(2), 0)


def test_published_path_has_its_name():
    assert TRAJECTORIES["interpolate"] is interpolate
