"""Importer of plain folders of photos, upright and with the focal length that they state.

    <source>/<scene>/*.jpg     or the photos in <source> itself; with `images`, in <source>/<scene>/images/

Without poses (for families that need none), or with those that COLMAP's structure from motion finds on the CPU; its
model is kept in <target>/colmap/<scene>/ and read again by the next run.

Public: find_scenes, read_scene, unposed_frames.
"""

from __future__ import annotations

import hashlib
import logging
import math
from pathlib import Path

from .exif import PhotoFacts, photo_facts
from .import_colmap import frames_of
from .importing import ImportOptions, SourceFrame, SourceScene
from .lens import PERSPECTIVE, Lens
from .structure_from_motion import reconstruct

log = logging.getLogger(__name__)

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
UNREAD = {".heic", ".heif", ".avif", ".tif", ".tiff", ".dng", ".cr2", ".nef", ".arw"}
"""Pictures as phones and cameras also write them."""
EXPECTED = "<scene>/*.jpg, .jpeg, .png or .webp (at least two), or the photos themselves; export HEIC and raw pictures as JPEG"


def find_scenes(source: Path) -> dict[str, Path]:
    """Scene name -> folder of its photos; `images` below it if there is one."""
    found = {}
    for folder in [source, *sorted(path for path in source.iterdir() if path.is_dir())]:
        place = next((p for p in (folder / "images", folder) if p.is_dir() and len(_photos(p)) > 1), None)
        if place is not None and not (folder.name == "images" and source.resolve().name in found):
            found[folder.resolve().name] = place
    return found


def _photos(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())


def read_scene(folder: Path, options: ImportOptions) -> SourceScene:
    """The photos of a folder in the order of their names.

    Raises:
        ValueError: structure from motion found no poses.
    """
    photos = _photos(folder)
    if unread := sorted(path.name for path in folder.iterdir() if path.suffix.lower() in UNREAD):
        log.warning(
            "%s: %d pictures (first %s) are of a kind that is not read, and left out: export them as JPEG.",
            folder.name, len(unread), unread[0],
        )  # fmt: skip
    made_by = {"photos_sha256": _digest(photos), "fov_deg": options.fov_deg, "poses": options.poses}
    if options.poses == "colmap":
        work = (
            options.target / "colmap" / (folder.parent if folder.name == "images" else folder).resolve().name
        )
        model = reconstruct(photos, work, digest=made_by["photos_sha256"], fov_deg=options.fov_deg)
        frames = {frame.path.name: frame for frame in frames_of(model, work, "images")}
        return SourceScene([_posed(path, frames) for path in photos], made_by)
    return SourceScene(unposed_frames(photos, options.fov_deg), made_by, posed=False)


def unposed_frames(photos: list[Path], fov_deg: float) -> list[SourceFrame]:
    """Photos with the lens that they state, or else one of the given field of view, which is said; without poses."""
    facts = [_facts(path) for path in photos]
    silent = [path for path, fact in zip(photos, facts, strict=True) if fact and fact.focal_px is None]
    if silent:
        log.warning(
            "%d of %d photos (first %s) state no focal length; a field of view of %g degrees along the longer side is "
            "ASSUMED for them. State the true one with --fov.",
            len(silent), len(photos), silent[0], fov_deg,
        )  # fmt: skip
    return [_unposed(path, fact, fov_deg) for path, fact in zip(photos, facts, strict=True)]


def _digest(photos: list[Path]) -> str:
    """Of names, sizes and times: photos are many megabytes."""
    text = "".join(f"{p.name} {p.stat().st_size} {p.stat().st_mtime_ns}\n" for p in photos)
    return hashlib.sha256(text.encode()).hexdigest()


def _facts(path: Path) -> PhotoFacts | None:
    try:
        return photo_facts(path.read_bytes())
    except ValueError:
        return None


def _unposed(path: Path, facts: PhotoFacts | None, fov_deg: float) -> SourceFrame:
    if facts is None:
        return SourceFrame(path, problem="not a JPEG, PNG or WebP picture")
    focal = facts.focal_px or max(facts.width, facts.height) / 2 / math.tan(math.radians(fov_deg) / 2)
    fxfycxcy = (focal, focal, facts.width / 2, facts.height / 2)
    lens = Lens(facts.width, facts.height, fxfycxcy, (0.0,) * len(PERSPECTIVE))
    return SourceFrame(path, lens, orientation=facts.orientation)


def _posed(path: Path, frames: dict[str, SourceFrame]) -> SourceFrame:
    return frames.get(path.name) or SourceFrame(path, problem="structure from motion found no pose for it")
