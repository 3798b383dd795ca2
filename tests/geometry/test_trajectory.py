"""Laws of camera paths."""

from __future__ import annotations

import pytest
import torch

from src.geometry.camera import Cameras
from src.geometry.rotation import decode_pose
from src.geometry.trajectory import TRAJECTORIES, interpolate, linear_path


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


def test_the_published_linear_path_has_the_keys_and_even_steps_between_them():
    cameras = random_cameras(3)
    path = linear_path(cameras, 3)
    assert path.num_views == 2 * 3 + 1
    torch.testing.assert_close(path.c2w[:, ::3], cameras.c2w)
    torch.testing.assert_close(path.fxfycxcy[:, ::3], cameras.fxfycxcy)
    expected = cameras.c2w[:, 0] / 3 + cameras.c2w[:, 1] * 2 / 3
    torch.testing.assert_close(path.c2w[:, 2], expected, atol=1e-6, rtol=0)


def test_slerp_keeps_rotations_where_the_published_linear_path_loses_them():
    cameras = random_cameras(2)
    for path, rigid in ((interpolate, True), (linear_path, False)):
        rotation = path(cameras, 4).c2w[:, 1, :3, :3]
        assert torch.allclose(rotation @ rotation.mT, torch.eye(3), atol=1e-5) == rigid


def test_no_key_cameras_are_refused():
    with pytest.raises(ValueError, match="no key cameras"):
        interpolate(random_cameras(1).views([]), 3)


OWN = {
    "turntable": {"hfov_deg": 40, "radius": [1, 2], "elevation_deg": 10, "up": [0, 1, 0]},
    "spin": {"elevation_deg": 10, "radius": 2},
    "wobble": {"radius": 0.3, "turns": 1},
    "exaggerated": {"radius": 0.3, "turns": 3, "reach": 1},
    "orbit": {"degrees": 40},
    "spiral": {"radius": 0.1, "turns": 2},
    "dolly": {"reach": 0.2, "hold_size": True},
}


@pytest.mark.parametrize("name", TRAJECTORIES)
@pytest.mark.parametrize("num_views", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_path_gives_cameras_of_the_size_and_type_of_its_keys(name, num_views, dtype):
    keys = random_cameras(num_views)
    keys = Cameras(keys.c2w.to(dtype), keys.fxfycxcy.to(dtype), 24, 40)
    path = TRAJECTORIES[name](keys, 4, **OWN.get(name, {}))
    assert (path.height, path.width, len(path.c2w)) == (24, 40, 2)
    assert path.c2w.dtype == path.fxfycxcy.dtype == dtype
    assert path.num_views >= 4 and path.c2w.isfinite().all()
    assert (path.fxfycxcy[..., :2] > 0).all()


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_no_path_has_no_frames(name):
    with pytest.raises(ValueError, match="num_frames is 0"):
        TRAJECTORIES[name](random_cameras(2), 0, **OWN.get(name, {}))
