"""Importer of COLMAP models, binary or text, as they come from COLMAP or from `colmap.py`'s structure from motion.

    <source>/<scene>/sparse/0/{cameras,images,points3D}.{bin,txt}     or .../sparse/, or in the scene's folder
    <source>/<scene>/images/<name>                                    pictures under the names of the model

Every camera model that OpenCV can undo is undistorted: SIMPLE_PINHOLE, PINHOLE, SIMPLE_RADIAL, RADIAL, OPENCV,
FULL_OPENCV, OPENCV_FISHEYE, SIMPLE_RADIAL_FISHEYE, RADIAL_FISHEYE. Frames come in the order of their names.

Public: find_scenes, read_scene, frames_of, lens_of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .importing import ImportOptions, SourceFrame, SourceScene, picture_in
from .lens import Lens
from .objects import is_below

PLACES = ("sparse/0", "sparse", "colmap/sparse/0", ".")
SUFFIXES = (".bin", ".txt")
EXPECTED = "<scene>/sparse/0/cameras.bin (or .txt) with images.bin, points3D.bin"

_PARAMETERS: dict[str, tuple[str, ...]] = {
    "SIMPLE_PINHOLE": ("f", "cx", "cy"),
    "PINHOLE": ("fx", "fy", "cx", "cy"),
    "SIMPLE_RADIAL": ("f", "cx", "cy", "k1"),
    "RADIAL": ("f", "cx", "cy", "k1", "k2"),
    "OPENCV": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2"),
    "FULL_OPENCV": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"),
    "SIMPLE_RADIAL_FISHEYE": ("f", "cx", "cy", "k1"),
    "RADIAL_FISHEYE": ("f", "cx", "cy", "k1", "k2"),
    "OPENCV_FISHEYE": ("fx", "fy", "cx", "cy", "k1", "k2", "k3", "k4"),
}
"""COLMAP's camera models (src/colmap/sensor/models.h) and the order of their parameters."""
_PERSPECTIVE = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
_FISHEYE = ("k1", "k2", "k3", "k4")


def find_scenes(source: Path) -> dict[str, Path]:
    """Scene name -> its folder."""
    folders = [source, *sorted(path for path in source.iterdir() if path.is_dir())]
    return {
        folder.resolve().name: folder
        for folder in folders
        if folder.name != "sparse" and model_folder(folder)
    }


def model_folder(scene: Path) -> Path | None:
    """Where the model of a scene is, None if there is none."""
    for place in PLACES:
        if any((scene / place / f"cameras{suffix}").is_file() for suffix in SUFFIXES):
            return scene / place
    return None


def read_scene(folder: Path, options: ImportOptions) -> SourceScene:
    """The registered pictures of a COLMAP model. Raises ValueError if there is none, or it cannot be read."""
    model = model_folder(folder)
    if model is None:
        raise ValueError(f"no COLMAP model: expected {EXPECTED}")
    files = sorted(path for path in model.iterdir() if path.suffix in SUFFIXES and path.is_file())
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    names = [options.images, "images"]
    images = next((name for name in names if (folder / name).is_dir()), "images")
    return SourceScene(
        list(frames_of(_reconstruction(model), folder, images)),
        {"model_sha256": digest, "images": options.images},
    )


def _reconstruction(model: Path) -> Any:
    import pycolmap  # only this importer needs it

    pycolmap.logging.minloglevel = 3  # it would repeat in its own words what is raised
    try:
        return pycolmap.Reconstruction(model)
    except (RuntimeError, ValueError, OSError, IndexError) as error:
        raise ValueError(
            f"{model.name}: COLMAP cannot read this model ({str(error).splitlines()[-1][:120]})"
        ) from error


def frames_of(reconstruction: Any, folder: Path, images: str) -> Iterable[SourceFrame]:
    """The registered pictures of a `pycolmap.Reconstruction`, by name."""
    for image in sorted(reconstruction.images.values(), key=lambda image: image.name):
        if not image.has_pose:
            continue
        if not is_below(image.name):
            yield SourceFrame(None, problem=f"its name {image.name[:80]!r} leads out of its folder")
            continue
        path = folder / images / image.name
        path = path if path.is_file() else picture_in(folder, images, image.name)
        try:
            w2c = np.concatenate([np.array(image.cam_from_world().matrix()), [[0, 0, 0, 1]]])
            yield SourceFrame(path, lens_of(reconstruction.cameras[image.camera_id]), w2c)
        except ValueError as error:
            yield SourceFrame(path, problem=str(error))


def lens_of(camera: Any) -> Lens:
    """The lens of a `pycolmap.Camera`. COLMAP's pixel centres are at +0.5, as ours.

    Raises:
        ValueError: OpenCV has no such model.
    """
    model = camera.model.name
    if model not in _PARAMETERS:
        raise ValueError(
            f"camera model {model} is not one of {', '.join(_PARAMETERS)}: undistort with COLMAP first"
        )
    values = dict(zip(_PARAMETERS[model], map(float, camera.params), strict=True))
    focal = values.get("fx", values.get("f")), values.get("fy", values.get("f"))
    fisheye = model.endswith("FISHEYE")
    distortion = tuple(values.get(name, 0.0) for name in (_FISHEYE if fisheye else _PERSPECTIVE))
    return Lens(
        float(camera.width), float(camera.height), (*focal, values["cx"], values["cy"]), distortion, fisheye
    )
