"""DL3DV's benchmark layout, and nerfstudio folders like it -> the folders of `convert.py`, without distortion.

    <source>/<scene>/nerfstudio/transforms.json     or <source>/<scene>/transforms.json
    <source>/<scene>/nerfstudio/images_4/<name>     pictures, in any size; else where `file_path` says

`transforms.json` states size, intrinsics and distortion of the full-size pictures (w, h, fl_x, fl_y, cx, cy, k1..k6, p1,
p2, camera_model; a frame may have its own) and camera-to-world matrices with OpenGL axes. Nothing in the source is
touched; a scene that is finished is kept; a frame that cannot be used keeps its place.

Public: ImportOptions, import_scenes, find_scenes, read_lens, opencv_w2c.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..config import ConfigError
from .chunks import key_problem
from .convert import Report, data_set_folder, missing_entry, missing_frames, write_scene
from .lens import FISHEYE, PERSPECTIVE, Lens, Undistorter
from .objects import is_below
from .parallel import parallel_map
from .scene import camera_problem
from .transforms import decode_pixels, image_header

TRANSFORMS = "transforms.json"
JPEG_QUALITY = 95
"""Of pictures whose distortion was removed."""


@dataclass(frozen=True)
class ImportOptions:
    """What to convert, and how.

    source: folder of scenes, or one scene. target: `<output_dir>/<mode>`.
    images: folder of pictures beside `transforms.json`; where a scene has none of that name, `file_path` decides.
    image_format: "jpeg" keeps bytes that need no change and writes the others in their own format, "png" all as PNG.
    undo_world: bring the world back to COLMAP's axes (nerfstudio turned it), as published for DL3DV; false: the world
        of the file.
    sort: order the frames by the number at the end of their names; false: the order of the file.
    """

    source: Path
    target: Path
    images: str = "images_4"
    image_format: str = "jpeg"
    undo_world: bool = True
    sort: bool = True


def find_scenes(source: Path) -> dict[str, Path]:
    """Scene name -> folder of its `transforms.json`.

    Raises:
        ConfigError: there are none.
    """
    if not source.is_dir():
        raise ConfigError(f"{source}: no such folder.")
    found = {}
    for folder in [source, *sorted(path for path in source.iterdir() if path.is_dir())]:
        for place in (folder / "nerfstudio", folder):
            if (place / TRANSFORMS).is_file() and folder.name != "nerfstudio":
                found[folder.resolve().name] = place
                break
    if not found:
        raise ConfigError(
            f"{source} holds no scenes: expected <scene>/nerfstudio/{TRANSFORMS} or <scene>/{TRANSFORMS}."
        )
    return found


def import_scenes(options: ImportOptions, num_processes: int) -> Report:
    """Convert every scene that is not finished yet. Can be stopped and started again at any time.

    Args:
        num_processes: scenes converted at the same time.

    Raises:
        ConfigError: no scenes, or another conversion is writing to the same folder.
    """
    scenes, report = find_scenes(options.source), Report()
    with data_set_folder(options.target), tqdm(total=len(scenes), unit="scene", desc="importing") as bar:
        work = partial(_import_scene, options)
        for _, result in parallel_map(work, scenes.items(), min(num_processes, len(scenes)), ahead=1):
            report.add(result)
            bar.update()
    for problems in (report.bad_scenes, report.bad_frames):
        problems.sort()
    return report


def _import_scene(options: ImportOptions, item: tuple[str, Path]) -> Report:
    key, folder = item
    report = Report()
    try:
        if problem := key_problem(key):
            raise ValueError(f"its name {problem}")
        content = (folder / TRANSFORMS).read_bytes()
        tree = _transforms(content, options.sort)
        paths = [_picture(folder, options.images, frame) for frame in tree["frames"]]
        made_by = _made_by(options, content, paths)
        finished = _finished(options.target, key, made_by)
        if finished is not None:
            report.kept += 1
            report.bad_frames += missing_frames(key, finished)
            return report
        write = partial(_write_frame, options, key, tree, paths, {})
        problem = write_scene(options.target, key, len(paths), write, report, made_by)
    except (ValueError, OSError) as error:
        problem = (error.strerror if isinstance(error, OSError) else None) or str(error)
    if problem:
        report.bad_scenes.append((key, problem))
    return report


def _transforms(content: bytes, sort: bool) -> dict[str, Any]:
    """Raises ValueError if it is no `transforms.json`."""
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{TRANSFORMS} is not JSON ({error})") from error
    frames = tree.get("frames") if isinstance(tree, dict) else None
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise ValueError(f"{TRANSFORMS}: expected an object with a list of frames")
    numbers = [re.search(r"(\d+)\.\w+$", str(frame.get("file_path"))) for frame in frames]
    if sort and all(numbers):
        order = sorted(range(len(frames)), key=lambda i: int(numbers[i][1]))
        tree["frames"] = [frames[i] for i in order]
    return tree


def _picture(folder: Path, images: str, frame: dict) -> Path | None:
    """Where the picture of a frame should be; None: its path leads out of the scene."""
    path = frame.get("file_path")
    if not is_below(path):
        return None
    return folder / images / PurePosixPath(path).name if (folder / images).is_dir() else folder / path


def _made_by(options: ImportOptions, content: bytes, paths: list[Path | None]) -> dict:
    """What a finished scene was made of: if it changes, or further pictures arrive, the scene is done again."""
    return {
        "importer": "dl3dv",
        "transforms_sha256": hashlib.sha256(content).hexdigest(),
        "pictures": sum(path is not None and path.is_file() for path in paths),
        "images": options.images,
        "image_format": options.image_format,
        "undo_world": options.undo_world,
        "sort": options.sort,
    }


def _finished(target: Path, key: str, made_by: dict) -> list[dict] | None:
    """The frames of a scene that an earlier run finished from the same files, None if it has to be done."""
    try:
        content = json.loads((target / "metadata" / f"{key}.json").read_bytes())
        sizes = {file.name: file.stat().st_size for file in os.scandir(target / "images" / key)}
        frames = content["frames"]
        written = [frame["image_path"] for frame in frames if not frame.get("missing")]
        whole = all(
            path == f"../images/{key}/{Path(path).name}" and sizes.get(Path(path).name) for path in written
        )
        return frames if whole and content["made_by"] == made_by else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


# ----------------------------------------------------------------------------------------------- one frame


def _write_frame(
    options: ImportOptions,
    key: str,
    tree: dict,
    paths: list[Path | None],
    lenses: dict[tuple, Undistorter],
    number: int,
    folder: Path,
) -> dict:
    """Write one picture; its entry in the metadata. `lenses` keeps what frames share."""
    frame, path = tree["frames"][number], paths[number]
    try:
        if path is None:
            raise ValueError(f"file_path {str(frame.get('file_path'))[:80]!r} leads out of its folder")
        w2c = opencv_w2c(frame.get("transform_matrix"), undo_world=options.undo_world)
        data = _read(path)
        width, height, kind = image_header(data)
        lens = read_lens(tree, frame)
        undistort = _undistorter(lens, width, height, lenses)
        if problem := camera_problem(undistort.fxfycxcy, w2c):
            raise ValueError(problem)
        pixels = decode_pixels(data)
    except ValueError as error:
        return missing_entry(error)
    as_png = options.image_format == "png" or kind not in ("JPEG", "PNG")
    kind = "PNG" if as_png else kind
    if as_png or not undistort.identity:
        data = _encode(undistort(pixels), kind)
    name = f"{number:05d}{'.jpg' if kind == 'JPEG' else '.png'}"
    (folder / name).write_bytes(data)
    return {
        "image_path": f"../images/{key}/{name}",
        "fxfycxcy": undistort.fxfycxcy.tolist(),
        "w2c": w2c.tolist(),
        "source": path.name,
    }


def _undistorter(lens: Lens, width: int, height: int, known: dict[tuple, Undistorter]) -> Undistorter:
    """That of the frames before, where it is the same; one is megabytes, so only the last is kept."""
    if (lens, width, height) not in known:
        known.clear()
        known[lens, width, height] = Undistorter(lens, width, height)
    return known[lens, width, height]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path.parent.name}/{path.name} is not there") from None


def _encode(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    settings = {"quality": JPEG_QUALITY} if kind == "JPEG" else {"compress_level": 1}
    Image.fromarray(pixels).save(buffer, format=kind, **settings)
    return buffer.getvalue()


def read_lens(tree: dict, frame: dict) -> Lens:
    """The lens of a frame; its own numbers come before those of the file.

    Raises:
        ValueError: numbers are missing or make no camera, or the camera model is not one of OpenCV's.
    """
    stated = {**tree, **frame}
    model = str(stated.get("camera_model") or "OPENCV").upper()
    fisheye = "FISHEYE" in model
    if not fisheye and model not in (
        "OPENCV",
        "FULL_OPENCV",
        "PINHOLE",
        "SIMPLE_PINHOLE",
        "SIMPLE_RADIAL",
        "RADIAL",
    ):
        raise ValueError(f"camera_model {model[:40]} is not known: expected one of OpenCV's")
    try:
        width, height = float(stated["w"]), float(stated["h"])
        focal = float(stated["fl_x"])
        centre = [float(stated.get(name, side / 2)) for name, side in (("cx", width), ("cy", height))]
        fxfycxcy = (focal, float(stated.get("fl_y", focal)), *centre)
        coefficients = tuple(float(stated.get(name) or 0) for name in (FISHEYE if fisheye else PERSPECTIVE))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{TRANSFORMS} has no usable w, h, fl_x or distortion ({error!r})") from error
    return Lens(width, height, fxfycxcy, coefficients, fisheye)


def opencv_w2c(transform_matrix: object, *, undo_world: bool) -> np.ndarray:
    """World to camera, OpenCV axes, of a camera-to-world matrix with OpenGL axes (x right, y up, z backward). [4, 4]

    Args:
        undo_world: also exchange the world's x and y and turn its z around, which nerfstudio had done to COLMAP's world.

    Raises:
        ValueError: it is no such matrix.
    """
    try:
        c2w = np.array(transform_matrix, dtype=np.float64)
    except (TypeError, ValueError):
        c2w = np.empty(0)
    if c2w.shape not in ((4, 4), (3, 4)):
        raise ValueError("transform_matrix is not a 4x4 matrix")
    c2w = np.concatenate([c2w[:3], [[0, 0, 0, 1]]]) * np.array([1, -1, -1, 1])
    if undo_world:
        c2w = c2w[[1, 0, 2, 3]] * np.array([[1], [1], [-1], [1]])
    try:
        return np.linalg.inv(c2w)
    except np.linalg.LinAlgError:
        raise ValueError("camera rotation is singular") from None
