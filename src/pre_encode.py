"""Latents of a whole data set, computed once: training then skips the encoder.

Pictures are read, resized and cropped by the very code that makes training samples, so the latents are those of the
pictures that a run with the same settings sees. Scenes that are finished are skipped, so an interrupted run goes on;
several processes (torchrun) share the scenes.

Public: open_codec, encode_dataset, Encoded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .checkpoint import load_weights
from .config import ConfigError
from .data.dataset import SceneDataset
from .data.latents import META, Meta, finished_scenes, picture_settings, write_scene
from .data.scene import FrameError, SceneError
from .data.view_settings import ViewSettings
from .model.vae import ImageCodec
from .runtime import Runtime
from .settings import RunConfig
from .vae_files import SOURCES, load_vae

log = logging.getLogger(__name__)

PLACES = ("vae.vae.", "autoencoder.")
"""Where checkpoints of latent families keep their autoencoder: latent LVSM, MV-LDM."""

DTYPES = {"float16": torch.float16, "float32": torch.float32}


@dataclass
class Encoded:
    """What one process did. problems: (scene, why it has no latents)."""

    scenes: int = 0
    frames: int = 0
    skipped: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)


def open_codec(config: RunConfig, device: torch.device, weights: str = "") -> tuple[ImageCodec, str]:
    """The codec of a run's config with its weights, and where they came from.

    Args:
        weights: checkpoint of a latent model whose autoencoder is taken; empty: `pretrained.vae`.

    Raises:
        ConfigError: the config has no autoencoder, or its weights would be random.
    """
    if not hasattr(config.model, "vae") or not config.model.vae.name:
        raise ConfigError(f"{config.model.class_name} has no autoencoder in this config: set model.vae.name.")
    settings = config.model.vae
    codec = ImageCodec(settings)
    if weights:
        state = {
            name.partition(prefix)[2]: tensor
            for name, tensor in load_weights(weights).items()
            for prefix in PLACES
            if prefix in name
        }
        own = {name: state.get(name, tensor) for name, tensor in codec.vae.state_dict().items()}
        if not any(name.startswith("encoder.") for name in state):
            raise ConfigError(
                f"{weights} holds no autoencoder (no tensors {' or '.join(f'{p}encoder.*' for p in PLACES)})."
            )
        codec.vae.load_state_dict(own)  # an adapted decoder is not needed here
        source = weights
    elif config.pretrained.vae == "random":
        raise ConfigError(
            "pretrained.vae=random: the latents would belong to no model. Name its folder, or a checkpoint with --weights."
        )
    else:
        load_vae(codec, config.pretrained.vae)
        source = config.pretrained.vae or "/".join(filter(None, SOURCES[settings.name]))
    return codec.to(device), source


def encode_dataset(
    config: RunConfig,
    path: str,
    folder: Path,
    codec: ImageCodec,
    source: str,
    runtime: Runtime,
    *,
    dtype: str,
    images: int,
    threads: int = 4,
) -> Encoded:
    """Write the latents of every scene of a data set that is not yet in `folder`.

    Args:
        path: a `full_list.txt` or a folder of chunks.
        images: pictures in memory and in the encoder at once.
        threads: that read and resize pictures.

    Raises:
        ConfigError: `folder` holds latents of another autoencoder, picture size or type.
    """
    settings = ViewSettings.of(config)
    dataset = SceneDataset(path, settings)
    _describe(folder, codec, source, settings, dtype)
    done, result = finished_scenes(folder), Encoded()
    mine = range(runtime.rank, len(dataset), runtime.world)
    todo = [n for n in mine if dataset.scenes.names[n] not in done]
    result.skipped = len(mine) - len(todo)
    codec.settings.num_slices_in_parallel = images
    with ThreadPoolExecutor(threads) as pool:
        for position in tqdm(todo, desc="encode", unit="scene", disable=not runtime.is_main):
            name = dataset.scenes.names[position]
            try:
                posterior = _encode_scene(dataset, position, codec, images, pool, DTYPES[dtype])
            except SceneError as error:
                result.problems.append((name, str(error)))
                continue
            write_scene(folder, name, posterior)
            result.scenes += 1
            result.frames += int(torch.isfinite(posterior).all(dim=(1, 2, 3, 4)).sum())
    return result


def _describe(folder: Path, codec: ImageCodec, source: str, settings: ViewSettings, dtype: str) -> None:
    """Write `meta.json`, or compare with the one that is there."""
    what = {
        "vae_digest": codec.digest(),
        "factor": codec.factor,
        "channels": codec.settings.channels,
        "dtype": dtype,
        **picture_settings(settings),
    }
    if (folder / META).is_file():
        Meta.read(folder).require_same(what, folder)
    else:
        Meta(vae_hf_model_id=source, **what).write(folder)


def _encode_scene(
    dataset: SceneDataset,
    position: int,
    codec: ImageCodec,
    images: int,
    pool: ThreadPoolExecutor,
    dtype: torch.dtype,
) -> Tensor:
    """Posteriors of all frames of a scene; NaN where a frame cannot be used. [f, 2, c, h, w]

    Raises:
        SceneError: no frame can be used, or they have different sizes.
    """
    scene, found = dataset.scenes[position], {}
    device = next(codec.parameters()).device
    for frames, pictures in _pictures(dataset, scene, images, pool):
        batch = torch.from_numpy(np.stack(pictures)).to(device).permute(0, 3, 1, 2)[None]  # [1, v, 3, h, w]
        posterior = codec.posterior(batch.float() / 255)[0].to(dtype).cpu()
        if not torch.isfinite(posterior).all():
            raise SceneError(f"its latents do not fit {dtype}: encode with --dtype float32")
        found |= dict(zip(frames, posterior))
    if not found:
        raise SceneError("none of its frames can be used")
    if len(shapes := {latent.shape for latent in found.values()}) > 1:
        raise SceneError(
            f"its pictures have different sizes ({shapes}): set training.square_crop or image_shape"
        )
    nothing = torch.full_like(next(iter(found.values())), float("nan"))
    return torch.stack([found.get(frame, nothing) for frame in range(scene.num_frames)])


def _pictures(
    dataset: SceneDataset, scene: object, images: int, pool: ThreadPoolExecutor
) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """The usable frames of a scene, a few at a time and of one size: (frames, pictures uint8 [h, w, 3])."""

    def picture(frame: int) -> np.ndarray | None:
        try:
            return dataset.picture(scene, frame)
        except FrameError:
            return None

    for first in range(0, scene.num_frames, images):
        frames = range(first, min(first + images, scene.num_frames))
        usable = [
            (frame, image) for frame, image in zip(frames, pool.map(picture, frames)) if image is not None
        ]
        for shape in dict.fromkeys(image.shape for _, image in usable):
            same = [(frame, image) for frame, image in usable if image.shape == shape]
            yield [frame for frame, _ in same], [image for _, image in same]
