"""Paths around what two cameras look at."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from src.geometry.camera import Cameras
from src.geometry.path_pivot import PivotPair, ease, wobble_transform
from src.geometry.rotation import decode_pose
from src.geometry.trajectory import exaggerated, pivot, spin, wobble


def cameras(c2w: Tensor) -> Cameras:
    b, v = c2w.shape[:2]
    return Cameras(c2w, torch.arange(b * v * 4.0).reshape(b, v, 4) + 20, 24, 40)


def random_cameras(num_views: int, num_samples: int = 2) -> Cameras:
    return cameras(decode_pose(torch.randn(num_samples, num_views, 7)))


def facing(*centres: tuple, forward: tuple = (0, 0, 1)) -> Tensor:
    """Poses with one view direction. [v, 4, 4]"""
    z = torch.tensor(forward, dtype=torch.float32)
    x = torch.linalg.cross(torch.tensor([0.3, 1.0, 0.2]), z)
    x, z = x / x.norm(), z / z.norm()
    pose = torch.eye(4).repeat(len(centres), 1, 1)
    pose[:, :3, :3] = torch.stack([x, torch.linalg.cross(z, x), z], dim=1)
    pose[:, :3, 3] = torch.tensor(centres, dtype=torch.float32)
    return pose


def assert_rigid(c2w: Tensor) -> None:
    rotation = c2w[..., :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand_as(rotation), atol=2e-6, rtol=0)
    assert c2w.isfinite().all()


def test_both_poses_stand_at_the_ends() -> None:
    first, last = decode_pose(torch.randn(50, 2, 7, dtype=torch.float64)).unbind(1)
    path = PivotPair.of(first[:, None], last[:, None]).at(torch.tensor([0.0, 1.0]).double())
    torch.testing.assert_close(path[:, 0], first, atol=1e-9, rtol=0)
    torch.testing.assert_close(path[:, 1], last, atol=1e-9, rtol=0)


def test_cameras_on_a_circle_move_along_the_circle() -> None:
    """What they look at is the centre, so the pivot path is the arc and keeps looking at it."""
    keys = Cameras(torch.eye(4).expand(1, 1, 4, 4), torch.ones(1, 1, 4), 8, 8)
    ring = spin(keys, 12, elevation_deg=0, radius=2).views([0, 2])  # 60 degrees apart
    t = torch.linspace(0, 1, 5).double()
    path = PivotPair.of(ring.c2w[:, :1], ring.c2w[:, 1:]).at(t)[0]
    for pose, angle in zip(path, (t * math.pi / 3).tolist()):
        expected = torch.tensor([-2 * math.sin(angle), 0, -2 * math.cos(angle)])
        torch.testing.assert_close(pose[:3, 3].float(), expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(pose[:3, 2].float(), -expected / 2, atol=1e-6, rtol=0)


def test_the_pivot_is_the_point_nearest_to_both_look_rays() -> None:
    first, last = decode_pose(torch.randn(20, 2, 7, dtype=torch.float64)).unbind(1)
    point = PivotPair.of(first, last).point
    across = []
    for pose in (first, last):  # normal equations: sum of (I - d d^T)(p - c) = 0
        d, c = pose[:, :3, 2:3], pose[:, :3, 3]
        across.append(((torch.eye(3).double() - d @ d.mT) @ (point - c)[..., None]).squeeze(-1))
    torch.testing.assert_close(across[0] + across[1], torch.zeros(20, 3).double(), atol=1e-8, rtol=0)


def test_a_path_has_the_key_cameras_at_the_ends_of_every_transition() -> None:
    keys = random_cameras(3)
    path = pivot(keys, 5)
    assert (path.num_views, path.height, path.width) == (10, 24, 40)
    assert_rigid(path.c2w)
    for frame, view in [(0, 0), (4, 1), (5, 1), (9, 2)]:
        torch.testing.assert_close(path.c2w[:, frame], keys.c2w[:, view], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(path.fxfycxcy[:, frame], keys.fxfycxcy[:, view])
    torch.testing.assert_close(path.fxfycxcy[:, 2], keys.fxfycxcy[:, :2].mean(1))


def test_a_loop_of_two_cameras_is_the_way_there_and_back() -> None:
    path = pivot(random_cameras(2), 6, loop=True).c2w
    assert path.shape[1] == 12
    torch.testing.assert_close(path[:, 6:], path[:, :6].flip(1), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "pair",
    [
        facing((0, 0, 0), (1, 0, 0)),
        facing((0, 0, 0), (0, 0, 2)),
        facing((0, 0, 0), (0, 0, 0)),
        torch.cat([facing((0, 0, 0)), facing((1, 0, 5), forward=(0, 0, -1))]),
        torch.cat([facing((0, 0, 0)), facing((1, 0, 0), forward=(1e-7, 0, 1))]),
        torch.cat([facing((0, 0, 0)), facing((1, 0, 0), forward=(1e-4, 0, 1))]),
        torch.cat([facing((0, 0, 0)), facing((1, 0, 0), forward=(1e-2, 1e-3, 1))]),
        torch.cat([facing((0, 0, 0), forward=(0, 1, 0)), facing((1, 0, 0), forward=(0, 1, 0))]),
    ],
    ids=["abreast", "behind", "same", "opposite", "rounding", "nearly", "half_a_degree", "along_y"],
)
def test_degenerate_pairs_give_rigid_paths_with_both_cameras_at_their_ends(pair: Tensor) -> None:
    path = pivot(cameras(pair[None]), 7).c2w[0]
    assert_rigid(path)
    torch.testing.assert_close(path[[0, -1]], pair, atol=1e-5, rtol=0)


def test_parallel_cameras_keep_their_direction_and_move_straight() -> None:
    pair = facing((0, 0, 0), (2, 1, 0))
    path = pivot(cameras(pair[None]), 3).c2w[0]
    torch.testing.assert_close(path[1, :3, :3], pair[0, :3, :3], atol=1e-6, rtol=0)
    torch.testing.assert_close(path[1, :3, 3], torch.tensor([1.0, 0.5, 0]), atol=1e-6, rtol=0)


def test_a_single_camera_stands_still_on_every_path() -> None:
    keys = random_cameras(1)
    for path in (
        pivot(keys, 4),
        wobble(keys, 4, radius=0.25, turns=1),
        exaggerated(keys, 4, radius=0.5, turns=5, reach=2),
    ):
        torch.testing.assert_close(path.c2w, keys.c2w.expand(2, 4, 4, 4), atol=1e-5, rtol=0)


def test_easing_is_slow_at_both_ends() -> None:
    assert ease(torch.tensor([0.0, 0.25, 0.5, 1.0]).double()).tolist() == pytest.approx(
        [0, (1 - math.sqrt(0.5)) / 2, 0.5, 1], abs=1e-12
    )


def test_a_wobble_is_a_spiral_in_the_plane_of_the_first_image() -> None:
    keys = random_cameras(3)
    path = wobble(keys, 9, radius=0.25, turns=2)
    local = torch.linalg.inv(keys.c2w[:, :1]) @ path.c2w  # as seen from the first camera
    baseline = (keys.c2w[:, :, :3, 3] - keys.c2w[:, :1, :3, 3]).norm(dim=-1).amax(1)
    for i in range(9):
        t = (1 - math.cos(math.pi * i / 8)) / 2
        circle = torch.tensor([math.sin(4 * math.pi * t), -math.cos(4 * math.pi * t), 0])
        expected = 0.25 * t * baseline[:, None] * circle
        torch.testing.assert_close(local[:, i, :3, 3], expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(local[..., :3, :3], torch.eye(3).expand(2, 9, 3, 3), atol=1e-5, rtol=0)
    back = wobble(keys, 9, loop=True, radius=0.25, turns=2).c2w
    torch.testing.assert_close(back, torch.cat([path.c2w, path.c2w.flip(1)], dim=1))


def test_an_exaggerated_path_passes_both_cameras_at_the_radius_of_its_circles() -> None:
    keys = random_cameras(4)
    path = exaggerated(keys, 51, radius=0.5, turns=5, reach=2)  # 5 t - 2 is 0 at frame 20 and 1 at frame 30
    assert_rigid(path.c2w)
    baseline = (keys.c2w[:, :, :3, 3] - keys.c2w[:, :1, :3, 3]).norm(dim=-1).amax(1)
    for frame, view in [(20, 0), (30, -1)]:
        torch.testing.assert_close(path.c2w[:, frame, :3, :3], keys.c2w[:, view, :3, :3], atol=2e-5, rtol=0)
        away = (path.c2w[:, frame, :3, 3] - keys.c2w[:, view, :3, 3]).norm(dim=-1)
        torch.testing.assert_close(away, 0.5 * baseline, atol=1e-4, rtol=1e-4)
    assert (path.fxfycxcy[:, :20] == keys.fxfycxcy[:, :1]).all(), "no focal length is extrapolated"


def test_wobbles_of_several_samples_have_their_own_radii() -> None:
    shift = wobble_transform(torch.tensor([0.25]).double(), torch.tensor([[1.0], [2.0]]).double(), 1)
    torch.testing.assert_close(shift[:, 0, 0, 3], torch.tensor([1.0, 2.0]).double())
