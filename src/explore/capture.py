"""Photos of one place, from whatever files a user has, as a model sees them.

Public: Capture, open_scene, choose_frames, read_capture.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import ConfigError
from ..data.import_formats import read_in_place
from ..data.importing import ImportedScene
from ..data.scene import JsonScene, Scene, SceneError
from ..data.view_reader import ViewReader
from ..data.view_settings import ViewSettings
from ..geometry.camera import Cameras, Views

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Capture:
    """Photos with cameras in their own world; unposed ones all have the identity.

    image: [1, v, 3, h, w] in [0, 1]; cameras: [1, v] in pixels of these images; frames: their numbers in the scene.
    """

    name: str
    image: Tensor
    cameras: Cameras
    frames: tuple[int, ...]
    posed: bool

    @property
    def views(self) -> Views:
        """Images with the cameras of their own world."""
        return Views(self.image, self.cameras)

    def only(self, columns: Sequence[int]) -> Capture:
        """Some of the photos."""
        columns = list(columns)
        frames = tuple(self.frames[i] for i in columns)
        return Capture(self.name, self.image[:, columns], self.cameras.views(columns), frames, self.posed)


def open_scene(images: Sequence[str], scene: str, fov_deg: float) -> Scene:
    """The scene that a command line names.

    Args:
        images: photos without cameras; with `scene`, those of its frames that are wanted.
        scene: metadata of a converted data set, `transforms.json`, `opencv_cameras.json` or the folder of a COLMAP model;
            "": the photos alone.

    Raises:
        ConfigError: neither, or a file that is not there.
    """
    missing = [path for path in images if not scene and not Path(path).is_file()]
    if missing:
        raise ConfigError(f"{missing[0]}: no such photo.")
    if not scene and len(images) < 1:
        raise ConfigError("nothing to look at: name photos with --images, or a scene with --scene.")
    try:
        if not scene:
            return read_in_place("images", Path(), [Path(path) for path in images], fov_deg)
        return _posed_scene(Path(scene), fov_deg)
    except (SceneError, ValueError, OSError) as error:
        raise ConfigError(f"{scene or images[0]}: {error}") from error


def _posed_scene(path: Path, fov_deg: float) -> Scene:
    """A scene with cameras, told by the name of its file, else taken for metadata of a converted data set; of a folder, by the
    files in it.
    """
    formats = {"transforms.json": "nerfstudio", "opencv_cameras.json": "opencv"}
    if path.is_dir():
        described = (form for name, form in formats.items() if (path / name).is_file())
        return read_in_place(next(described, "colmap"), path, [], fov_deg)
    if not path.is_file():
        raise ConfigError(f"{path}: no such scene.")
    if path.suffix != ".json":
        raise ConfigError(f"{path} is no scene: name one of the files metadata/<scene>.json beside it.")
    if path.name in formats:
        return read_in_place(formats[path.name], path.parent, [], fov_deg)
    return JsonScene(path, path.name.removesuffix(".json"))


def choose_frames(scene: Scene, images: Sequence[str], views: Sequence[int], count: int) -> list[int]:
    """Which frames are the inputs: those named, else those numbered, else `count` spread evenly.

    Raises:
        ConfigError: a frame that the scene does not have or that cannot be used.
    """
    if views:
        wrong = [v for v in views if not 0 <= v < scene.num_frames or scene.missing(v)]
        if wrong:
            raise ConfigError(
                f"view {wrong[0]} of {scene.name} cannot be used: it has frames 0 to {scene.num_frames - 1}."
            )
        return list(views)
    if images and isinstance(scene, (JsonScene, ImportedScene)):
        names = {name: i for i in range(scene.num_frames) if (name := scene.source(i))}
        wanted = [Path(path).name for path in images]
        unknown = [name for name in wanted if name not in names]
        if unknown:
            raise ConfigError(
                f"{unknown[0]} is no picture of {scene.name}; it has {', '.join(list(names)[:6])}, ..."
            )
        return [names[name] for name in wanted]
    usable = [i for i in range(scene.num_frames) if not scene.missing(i)]
    if not usable:
        raise ConfigError(f"{scene.name}: none of its {scene.num_frames} frames can be used.")
    return [
        usable[i]
        for i in sorted({round(x) for x in np.linspace(0, len(usable) - 1, min(count, len(usable)))})
    ]


def read_capture(scene: Scene, frames: Sequence[int], settings: ViewSettings) -> Capture:
    """The frames of a scene as the settings of a model want them.

    Raises:
        ConfigError: a frame cannot be used, or the pictures have different shapes.
    """
    read = ViewReader(settings)
    try:
        views = [read(scene, frame) for frame in frames]
    except SceneError as error:
        raise ConfigError(f"{scene.name}: {error}") from error
    shapes = {view.picture.shape for view in views}
    if len(shapes) > 1:
        sizes = ", ".join(sorted(f"{w}x{h}" for h, w, _ in shapes))
        raise ConfigError(
            f"{scene.name}: its pictures have different sizes ({sizes}): set training.square_crop=true."
        )
    if any(view.enlarged for view in views):
        log.warning("%s: some photos are smaller than the model's pictures and were enlarged.", scene.name)
    pictures = np.stack([view.picture for view in views])  # [v, h, w, 3]
    image = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()[None] / 255
    height, width = image.shape[-2:]
    c2w = torch.from_numpy(np.stack([view.c2w for view in views])).float()[None]
    fxfycxcy = torch.from_numpy(np.stack([view.fxfycxcy for view in views])).float()[None]
    return Capture(scene.name, image, Cameras(c2w, fxfycxcy, height, width), tuple(frames), scene.posed)
