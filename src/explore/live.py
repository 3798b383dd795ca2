"""What one visitor of the viewer sees: small pictures while the camera moves, then larger ones until it stands at full size.

Public: LiveView, camera_of.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..geometry.camera import Cameras
from ..geometry.rotation import quat_xyzw_to_matrix
from ..visualize import to_uint8

STAGES = (0.25, 0.5, 1.0)
"""Heights of the pictures of a camera that stands still, as parts of the full height."""
JPEG_QUALITY = 92
SMOOTH = 0.7
"""Share of the old value in the frames per second that are shown."""


def camera_of(
    wxyz: np.ndarray, position: np.ndarray, fov: float, aspect: float, height: int, patch: int
) -> Cameras:
    """The camera of a window: OpenCV axes, principal point in the middle. [1, 1]

    Args:
        wxyz, position: camera to world.
        fov: along the height, radians. aspect: of the window, width / height.
        height: of the picture, pixels; both sides become whole patches, and pixels are not quite square where the
            window's shape asks for it: the picture is stretched over the whole window.
    """
    rows = max(1, round(height / patch))
    columns = max(1, round(rows * aspect))
    height, width = rows * patch, columns * patch
    quat = torch.tensor([wxyz[1], wxyz[2], wxyz[3], wxyz[0]], dtype=torch.float64)
    c2w = torch.eye(4, dtype=torch.float64)
    c2w[:3, :3] = quat_xyzw_to_matrix(quat)
    c2w[:3, 3] = torch.as_tensor(position, dtype=torch.float64)
    fy = height / 2 / np.tan(fov / 2)
    fx = width / 2 / (np.tan(fov / 2) * aspect)
    fxfycxcy = torch.tensor([fx, fy, width / 2, height / 2])
    return Cameras(c2w.float()[None, None], fxfycxcy.float()[None, None], height, width)


class LiveView:
    """Renders for one client in a thread of its own; the newest request replaces those that wait.

    Args:
        render: cameras [1, 1] -> image [1, 1, 3, h, w]; calls of several clients take turns.
        camera: part of the full height -> the client's camera of now.
        show: uint8 [h, w, 3] to the client, and how to send it: "jpeg" while the camera moves, "png" when it stands.
        report: frames per second, and the size of the picture that is shown.
        failed: what a picture could not be made for; the next movement is another try.

    settled: set while the picture at full size of the newest camera is shown.
    """

    def __init__(
        self,
        render: Callable[[Cameras], Tensor],
        camera: Callable[[float], Cameras],
        show: Callable[[np.ndarray, str], Any],
        report: Callable[[float, int, int], Any],
        failed: Callable[[Exception], Any],
    ) -> None:
        self.render, self.camera, self.show, self.report, self.failed = render, camera, show, report, failed
        self.wake, self.stopped, self.settled = threading.Event(), threading.Event(), threading.Event()
        self.fps = 0.0
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def moved(self) -> None:
        """The camera, the scene or a setting has changed: begin again with a small picture."""
        self.settled.clear()
        self.wake.set()

    def stop(self) -> None:
        """End the thread; the client has gone."""
        self.stopped.set()
        self.wake.set()

    def _work(self) -> None:
        while not self.stopped.is_set():
            self.wake.wait()
            self.wake.clear()
            for part in STAGES:
                if self.stopped.is_set():
                    return
                try:
                    self._draw(part)
                except (
                    Exception
                ) as error:  # of any model, driver or connection: this thread is the visitor's view
                    self.failed(error)
                    break
                if self.wake.is_set():  # moved meanwhile
                    break
            else:
                self.settled.set()

    def _draw(self, part: float) -> None:
        begin = time.perf_counter()
        image = self.render(self.camera(part))
        self.show(to_uint8(image[0, 0]), "png" if part == STAGES[-1] else "jpeg")
        seconds = time.perf_counter() - begin
        self.fps = SMOOTH * self.fps + (1 - SMOOTH) / seconds if self.fps else 1 / seconds
        self.report(self.fps, *image.shape[-2:])
