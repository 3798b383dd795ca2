"""Which programs' files can be imported: one line a format.

Public: FORMATS, Importer, import_from, read_in_place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..config import ConfigError
from . import import_colmap, import_opencv, import_photos, import_transforms
from .convert import Report
from .importing import ImportedScene, ImportOptions, Reader, SourceScene, import_scenes


@dataclass(frozen=True)
class Importer:
    """find: source folder -> {scene: folder}; read: folder -> its frames; expected: what `find` looks for."""

    find: Callable[[Path], dict[str, Path]]
    read: Reader
    expected: str


FORMATS: dict[str, Importer] = {
    "dl3dv": Importer(
        import_transforms.find_scenes, import_transforms.read_dl3dv, import_transforms.EXPECTED
    ),
    "nerfstudio": Importer(
        import_transforms.find_scenes, import_transforms.read_scene, import_transforms.EXPECTED
    ),
    "colmap": Importer(import_colmap.find_scenes, import_colmap.read_scene, import_colmap.EXPECTED),
    "opencv": Importer(import_opencv.find_scenes, import_opencv.read_scene, import_opencv.EXPECTED),
    "images": Importer(import_photos.find_scenes, import_photos.read_scene, import_photos.EXPECTED),
}


def import_from(options: ImportOptions, num_processes: int) -> Report:
    """Convert every scene of `options.source` that is not finished yet.

    Args:
        num_processes: scenes converted at the same time.

    Raises:
        ConfigError: no scenes, or another conversion is writing to the same folder.
    """
    importer = FORMATS[options.format]
    if not options.source.is_dir():
        raise ConfigError(f"{options.source}: no such folder.")
    scenes = importer.find(options.source)
    if not scenes:
        raise ConfigError(
            f"{options.source} holds no scenes of format {options.format}: expected {importer.expected}."
        )
    return import_scenes(scenes, importer.read, options, num_processes)


def read_in_place(name: str, place: Path, photos: list[Path], fov_deg: float) -> ImportedScene:
    """A scene without converting it.

    Args:
        name: of FORMATS. place: its folder; for `images` the `photos` count instead.

    Raises:
        ValueError, OSError: it is no scene of this format.
    """
    if name == "images":
        return ImportedScene(
            "photos", SourceScene(import_photos.unposed_frames(photos, fov_deg), posed=False)
        )
    options = ImportOptions(source=place, target=place, format=name)
    return ImportedScene(place.resolve().name, FORMATS[name].read(place, options))
