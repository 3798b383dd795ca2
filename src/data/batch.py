"""What travels from the loaders to the models.

A `Batch` is an EasyDict: `image` uint8 [b, v, 3, h, w] (float32 in [0, 1] once on the device), `c2w` float32
[b, v, 4, 4], `fxfycxcy` float32 [b, v, 4] pixels, `camera_scale` float32 [b] = a length between these cameras per
length between those of the data set, `index` int64 [b, v, 2] = (frame, position of the scene in its
list), `scene_name` list of b str, `draws` list of b int = seeds of whatever a model draws for a sample, `target_idx` int64 [b, v_t] = columns of the target views, `num_input` int: the
first so many columns are the context; with `training.vae_latents` also `vae_latents` [b, v, 2, c, h', w'] = mean and
deviation of an image codec's latents.

Public: Batch, collate, to_device, split_views.
"""

from __future__ import annotations

from typing import Any

import torch
from easydict import EasyDict as Batch
from torch import Tensor

from ..geometry.camera import Cameras, Views

TENSORS = ("image", "c2w", "fxfycxcy", "camera_scale", "index", "target_idx")
"""Fields of a sample that are stacked."""


def collate(samples: list[dict[str, Any]], num_input: int) -> dict[str, Any]:
    """Stack samples into the fields of a batch.

    Raises:
        ValueError: their pictures have different sizes.
    """
    sizes = {tuple(sample["image"].shape[-2:]): sample["scene_name"] for sample in samples}
    if len(sizes) > 1:
        (a, first), (b, second) = list(sizes.items())[:2]
        raise ValueError(
            f"scenes {first} ({a[1]}x{a[0]}) and {second} ({b[1]}x{b[0]}) do not fit in one batch: "
            "set training.square_crop: true or training.batch_size_per_gpu: 1."
        )
    names = [*TENSORS, *(["vae_latents"] if "vae_latents" in samples[0] else [])]
    fields: dict[str, Any] = {name: torch.stack([sample[name] for sample in samples]) for name in names}
    if all("draw" in sample for sample in samples):
        fields["draws"] = [sample["draw"] for sample in samples]
    return {**fields, "scene_name": [sample["scene_name"] for sample in samples], "num_input": num_input}


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on `device`, its uint8 image turned there into float32 in [0, 1]."""
    moved = {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }
    if moved["image"].dtype == torch.uint8:
        moved["image"] = moved["image"].float() / 255
    return Batch(moved)


def split_views(batch: Batch, num_input: int) -> tuple[Views, Views]:
    """Context (the first `num_input` columns) and targets (the columns in `target_idx`) of a batch on its device."""
    height, width = batch.image.shape[-2:]
    rows = torch.arange(len(batch.image), device=batch.image.device)[:, None]  # [b, 1]

    def views(columns: tuple) -> Views:
        cameras = Cameras(batch.c2w[columns], batch.fxfycxcy[columns], height, width)
        posterior = batch.vae_latents[columns] if "vae_latents" in batch else None
        return Views(batch.image[columns], cameras, posterior, batch.get("draws"))

    return views((slice(None), slice(num_input))), views((rows, batch.target_idx))
