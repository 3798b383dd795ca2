"""Any data set -> nerfstudio's folders, from which `process_data.py --format nerfstudio` makes the same data set again.

    <output>/<scene>/transforms.json     camera-to-world with OpenGL axes, intrinsics of every frame
    <output>/<scene>/images/<frame>.jpg  the bytes of the data set

Inverting a matrix twice changes its last bits, so each frame also keeps its own `w2c`; other programs do not look at it.
Frames marked missing stand under `missing`, number -> reason, and return to their places.

Public: export_scenes.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..files import write_bytes, write_text
from .chunks import key_problem
from .import_transforms import GL_AXES, TRANSFORMS
from .scene import Scene, SceneError, Scenes
from .transforms import image_header

SUFFIX = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}


def export_scenes(scenes: Scenes, output: Path) -> list[tuple[str, str]]:
    """Write every scene into a folder of its own below `output`; scenes that cannot be written and why."""
    problems = []
    for position, name in enumerate(tqdm(scenes.names, unit="scene", desc="exporting")):
        try:
            if problem := key_problem(name):
                raise SceneError(f"its name {problem}")
            _export(scenes[position], output / name)
        except SceneError as error:
            problems.append((name, str(error)))
    return problems


def _export(scene: Scene, folder: Path) -> None:
    if not scene.posed:
        raise SceneError("its photos have no poses")
    frames, missing = [], {}
    for number in range(scene.num_frames):
        try:
            if reason := scene.missing(number):
                raise SceneError(reason)
            frames.append(_frame(scene, number, folder))
        except SceneError as error:
            missing[str(number)] = str(error)
    if not frames:
        raise SceneError(f"none of its {len(missing)} frames can be used")
    tree = {"camera_model": "OPENCV", **({"missing": missing} if missing else {}), "frames": frames}
    write_text(folder / TRANSFORMS, json.dumps(tree, indent=1, allow_nan=False))


def _frame(scene: Scene, number: int, folder: Path) -> dict:
    data = scene.encoded(number)
    try:
        width, height, kind = image_header(data)
    except ValueError as error:
        raise SceneError(str(error)) from error
    (fx, fy, cx, cy), w2c = scene.camera(number)
    path = f"images/{number:05d}{SUFFIX[kind]}"
    write_bytes(folder / path, data)
    return {
        "file_path": path,
        "w": width,
        "h": height,
        **dict(zip(("fl_x", "fl_y", "cx", "cy"), map(float, (fx, fy, cx, cy)), strict=True)),
        "transform_matrix": (np.linalg.inv(w2c) * GL_AXES).tolist(),
        "w2c": w2c.tolist(),
    }
