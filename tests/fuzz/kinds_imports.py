"""What other programs write: lists of objects, nerfstudio's scenes, photos, camera paths.

Public: KINDS.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import object_list
import raw_chunks
import torch

from scripts import choose_views
from src.explore.path_file import read_path, write_path
from src.geometry.camera import Cameras

from . import pictures
from .damage import damage_bytes, damage_file, damage_json
from .kinds_scenes import make_converted
from .readers import CHECKS, INDEX, KEPT, LISTED, RESCALES_LISTED, SIZE, converts, loads, script
from .sandbox import Case, Finding, Kind


def _make_objects(folder: Path) -> None:
    for n in range(2):
        object_list.write_object(folder, f"scene{n}", views=10)
    object_list.write_list(folder / "list.json", "scene0", "scene1")
    (folder / "index.json").write_text(json.dumps({name: INDEX[name] for name in ("scene0", "scene1")}))


def _damage_objects(folder: Path, rng: random.Random, structural: bool, canary: Path) -> str:
    path = folder / rng.choice(("list.json", "scene0/opencv_cameras.json", "scene0/opencv_cameras.json"))
    if structural and rng.random() < 0.1:
        return damage_file(rng.choice((path, folder / "scene0" / "renderings" / "000.png")), rng)
    data, how = (damage_json if structural else damage_bytes)(path.read_bytes(), rng)
    path.write_bytes(data)
    return f"{path.name}: {how}"


OBJECTS = Kind(
    "objects",
    _make_objects,
    _damage_objects,
    (
        loads("list.json"),
        converts("--format", "opencv"),
        script(
            choose_views.main,
            "--input",
            "GIVEN/list.json",
            "--output",
            "OUT/c.json",
            "--num_input_views",
            "3",
        ),
    ),
    KEPT,
)


def _make_transforms(folder: Path) -> None:
    """A scene as nerfstudio and DL3DV write it, with distortion."""
    for n in range(2):
        images = folder / f"scene{n}" / "nerfstudio" / "images_4"
        images.mkdir(parents=True)
        frames = []
        for view, w2c in enumerate(object_list.ring(4)):
            name = f"frame_{view:05d}.png"
            (images / name).write_bytes(raw_chunks.picture(24, 16, view, ".png"))
            c2w = np.linalg.inv(w2c) * np.array([1, -1, -1, 1])
            frames.append(
                {"file_path": f"images/{name}", "transform_matrix": c2w.tolist(), "colmap_im_id": view}
            )
        lens = {
            "w": 96,
            "h": 64,
            "fl_x": 90.0,
            "fl_y": 91.0,
            "cx": 48.0,
            "cy": 32.0,
            "k1": 0.01,
            "k2": 0.0,
            "p1": 1e-3,
            "p2": 0,
        }
        tree = {**lens, "camera_model": "OPENCV", "frames": frames, "missing": {}}
        (images.parent / "transforms.json").write_text(json.dumps(tree))


def _damage_transforms(folder: Path, rng: random.Random, structural: bool, canary: Path) -> str:
    path = folder / "scene0" / "nerfstudio" / "transforms.json"
    if structural and rng.random() < 0.08:
        return damage_file(rng.choice((path, path.parent / "images_4" / "frame_00001.png")), rng)
    data, how = (damage_json if structural else damage_bytes)(path.read_bytes(), rng)
    path.write_bytes(data)
    return how


TRANSFORMS = Kind(
    "transforms",
    _make_transforms,
    _damage_transforms,
    (converts("--format", "nerfstudio"), converts("--format", "dl3dv", "--image_format", "png")),
    KEPT,
)


# ----------------------------------------------------------------------------------------------- pictures


def _make_pictures(folder: Path) -> None:
    make_converted(folder)
    photos = folder / "photos" / "scene0"
    photos.mkdir(parents=True)
    for n in range(2):
        (photos / f"{n}.jpg").write_bytes(raw_chunks.picture(*SIZE, n))


def _damage_picture(folder: Path, rng: random.Random, structural: bool, canary: Path) -> str:
    name = rng.choice(list(pictures.VARIANTS))
    data, how = pictures.encoded(name), "as it is"
    if not structural:
        data, how = damage_bytes(data, rng)
    elif rng.random() < 0.8:
        data, how = pictures.damage_structure(data, rng)
    frames = sorted((folder / "train" / "images" / "scene0").iterdir())
    for path in rng.sample(frames, rng.choice((1, 4, len(frames)))):
        path.write_bytes(data)
    (folder / "photos" / "scene0" / f"2{rng.choice(('.jpg', '.png', '.webp'))}").write_bytes(data)
    return f"{name}: {how}"


PICTURES = Kind(
    "pictures",
    _make_pictures,
    _damage_picture,
    (loads(LISTED), converts("--format", "images", source="photos"), RESCALES_LISTED, CHECKS),
    KEPT,
)

# ----------------------------------------------------------------------------------------------- camera paths


def _make_paths(folder: Path) -> None:
    c2w = torch.eye(4).repeat(1, 4, 1, 1)
    write_path(folder / "path.json", Cameras(c2w, torch.full((1, 4, 4), 8.0), 16, 16), fps=30)
    frames = [{"camera_to_world": torch.eye(4).flatten().tolist(), "fov": 50 + n} for n in range(3)]
    tree = {"camera_path": frames, "render_height": 16, "render_width": 24, "fps": 24}
    (folder / "nerfstudio.json").write_text(json.dumps(tree))


def _damage_path(folder: Path, rng: random.Random, structural: bool, canary: Path) -> str:
    path = folder / rng.choice(("path.json", "nerfstudio.json"))
    if structural and rng.random() < 0.06:
        return damage_file(path, rng)
    data, how = (damage_json if structural else damage_bytes)(path.read_bytes(), rng)
    path.write_bytes(data)
    return f"{path.name}: {how}"


def reads_paths(case: Case) -> None:
    """The path of a video."""
    for name in ("path.json", "nerfstudio.json"):
        cameras = read_path(case.given / name).cameras
        if not cameras.c2w.isfinite().all() or not (cameras.fxfycxcy[..., :2] > 0).all():
            raise Finding("a path with a camera that is none")


PATHS = Kind("camera_paths", _make_paths, _damage_path, (reads_paths,))

KINDS = (OBJECTS, TRANSFORMS, PICTURES, PATHS)
