"""From scenes to samples: choose views, read, resize, normalise the cameras.

Every random choice comes from the generator that is passed in. Scenes that are too short or damaged are replaced by
others, deterministically, and each replacement is reported with the sample.

Public: SceneDataset, open_scenes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import ConfigError
from ..geometry.frames import POSE_FRAMES
from ..settings_remote import Remote
from ..settings_views import EVERY_FRAME, OWN_TARGETS
from .chunk_index import ChunkScenes
from .latents import open_store
from .meta import expected_shape
from .objects import ObjectScenes
from .remote.folder import is_url
from .remote.scenes import RemoteScene, RemoteScenes
from .scene import FrameError, ListedScenes, Scene, SceneError, Scenes
from .transforms import in_planes, mirror, resize_and_crop
from .view_reader import Resize, ViewReader
from .view_sampler import Wanted, view_sampler
from .view_settings import ViewSettings

DRAWS_PER_SCENE = 4
"""Choices of views that may meet a damaged frame before the scene is replaced."""

SHORTEST_BASELINE = 1e-3
"""Distance of context views, in the data set's units, below which `make_baseline_1` declines a scene (as published)."""

RANDOM_SUBSTITUTES = 16
"""Scenes tried at random before all are tried in turn."""


def open_scenes(path: str, remote: Remote | None = None) -> Scenes:
    """The scenes behind a `full_list.txt`, a folder of `.torch` chunks or a `.json` list of `opencv_cameras.json`.

    Args:
        path: a folder of chunks may also be a URL, such as https://host/dir or s3://bucket/dir.
        remote: how that is read.

    Raises:
        ConfigError: there is nothing of the kind.
    """
    if not path:
        raise ConfigError(
            "training.dataset_path is empty: name a full_list.txt, a folder of .torch chunks or a .json list of scenes."
        )
    if is_url(path):
        return RemoteScenes(path, remote)
    if path.endswith(".json"):
        return ObjectScenes(Path(path))
    return ChunkScenes(Path(path)) if Path(path).is_dir() else ListedScenes(Path(path))


@dataclass(frozen=True)
class Change:
    """Of all pictures and cameras of a sample: mirrored; the middle enlarged `zoom` times, at least 1."""

    mirrored: bool
    zoom: float


UNCHANGED = Change(mirrored=False, zoom=1.0)


