"""Golden files of lact with everything around the model: camera paths, pose frame, data items, DL3DV conversion.

The original scales intrinsics by the exact covering factor although the picture's new sides are whole pixels, and hands
pixel centres at +0.5 to OpenCV; ours do neither, so both are put back here.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.dataset import SceneDataset
from ..data.import_transforms import opencv_w2c, read_lens
from ..data.lens import Undistorter
from ..data.view_settings import ViewSettings
from ..geometry.camera import Cameras
from ..geometry.frames import normalize_cameras
from ..geometry.trajectory import TRAJECTORIES
from ..settings import Training
from .report import Golden

SAMPLES = Path(__file__).resolve().parents[3] / "shared" / "data"
"""Where the sample objects of the original may lie."""


def cameras_and_data(golden: Golden) -> dict:
    """One output per entry of `inputs`, by the name of its kind and a number."""
    readers = {
        "turntable": _turntable,
        "interp": _interpolation,
        "pose_normalize": _pose_normalize,
        "dataset": _dataset,
        "dl3dv": _dl3dv,
        "gso": _object,
    }
    found = {}
    for name, given in golden.inputs.items():
        kind = re.sub(r"\d+$", "", name)
        if kind in readers and (output := readers[kind](given)) is not None:
            found[name] = output
    return found


def _turntable(given: dict) -> dict:
    """The defaults are those of the original's function."""
    batch, width, height = given["batch_size"], given["w"], given["h"]
    keys = Cameras(torch.eye(4).repeat(batch, 1, 1, 1), torch.ones(batch, 1, 4), height, width)
    path = TRAJECTORIES["turntable"](
        keys,
        given["num_views"],
        hfov_deg=given.get("hfov", 50),
        radius=(given.get("min_radius", 1.7), given.get("max_radius", 3.0)),
        elevation_deg=given.get("elevation", 30),
        up=tuple(given.get("up_vector", given.get("up", (0.0, 0.0, 1.0)))),
        axis=(0.0, 0.0, 1.0),
    )
    return {"fxfycxcy": path.fxfycxcy, "c2w": path.c2w}


def _interpolation(given: dict) -> dict:
    """`num_views` counts the cameras between two key cameras."""
    cameras = given["cameras"]
    path = TRAJECTORIES["linear"](Cameras(cameras["c2w"], cameras["fxfycxcy"], 1, 1), given["num_views"] + 1)
    return {"fxfycxcy": path.fxfycxcy, "c2w": path.c2w}


def _pose_normalize(c2w: Tensor) -> Tensor:
    return normalize_cameras(c2w, 1.0)


# ----------------------------------------------------------------------------------------------- data items


def _dataset(given: dict) -> dict:
    """Pictures and entries written as files, then read by our data set: all views in the order of the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "opencv_cameras.json")
        path.write_text(json.dumps(given["cameras_json"]))
        for entry, pixels in zip(given["cameras_json"], given["files"]):
            picture = Path(folder, entry["file_path"])
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.numpy()).save(picture)
        return _item(path, list(range(len(given["files"]))), given)


def _object(given: dict) -> dict | None:
    """Views of an object that comes with the original; None where it is absent."""
    path = SAMPLES / given["object"] / "opencv_cameras.json"
    return _item(path, list(given["view_indices"]), given) if path.is_file() else None


def _item(path: Path, views: list[int], given: dict) -> dict:
    height, width = given["image_size"]
    normalize = given.get("scene_pose_normalize", False)
    frame = {"pose_frame": "mean_axes", "scene_scale_factor": 1.0} if normalize else {"pose_frame": "none"}
    training = Training(image_shape=[height, width], **frame)
    names = [name for name in ViewSettings.__dataclass_fields__ if name not in ("image_size", "patch_size")]
    values = {name: getattr(training, name) for name in names}
    dataset = SceneDataset(str(path), ViewSettings(image_size=height, patch_size=1, **values))
    sample = dataset.evaluation_sample(0, tuple(views), ())
    entries = json.loads(path.read_text())
    return {
        "fxfycxcy": torch.stack([_published_intrinsics(entries[view], height, width) for view in views]),
        "c2w": sample["c2w"],
        "image": sample["image"] / 255,
    }


def _published_intrinsics(entry: dict[str, Any], height: int, width: int) -> Tensor:
    """By the exact factor of both axes instead of the true ratios. [4]"""
    scale = max(height / entry["h"], width / entry["w"])
    left, top = (round(entry["w"] * scale) - width) // 2, (round(entry["h"] * scale) - height) // 2
    scaled = [entry[name] * scale for name in ("fx", "fy", "cx", "cy")]
    return torch.tensor(scaled) - torch.tensor([0.0, 0.0, left, top])


# ----------------------------------------------------------------------------------------------- DL3DV


def _dl3dv(given: dict) -> dict:
    """The pictures that are there, in the order of the file; the original passes over the others."""
    tree = given["transforms_json"]
    found: dict[str, list] = {"opencv_cameras_json": [], "images_undistort": []}
    for frame, pixels in zip(tree["frames"], given["images_4"]):
        if pixels is None:
            continue
        height, width = pixels.shape[:2]
        undistort = Undistorter(read_lens(tree, frame), width, height, published=True)
        numbers = dict(zip(("fx", "fy", "cx", "cy"), undistort.fxfycxcy.tolist()))
        w2c = opencv_w2c(frame["transform_matrix"], undo_world=True).tolist()
        path = f"images_undistort/{Path(frame['file_path']).name}"
        found["opencv_cameras_json"].append(
            {"w": width, "h": height, **numbers, "w2c": w2c, "file_path": path}
        )
        found["images_undistort"].append(torch.from_numpy(np.ascontiguousarray(undistort(pixels.numpy()))))
    return found
