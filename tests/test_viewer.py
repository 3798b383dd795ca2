"""The viewer in a real browser: the page loads from one port alone, and what it shows is what src.render renders."""

from __future__ import annotations

import argparse
import io
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from photo_folder import LVSM, write_config, write_data_set
from PIL import Image
from safetensors.torch import save_file

from src import render
from src.config import ConfigError
from src.explore.live import LiveView, camera_of
from src.explore.path_file import read_path, write_path
from src.geometry.camera import Cameras
from src.model import build_model, family_config
from src.runtime import stop
from src.settings import load_config
from src.viewer import Viewer, main, start_viewer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-quic",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run",
]  # fmt: skip
PATIENCE_S = 120
HEIGHT = 320
"""Of the window; it is twice as wide."""
PANEL_BEGINS = 300
"""Column of the window: the controls lie over the rest of the canvas."""


def write_weights(config: Path, path: Path, seed: int) -> Path:
    """A model whose pictures depend strongly on the camera, as random initial weights' do not."""
    torch.manual_seed(3 + seed)
    model = build_model(load_config(config, [], family_config).model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn_like(parameter)
    save_file(model.state_dict(), path)
    return path


@pytest.fixture
def viewer(tmp_path: Path) -> Iterator[Viewer]:
    listed = write_data_set(tmp_path)
    config = write_config(tmp_path / "c.yaml", LVSM)
    arguments = argparse.Namespace(
        config=[str(config)], overrides=[],
        checkpoint=[str(write_weights(config, tmp_path / f"{name}.safetensors", seed)) for seed, name in enumerate("wu")],
        pose_mapper="", data=str(listed), scene="", images=[], fov=60.0, num_views=2, host="127.0.0.1", port=8930,
        exports=tmp_path / "paths",
    )  # fmt: skip
    viewer = start_viewer(arguments)
    yield viewer
    viewer.stop()
    stop()


def resting(viewer: Viewer, moved_from: np.ndarray | None = None) -> np.ndarray:
    """Wait until the only visitor's camera rests and its picture at full size was sent; where it is.

    moved_from: an earlier place, which the camera must have left.
    """
    deadline = time.monotonic() + PATIENCE_S
    last = None
    while time.monotonic() < deadline:
        clients, lives = viewer.server.get_clients(), viewer.views
        ready = clients and lives and next(iter(lives.values())).settled.is_set()
        place = np.array(next(iter(clients.values())).camera.position) if ready else None
        left = moved_from is None or (place is not None and np.abs(place - moved_from).max() > 0.05)
        if left and place is not None and last is not None and np.array_equal(place, last):
            return place
        last = place
        time.sleep(1)  # longer than a movement takes to fade out
    raise AssertionError("the viewer does not come to rest")


def picture_of(page) -> np.ndarray:
    """The canvas as the browser shows it, once it no longer changes. float [h, w, 3] in [0, 1]"""
    last = None
    for _ in range(20):
        page.wait_for_timeout(500)
        shot = Image.open(io.BytesIO(page.locator("canvas").first.screenshot())).convert("RGB")
        image = np.asarray(shot)[:, :PANEL_BEGINS] / 255.0
        if last is not None and np.array_equal(image, last):
            break
        last = image
    return image


def closest_picture(page, expected: np.ndarray) -> float:
    """PSNR of the canvas, once it shows what is expected; of its last picture, if it never does."""
    deadline = time.monotonic() + PATIENCE_S / 4
    while (found := psnr(picture_of(page), expected)) < 30 and time.monotonic() < deadline:
        pass
    return found


def rendered(folder: Path) -> np.ndarray:
    """What `src.render` gives for the camera in now.json. float [h, w, 3] in [0, 1]"""
    arguments = ["--config", str(folder / "c.yaml"), "--checkpoint", str(folder / "w.safetensors")]
    scene = ["--scene", str(folder / "set/metadata/room.json"), "--views", "0", "3"]
    path = ["--trajectory", str(folder / "now.json"), "--out", str(folder / "frames")]
    assert render.main([*arguments, *scene, *path]) == 0
    return np.asarray(Image.open(folder / "frames" / "000000.png"))[:, :PANEL_BEGINS] / 255.0


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a - b) ** 2)))


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_the_canvas_shows_what_src_render_renders(viewer: Viewer, tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs requirements-dev.txt")
    address = f"http://localhost:{viewer.server.get_port()}"
    asked, complaints = [], []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 2 * HEIGHT, "height": HEIGHT})
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.goto(f"{address}/?fixedDpr=1")  # else the page draws fewer pixels where drawing is slow
        page.wait_for_selector("canvas", timeout=1000 * PATIENCE_S)
        page.add_style_tag(content="[class*=Notification] { display: none !important; }")
        resting(viewer)
        viewer.show_inputs.value = False
        viewer._toggle_inputs()
        viewer.height.value = HEIGHT
        viewer._redraw()
        start = resting(viewer)
        before = picture_of(page)

        page.mouse.move(40, HEIGHT / 2)
        page.mouse.down()
        for step in range(1, 9):
            page.mouse.move(40 + 30 * step, HEIGHT / 2 + 5 * step)
            page.wait_for_timeout(50)
        page.mouse.up()
        resting(viewer, moved_from=start)
        (client,) = viewer.server.get_clients().values()
        write_path(tmp_path / "now.json", viewer._camera(client, 1.0), 30)
        expected = rendered(tmp_path)
        shown = closest_picture(page, expected)
        browser.close()
    assert not complaints
    assert {url.split("/")[2] for url in asked if "//" in url and not url.startswith("data:")} == {
        address[7:]
    }
    assert shown >= 30
    assert psnr(before, expected) < shown - 6, "the camera did not move the picture"