class SceneDataset:
    """Samples from posed photos of static scenes.

    A sample is a dict: image uint8 [v, 3, h, w], c2w float32 [v, 4, 4], fxfycxcy float32 [v, 4] pixels, camera_scale
    float32 [] (length between its cameras per length between those of the data set), index int64
    [v, 2] = (frame, position of the scene), scene_name, target_idx int64 [v_t], with `training.vae_latents` also
    vae_latents [v, 2, c, h', w'] (mean and deviation); and for the loader's report:
    `num_input`, `replaced` list of "scene: reason", `enlarged` number of pictures smaller than the image size.
    """

    def __init__(self, path: str, settings: ViewSettings, resize: Resize = resize_and_crop) -> None:
        """path: see `open_scenes`. resize: with the arguments of `resize_and_crop`."""
        self.path, self.settings = path, settings
        self.scenes = open_scenes(path, settings.remote)
        self.choose_views = view_sampler(settings.view_sampler)
        self.latents = open_store(path, settings.vae_latents, settings)
        self.read = ViewReader(
            settings, resize, expected_shape(path, settings.remote) if settings.skip_bad_shape else None
        )

    def __len__(self) -> int:
        return len(self.scenes)

    def training_sample(self, position: int, num_input: int, step: int, rng: random.Random) -> dict[str, Any]:
        """Randomly chosen views and targets of scene `position`, or of a substitute if it has none to give.

        step: the optimiser step of the sample.

        Raises:
            SceneError: no scene of the data set gives a sample.
        """
        replaced: list[str] = []
        for candidate in self._candidates(position, rng):
            try:
                sample = self._random_views(candidate, num_input, step, rng)
            except SceneError as error:
                replaced.append(f"{self.scenes.names[candidate]}: {error}")
                continue
            sample["target_idx"] = torch.tensor(self._targets(sample["num_input"], rng))
            sample["replaced"] = replaced
            return sample
        raise SceneError(
            f"{self.path}: none of its {len(self)} scenes gives a sample of {self._num_views(num_input)} views; "
            f"{replaced[0]}"
        )

    def _candidates(self, position: int, rng: random.Random) -> Any:
        """The scene itself, some random others, then all in turn: bounded, and complete."""
        yield position
        for _ in range(RANDOM_SUBSTITUTES):
            yield rng.randrange(len(self))
        for step in range(1, len(self)):
            yield (position + step) % len(self)

    def _random_views(self, position: int, num_input: int, step: int, rng: random.Random) -> dict[str, Any]:
        """A frame that is marked missing and one that proves damaged lead to the same redraw: whatever was known
        before, the sample is the same.
        """
        scene = self.scenes[position]
        wanted = Wanted(
            num_views=self._num_views(num_input),
            num_input=num_input,
            selector=self.settings.view_selector,
            step=step,
        )
        for draw in range(DRAWS_PER_SCENE):
            frames = self.choose_views(scene, wanted, rng)
            if frames is None:
                raise SceneError(
                    f"{scene.num_frames} frames are too few for {wanted.num_views} views with "
                    f"training.view_sampler {self.settings.view_sampler} and its training.view_selector"
                )
            if self.settings.view_sampler in EVERY_FRAME:
                num_input = len(frames)
            change = self._change(rng)
            try:
                return self._views(scene, position, self._sorted(frames, num_input), num_input, change)
            except FrameError:
                if draw == DRAWS_PER_SCENE - 1:
                    raise
        raise AssertionError("unreachable")

    def _change(self, rng: random.Random) -> Change:
        """What is done to all pictures of a training sample; settings that are off draw no numbers."""
        s = self.settings
        mirrored = s.augment and rng.random() < 0.5
        return Change(mirrored, s.zoom_max ** rng.random() if s.zoom_max > 1 else 1.0)

    def _num_views(self, num_input: int) -> int:
        """Views of a sample with so many context views."""
        s = self.settings
        return num_input + s.num_target_views if s.view_sampler in OWN_TARGETS else s.num_views

    def _sorted(self, frames: list[int], num_input: int) -> list[int]:
        context, others = frames[:num_input], frames[num_input:]
        if self.settings.sort_context_index:
            context = sorted(context)
        return [*context, *(sorted(others) if self.settings.sort_target_index else others)]

    def _targets(self, num_input: int, rng: random.Random) -> list[int]:
        """Columns to render: any of the views, context included (published by LVSM: always), or the last ones."""
        views, targets = self._num_views(num_input), self.settings.num_target_views
        if self.settings.view_sampler in EVERY_FRAME:
            return list(range(num_input))
        share = self.settings.target_has_input_share
        if self.settings.target_has_input and self.settings.view_sampler not in OWN_TARGETS:
            if share >= 1 or rng.random() < share:
                return rng.sample(range(views), targets)
            return rng.sample(range(num_input, views), targets)
        return list(range(views - targets, views))

    def evaluation_sample(
        self, position: int, context: tuple[int, ...], target: tuple[int, ...]
    ) -> dict[str, Any]:
        """The given frames of scene `position`: context columns first, then the targets.

        Raises:
            SceneError: a frame cannot be used.
        """
        sample = self._views(self.scenes[position], position, [*context, *target], len(context))
        sample["target_idx"] = torch.arange(len(context), len(context) + len(target))
        sample["replaced"] = []
        return sample

    def _views(
        self, scene: Scene, position: int, frames: list[int], num_input: int, change: Change = UNCHANGED
    ) -> dict[str, Any]:
        if not scene.posed:
            raise SceneError("its photos have no poses: import them with process_data.py --poses colmap")
        if isinstance(scene, RemoteScene):
            scene.announce(frames)
        views = [
            self.read(scene, frame, check_scene=place == 0, zoom=change.zoom)
            for place, frame in enumerate(frames)
        ]
        if change.mirrored:
            views = [(*mirror(image, fxfycxcy, c2w), small) for image, fxfycxcy, c2w, small in views]
        images, intrinsics, c2w, small = zip(*views)
        if len({image.shape for image in images}) > 1:
            sizes = sorted({f"{image.shape[1]}x{image.shape[0]}" for image in images})
            raise SceneError(
                f"its pictures have different sizes ({', '.join(sizes)}): set training.square_crop"
            )
        reference = slice(None) if self.settings.pose_norm == "all" else slice(num_input)
        poses = torch.from_numpy(np.stack(c2w).astype(np.float32))  # [v, 4, 4]
        place = POSE_FRAMES[self.settings.pose_frame]
        scaled = _baseline_1(poses, num_input) if self.settings.make_baseline_1 else poses
        normalized = place(scaled, self.settings.scene_scale_factor, reference)
        latents = {"vae_latents": self.latents.read(scene.name, frames)} if self.latents else {}
        return {
            **latents,
            "image": torch.from_numpy(in_planes(images)),  # [v, 3, h, w]
            "c2w": normalized,
            "camera_scale": _length_ratio(normalized, poses),
            "fxfycxcy": torch.from_numpy(np.stack(intrinsics).astype(np.float32)),  # [v, 4]
            "index": torch.tensor([[frame, position] for frame in frames]),
            "scene_name": str(scene.name),
            "num_input": num_input,
            "enlarged": sum(small),
        }

    def picture(self, scene: Scene, frame: int) -> np.ndarray:
        """One frame as samples show it, uint8 [h, w, 3]; raises FrameError if it cannot be used."""
        return self.read(scene, frame).picture


def _baseline_1(c2w: torch.Tensor, num_input: int) -> torch.Tensor:
    """Scaled until the first and the last context view are 1 apart; a single one, until the view farthest from it is.

    Training with two context views has its targets between them, so that scenes with one are of the same scale. [v, 4, 4]

    Raises:
        SceneError: they are in one place.
    """
    others = c2w[num_input - 1 : num_input] if num_input > 1 else c2w
    baseline = (others[:, :3, 3] - c2w[0, :3, 3]).norm(dim=1).max()
    if baseline < SHORTEST_BASELINE:
        views = "context views are" if num_input > 1 else "views are at most"
        raise SceneError(f"its {views} {baseline:.1e} apart, too little for training.make_baseline_1")
    scaled = c2w.clone()
    scaled[:, :3, 3] /= baseline
    return scaled


def _length_ratio(after: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """By what the distances between camera centres were multiplied; 1 if they coincide. [v, 4, 4] twice -> []"""
    spread = [(c2w[:, :3, 3] - c2w[:, :3, 3].mean(dim=0)).norm() for c2w in (after, before)]
    return spread[0] / spread[1] if spread[1] > 0 else torch.ones(())
