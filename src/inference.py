"""Score a model and write what it rendered: pictures, videos, tables, one web page.

    python -m src.inference --config config/eval/uplvsm_x224.yaml [key=value ...]
    torchrun --nproc_per_node 8 -m src.inference --config ...

Per scene, `<inference_out_dir>/<position in the list, 6 digits>/`:

    input.png           the context views, side by side
    gt_vs_pred.png      truth above render, target views side by side
    metrics.json        {"summary": means, "per_view": scores}
    rendered_video.mp4  with inference.render_video (and .gif); frames/frame_00.png ... with inference.save_frames
    input/ target/ render/<frame, 6 digits>.png   with inference.save_targets
    scene_view.png      with inference.render_scene_view: where the cameras stand, and the path of the video
    rays.png            with inference.render_rays: the inputs' rays as colours

and beside them scores.json, summary.csv, average_metrics.txt and index.html. Tables and page cover this run alone:
files of an older run are removed from the folders that are written again, other old folders are reported.

Public: main, SceneWriter.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from torch import Tensor

from .cli import guarded, read_config
from .evaluate import RenderedScene, evaluate
from .files import write_text
from .frames_at_once import FramesAtOnce
from .geometry.camera import Cameras
from .inference_fast import Session, open_session, write_report
from .page import write_page
from .runtime import autocast, stop
from .scene_view import ray_picture, scene_view
from .settings import RunConfig
from .video import camera_path, check_path, video_frames, write_videos
from .visualize import save_image, sheet

log = logging.getLogger(__name__)

SCENE_FILES = (
    *("input.png", "gt_vs_pred.png", "metrics.json", "scene_view.png", "rays.png"),
    *("rendered_video.mp4", "rendered_video.gif"),
)
SCENE_PICTURES = ("frames/frame_*.png", "input/*.png", "target/*.png", "render/*.png")
COLUMNS = ("psnr", "lpips", "ssim")
"""Order of the scores in tables, as published."""


def main(argv: list[str] | None = None) -> int:
    """Score and render; the exit status."""
    return guarded(lambda: _run(argv))


def _run(argv: list[str] | None) -> None:
    config = read_config(argv, "Score a model and write its renders, videos, tables and a web page.")
    if config is None:
        return
    _check(config)
    session = open_session(config)
    writer = SceneWriter(session)
    report = evaluate(
        session.model, session.loader, config, session.runtime, metrics=session.metrics, on_scene=writer
    )
    if session.runtime.is_main:
        _write_results(session, report)
    stop()


def _check(config: RunConfig) -> None:
    if config.inference.render_video:
        check_path(config.inference.render_video_config)


# ----------------------------------------------------------------------------------------------- one scene


class SceneWriter:
    """Writes the folder of one scene after another; what `evaluate` calls as `on_scene`."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.settings = session.config.inference
        self.at_once = FramesAtOnce(session.config, session.runtime.device)

    def __call__(self, scene: RenderedScene) -> None:
        folder = self.session.out_dir / folder_name(scene.position)
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)
        if self.settings.render_images:
            save_image(folder / "input.png", sheet([scene.input.image[0]]))
            save_image(folder / "gt_vs_pred.png", sheet([scene.target.image[0], scene.render[0]]))
        if scene.scores:
            write_text(folder / "metrics.json", json.dumps(_scene_metrics(scene), indent=4, allow_nan=False))
        if self.settings.save_targets:
            _save_views(folder, scene)
        path = self._write_video(folder, scene) if self.settings.render_video else None
        if self.settings.render_scene_view:
            # Poses that the model estimated are in a world of their own, and so is a path through them.
            path = None if self.session.model.target_aware else path
            save_image(folder / "scene_view.png", scene_view(scene.input, scene.target.cameras, path))
        if self.settings.render_rays:
            save_image(folder / "rays.png", ray_picture(scene.input))

    def _write_video(self, folder: Path, scene: RenderedScene) -> Cameras:
        """The scene is encoded once; returns the path."""
        with self._autocast():
            state = self.session.model.encode(scene.input)
            keys = self.session.model.key_cameras(state, scene.input, scene.target)

        def render(cameras: Cameras) -> Tensor:
            with self._autocast():
                return self.session.model.render(state, cameras)

        path = camera_path(keys, self.settings.render_video_config)
        frames = video_frames(render, path, self.at_once(scene.input, path.height, path.width))
        if self.settings.save_frames:
            frames = _saving(frames, folder / "frames")
        write_videos(folder, frames, self.settings.render_video_config)
        return path

    def _autocast(self) -> AbstractContextManager:
        return autocast(self.session.runtime.device, self.session.config.training)


