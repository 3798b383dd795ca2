"""A data set with smaller pictures: the shorter side brought to a size, or pictures cropped to one shape.

Works on folders of chunks (also on a root with `train` and `test`) and on a converted `full_list.txt`; the copy is of
the same kind. Intrinsics follow the pictures, `meta.json` states the new shape, and finished chunks or scenes are kept,
so an interrupted run goes on. Pictures that need no change keep their bytes: they are not compressed a second time. A
picture that cannot be used keeps its place, empty, so that frame numbers of evaluation indices stay true.

Public: Recipe, Report, rescale.
"""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ..config import ConfigError
from ..files import exclusive, replacing, write_bytes, write_text
from .chunks import ChunkError, RawScene, find_chunks, frame_camera, open_chunk, raw_scenes, stage_folders
from .meta import write_meta
from .parallel import parallel_map, stopping
from .scene import JsonScene, ListedScenes, SceneError
from .transforms import cover_and_crop, decode_image, image_header


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What becomes of a picture.

    min_size: length of the shorter side, pixels; the longer side follows, rounded. 0 with `shape`.
    shape: (height, width) that the picture is scaled to cover and then cropped to at its centre.
    image_format: "jpeg" (of `quality`, 4:4:4) or "png" (without loss).
    """

    min_size: int = 0
    shape: tuple[int, ...] = ()
    image_format: str = "jpeg"
    quality: int = 95

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) of what becomes of a picture of that size."""
        if self.shape:
            return self.shape[0], self.shape[1]
        scale = self.min_size / min(width, height)
        return round(height * scale), round(width * scale)

    def apply(self, data: bytes, fxfycxcy: np.ndarray) -> tuple[bytes, np.ndarray, tuple[int, int]]:
        """Encoded picture and intrinsics (pixels) -> the new ones, and the new (height, width).

        Raises:
            ValueError: the picture cannot be decoded, or it would have to be enlarged.
        """
        width, height, _ = image_header(data)
        new_height, new_width = self.size(width, height)
        if (new_height, new_width) == (height, width):
            return data, fxfycxcy, (height, width)
        if new_height > height or new_width > width:
            raise ValueError(f"{width}x{height} would have to be enlarged to {new_width}x{new_height}")
        image, fxfycxcy = cover_and_crop(decode_image(data), fxfycxcy, new_height, new_width)
        return self._encoded(image), fxfycxcy, (new_height, new_width)

    def _encoded(self, image: np.ndarray) -> bytes:
        buffer, picture = io.BytesIO(), Image.fromarray(image)
        if self.image_format == "png":
            picture.save(buffer, format="PNG", compress_level=6)
        else:
            picture.save(buffer, format="JPEG", quality=self.quality, subsampling=0)
        return buffer.getvalue()


@dataclass
class Report:
    """What happened: pictures written, whole chunks or scenes that were there already, problems as (where, why)."""

    pictures: int = 0
    kept: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """Take over the counts of another report."""
        self.pictures += other.pictures
        self.kept += other.kept
        self.problems += other.problems


def rescale(source: Path, target: Path, recipe: Recipe, num_processes: int) -> Report:
    """Write a copy of a data set with other pictures. Can be stopped and started again at any time.

    Args:
        source: folder of chunks, folder of such folders (`train`, `test`), or a `full_list.txt`.
        target: folder of the copy.

    Raises:
        ConfigError: no data set, pictures of another recipe in `target`, or somebody else is writing there.
    """
    if os.path.realpath(source) in map(os.path.realpath, (target, target / "full_list.txt")):
        raise ConfigError(f"{target} is the data set itself: name another folder.")
    work = _listed_tasks(source, target) if source.is_file() else _chunk_tasks(source, target)
    target.mkdir(parents=True, exist_ok=True)
    with exclusive(target / ".lock", wait=False) as free:
        if not free:
            raise ConfigError(f"{target}: another process is writing here. Wait for it, or stop it.")
        made_with = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(recipe).items()}
        shape = recipe.size(*_first_size(source))
        write_meta(target, *shape, made_with)
        report = Report()
        one = _listed_scene if source.is_file() else _chunk
        with tqdm(total=len(work), unit="scene" if source.is_file() else "chunk", desc="rescaling") as bar:
            for _, result in parallel_map(functools.partial(one, recipe, shape), work, num_processes):
                report.add(result)
                bar.update()
        _write_lists(source, target)
    report.problems.sort()
    return report


def _first_size(source: Path) -> tuple[int, int]:
    """(width, height) of the first picture of a data set that can be read."""
    if source.is_file():
        scenes = ListedScenes(source)
        pictures = (
            scenes[n].encoded(frame)
            for n in range(len(scenes))
            for frame in range(scenes[n].num_frames)
            if not scenes[n].missing(frame)
        )
    else:
        chunks = (path for _, folder in stage_folders(source) for path in find_chunks(folder))
        found = (
            scene for path in chunks for scene in raw_scenes(open_chunk(path)) if isinstance(scene, RawScene)
        )
        pictures = (bytes(image.numpy()) for scene in found for image in scene.images if image is not None)
    for data in pictures:
        try:
            return image_header(data)[:2]
        except ValueError:
            continue
    raise ConfigError(f"{source}: none of its pictures can be read.")


