"""From the settings of a video to its path, frames and files."""

from __future__ import annotations

import weakref
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from src.config import ConfigError, build
from src.geometry.camera import Cameras
from src.geometry.rotation import decode_pose
from src.geometry.trajectory import TRAJECTORIES, turntable
from src.settings_video import RenderVideo
from src.video import camera_path, check_path, video_frames, write_videos
from src.visualize import save_videos


def settings(**tree: object) -> RenderVideo:
    problems: list[str] = []
    video = build(RenderVideo, tree, "inference.render_video_config", problems)
    if problems:
        raise ConfigError("\n".join(problems))
    return video


def keys(num_views: int = 2) -> Cameras:
    return Cameras(decode_pose(torch.randn(1, num_views, 7)), torch.full((1, num_views, 4), 20.0), 6, 8)


def test_every_path_runs_with_its_default_settings() -> None:
    for name in TRAJECTORIES:
        video = settings(traj_type=name, num_frames=4)
        check_path(video)
        assert camera_path(keys(), video).num_views >= 4


def test_settings_reach_the_path() -> None:
    video = settings(traj_type="turntable", num_frames=5, turntable={"radius": [1, 2], "up": [0, 1, 0]})
    expected = turntable(keys(), 5, hfov_deg=50, radius=[1, 2], elevation_deg=30, up=[0, 1, 0])
    torch.testing.assert_close(camera_path(keys(), video).c2w, expected.c2w)
    assert camera_path(keys(3), settings(num_frames=4, loop_video=True)).num_views == 12


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"traj_type": "corkscrew"}, "traj_type corkscrew is unknown. Known: interpolate, pivot"),
        ({"traj_type": "turntable", "loop_video": True}, "loop_video means nothing for traj_type turntable"),
        ({"traj_type": "wobble", "order_poses": True}, "order_poses means nothing for traj_type wobble"),
        ({"spin": {"radius": 3}}, "spin is set, but traj_type is interpolate"),
        ({"traj_type": "spin", "turntable": {"hfov_deg": 60}}, "turntable is set, but traj_type is spin"),
        ({"turntable": {"radius": [3, 1]}}, r"turntable.radius is \[3, 1\]"),
        ({"turntable": {"radius": 2}}, "turntable.radius is 2"),
        ({"turntable": {"up": [0, 0, 0]}}, "turntable.up is"),
        ({"turntable": {"hfov_deg": 180}}, "hfov_deg is 180"),
        ({"format": "avi"}, "format is 'avi'"),
    ],
)
def test_settings_without_meaning_are_refused(tree: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_path(settings(**tree))


@pytest.mark.parametrize(("chunk", "sizes"), [(3, [3, 3, 1]), (0, [7]), (10, [7])])
def test_frames_are_rendered_in_chunks_rounded_and_clamped(chunk: int, sizes: list[int]) -> None:
    seen: list[int] = []

    def render(cameras: Cameras) -> Tensor:
        seen.append(cameras.num_views)
        return torch.tensor([-0.2, 100.6 / 255, 1.5])[:, None, None].expand(1, cameras.num_views, 3, 6, 8)

    frames = list(video_frames(render, keys(7), chunk))
    assert seen == sizes and len(frames) == 7
    assert all(frame[0, 0].tolist() == [0, 101, 255] for frame in frames)


def test_a_long_video_never_holds_more_than_one_chunk(tmp_path: Path) -> None:
    alive: list[weakref.ref] = []
    most = 0

    def render(cameras: Cameras) -> Tensor:
        nonlocal most
        most = max(most, sum(ref() is not None for ref in alive))
        images = torch.rand(1, cameras.num_views, 3, 6, 8)
        alive.append(weakref.ref(images))
        return images

    write_videos(tmp_path, video_frames(render, keys(41), 4), settings(format="both"))
    assert len(alive) == 11 and most <= 1
    with imageio.get_reader(tmp_path / "rendered_video.mp4") as reader:
        assert reader.count_frames() == 41
    with Image.open(tmp_path / "rendered_video.gif") as gif:
        assert gif.n_frames == 41


@pytest.mark.parametrize("count", [1, 2, 31])
def test_a_gif_shows_every_frame_at_its_own_size_and_speed(tmp_path: Path, count: int) -> None:
    frames = [np.full((9, 13, 3), (8 * i, 255 - 8 * i, 40), dtype=np.uint8) for i in range(count)]
    save_videos([tmp_path / "a.gif"], iter(frames), fps=30)
    with Image.open(tmp_path / "a.gif") as gif:
        assert (gif.size, gif.n_frames) == ((13, 9), count)
        duration_ms = 0
        for i, frame in enumerate(frames):
            gif.seek(i)
            duration_ms += gif.info["duration"]
            shown = np.asarray(gif.convert("RGB")).astype(int)
            assert np.abs(shown - frame).max() <= 2
        if count > 1:
            assert duration_ms == pytest.approx(1000 * count / 30, abs=20)
            assert gif.info["loop"] == 0


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "at least one frame"),
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 6, 3), np.uint8)], "a frame is"),
    ],
)
@pytest.mark.parametrize("names", [["a.mp4"], ["a.mp4", "b.gif"]])
def test_impossible_videos_are_refused_and_leave_nothing(
    tmp_path: Path, frames: list, message: str, names: list[str]
) -> None:
    with pytest.raises(ValueError, match=message):
        save_videos([tmp_path / name for name in names], iter(frames))
    assert list(tmp_path.iterdir()) == []


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a video is .mp4 or .gif"):
        save_videos([tmp_path / "a.avi"], iter([np.zeros((4, 4, 3), np.uint8)]))
