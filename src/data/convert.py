"""Raw chunks -> one folder of pictures and one metadata file per scene, as the published tools lay them out.

    <output_dir>/<mode>/images/<key>/00000.jpg   the original bytes, or PNG of the decoded pixels
    <output_dir>/<mode>/metadata/<key>.json      scene_name, frames [image_path, fxfycxcy in pixels, w2c 4x4]
    <output_dir>/<mode>/full_list.txt            metadata files, one per line

Unlike there, paths are relative (image_path to the metadata file, lines to the list), a frame that cannot be used
keeps its place and is marked missing, and a scene appears whole or not at all: its metadata is written last.

Public: Options, Report, convert; for other importers: data_set_folder, write_scene, missing_frames, missing_entry.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..config import ConfigError
from ..files import exclusive, read_json, write_bytes
from .chunks import ChunkError, RawScene, find_chunks, frame_camera, open_chunk, raw_scenes
from .parallel import parallel_map, stopping
from .scene import SceneError, camera_problem
from .transforms import checked_header, decode_image, image_header

SUFFIX = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}


@dataclass(frozen=True)
class Options:
    """What to convert, and how.

    source: folder of `.torch` chunks. target: `<output_dir>/<mode>`.
    image_format: "jpeg" keeps the original bytes, "png" decodes and encodes again.
    verify: "decode" finds every damaged picture, "header" only those without a readable header (faster).
    """

    source: Path
    target: Path
    image_format: str = "jpeg"
    verify: str = "decode"


@dataclass
class Report:
    """What happened. Problems are (where, why)."""

    written: int = 0
    kept: int = 0
    bad_chunks: list[tuple[str, str]] = field(default_factory=list)
    bad_scenes: list[tuple[str, str]] = field(default_factory=list)
    bad_frames: list[tuple[str, str]] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether anything in the chunks could not be converted."""
        return bool(self.bad_chunks or self.bad_scenes or self.bad_frames)

    def add(self, other: Report) -> None:
        """Take over the counts of another report."""
        self.written += other.written
        self.kept += other.kept
        for name in ("bad_chunks", "bad_scenes", "bad_frames"):
            getattr(self, name).extend(getattr(other, name))


def convert(options: Options, num_processes: int, chunk_size: int) -> Report:
    """Convert every scene that is not finished yet. Can be stopped and started again at any time.

    Args:
        num_processes: chunks converted at the same time.
        chunk_size: chunk files handed to each process ahead of time.

    Raises:
        ConfigError: no chunks, or another conversion is writing to the same folder.
    """
    chunks = find_chunks(options.source)
    with data_set_folder(options.target):
        return _convert_all(options, chunks, num_processes, chunk_size)


@contextmanager
def data_set_folder(target: Path) -> Iterator[None]:
    """While it is open, scenes may be written into `target`; at the end all that are whole are listed.

    Raises:
        ConfigError: another conversion is writing there.
    """
    for name in ("images", "metadata"):
        (target / name).mkdir(parents=True, exist_ok=True)
    with exclusive(target / ".lock", wait=False) as free:
        if not free:
            raise ConfigError(f"{target}: another conversion is writing here. Wait for it, or stop it.")
        for leftover in [*target.glob("images/.*.partial"), *target.glob("metadata/.*.tmp.json")]:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        try:
            yield
        finally:
            _write_list(target)


def _convert_all(options: Options, chunks: list[Path], num_processes: int, chunk_size: int) -> Report:
    report, num_processes = Report(), min(num_processes, len(chunks))
    tasks = _survey(chunks, num_processes, chunk_size, report)
    work = partial(_convert_chunk, options)
    with tqdm(total=sum(len(keys) for _, keys in tasks), unit="scene", desc="converting") as bar:
        for (_, keys), result in parallel_map(work, tasks, num_processes, ahead=chunk_size):
            report.add(result)
            bar.update(len(keys))
    for problems in (report.bad_chunks, report.bad_scenes, report.bad_frames):
        problems.sort()
    return report


def _survey(
    chunks: list[Path], num_processes: int, ahead: int, report: Report
) -> list[tuple[Path, list[str]]]:
    """The scenes of each chunk. A name that comes twice belongs to the first chunk that has it."""
    listed = {}
    with tqdm(total=len(chunks), unit="chunk", desc="reading scene lists") as bar:
        for path, result in parallel_map(_scene_keys, chunks, num_processes, ahead=ahead):
            listed[path] = result
            bar.update()
    owner: dict[str, str] = {}
    tasks = []
    for path in chunks:
        keys, problem = listed[path]
        if problem:
            report.bad_chunks.append((path.name, problem))
            continue
        own = []
        for key in keys:
            if key in owner:
                report.bad_scenes.append((path.name, f"scene {key} is already in {owner[key]}"))
            else:
                owner[key] = path.name
                own.append(key)
        tasks.append((path, own))
    return tasks


def _scene_keys(path: Path) -> tuple[list[str], str]:
    """Names of a chunk's usable scenes, or why it cannot be read."""
    try:
        return [scene.key for scene in raw_scenes(open_chunk(path)) if isinstance(scene, RawScene)], ""
    except (ChunkError, OSError) as error:
        return [], str(error)


