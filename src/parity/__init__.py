"""Does our code compute what the originals computed? Readers of golden files, one for each kind of file.

A new system is one module beside this one and its lines in `READERS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

READERS: dict[tuple[str, str], str] = {
    ("lact", "model"): "lact.model",
    ("lact", "train_steps"): "lact.train_steps",
    ("lvsm", "model"): "lvsm.model",
    ("lvsm", "train_steps"): "lvsm.train_steps",
    ("lvsm", "preprocess"): "preprocess.from_pictures",
    ("lvsm", "metrics"): "losses.metrics",
    ("lvsm", "perceptual"): "losses.perceptual",
    ("lvsm", "trajectory"): "lvsm.trajectory",
    ("uplvsm", "model"): "uplvsm.model",
    ("uplvsm", "backbone"): "uplvsm.backbone",
    ("uplvsm", "train_steps"): "uplvsm.train_steps",
    ("uplvsm", "metrics"): "losses.metrics",
    ("uplvsm", "perceptual"): "losses.perceptual",
    ("uplvsm", "poses"): "uplvsm.poses",
    ("uplvsm", "optimizer"): "uplvsm.optimizer",
    ("uplvsm", "preprocess"): "preprocess.from_chunk",
    ("prope", "attention_operator"): "prope.attention_operator",
    ("prope", "model"): "prope.model",
    ("efficient_lvsm", "model"): "efficient_lvsm.model",
    ("lvsm_latent", "model"): "lvsm_latent.model",
    ("lvsm_latent", "train_steps"): "lvsm_latent.train_steps",
    ("lvsm_latent", "schedule"): "lvsm_latent.schedule",
    ("lvsm_latent", "parameter_groups"): "lvsm_latent.groups",
    ("lvsm_latent", "trajectory"): "lvsm_latent_paths.trajectory",
    ("lvsm_pytorch", "model"): "lvsm_pytorch.model",
    ("lvsm_pytorch", "perceptual"): "lvsm_pytorch.perceptual",
    ("lvsm_pytorch", "rays_and_masks"): "lvsm_pytorch.rays_and_masks",
    ("lvsm_latent", "sampler"): "lvsm_latent_data.sampler",
    ("lvsm_latent", "index_generator"): "lvsm_latent_data.index_generator",
    ("lvsm_latent", "preprocess"): "lvsm_latent_data.preprocess",
    ("lvsm_latent", "dataset"): "lvsm_latent_data.dataset",
    ("lact", "cameras_and_data"): "lact_data.cameras_and_data",
    ("mvldm", "consistency_metric"): "met3r.consistency_metric",
    ("mvldm", "preprocess"): "mvldm_data.preprocess",
    ("mvldm", "model"): "mvldm.model",
    ("mvldm", "ray_encoding"): "mvldm.ray_encoding",
    ("mvldm", "video_sampling"): "mvldm_video.video_sampling",
}
"""(system, kind) of a golden file -> module and function here that computes our version of its outputs."""

NO_SUCH_STAGE: dict[tuple[str, str], dict[str, str]] = {
    ("mvldm", "ray_encoding"): {
        "context_xy": "rays are made from rows and columns, without a grid of pixel centres"
    },
}
"""(system, kind) -> {pattern of an intermediate tensor that our design does not have: reason}."""


def find_reader(system: str, kind: str) -> Callable | None:
    """The reader of such files, or None if there is none."""
    if (system, kind) not in READERS:
        return None
    module, function = READERS[system, kind].split(".")
    return getattr(importlib.import_module(f".{module}", __name__), function)
