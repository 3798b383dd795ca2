"""Look around in a place, in a browser.

    python -m src.viewer --config C --checkpoint W --data datasets/mine/test/full_list.txt [--port 8080]
    python -m src.viewer --config C --checkpoint W --scene SCENE
    python -m src.viewer --config C --checkpoint W --images a.jpg b.jpg c.jpg
    python -m src.viewer --checkpoint checkpoints/small checkpoints/large --data ...   # a choice of models

Everything goes through one port of this machine; from elsewhere: ssh -L 8080:localhost:8080 HOST, then
http://localhost:8080. Nothing is fetched from other sites. The context is encoded once for each choice of input views; then
every camera is rendered live, small while it moves, full size when it stands. Key frames make a path, which is previewed and
exported as the file that src.render --trajectory reads.

Public: main, Viewer.
"""

from __future__ import annotations

import argparse
import functools
import logging
import math
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .cli import guarded
from .config import ConfigError
from .data.dataset import open_scenes
from .data.scene import Scene
from .explore.capture import Capture, choose_frames, open_scene, read_capture
from .explore.key_frames import KeyFrames
from .explore.live import JPEG_QUALITY, LiveView, camera_of
from .explore.open_model import OpenedModel, open_model, open_place
from .explore.place import Place
from .geometry.camera import Cameras
from .geometry.path_look import look_point
from .geometry.rotation import matrix_to_quat_xyzw
from .metrics import psnr
from .visualize import to_uint8

log = logging.getLogger(__name__)

FRUSTUM_SIZE = 0.04
"""Of an input camera, as a part of the distance to what the cameras look at."""
STILL = 1e-4
"""Of quaternion, position, angle: the browser lets a movement fade out long after nothing is to be seen of it."""
STEP_BACK = 0.12
"""A visitor begins so far behind the first input camera, in the same unit: its frustum is in sight."""


