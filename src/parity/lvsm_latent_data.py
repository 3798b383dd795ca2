"""Readers of the data side of lvsm_latent: view samplers, crops and rays, a chunk of scenes, overlaps of views."""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.bounded_views import Chosen, choose_bounded, choose_gap, context_counts, farthest_points
from ..data.dataset import SceneDataset
from ..data.index_generators import PairRules, around_one_frame
from ..data.overlap import Pinholes, fields_of_view_deg, overlaps
from ..data.scene import SceneError
from ..data.transforms import cover_and_crop, mirrored_pose
from ..data.view_settings import ViewSettings
from ..geometry.camera import Cameras, pixel_rays
from ..settings import Training
from ..settings_views import ViewSelector
from .report import Golden

# ----------------------------------------------------------------------------------------------- view samplers

NAMES = {
    "min_distance_between_context_views": "min_frame_dist",
    "max_distance_between_context_views": "max_frame_dist",
    "warm_up_steps": "context_gap_warm_up_steps",
}
"""Published key -> ours, where they differ."""


class PublishedDraws:
    """The draws of the originals behind the interface of `random.Random`: torch's global generator."""

    def __init__(self, until_distinct: bool) -> None:
        """until_distinct: how distinct items are drawn, by drawing all anew or from a permutation."""
        self.until_distinct = until_distinct

    def randint(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, ()))

    def choices(self, population: range, *, k: int) -> list[int]:
        return torch.randint(population.start, population.stop, (k,)).tolist()

    def sample(self, population: range, k: int) -> list[int]:
        if not self.until_distinct:
            return [population[place] for place in torch.randperm(len(population))[:k].tolist()]
        while len(set(drawn := self.choices(population, k=k))) < k:
            pass
        return drawn


@dataclass(frozen=True)
class _Path:
    """A scene that is cameras alone."""

    c2w: np.ndarray

    @property
    def num_frames(self) -> int:
        return len(self.c2w)

    def missing(self, frame: int) -> str:
        return ""

    def camera(self, frame: int) -> tuple[np.ndarray, np.ndarray]:
        return np.ones(4), np.linalg.inv(self.c2w[frame])


def sampler(golden: Golden) -> dict:
    """Three draws for each record, and the order in which farthest points are picked."""
    c2w = golden.inputs["extrinsics"].double().numpy()
    points = {name: [int(n) for n in counts] for name, counts in golden.outputs.items() if "farthest" in name}
    computed = {
        "boundedv2": [
            _window_draws(golden.config[r["tag"]], r, c2w) for r in golden.inputs.get("boundedv2", ())
        ],
        "bounded": [
            _gap_draws(golden.config["bounded"], r, len(c2w)) for r in golden.inputs.get("bounded", ())
        ],
    }
    for name, counts in points.items():
        first = c2w[: int(name.rpartition("_")[2]), :3, 3]
        computed[name] = {str(count): farthest_points(first, count) for count in counts}
    return computed


def _selector(config: dict) -> ViewSelector:
    """Our settings for a published sampler; keys that are null or belong to the run are left out."""
    own = ViewSelector.__dataclass_fields__
    given = {NAMES.get(name, name): value for name, value in config.items() if value is not None}
    ours = {name: value for name, value in given.items() if name in own}
    if not ours.get("random_num_context_views"):
        ours |= {"min_context_views": 2, "max_context_views": 8}  # not read; published files have 0 there
    return ViewSelector(**ours, keep_window_ends=False)


def _window_draws(config: dict, record: dict, c2w: np.ndarray) -> list[dict]:
    selector, whole, step = _selector(config), record["stage"] == "test", record["global_step"]
    torch.manual_seed(record["torch_seed"])
    counts = random.Random(record["python_seed"])
    rng = PublishedDraws(until_distinct=config["target_views_replace_sample"])
    results, num_context = [], config["num_context_views"]
    for call in range(3):
        if selector.random_num_context_views and not whole:
            per_batch = config["match_random_num_context_views_per_batch"]
            if not per_batch or call % 2 == 0:
                choices = context_counts(selector, step)
                num_context = counts.randint(choices[0], choices[-1])
        scene = _Path(c2w[: record["num_frames"]])
        chosen = choose_bounded(
            scene, num_context, config["num_target_views"], selector, step, rng, whole=whole
        )
        results.append(_plain(chosen))
    return results