def folder_name(position: int) -> str:
    """Folder of the scene at this place of the filtered list."""
    return f"{position:06d}"


def _clear(folder: Path) -> None:
    """Remove what an earlier run may have left here, so that no old video stands beside new pictures."""
    for name in SCENE_FILES:
        (folder / name).unlink(missing_ok=True)
    for pattern in SCENE_PICTURES:
        for picture in folder.glob(pattern):
            picture.unlink()


def _save_views(folder: Path, scene: RenderedScene) -> None:
    """One PNG for every view, named by its frame; `scripts.compare_outputs` reads them."""
    views = [("input", scene.context, scene.input.image), ("target", scene.frames, scene.target.image)]
    for name, frames, images in [*views, ("render", scene.frames, scene.render)]:
        for frame, image in zip(frames, images[0]):
            save_image(folder / name / f"{frame:06d}.png", image)


def _saving(frames: Iterator[np.ndarray], folder: Path) -> Iterator[np.ndarray]:
    for number, frame in enumerate(frames):
        save_image(folder / f"frame_{number:02d}.png", frame)
        yield frame


def _scene_metrics(scene: RenderedScene) -> dict:
    """Scores of one scene; a value that is not finite, which JSON has no word for, becomes null."""
    names = [name for name in COLUMNS if name in scene.scores]
    means = {name: math.fsum(scene.scores[name]) / len(scene.frames) for name in names}
    rows = [dict(zip(names, values)) for values in zip(*(scene.scores[name] for name in names))]
    return {
        "summary": {"scene_name": scene.name, **_finite(means)},
        "per_view": [{"view": frame, **_finite(row)} for frame, row in zip(scene.frames, rows)],
    }


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


# ----------------------------------------------------------------------------------------------- all scenes


def _write_results(session: Session, report: dict) -> None:
    """Tables and page of this run, after all ranks have written their scenes."""
    out_dir = session.out_dir
    report = write_report(session, report)
    if report["headline"]:
        names = [name for name in COLUMNS if name in report["headline"]]
        write_text(out_dir / "summary.csv", _summary_csv(report, names))
        averages = "".join(f"{name}: {report['headline'][name]:.6f}\n" for name in names)
        write_text(out_dir / "average_metrics.txt", averages)
    if session.config.inference.generate_website:
        sys.stdout.write(f"Page       {write_page(out_dir, report)}\n")
    _report_stale(out_dir, {folder_name(scene["position"]) for scene in report["scenes"]})


def _summary_csv(report: dict, names: list[str]) -> str:
    lines = [",".join(["Index", *names])]
    for scene in report["scenes"]:
        values = [f"{scene['mean'][name]:.6f}" for name in names]
        lines.append(",".join([folder_name(scene["position"]), *values]))
    lines += ["", ",".join(["average", *(f"{report['headline'][name]:.6f}" for name in names)])]
    return "\n".join(lines) + "\n"


def _report_stale(out_dir: Path, written: set[str]) -> None:
    folders = {path.name for path in out_dir.iterdir() if re.fullmatch(r"\d{6,}", path.name)}
    stale = sorted(folders - written)
    if stale:
        log.warning(
            "%s has scene folders of another run (%d, first %s); tables and page leave them out.",
            *(out_dir, len(stale), stale[0]),
        )


if __name__ == "__main__":
    sys.exit(main())
