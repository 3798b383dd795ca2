"""Render a place along a path, from photos of one's own or from a scene of a data set.

    python -m src.render --config C --checkpoint W --images a.jpg b.jpg --trajectory interpolate --out out.mp4
    python -m src.render --config C --checkpoint W --scene SCENE --views 0 9 --trajectory orbit --out out.gif
    python -m src.render --config C --checkpoint W --scene SCENE --trajectory PATH.json --out frames/

SCENE is metadata of a converted data set, a transforms.json, an opencv_cameras.json, or the folder of a COLMAP model; photos
without one have no poses, which UP-LVSM does not need (see src.fit_pose_mapper for steering it). The path goes through or
around the input views, or comes from a file: what the viewer exports, or nerfstudio's. Written are a video (.mp4, .gif) or a
folder of PNG files, and beside it the path itself (.path.json), which gives the same video again.

Public: main.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .cli import guarded
from .config import ConfigError
from .explore.capture import choose_frames, open_scene, read_capture
from .explore.open_model import MAPPER_FILE, open_model, open_place
from .explore.path_file import read_path, write_path
from .explore.place import Place
from .geometry.camera import Cameras
from .geometry.trajectory import TRAJECTORIES
from .runtime import stop
from .video import camera_path, check_path, video_frames
from .visualize import save_image, save_videos

log = logging.getLogger(__name__)

VIDEOS = (".mp4", ".gif")


def main(argv: list[str] | None = None) -> int:
    """Render; the exit status."""
    return guarded(lambda: _run(_parser().parse_intermixed_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--config", default="", help="YAML file of the model (default: what comes with the weights)"
    )
    parser.add_argument(
        "--checkpoint",
        default="",
        help="weights: file, checkpoint, run or hub folder, or owner/name on the Hugging Face hub (default: the config's)",
    )
    parser.add_argument("--images", nargs="+", default=[], help="photos; with --scene, those of its pictures")
    parser.add_argument("--scene", default="", help="file or folder with the cameras of the photos")
    parser.add_argument(
        "--views", nargs="+", type=int, default=[], help="frames of the scene to take as input"
    )
    parser.add_argument(
        "--num_views", type=int, default=0, help="else so many, spread evenly (default: the config's)"
    )
    parser.add_argument(
        "--fov", type=float, default=60.0, help="of photos that do not state it, degrees (default: 60)"
    )
    parser.add_argument(
        "--trajectory", default="interpolate", help=f"{', '.join(TRAJECTORIES)}, or a path file .json"
    )
    parser.add_argument("--out", required=True, type=Path, help=".mp4, .gif, or a folder for PNG files")
    parser.add_argument(
        "--frames",
        type=int,
        default=0,
        help="frames, of interpolate and pivot per transition (default: the config's)",
    )
    parser.add_argument(
        "--fps", type=int, default=0, help="frames per second (default: the path's or the config's)"
    )
    parser.add_argument(
        "--size", type=int, default=0, help="height of the frames, pixels (default: that of the inputs)"
    )
    parser.add_argument(
        "--loop", action="store_true", help="return to the first camera (also where the config says so)"
    )
    parser.add_argument(
        "--pose_mapper", default="", help=f"(default: {MAPPER_FILE} beside the checkpoint, if it is there)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    if min(arguments.frames, arguments.fps, arguments.size, arguments.num_views) < 0:
        raise ConfigError("--frames, --fps, --size and --num_views must not be negative.")
    if arguments.out.suffix not in ("", *VIDEOS):
        raise ConfigError(f"--out {arguments.out}: expected .mp4, .gif or a folder.")
    opened = open_model(arguments.config, arguments.checkpoint, arguments.overrides, arguments.pose_mapper)
    scene = open_scene(arguments.images, arguments.scene, arguments.fov)
    count = arguments.num_views or opened.config.training.num_input_views
    frames = choose_frames(scene, arguments.images, arguments.views, count)
    place = open_place(opened, read_capture(scene, frames, opened.settings))
    cameras, fps = _cameras(arguments, place)
    begin = time.perf_counter()
    _write(arguments.out, place, cameras, fps)
    seconds = time.perf_counter() - begin
    log.info(
        "%s: %d frames of %dx%d from %d photos in %.1f s (%.1f frames/s).",
        arguments.out, cameras.num_views, cameras.width, cameras.height, len(frames), seconds,
        cameras.num_views / seconds,
    )  # fmt: skip
    stop()
    return 0


def _cameras(arguments: argparse.Namespace, place: Place) -> tuple[Cameras, int]:
    """The cameras of all frames, and frames per second."""
    video = place.config.inference.render_video_config
    if arguments.trajectory.endswith(".json"):
        path = read_path(Path(arguments.trajectory))
        height = arguments.size or path.cameras.height
        return place.sized(path.cameras, height), arguments.fps or path.fps or video.fps
    video.traj_type = arguments.trajectory
    video.num_frames = arguments.frames or video.num_frames
    video.loop_video = arguments.loop or video.loop_video
    video.fps = arguments.fps or video.fps
    check_path(video)
    return place.sized(camera_path(place.keys, video), arguments.size), video.fps


def _write(out: Path, place: Place, cameras: Cameras, fps: int) -> None:
    """The frames as a video or as PNG files, with a progress bar; then the path."""
    chunk = place.at_once(place.input, cameras.height, cameras.width)
    frames: Iterable[np.ndarray] = video_frames(place.render, cameras, chunk)
    frames = tqdm(frames, total=cameras.num_views, unit="frame", desc="rendering")
    if out.suffix in VIDEOS:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_videos([out], frames, fps)
    else:
        out.mkdir(parents=True, exist_ok=True)
        for _ in _saved(frames, out):
            pass
    write_path(out.with_name(out.name.removesuffix(out.suffix) + ".path.json"), cameras, fps)


def _saved(frames: Iterable[np.ndarray], folder: Path) -> Iterator[None]:
    for number, frame in enumerate(frames):
        save_image(folder / f"{number:06d}.png", frame)
        yield


if __name__ == "__main__":
    sys.exit(main())