class Visitor:
    """What the viewer asks of one."""

    def __init__(self) -> None:
        self.sent: dict[str, bytes] = {}
        self.shown: list[np.ndarray] = []
        self.scene = self.camera = self
        self.wxyz, self.position, self.fov, self.aspect = np.array([1.0, 0, 0, 0]), np.zeros(3), 0.9, 1.5

    def send_file_download(self, name: str, content: bytes) -> None:
        self.sent[name] = content

    def set_background_image(self, image: np.ndarray, **_: object) -> None:
        self.shown.append(image)

    def flush(self) -> None: ...


def test_key_frames_export_the_path_that_is_previewed(viewer: Viewer) -> None:
    client = Visitor()
    with pytest.raises(ConfigError, match="two key frames"):
        viewer.keys.path(5, False)
    viewer._add_key(client)
    client.position = np.array([0.4, 0.0, 0.1])
    viewer._add_key(client)
    viewer.transition.value = 5
    viewer._export(client)
    viewer._preview(client)
    (name,) = client.sent
    found = read_path(viewer.exports / name)
    assert found.cameras.num_views == 5 == len(client.shown)
    images = viewer.render(found.cameras)
    for shown, image in zip(client.shown, images[0], strict=True):
        assert np.abs(shown / 255.0 - image.permute(1, 2, 0).numpy()).max() <= 0.5 / 255 + 1e-4


def test_input_views_can_be_chosen_and_mistakes_are_told_on_the_page(viewer: Viewer) -> None:
    state = viewer.place
    viewer.inputs.value = "1 2"
    viewer._guarded(viewer._chose_inputs)
    assert viewer.place is not state and viewer.place.capture.frames == (1, 2)
    viewer.inputs.value = "1 99"
    viewer._guarded(viewer._chose_inputs)
    assert "view 99" in viewer.status.content and viewer.place.capture.frames == (1, 2)


def test_another_model_shows_the_same_place_from_the_same_cameras(viewer: Viewer) -> None:
    first, second = viewer.models
    cameras, frames = viewer.place.keys.views([0]), viewer.place.capture.frames
    before = viewer.render(cameras)
    viewer._add_key(Visitor())
    viewer.choose_model(second)
    assert viewer.place.capture.frames == frames and len(viewer.keys) == 1
    assert not torch.allclose(viewer.render(cameras), before, atol=0.05)
    viewer.choose_model(first)
    assert torch.equal(viewer.render(cameras), before)


def test_configs_and_checkpoints_must_go_together(tmp_path: Path, capsys) -> None:
    words = ["--config", "a", "b", "--checkpoint", "c", "d", "e", "--data", "x"]
    assert main(words) == 2
    assert "2 --config for 3 --checkpoint" in capsys.readouterr().err


def test_beside_the_truth_stand_the_photo_and_its_score(viewer: Viewer) -> None:
    viewer.compare.value, viewer.truth_frame.value = True, 2
    shown = viewer._picture(viewer.place.keys.views([0]))
    assert shown.shape == (1, 1, 3, 24, 48)
    assert torch.equal(shown[..., 24:], viewer._truth().image)
    assert viewer.truth_score.content.startswith("PSNR")


def test_a_window_of_any_shape_sees_what_its_camera_sees() -> None:
    wide = camera_of(np.array([1.0, 0, 0, 0]), np.zeros(3), np.pi / 2, 2.1, 100, 8)
    assert (wide.height, wide.width) == (96, 200)
    fx, fy, cx, cy = wide.fxfycxcy[0, 0].tolist()
    assert (cx / fx, cy / fy) == (pytest.approx(2.1), pytest.approx(1.0))


def test_a_moving_camera_gets_small_pictures_and_a_still_one_the_full_size() -> None:
    sizes: list[tuple[int, str]] = []

    def shot(part: float) -> Cameras:
        side = round(32 * part)
        return Cameras(torch.eye(4)[None, None], torch.ones(1, 1, 4), side, side)

    def draw(cameras: Cameras) -> torch.Tensor:
        if len(sizes) < 3:  # still moving
            live.wake.set()
        return torch.zeros(1, 1, 3, cameras.height, cameras.width)

    shown = lambda image, form: sizes.append((len(image), form))  # noqa: E731
    live = LiveView(draw, shot, shown, lambda *_: None, lambda error: sizes.append((0, str(error))))
    live.moved()
    assert live.settled.wait(10)
    live.stop()
    assert sizes == [(8, "jpeg")] * 4 + [(16, "jpeg"), (32, "png")]


def test_a_picture_that_fails_is_told_and_the_next_movement_is_another_try() -> None:
    told: list[str] = []
    failed = threading.Event()

    def draw(cameras: Cameras) -> torch.Tensor:
        if not told:
            raise RuntimeError("out of memory")
        return torch.zeros(1, 1, 3, 8, 8)

    def tell(error: Exception) -> None:
        told.append(str(error))
        failed.set()

    camera = Cameras(torch.eye(4)[None, None], torch.ones(1, 1, 4), 8, 8)
    live = LiveView(draw, lambda _: camera, lambda *_: None, lambda *_: None, tell)
    live.moved()
    assert failed.wait(10) and told == ["out of memory"] and not live.settled.is_set()
    live.moved()
    assert live.settled.wait(10)
    live.stop()