def _gap_draws(config: dict, record: dict, num_frames: int) -> list[dict]:
    torch.manual_seed(record["torch_seed"])
    selector, rng = _selector(config), PublishedDraws(until_distinct=False)
    whole, targets = record["stage"] == "test", config["num_target_views"]
    frames = record.get("num_frames", num_frames)
    return [
        _plain(choose_gap(frames, targets, selector, record["global_step"], rng, whole=whole))
        for _ in range(3)
    ]


def _plain(chosen: Chosen | None) -> dict:
    return {"context": chosen.context, "target": chosen.target} if chosen else {"refused": True}


# ----------------------------------------------------------------------------------------------- overlaps


class PublishedIndexDraws:
    """The draws of the first index generator behind the interface of `random.Random`: one generator for all scenes."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def randint(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def sample(self, population: range | list[int], k: int) -> list[int]:
        """All in a random order, or a few neighbouring numbers that are drawn anew until they differ."""
        if k == len(population):
            return [population[i] for i in torch.randperm(k, generator=self.generator).tolist()]
        low, high = population[0], population[-1] + 1
        while len(set(drawn := torch.randint(low, high, (k,), generator=self.generator).tolist())) < k:
            pass
        return drawn


def index_generator(golden: Golden) -> dict:
    """Overlaps of the pairs of views that the file names, and the index v1; v2 draws in another order than ours."""
    cameras = Pinholes(
        _normalised(golden.inputs["intrinsics"]),
        np.linalg.inv(golden.inputs["extrinsics"].double().numpy()),
    )
    grid = tuple(golden.config["image_shape"])
    pairs = {pair: [int(view) for view in pair.split(",")] for pair in golden.outputs["overlap"]}
    computed: dict = {
        "overlap": {pair: float(overlaps(cameras, a, [b], grid)[0]) for pair, (a, b) in pairs.items()}
    }
    if "v1" in golden.config and "v1" in golden.outputs:
        rng = PublishedIndexDraws(golden.config["v1"]["seed"])
        rules, usable = _pair_rules(golden.config["v1"], grid), [True] * len(cameras)
        found = {name: around_one_frame(cameras, usable, rules, rng) for name in golden.outputs["v1"]}
        computed["v1"] = {name: _plain(chosen) if chosen else {} for name, chosen in found.items()}
    return computed


def _pair_rules(config: dict, grid: tuple[int, int]) -> PairRules:
    return PairRules(
        min_distance=config["min_ctx_distance"],
        max_distance=config["max_ctx_distance"],
        min_overlap=config["min_ctx_overlap"],
        max_overlap=config["max_ctx_overlap"],
        num_target=config["num_target_views"],
        as_published=True,
        grid=grid,
    )


def _normalised(intrinsics: Tensor) -> np.ndarray:
    """K divided by the image size -> fx, fy, cx, cy. [..., 3, 3] -> float64 [..., 4]"""
    k = intrinsics.double().numpy()
    return np.stack([k[..., 0, 0], k[..., 1, 1], k[..., 0, 2], k[..., 1, 2]], axis=-1)


# ----------------------------------------------------------------------------------------------- pictures and cameras


def preprocess(golden: Golden) -> dict:
    """Crops of a picture to several shapes with their rays, fields of view, mirrored poses."""
    inputs = golden.inputs
    image, fxfycxcy = inputs["image_uint8"].permute(1, 2, 0).numpy(), _normalised(inputs["intrinsics"])
    c2w = inputs["extrinsics"]
    return {
        "crops": [_crop(image, fxfycxcy, c2w[0], *shape) for shape in inputs["shapes"]],
        "fov_radians": torch.from_numpy(np.radians(fields_of_view_deg(fxfycxcy))),
        "reflected_extrinsics": torch.from_numpy(mirrored_pose(c2w.numpy())),
    }


def _crop(image: np.ndarray, fxfycxcy: np.ndarray, c2w: Tensor, height: int, width: int) -> dict:
    old_height, old_width = image.shape[:2]
    pixels = fxfycxcy * [old_width, old_height, old_width, old_height]
    cropped, pixels = cover_and_crop(image, pixels, height, width, keep_principal_point=True)
    camera = Cameras(c2w[None, None], torch.from_numpy(pixels).float()[None, None], height, width)
    ray_o, ray_d = pixel_rays(camera)
    return {
        "image_uint8": torch.from_numpy(cropped.copy()).permute(2, 0, 1),
        "intrinsics": normalised_matrix(torch.from_numpy(pixels).float(), height, width),
        "plucker": torch.cat([ray_d, torch.linalg.cross(ray_o, ray_d, dim=2)], dim=2)[0, 0],
    }


def normalised_matrix(fxfycxcy: Tensor, height: int, width: int) -> Tensor:
    """Pixels -> K divided by the image size. [..., 4] -> [..., 3, 3]"""
    fx, fy, cx, cy = (fxfycxcy / fxfycxcy.new_tensor([width, height, width, height])).unbind(-1)
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    return torch.stack([fx, zero, cx, zero, fy, cy, zero, zero, one], dim=-1).unflatten(-1, (3, 3))


# ----------------------------------------------------------------------------------------------- data set

SWITCHES = ("max_fov", "sort_context_index", "sort_target_index", "make_baseline_1")


def dataset(golden: Golden) -> dict:
    """The examples that the file names, and the scenes that the data set declines."""
    config = golden.config["dataset"]
    with tempfile.TemporaryDirectory() as folder:
        torch.save(golden.inputs["chunk"], Path(folder, "000000.torch"))
        scenes = SceneDataset(folder, _view_settings(config))
        examples = [_example(scenes, selection, config) for selection in golden.inputs["view_selection"]]
        declined = [name for position, name in enumerate(scenes.scenes.names) if _declines(scenes, position)]
    return {"examples": examples, "skipped_scenes": declined}


def _view_settings(config: dict) -> ViewSettings:
    """Ours for a published data set; the defaults of a run for what it does not say."""
    training = Training(
        image_shape=list(config["image_shape"]),
        pose_frame="none",  # the originals move the world later
        keep_principal_point=True,
        **{name: config[name] for name in SWITCHES if name in config},
    )
    names = [name for name in ViewSettings.__dataclass_fields__ if name not in ("image_size", "patch_size")]
    return ViewSettings(image_size=1, patch_size=1, **{name: getattr(training, name) for name in names})


def _example(scenes: SceneDataset, selection: dict, config: dict) -> dict:
    position = list(scenes.scenes.names).index(selection["scene"])
    context, target = tuple(selection["context"]), tuple(selection["target"])
    sample = scenes.evaluation_sample(position, context, target)
    height, width = sample["image"].shape[-2:]
    views = {
        "index": sample["index"][:, 0],
        "extrinsics": sample["c2w"],
        "intrinsics": normalised_matrix(sample["fxfycxcy"], height, width),
        "near": torch.full((len(sample["c2w"]),), config["near"]),
        "far": torch.full((len(sample["c2w"]),), config["far"]),
        "image_mean": sample["image"].float().mean(dim=(1, 2, 3)) / 255,
        "image_uint8": sample["image"],
    }
    return {
        "scene": selection["scene"],
        "context": {name: value[: len(context)] for name, value in views.items()},
        "target": {name: value[len(context) :] for name, value in views.items()},
    }


def _declines(scenes: SceneDataset, position: int) -> bool:
    try:
        scenes.evaluation_sample(position, (0, 1), (0,))
    except SceneError:
        return True
    return False
