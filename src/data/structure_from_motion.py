"""Poses of photos by COLMAP's structure from motion, on the CPU.

Features, matches, incremental mapping, as `colmap automatic_reconstructor` does it; the largest model counts. All photos
of one size are taken to come from one lens. The world's scale is arbitrary.

Public: reconstruct.
"""

from __future__ import annotations

import logging
import math
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from ..files import write_text
from .exif import UPRIGHT, photo_facts, upright
from .transforms import decode_image

log = logging.getLogger(__name__)

EXHAUSTIVE_UP_TO = 150
"""More photos are matched with their neighbours by name only: all pairs would take hours."""
SEED = 0


def reconstruct(photos: list[Path], work: Path, *, digest: str, fov_deg: float) -> Any:
    """A `pycolmap.Reconstruction` of photos; an earlier one of the same photos is read again.

    Args:
        work: folder for upright copies of the photos (`images/`) and the model (`sparse/`).
        digest: says which photos these are.
        fov_deg: first guess, along the longer side, for photos that do not state a focal length.

    Raises:
        ValueError: too little in common to place at least two photos.
    """
    import pycolmap  # only this importer needs it

    pycolmap.logging.minloglevel = 2
    done = work / "photos.txt"
    sparse = work / "sparse"
    if done.is_file() and done.read_text(encoding="utf-8") == digest:
        return pycolmap.Reconstruction(sparse)
    shutil.rmtree(work, ignore_errors=True)
    images = work / "images"
    images.mkdir(parents=True)
    database = work / "database.db"
    _features(pycolmap, database, images, _upright_copies(photos, images), fov_deg)
    if len(photos) <= EXHAUSTIVE_UP_TO:
        pycolmap.match_exhaustive(database)
    else:
        pycolmap.match_sequential(database)
    (work / "models").mkdir()
    options = pycolmap.IncrementalPipelineOptions(random_seed=SEED)
    models = pycolmap.incremental_mapping(database, images, work / "models", options)
    best = max(models.values(), key=lambda model: model.num_reg_images(), default=None)
    if best is None:
        raise ValueError(
            f"structure from motion placed none of {len(photos)} photos: they need overlap and a moving camera"
        )
    log.info(
        "%s: %d of %d photos placed, %.2f px.",
        work.name, best.num_reg_images(), len(photos), best.compute_mean_reprojection_error(),
    )  # fmt: skip
    sparse.mkdir()
    best.write(sparse)
    shutil.rmtree(work / "models")
    database.unlink()
    write_text(done, digest)
    return best


def _upright_copies(photos: list[Path], folder: Path) -> dict[tuple, list[str]]:
    """Copies whose pixels stand upright: COLMAP goes by what is stored. A broken photo is left out.

    Returns:
        (width, height, focal length in pixels or None) -> names of the photos like that.
    """
    groups: dict[tuple, list[str]] = {}
    for photo in photos:
        data = photo.read_bytes()
        try:
            facts = photo_facts(data)
            pixels = decode_image(data)
        except ValueError as error:
            log.warning("%s is left out: %s", photo, error)
            continue
        if facts.orientation == UPRIGHT:
            (folder / photo.name).write_bytes(data)
        else:
            Image.fromarray(upright(pixels, facts.orientation)).save(folder / photo.name, quality=98)
        groups.setdefault((facts.width, facts.height, facts.focal_px), []).append(photo.name)
    return groups


def _features(
    pycolmap: Any, database: Path, images: Path, groups: dict[tuple, list[str]], fov_deg: float
) -> None:
    """Features of all photos, one camera for those of one size and focal length."""
    if any(focal is None for _, _, focal in groups):
        log.warning(
            "Photos without a stated focal length: %g degrees (--fov) is the first guess, COLMAP refines it.",
            fov_deg,
        )
    for (width, height, focal), names in groups.items():
        guess = focal or max(width, height) / 2 / math.tan(math.radians(fov_deg) / 2)
        reader = pycolmap.ImageReaderOptions(
            camera_model="OPENCV", camera_params=f"{guess},{guess},{width / 2},{height / 2},0,0,0,0"
        )
        pycolmap.extract_features(
            database, images, names, camera_mode=pycolmap.CameraMode.SINGLE, reader_options=reader,
            device=pycolmap.Device.cpu,
        )  # fmt: skip
