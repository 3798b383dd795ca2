"""A place that a model has read: any camera of its world can be rendered.

Public: Place, world_frame, resized.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import ConfigError
from ..frames_at_once import FramesAtOnce
from ..geometry.camera import Cameras, Views
from ..geometry.frames import WorldFrame, context_frame
from ..model.base import ViewSynthesizer
from ..runtime import Runtime, autocast
from ..settings import RunConfig, Training
from .capture import Capture
from .pose_mapper import PoseMapper


class Place:
    """The state of a scene, computed once, and the way from the world of its photos to that of the model.

    keys: cameras of the photos in the world in which paths are described: that of the capture where its poses are known;
        else, for families that estimate poses, with a pose mapper that of the first photo (its distance to the photo
        farthest from it is 1), without one the model's own pose space.
    """

    def __init__(
        self,
        model: ViewSynthesizer,
        capture: Capture,
        config: RunConfig,
        runtime: Runtime,
        mapper: PoseMapper | None = None,
    ) -> None:
        if not capture.posed and not model.target_aware:
            raise ConfigError(
                f"{capture.name} has no poses and {type(model).__name__} needs them: import the photos with "
                "process_data.py --format images --poses colmap, or use a family that needs none (UP-LVSM)."
            )
        self.model, self.config, self.runtime = model, config, runtime
        self.capture = capture
        self.patch = config.model.image_tokenizer.patch_size
        given = capture.cameras
        self.frame = world_frame(given.c2w, config.training) if capture.posed else None
        placed = self.frame.apply(given) if self.frame else given
        self.input = _to(Views(capture.image, placed), runtime.device)
        self.at_once = FramesAtOnce(config, runtime.device)
        with torch.inference_mode(), autocast(runtime.device, config.training):
            self.state = model.encode(self.input)
            estimated = model.target_cameras(self.state, self.input) if model.target_aware else None
        self.mapping = None
        if estimated is not None:
            # Where the model puts its own photos: a family that estimates poses reads no others.
            self.frame = None
            self.mapping = mapper.for_place(estimated, given if capture.posed else None) if mapper else None
        self.keys = self._keys(estimated)

    def _keys(self, estimated: Cameras | None) -> Cameras:
        if estimated is None:
            return self.capture.cameras
        if self.mapping:
            return self.capture.cameras if self.capture.posed else self.mapping.keys()
        return _on(estimated, torch.device("cpu"))

    def render(self, cameras: Cameras, chunk: int = 0) -> Tensor:
        """Images of cameras of this place's world, of any size in whole patches. [1, v, 3, h, w] in [0, 1] on the CPU"""
        if self.frame:
            cameras = self.frame.apply(cameras)
        elif self.mapping:
            cameras = self.mapping(cameras)
        cameras = _on(cameras, self.runtime.device)
        chunk = chunk or self.at_once(self.input, cameras.height, cameras.width)
        with torch.inference_mode(), autocast(self.runtime.device, self.config.training):
            images = self.model.render(self.state, cameras, chunk)
        return images.float().cpu()

    @property
    def knows_world(self) -> bool:
        """Whether `render` takes cameras of the capture's own world."""
        return self.capture.posed and (self.frame is not None or self.mapping is not None)

    def sized(self, cameras: Cameras, height: int) -> Cameras:
        """The same cameras for pictures of about this height, in whole patches; 0: their own size."""
        if not height:
            return cameras
        rows = max(1, round(height / self.patch))
        columns = max(1, round(rows * cameras.width / cameras.height))
        return resized(cameras, rows * self.patch, columns * self.patch)


def world_frame(c2w: Tensor, training: Training) -> WorldFrame:
    """Where a run's settings put cameras, told by the context alone: nothing else is known before a camera is chosen.

    c2w: of the context. [1, v, 4, 4]
    """
    frame = context_frame(c2w, training.scene_scale_factor, training.pose_frame)
    if not training.make_baseline_1:
        return frame
    baseline = (c2w[:, -1, :3, 3] - c2w[:, 0, :3, 3]).double().norm(dim=-1)
    return WorldFrame(frame.rigid, torch.where(baseline > 0, 1 / baseline, torch.ones_like(baseline)))


def resized(cameras: Cameras, height: int, width: int) -> Cameras:
    """The same cameras for pictures of another size."""
    ratio = cameras.fxfycxcy.new_tensor([width / cameras.width, height / cameras.height]).repeat(2)
    return Cameras(cameras.c2w, cameras.fxfycxcy * ratio, height, width)


def _on(cameras: Cameras, device: torch.device) -> Cameras:
    return Cameras(cameras.c2w.to(device), cameras.fxfycxcy.to(device), cameras.height, cameras.width)


def _to(views: Views, device: torch.device) -> Views:
    return Views(views.image.to(device), _on(views.cameras, device))