def _convert_chunk(options: Options, task: tuple[Path, list[str]]) -> Report:
    """Convert the scenes of one chunk whose names are given."""
    path, keys = task
    report, todo = Report(), set(keys)
    try:
        scenes = raw_scenes(open_chunk(path))
    except (ChunkError, OSError) as error:
        report.bad_chunks.append((path.name, str(error)))
        return report
    for scene in scenes:
        if stopping():
            break
        if isinstance(scene, SceneError):
            report.bad_scenes.append((path.name, str(scene)))
        elif scene.key in todo:
            todo.remove(scene.key)
            try:
                _convert_scene(options, scene, path.name, report)
            except OSError as error:  # a full disk: the scene stays unfinished and is done again next time
                report.bad_scenes.append((path.name, f"scene {scene.key}: {error.strerror}"))
    return report


def _convert_scene(options: Options, scene: RawScene, chunk: str, report: Report) -> None:
    finished = _finished_frames(options, scene)
    if finished is not None:
        report.kept += 1
        report.bad_frames += missing_frames(scene.key, finished)
        return
    write = partial(_write_frame, options, scene)
    problem = write_scene(options.target, scene.key, len(scene.images), write, report)
    if problem:
        report.bad_scenes.append((chunk, f"scene {scene.key}: {problem}"))


def write_scene(
    target: Path,
    key: str,
    num_frames: int,
    write_frame: Callable[[int, Path], dict],
    report: Report,
    about: dict | None = None,
) -> str:
    """Write one scene, whole or not at all; what was there of it is replaced once the new one is complete.

    Args:
        write_frame: (frame number, folder of pictures) -> its entry in the metadata; called for each frame in turn.
        report: is told of the scene and its frames.
        about: further entries of the metadata.

    Returns:
        why nothing was written, "" if it was.
    """
    metadata, images = target / "metadata" / f"{key}.json", target / "images" / key
    partial_images = images.with_name(f".{key}.partial")
    partial_images.mkdir()
    frames = [write_frame(number, partial_images) for number in range(num_frames)]
    if all("missing" in frame for frame in frames):
        shutil.rmtree(partial_images)
        return f"none of its {len(frames)} frames can be used; first: {frames[0]['reason']}"
    report.bad_frames += missing_frames(key, frames)
    metadata.unlink(missing_ok=True)
    shutil.rmtree(images, ignore_errors=True)
    os.replace(partial_images, images)
    content = {"scene_name": key, **(about or {}), "frames": frames}
    write_bytes(metadata, json.dumps(content, indent=4).encode(), sync=True)
    report.written += 1
    return ""


def missing_entry(reason: object) -> dict:
    """The metadata of a frame that cannot be used."""
    return {"image_path": None, "fxfycxcy": None, "w2c": None, "missing": True, "reason": str(reason)}


def _write_frame(options: Options, scene: RawScene, number: int, folder: Path) -> dict:
    """Write one picture; its entry in the metadata."""
    try:
        data = _bytes(scene.images[number])
        look = image_header if options.verify == "header" or options.image_format == "png" else checked_header
        width, height, kind = look(data)
        fxfycxcy, w2c = frame_camera(scene.cameras[number], width, height)
        if problem := camera_problem(fxfycxcy, w2c):
            raise ValueError(problem)
        if options.image_format == "png":
            data, kind = _as_png(data), "PNG"
    except ValueError as error:
        return missing_entry(error)
    name = f"{number:05d}{SUFFIX[kind]}"
    (folder / name).write_bytes(data)
    path = f"../images/{scene.key}/{name}"
    return {"image_path": path, "fxfycxcy": fxfycxcy.tolist(), "w2c": w2c.tolist()}


def _bytes(image: Tensor | None) -> bytes:
    if image is None:
        raise ValueError("no image bytes")
    return image.numpy().tobytes()


def _as_png(data: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(decode_image(data)).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def missing_frames(key: str, frames: list[dict]) -> list[tuple[str, str]]:
    """(scene and frame, reason) of the frames that are marked missing."""
    missing = [(number, frame) for number, frame in enumerate(frames) if "missing" in frame]
    return [(f"{key} frame {number}", frame["reason"]) for number, frame in missing]


def _finished_frames(options: Options, scene: RawScene) -> list[dict] | None:
    """The frames of a scene that an earlier run finished in this form, None if it has to be done again.

    Finished: its metadata has as many frames as the chunk, and each picture that it names is there, in full if its
    bytes are the chunk's.
    """
    metadata = options.target / "metadata" / f"{scene.key}.json"
    try:
        frames = read_json(metadata)["frames"]
        sizes = {file.name: file.stat().st_size for file in os.scandir(options.target / "images" / scene.key)}
        checks: Callable[[int], bool] = partial(_frame_is_whole, options, scene, frames, sizes)
        return frames if len(frames) == len(scene.images) and all(map(checks, range(len(frames)))) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # whatever a damaged file holds
        return None


def _frame_is_whole(
    options: Options, scene: RawScene, frames: list, sizes: dict[str, int], number: int
) -> bool:
    frame, image = frames[number], scene.images[number]
    if frame.get("missing"):
        return "reason" in frame
    folder, _, name = str(frame["image_path"]).rpartition("/")
    if folder != f"../images/{scene.key}" or not sizes.get(name):
        return False
    if options.image_format == "png":
        return name.endswith(".png")
    return image is not None and sizes[name] == image.numel()


def _write_list(target: Path) -> None:
    """`full_list.txt`: all finished scenes of the folder, those of earlier runs included."""
    names = sorted(
        path.name for path in (target / "metadata").glob("*.json") if not path.name.startswith(".")
    )
    write_bytes(target / "full_list.txt", "".join(f"metadata/{name}\n" for name in names).encode())
