"""Readers of kind `preprocess`: from pictures or chunk bytes and cameras to what a model is given."""

from __future__ import annotations

import json
import random
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ..data.convert import Options, convert
from ..data.dataset import SceneDataset
from ..data.transforms import decode_image, invert_pose, resize_and_crop
from ..data.view_sampler import bounded_frames
from ..data.view_settings import ViewSettings
from ..geometry.camera import Cameras, pixel_rays
from ..geometry.frames import normalize_cameras
from ..settings import Training
from ..settings_views import ViewSelector
from .report import Golden

published_resize = partial(resize_and_crop, by_height=True)
"""Differs from what our data set does with portrait pictures only, which the originals crop to less than image_size."""

# ----------------------------------------------------------------------------------------------- lvsm


def from_pictures(golden: Golden) -> dict:
    """Raw pictures and cameras: resized pictures, intrinsics, normalised poses, rays, and draws of views."""
    config, inputs = golden.config, golden.inputs
    resized = [
        published_resize(
            image.numpy(), fxfycxcy.numpy(), config["image_size"], config["patch_size"], config["square_crop"]
        )
        for image, fxfycxcy in zip(inputs["raw_images_uint8"], inputs["fxfycxcy"])
    ]
    images = torch.from_numpy(np.stack([image for image, _ in resized])).permute(0, 3, 1, 2)  # [v, 3, h, w]
    fxfycxcy = torch.from_numpy(np.stack([numbers for _, numbers in resized])).float()
    c2w = torch.from_numpy(invert_pose(inputs["w2c"].numpy())).float()
    normalised = normalize_cameras(c2w, config["scene_scale_factor"])
    ray_o, ray_d = pixel_rays(Cameras(normalised[None], fxfycxcy[None], *images.shape[-2:]))
    return {
        "images_uint8": images,
        "images_float_first": images[0] / 255,
        "fxfycxcy": fxfycxcy,
        "c2w_before_normalisation": c2w,
        "c2w": normalised,
        "ray_o": ray_o[0],
        "ray_d": ray_d[0],
        "view_selector": [{"result": _draws(**arguments)} for arguments in inputs.get("view_selector", ())],
    }


def _draws(
    num_frames: int, python_seed: int, num_views: int, min_frame_dist: int, max_frame_dist: int
) -> list[list[int]]:
    """Three draws of views from one generator; [] is a refusal."""
    selector, rng = (
        ViewSelector(min_frame_dist=min_frame_dist, max_frame_dist=max_frame_dist),
        random.Random(python_seed),
    )
    return [bounded_frames(num_frames, num_views, selector, rng) or [] for _ in range(3)]


# ----------------------------------------------------------------------------------------------- uplvsm


def from_chunk(golden: Golden) -> dict:
    """The bytes of a chunk: converted metadata and pictures, samples of the data set, and draws of views."""
    with tempfile.TemporaryDirectory() as folder:
        raw, out = Path(folder, "raw"), Path(folder, "out")
        raw.mkdir()
        (raw / "000000.torch").write_bytes(golden.inputs["chunk_bytes"].numpy().tobytes())
        convert(Options(raw, out), num_processes=1, chunk_size=1)
        return _converted(golden, out)


def _converted(golden: Golden, folder: Path) -> dict:
    """The originals leave damaged frames out and number the others anew; ours keep their numbers and are marked."""
    scenes = SceneDataset(
        str(folder / "full_list.txt"), _view_settings(golden.config), resize=published_resize
    )
    names = list(scenes.scenes.names)
    metadata, numbers = {}, {}
    for name in names:
        metadata[name] = json.loads((folder / "metadata" / f"{name}.json").read_text())
        frames = metadata[name]["frames"]
        numbers[name] = [i for i, frame in enumerate(frames) if not frame.get("missing")]
        metadata[name]["frames"] = [frames[i] for i in numbers[name]]
    items = {}
    for name, views in golden.inputs["view_indices"].items():
        views = [numbers[name][view] for view in views]
        sample = scenes.evaluation_sample(names.index(name), tuple(views[:2]), tuple(views[2:]))
        items[name] = {**sample, "image": sample["image"] / 255}
    return {
        "metadata": metadata,
        "items": items,
        "train_view_selector": _training_draws(golden.config, metadata),
        "first_frame_rgb": torch.from_numpy(
            decode_image(scenes.scenes[0].encoded(numbers[names[0]][0])).copy()
        ),
        "num_scenes": len(scenes),
    }


def _view_settings(config: dict) -> ViewSettings:
    """The data set's settings: those that the file gives, and the defaults of a run for the others."""
    given = {name: config[name] for name in ("square_crop", "scene_scale_factor") if name in config}
    training = Training(**given)
    names = [name for name in ViewSettings.__dataclass_fields__ if name not in ("image_size", "patch_size")]
    return ViewSettings(
        image_size=config["image_size"],
        patch_size=config["patch_size"],
        **{name: getattr(training, name) for name in names},
    )


def _training_draws(config: dict, metadata: dict) -> dict[str, list]:
    """Six draws for each scene in turn, all from one generator; nothing if the file asks for none."""
    if "train_view_selector" not in config:
        return {}
    selector, rng = ViewSelector(**config["train_view_selector"]), random.Random(config["python_random_seed"])
    return {
        name: [
            bounded_frames(len(scene["frames"]), config["train_num_views"], selector, rng) or []
            for _ in range(6)
        ]
        for name, scene in sorted(metadata.items())
    }