def main(argv: list[str] | None = None) -> int:
    """Serve until interrupted; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--config",
        nargs="+",
        default=[],
        help="YAML file of the model, or one for each checkpoint (default: what comes with the weights)",
    )
    parser.add_argument(
        "--checkpoint",
        nargs="+",
        default=[],
        help="weights: file, checkpoint, run or hub folder, or owner/name on the Hugging Face hub (default: the config's); "
        "several: the page offers a choice",
    )
    parser.add_argument(
        "--data", default="", help="full_list.txt, chunks or object list: scenes to choose from"
    )
    parser.add_argument(
        "--scene", default="", help="one scene: metadata, transforms.json, opencv_cameras.json, COLMAP"
    )
    parser.add_argument("--images", nargs="+", default=[], help="photos; with --scene, those of its pictures")
    parser.add_argument(
        "--fov", type=float, default=60.0, help="of photos that do not state it, degrees (default: 60)"
    )
    parser.add_argument(
        "--num_views", type=int, default=0, help="input views at first (default: the config's)"
    )
    parser.add_argument("--port", type=int, default=8080, help="(default: 8080)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0: open to the network (default: this machine alone)"
    )
    parser.add_argument(
        "--exports", type=Path, default=Path("outputs/paths"), help="folder for exported paths"
    )
    parser.add_argument("--pose_mapper", default="", help="(default: pose_mapper.pt beside the checkpoint)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
    return guarded(lambda: _run(parser.parse_intermixed_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    viewer = start_viewer(arguments)
    sys.stdout.write(f"http://localhost:{viewer.server.get_port()}\n")
    sys.stdout.flush()
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        viewer.stop()
    return 0


def start_viewer(arguments: argparse.Namespace) -> Viewer:
    """Open model and scenes and start to serve."""
    models = _models(arguments)
    opened = next(iter(models.values()))()
    if arguments.data:
        scenes = open_scenes(arguments.data)
        names = {str(name): (lambda i=i: scenes[i]) for i, name in enumerate(scenes.names)}
    else:
        scene = open_scene(arguments.images, arguments.scene, arguments.fov)
        names = {scene.name: lambda: scene}
    count = arguments.num_views or opened.config.training.num_input_views
    return Viewer(
        opened, models, names, arguments.images, count, arguments.host, arguments.port, arguments.exports
    )


def _models(arguments: argparse.Namespace) -> dict[str, Callable[[], OpenedModel]]:
    """Name on the page -> function that opens the model; each is opened once, when it is first asked for."""
    configs, checkpoints = arguments.config or [""], arguments.checkpoint or [""]
    if len(configs) == 1:
        configs = configs * len(checkpoints)
    if len(checkpoints) == 1:
        checkpoints = checkpoints * len(configs)
    if len(configs) != len(checkpoints):
        raise ConfigError(
            f"{len(configs)} --config for {len(checkpoints)} --checkpoint: name one, or one for each."
        )
    models = {}
    for number, (config, checkpoint) in enumerate(zip(configs, checkpoints, strict=True), 1):
        words = (config, checkpoint, arguments.overrides, arguments.pose_mapper)
        models[f"{number}: {checkpoint or config}"] = functools.cache(functools.partial(open_model, *words))
    return models


class Viewer:
    """The page, its controls and what they do. One place is shown to all visitors; each has a camera of its own.

    opened: the model to begin with. models, scenes: name -> function that opens it.
    """

    def __init__(
        self,
        opened: OpenedModel,
        models: dict[str, Callable[[], OpenedModel]],
        scenes: dict[str, Callable[[], Scene]],
        images: list[str],
        num_views: int,
        host: str,
        port: int,
        exports: Path,
    ) -> None:
        import viser  # only the viewer needs it

        self.opened, self.models, self.scenes, self.exports = opened, models, scenes, exports
        self.images, self.num_views = images, num_views
        self.lock = threading.Lock()  # the model serves one thread at a time
        self.views: dict[int, LiveView] = {}
        self.keys = KeyFrames()
        self.server = viser.ViserServer(host=host, port=port, label="Parallax", verbose=False)
        self.server.gui.configure_theme(show_logo=False, show_share_button=False)
        self._controls()
        self.open(next(iter(scenes)))
        self.server.on_client_connect(self._connected)
        self.server.on_client_disconnect(lambda client: self._gone(client.client_id))

    def stop(self) -> None:
        """Stop serving."""
        for number in list(self.views):
            self._gone(number)
        self.server.stop()

    # ------------------------------------------------------------------------------------------- the place

    def open(self, name: str, views: list[int] | None = None) -> None:
        """Show a scene, from its usual input views or from those given."""
        scene: Scene = self.scenes[name]()
        frames = choose_frames(scene, self.images, views or [], self.num_views)
        self.scene = scene
        with self.lock:
            self.place: Place = open_place(self.opened, read_capture(scene, frames, self.opened.settings))
        self.inputs.value = " ".join(map(str, frames))
        self._clear_keys()
        self.status.content = f"{scene.num_frames} frames, {len(frames)} are inputs"
        last = max(0, scene.num_frames - 1)
        self.truth_frame.max, self.truth_frame.value = last, min(self.truth_frame.value, last)
        self._draw_inputs()
        for client in self.server.get_clients().values():
            self._look_from(client, self.place.keys)
        self._redraw()

    def choose_model(self, name: str) -> None:
        """Look at the same place with another model, from where every visitor stands."""
        opened = self.models[name]()
        capture = read_capture(self.scene, list(self.place.capture.frames), opened.settings)
        with self.lock:
            self.place, self.opened = open_place(opened, capture), opened
        self._redraw()

    def render(self, cameras: Cameras) -> Tensor:
        """Images of cameras of the place's world; visitors take turns."""
        with self.lock:
            return self.place.render(cameras)

    def _draw_inputs(self) -> None:
        """Input cameras as frustums with thumbnails."""
        scene_api, keys = self.server.scene, self.place.keys
        for handle in getattr(self, "frustums", []):
            handle.remove()
        up = -keys.c2w[0, :, :3, 1].mean(dim=0)
        scene_api.set_up_direction(tuple((up / up.norm().clamp_min(1e-9)).tolist()))
        depth = float((look_point(keys.c2w)[0] - keys.c2w[0, 0, :3, 3]).norm())
        self.frustums = [
            scene_api.add_camera_frustum(
                f"/inputs/{number}",
                fov=_fov(keys, number),
                aspect=keys.width / keys.height,
                scale=FRUSTUM_SIZE * depth,
                thickness=2.0,
                thickness_units="screen",
                image=to_uint8(self.place.capture.image[0, number]),
                visible=self.show_inputs.value,
                **_pose(keys.c2w[0, number]),
            )
            for number in range(keys.num_views)
        ]

    # ------------------------------------------------------------------------------------------- controls

    def _controls(self) -> None:
        gui = self.server.gui
        self.fps = gui.add_markdown("")
        self.status = gui.add_markdown("")
        self.model_name = gui.add_dropdown("Model", list(self.models), visible=len(self.models) > 1)
        names = list(self.scenes)
        self.scene_name = gui.add_dropdown("Scene", names, initial_value=names[0])
        self.inputs = gui.add_text("Input views", "", hint="frame numbers, e.g. 0 5 9")
        self.height = gui.add_slider(
            "Height", 32, 1024, 8, self._usual_height(), hint="pixels of a still picture"
        )
        self.show_inputs = gui.add_checkbox("Show input cameras", True)
        with gui.add_folder("Ground truth"):
            self.compare = gui.add_checkbox(
                "Beside the truth", False, hint="the camera of a frame, left: the model"
            )
            self.truth_frame = gui.add_slider("Frame", 0, 1, 1, 0)
            self.truth_score = gui.add_markdown("")
        with gui.add_folder("Path"):
            add, clear = gui.add_button("Add key frame"), gui.add_button("Clear")
            self.transition = gui.add_slider("Frames per transition", 2, 240, 1, 30)
            self.path_fps = gui.add_slider("Frames per second", 1, 60, 1, 30)
            self.loop = gui.add_checkbox("Loop", False)
            preview, export = gui.add_button("Preview"), gui.add_button("Export")
            self.path_status = gui.add_markdown("No key frames.")
        self.scene_name.on_update(lambda _: self._guarded(lambda: self.open(self.scene_name.value)))
        self.model_name.on_update(lambda _: self._guarded(lambda: self.choose_model(self.model_name.value)))
        self.inputs.on_update(lambda event: self._guarded(self._chose_inputs) if event.client else None)
        for handle in (self.height, self.compare, self.truth_frame):
            handle.on_update(lambda _: self._redraw())
        self.show_inputs.on_update(lambda _: self._toggle_inputs())
        add.on_click(lambda event: self._add_key(event.client))
        clear.on_click(lambda _: self._clear_keys())
        preview.on_click(lambda event: self._guarded(lambda: self._preview(event.client)))
        export.on_click(lambda event: self._guarded(lambda: self._export(event.client)))

    def _usual_height(self) -> int:
        settings = self.opened.settings
        return min(1024, max(32, settings.image_shape[0] if settings.image_shape else settings.image_size))

    def _guarded(self, work: Any) -> None:
        """A mistake of a visitor is told on the page."""
        try:
            work()
        except (ValueError, OSError) as error:
            self.status.content = f"**{error}**"

    def _chose_inputs(self) -> None:
        words = self.inputs.value.replace(",", " ").split()
        if not words or not all(word.isdecimal() for word in words):
            raise ConfigError("input views: expected frame numbers, such as 0 5 9.")
        self.open(self.scene_name.value, [int(word) for word in words])

    def _toggle_inputs(self) -> None:
        for handle in self.frustums:
            handle.visible = self.show_inputs.value

    # ------------------------------------------------------------------------------------------- visitors

    def _connected(self, client: Any) -> None:
        self._look_from(client, self.place.keys)
        live = LiveView(
            render=self._picture,
            camera=lambda part: self._camera(client, part),
            show=lambda image, form: client.scene.set_background_image(
                image, format=form, jpeg_quality=JPEG_QUALITY
            ),
            report=self._report,
            failed=self._failed,
        )
        self.views[client.client_id] = live
        seen: list[float] = []

        def moved(camera: Any) -> None:
            now = [*camera.wxyz, *camera.position, camera.fov, camera.aspect]
            if len(seen) != len(now) or max(abs(a - b) for a, b in zip(seen, now, strict=True)) > STILL:
                seen[:] = now
                live.moved()

        client.camera.on_update(moved)
        live.moved()

    def _gone(self, number: int) -> None:
        live = self.views.pop(number, None)
        if live:
            live.stop()

    def _redraw(self) -> None:
        for live in list(self.views.values()):
            live.moved()

    def _look_from(self, client: Any, keys: Cameras) -> None:
        """Put a visitor's camera behind that of the first input view, turning around what the inputs look at."""
        start, point = keys.c2w[0, 0].clone(), look_point(keys.c2w)[0]
        start[:3, 3] -= STEP_BACK * (point - start[:3, 3]).norm() * start[:3, 2]
        pose = _pose(start)
        up = -keys.c2w[0, :, :3, 1].mean(dim=0)
        client.camera.up_direction = tuple((up / up.norm().clamp_min(1e-9)).tolist())
        client.camera.position, client.camera.wxyz = pose["position"], pose["wxyz"]
        client.camera.look_at = tuple(point.tolist())
        client.camera.fov = _fov(keys, 0)

    def _camera(self, client: Any, part: float) -> Cameras:
        view, height = client.camera, max(1, round(self.height.value * part))
        return camera_of(view.wxyz, view.position, view.fov, view.aspect, height, self.place.patch)

    def _picture(self, cameras: Cameras) -> Tensor:
        """What is shown: the render, or the render of a frame's own camera beside its photo. [1, 1, 3, h, w]"""
        if not self.compare.value:
            return self.render(cameras)
        truth = self._truth()
        if truth is None:
            return self.render(cameras)
        image = self.render(truth.cameras)
        self.truth_score.content = f"PSNR {float(psnr(image[0], truth.image[0])[0]):.2f} dB"
        return torch.cat([image, truth.image], dim=-1)

    def _truth(self) -> Capture | None:
        """The photo of the chosen frame; None where it cannot be used or its camera is unknown."""
        try:
            truth = read_capture(self.scene, [int(self.truth_frame.value)], self.opened.settings)
        except ConfigError as error:
            self.truth_score.content = f"**{error}**"
            return None
        if not truth.posed or not self.place.knows_world:
            self.truth_score.content = "**The cameras of these photos are unknown.**"
            return None
        return truth

    def _report(self, fps: float, height: int, width: int) -> None:
        self.fps.content = f"**{fps:.1f} frames/s**, {width} x {height} pixels"

    def _failed(self, error: Exception) -> None:
        log.error("rendering failed (%s: %s)", type(error).__name__, error)
        self.status.content = f"**Rendering failed ({type(error).__name__}): a smaller height may help.**"

    # ------------------------------------------------------------------------------------------- paths

    def _add_key(self, client: Any) -> None:
        self.keys.cameras.append(self._camera(client, 1.0))
        self.path_status.content = f"{len(self.keys)} key frames."

    def _clear_keys(self) -> None:
        self.keys.cameras.clear()
        self.path_status.content = "No key frames."

    def _preview(self, client: Any) -> None:
        path = self.keys.path(int(self.transition.value), self.loop.value)
        for number in range(path.num_views):
            image = self.render(path.views(slice(number, number + 1)))
            client.scene.set_background_image(to_uint8(image[0, 0]), format="jpeg", jpeg_quality=JPEG_QUALITY)
            client.flush()
            self.path_status.content = f"Frame {number + 1} of {path.num_views}."

    def _export(self, client: Any) -> None:
        file = self.keys.export(
            self.exports, int(self.transition.value), self.loop.value, int(self.path_fps.value)
        )
        client.send_file_download(file.name, file.read_bytes())
        self.path_status.content = f"Written: {file}"


def _fov(cameras: Cameras, number: int) -> float:
    """Along the height, radians."""
    return 2 * math.atan(cameras.height / 2 / float(cameras.fxfycxcy[0, number, 1]))


def _pose(c2w: Tensor) -> dict[str, tuple[float, ...]]:
    """Position and quaternion (scalar first) of a camera-to-world matrix. [4, 4]"""
    x, y, z, w = matrix_to_quat_xyzw(c2w[:3, :3].double()).tolist()
    return {"wxyz": (w, x, y, z), "position": tuple(c2w[:3, 3].tolist())}


if __name__ == "__main__":
    sys.exit(main())