def _write_lists(source: Path, target: Path) -> None:
    """`full_list.txt`, or in each folder of chunks an `index.json` of the scenes that are there."""
    if source.is_file():
        names = sorted(path.name for path in (target / "metadata").glob("*.json") if path.name[0] != ".")
        write_text(target / "full_list.txt", "".join(f"metadata/{name}\n" for name in names))
        return
    for stage, _ in stage_folders(source):
        chunks = find_chunks(target / stage)
        index = {
            scene.key: path.name
            for path in chunks
            for scene in raw_scenes(open_chunk(path))
            if isinstance(scene, RawScene)
        }
        write_text(target / stage / "index.json", json.dumps(index) + "\n")


# ----------------------------------------------------------------------------------------------- chunks


def _chunk_tasks(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """(chunk, its copy) of every stage; copies are `.torch` files."""
    pairs = [
        (path, target / stage) for stage, folder in stage_folders(source) for path in find_chunks(folder)
    ]
    for folder in {folder for _, folder in pairs}:
        folder.mkdir(parents=True, exist_ok=True)
    return [(path, folder / f"{path.stem}.torch") for path, folder in pairs]


def _chunk(recipe: Recipe, shape: tuple[int, int], task: tuple[Path, Path]) -> Report:
    """Rescale one chunk; a scene that cannot be used is left out."""
    path, copy = task
    report = Report()
    if copy.is_file():
        return Report(kept=1)
    try:
        chunk = open_chunk(path)
    except (ChunkError, OSError) as error:
        report.problems.append((path.name, str(error)))
        return report
    scenes: list[dict] = []
    for entry, scene in zip(chunk, raw_scenes(chunk)):
        if stopping():
            return report
        if isinstance(scene, SceneError):
            report.problems.append((path.name, str(scene)))
        else:
            scenes.append({**entry, **_raw_scene(recipe, shape, scene, report)})
    with replacing(copy) as temporary:
        torch.save(scenes, temporary)
    return report


def _raw_scene(recipe: Recipe, shape: tuple[int, int], scene: RawScene, report: Report) -> dict[str, Any]:
    """Cameras and images of a scene with other pictures."""
    cameras, images = scene.cameras.copy(), []
    for number, image in enumerate(scene.images):
        try:
            data, fxfycxcy = _frame(recipe, shape, image, cameras[number])
        except ValueError as error:
            report.problems.append((f"{scene.key} frame {number}", str(error)))
            images.append(torch.empty(0, dtype=torch.uint8))
            continue
        if recipe.shape:  # scaling alone leaves them, divided by width and height, as they are
            cameras[number, :4] = fxfycxcy
        images.append(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        report.pictures += 1
    return {"cameras": torch.from_numpy(cameras), "images": images}


def _frame(
    recipe: Recipe, shape: tuple[int, int], image: torch.Tensor | None, camera: np.ndarray
) -> tuple[bytes, np.ndarray]:
    """New bytes, and intrinsics divided by the new width and height."""
    if image is None:
        raise ValueError("no image bytes")
    data = bytes(image.numpy())
    width, height, _ = image_header(data)
    data, fxfycxcy, size = recipe.apply(data, frame_camera(camera, width, height)[0])
    _check_shape(size, shape)
    return data, fxfycxcy / [size[1], size[0], size[1], size[0]]


def _check_shape(size: tuple[int, int], shape: tuple[int, int]) -> None:
    if size != shape:
        raise ValueError(
            f"its shape becomes {size[1]}x{size[0]}, that of the first picture {shape[1]}x{shape[0]}"
        )


# ----------------------------------------------------------------------------------------------- converted scenes


def _listed_tasks(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """(metadata file, folder of the copy) of every scene."""
    scenes = ListedScenes(source)
    for name in ("images", "metadata"):
        (target / name).mkdir(parents=True, exist_ok=True)
    return [(scenes.metadata_path(position), target) for position in range(len(scenes))]


def _listed_scene(recipe: Recipe, shape: tuple[int, int], task: tuple[Path, Path]) -> Report:
    """Rescale one converted scene; it appears whole or not at all."""
    path, target = task
    name = path.name.removesuffix(".json")
    metadata, images = target / "metadata" / path.name, target / "images" / name
    if metadata.is_file():
        return Report(kept=1)
    report, partial = Report(), images.with_name(f".{name}.partial")
    for leftover in (partial, images):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        scene = JsonScene(path, name)
    except SceneError as error:
        return Report(problems=[(name, str(error))])
    partial.mkdir()
    frames = []
    for number in range(scene.num_frames):
        if stopping():
            return report
        frames.append(_listed_frame(recipe, shape, scene, number, partial, report))
    os.replace(partial, images)
    content = json.dumps({"scene_name": name, "frames": frames}, indent=4)
    write_bytes(metadata, content.encode(), sync=True)
    return report


def _listed_frame(
    recipe: Recipe, shape: tuple[int, int], scene: JsonScene, number: int, folder: Path, report: Report
) -> dict:
    """Write one picture; its entry in the metadata."""
    try:
        if reason := scene.missing(number):
            raise ValueError(reason)
        fxfycxcy, w2c = scene.camera(number)
        data, fxfycxcy, size = recipe.apply(scene.encoded(number), fxfycxcy)
        _check_shape(size, shape)
    except ValueError as error:
        report.problems.append((f"{scene.name} frame {number}", str(error)))
        return {"image_path": None, "fxfycxcy": None, "w2c": None, "missing": True, "reason": str(error)}
    suffix = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}[image_header(data)[2]]
    (folder / f"{number:05d}{suffix}").write_bytes(data)
    report.pictures += 1
    path = f"../images/{scene.name}/{number:05d}{suffix}"
    return {"image_path": path, "fxfycxcy": fxfycxcy.tolist(), "w2c": w2c.tolist()}
