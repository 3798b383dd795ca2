"""Pictures with cameras in files of other programs -> the folders of `convert.py`, without distortion.

An importer finds scenes and says for each frame where its picture is, through which lens it was taken and from where;
this module does the rest, alike for all: pictures are undistorted, a scene appears whole or not at all, a frame that
cannot be used keeps its place, and nothing in the source is touched.

Public: ImportOptions, SourceFrame, SourceScene, ImportedScene, import_scenes, picture_in.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..files import read_bytes, read_json
from .chunks import key_problem
from .convert import Report, data_set_folder, missing_entry, missing_frames, write_scene
from .exif import UPRIGHT, upright
from .lens import Lens, Undistorter
from .parallel import parallel_map
from .scene import FrameError, camera_problem
from .transforms import decode_pixels, image_header

JPEG_QUALITY = 95
"""Of pictures whose distortion was removed."""


@dataclass(frozen=True)
class ImportOptions:
    """What to convert, and how.

    source: folder of scenes, or one scene. target: `<output_dir>/<mode>`.
    format: one of `import_formats.FORMATS`.
    images: folder of pictures in each scene; where a scene has none of that name, its files decide.
    image_format: "jpeg" keeps bytes that need no change and writes the others in their own format, "png" all as PNG.
    fov_deg: photos that do not say their focal length: field of view along their longer side.
    poses: photos: "none", or "colmap": found by structure from motion.
    """

    source: Path
    target: Path
    format: str
    images: str = "images_4"
    image_format: str = "jpeg"
    fov_deg: float = 60.0
    poses: str = "none"


@dataclass(frozen=True)
class SourceFrame:
    """One picture. lens: None if `problem` says why the frame is unusable. w2c: OpenCV axes, [4, 4]; None: unknown.

    orientation: EXIF's number of how the picture is stored; it is turned upright, and `lens` is that of the turned one.
    """

    path: Path | None
    lens: Lens | None = None
    w2c: np.ndarray | None = None
    problem: str = ""
    orientation: int = UPRIGHT


@dataclass(frozen=True)
class SourceScene:
    """The frames of a scene, in order.

    made_by: of what it was made; if that changes, the scene is done again.
    posed: whether its frames have poses; all or none do.
    """

    frames: list[SourceFrame]
    made_by: dict = field(default_factory=dict)
    posed: bool = True


Lenses = dict[tuple, Undistorter]
"""What frames of one lens and size share."""
Reader = Callable[[Path, ImportOptions], SourceScene]
"""Folder of a scene -> its frames; raises ValueError or OSError if it is no scene."""


def import_scenes(
    scenes: dict[str, Path], read: Reader, options: ImportOptions, num_processes: int
) -> Report:
    """Convert every scene that is not finished yet. Can be stopped and started again at any time.

    Args:
        scenes: name -> folder.
        num_processes: scenes converted at the same time.

    Raises:
        ConfigError: another conversion is writing to the same folder.
    """
    report = Report()
    with data_set_folder(options.target), tqdm(total=len(scenes), unit="scene", desc="importing") as bar:
        work = partial(_import_scene, read, options)
        for _, result in parallel_map(work, scenes.items(), min(num_processes, len(scenes)), ahead=1):
            report.add(result)
            bar.update()
    for problems in (report.bad_scenes, report.bad_frames):
        problems.sort()
    return report


def picture_in(folder: Path, images: str, name: str) -> Path:
    """Where a picture that a file names is: in the folder `images` under its last name, else where the file says."""
    return folder / images / Path(name).name if images and (folder / images).is_dir() else folder / name


def _import_scene(read: Reader, options: ImportOptions, item: tuple[str, Path]) -> Report:
    key, folder = item
    report = Report()
    try:
        if problem := key_problem(key):
            raise ValueError(f"its name {problem}")
        scene = read(folder, options)
        made_by = _made_by(options, scene)
        finished = _finished(options.target, key, made_by)
        if finished is not None:
            report.kept += 1
            report.bad_frames += missing_frames(key, finished)
            return report
        write = partial(_write_frame, options, key, scene, {})
        about = {"made_by": made_by} if scene.posed else {"made_by": made_by, "posed": False}
        problem = write_scene(options.target, key, len(scene.frames), write, report, about)
    except (ValueError, OSError) as error:
        problem = (error.strerror if isinstance(error, OSError) else None) or str(error)
    if problem:
        report.bad_scenes.append((key, problem))
    return report


def _made_by(options: ImportOptions, scene: SourceScene) -> dict:
    """What a finished scene was made of: if it changes, or further pictures arrive, the scene is done again."""
    return {
        "importer": options.format,
        **scene.made_by,
        "pictures": sum(frame.path is not None and frame.path.is_file() for frame in scene.frames),
        "image_format": options.image_format,
    }


def _finished(target: Path, key: str, made_by: dict) -> list[dict] | None:
    """The frames of a scene that an earlier run finished from the same files, None if it has to be done."""
    try:
        content = read_json(target / "metadata" / f"{key}.json")
        sizes = {file.name: file.stat().st_size for file in os.scandir(target / "images" / key)}
        frames = content["frames"]
        written = [frame["image_path"] for frame in frames if not frame.get("missing")]
        whole = all(
            path == f"../images/{key}/{Path(path).name}" and sizes.get(Path(path).name) for path in written
        )
        return frames if whole and content["made_by"] == made_by else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # whatever a damaged file holds
        return None


# ----------------------------------------------------------------------------------------------- one frame


def _write_frame(
    options: ImportOptions, key: str, scene: SourceScene, lenses: Lenses, number: int, folder: Path
) -> dict:
    """Write one picture; its entry in the metadata. `lenses` keeps what frames share."""
    frame = scene.frames[number]
    try:
        picture = _develop(frame, lenses)
        kind = "PNG" if options.image_format == "png" or picture.kind not in ("JPEG", "PNG") else picture.kind
        data = picture.data if picture.untouched and kind == picture.kind else _encode(picture.pixels, kind)
    except ValueError as error:
        return missing_entry(error)
    name = f"{number:05d}{'.jpg' if kind == 'JPEG' else '.png'}"
    (folder / name).write_bytes(data)
    return {
        "image_path": f"../images/{key}/{name}",
        "fxfycxcy": picture.fxfycxcy.tolist(),
        "w2c": None if frame.w2c is None else frame.w2c.tolist(),
        "source": frame.path.name,
    }


class _Picture(NamedTuple):
    """A picture without distortion. data: the bytes of the file, which say the same if it is `untouched`."""

    pixels: np.ndarray
    fxfycxcy: np.ndarray
    data: bytes
    kind: str
    untouched: bool


def _develop(frame: SourceFrame, lenses: Lenses) -> _Picture:
    """Read a picture, turn it upright, take the distortion out. Raises ValueError if it cannot be used."""
    if frame.problem:
        raise ValueError(frame.problem)
    data = _read(frame.path)
    kind = image_header(data)[2]
    pixels = upright(decode_pixels(data), frame.orientation)
    undistort = _undistorter(frame.lens, pixels.shape[1], pixels.shape[0], lenses)
    if problem := camera_problem(undistort.fxfycxcy, _pose(frame)):
        raise ValueError(problem)
    untouched = undistort.identity and frame.orientation == UPRIGHT
    return _Picture(undistort(pixels), undistort.fxfycxcy, data, kind, untouched)


def _pose(frame: SourceFrame) -> np.ndarray:
    return np.eye(4) if frame.w2c is None else frame.w2c


def _undistorter(lens: Lens, width: int, height: int, known: Lenses) -> Undistorter:
    """That of the frames before, where it is the same; one is megabytes, so only the last is kept."""
    if (lens, width, height) not in known:
        known.clear()
        known[lens, width, height] = Undistorter(lens, width, height)
    return known[lens, width, height]


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except FileNotFoundError:
        raise ValueError(f"{path.parent.name}/{path.name} is not there") from None


def _encode(pixels: np.ndarray, kind: str) -> bytes:
    if kind == "JPEG" and pixels.shape[2] == 4:
        raise ValueError("a JPEG with transparency")
    buffer = io.BytesIO()
    settings = {"quality": JPEG_QUALITY} if kind == "JPEG" else {"compress_level": 1}
    Image.fromarray(pixels).save(buffer, format=kind, **settings)
    return buffer.getvalue()


class ImportedScene:
    """The frames of an importer, read in place instead of converted. Implements `Scene`."""

    def __init__(self, name: str, scene: SourceScene) -> None:
        self.name, self.frames, self.posed = name, scene.frames, scene.posed
        self.num_frames = len(scene.frames)
        self.lenses: Lenses = {}
        self.last: tuple[int, _Picture] | None = None

    def source(self, frame: int) -> str:
        """File name of the picture, "" if there is none."""
        path = self.frames[frame].path
        return path.name if path else ""

    def missing(self, frame: int) -> str:
        return self.frames[frame].problem

    def camera(self, frame: int) -> tuple[np.ndarray, np.ndarray]:
        """Raises FrameError if the picture, which decides about the intrinsics, cannot be used."""
        return self._picture(frame).fxfycxcy, _pose(self.frames[frame])

    def encoded(self, frame: int) -> bytes:
        """Raises FrameError if the picture cannot be used."""
        picture = self._picture(frame)
        return picture.data if picture.untouched else _encode(picture.pixels, "PNG")

    def _picture(self, frame: int) -> _Picture:
        if self.last is None or self.last[0] != frame:  # camera and picture are asked for one after the other
            try:
                self.last = frame, _develop(self.frames[frame], self.lenses)
            except (ValueError, OSError) as error:
                raise FrameError(f"frame {frame}: {error}") from error
        return self.last[1]
