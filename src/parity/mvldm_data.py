"""Golden files of mvldm with examples of RealEstate10K as the original loads them."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.bounded_views import choose_bounded
from ..data.dataset import SceneDataset
from ..data.transforms import mirrored_pose
from ..data.view_settings import ViewSettings
from ..settings import Training
from ..settings_views import ViewSelector
from .lvsm_latent_data import PublishedDraws, normalised_matrix
from .report import Golden


def preprocess(golden: Golden) -> dict:
    """Context and target views of one scene, the mirrored context poses, and draws of views."""
    config, inputs = golden.config, golden.inputs
    context, target = tuple(inputs["context"]), tuple(inputs["target"])
    with tempfile.TemporaryDirectory() as folder:
        torch.save([_chunk_entry(inputs)], Path(folder, "000000.torch"))
        sample = SceneDataset(folder, _view_settings(config, len(context))).evaluation_sample(
            0, context, target
        )
    height, width = sample["image"].shape[-2:]
    views = {
        "extrinsics": sample["c2w"],
        "intrinsics": normalised_matrix(sample["fxfycxcy"], height, width),
        "image": sample["image"] / 255,
        "near": torch.full((len(sample["c2w"]),), config["near"]) * sample["camera_scale"],
        "far": torch.full((len(sample["c2w"]),), config["far"]) * sample["camera_scale"],
        "index": sample["index"][:, 0],
    }
    first = {name: value[: len(context)] for name, value in views.items()}
    computed = {
        "context": first,
        "target": {name: value[len(context) :] for name, value in views.items()},
        "reflected_context_extrinsics": torch.from_numpy(mirrored_pose(first["extrinsics"].numpy())),
    }
    if "bounded" in config:
        computed["bounded_draws"] = _draws(config["bounded"], len(golden.outputs.get("bounded_draws", ())))
    return computed


def _chunk_entry(inputs: dict) -> dict:
    """The scene as a chunk holds it; frames whose bytes the file does not have repeat one of those that it has."""
    jpeg: dict[str, Tensor] = {str(frame): data for frame, data in inputs["jpeg"].items()}
    some = next(iter(jpeg.values()))
    frames = range(len(inputs["cameras"]))
    return {
        "key": inputs["key"],
        "url": "",
        "timestamps": torch.arange(len(frames)),
        "cameras": inputs["cameras"],
        "images": [jpeg.get(str(frame), some) for frame in frames],
    }


def _view_settings(config: dict, num_context: int) -> ViewSettings:
    """Parity: the original scales examples of exactly two context views alone; ours also those of one and of more."""
    training = Training(
        image_shape=list(config["image_shape"]),
        pose_frame="none",
        keep_principal_point=True,
        make_baseline_1=config["make_baseline_1"] and num_context == 2,
        max_fov=config["max_fov"],
    )
    names = [name for name in ViewSettings.__dataclass_fields__ if name not in ("image_size", "patch_size")]
    return ViewSettings(image_size=1, patch_size=1, **{name: getattr(training, name) for name in names})


# ----------------------------------------------------------------------------------------------- draws of views


class _MultinomialDraws(PublishedDraws):
    """As there, but distinct items come from `torch.multinomial`."""

    def sample(self, population: range, k: int) -> list[int]:
        places = torch.multinomial(torch.ones(len(population)), k, replacement=False)
        return [population[place] for place in places.tolist()]


class _Frames:
    """A scene of which the sampler asks nothing but how many frames it has."""

    def __init__(self, num_frames: int) -> None:
        self.num_frames = num_frames

    def missing(self, frame: int) -> str:
        return ""

    def camera(self, frame: int) -> tuple[np.ndarray, np.ndarray]:
        return np.ones(4), np.eye(4)


def _draws(bounded: dict, count: int) -> list[dict]:
    selector = ViewSelector(
        min_frame_dist=bounded["min_distance_between_context_views"],
        max_frame_dist=bounded["max_distance_between_context_views"],
        max_distance_to_context_views=bounded.get("max_distance_to_context_views", 0),
    )
    torch.manual_seed(bounded["manual_seed"])
    rng: random.Random = _MultinomialDraws(until_distinct=False)
    numbers = bounded["num_context_views"], bounded["num_target_views"]
    draws = [choose_bounded(_Frames(bounded["num_frames"]), *numbers, selector, 0, rng) for _ in range(count)]
    return [{"context": d.context, "target": d.target} if d else {"refused": True} for d in draws]
