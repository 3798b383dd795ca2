"""Raw `.torch` chunks, the form in which RealEstate10K, ACID and DL3DV are handed around, and the same as `.bl2`.

A chunk is `torch.save` of a list of dicts: `key` (scene name), `cameras` float32 [f, 18] (fx, fy, cx, cy divided by
image width and height, two unused numbers, 3x4 world-to-camera row by row, OpenCV), `images` (f uint8 tensors, each
the bytes of one JPEG file). Format: pixelSplat, src/dataset/dataset_re10k.py.

Public: ChunkError, RawScene, find_chunks, stage_folders, open_chunk, unpacked, raw_scenes, frame_camera.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import ConfigError
from ..torch_files import TorchFileError, read_torch_file
from . import packed
from .scene import SceneError

MAX_KEY_BYTES = 200
"""Longest scene name: names of files and folders are made of it."""


class ChunkError(ValueError):
    """A chunk file that cannot be used; the message names it and is one line long."""


@dataclass
class RawScene:
    """One scene of an open chunk: cameras float32 [f, 18], and for each frame its bytes (None: not a byte tensor)."""

    key: str
    cameras: np.ndarray
    images: list[Tensor | None]


def find_chunks(folder: Path) -> list[Path]:
    """The chunk files of a folder, sorted by name; ConfigError if there are none."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder.")
    chunks = _chunks_in(folder)
    if not chunks:
        below = [path.name for path in sorted(folder.iterdir()) if path.is_dir() and _chunks_in(path)]
        lists = sorted(folder.glob("full_list.txt")) + sorted(folder.glob("*/full_list.txt"))
        hint = (
            f" Did you mean {folder / below[0]}?" if below else f" Did you mean {lists[0]}?" if lists else ""
        )
        raise ConfigError(f"{folder} holds no .torch chunks.{hint}")
    if len({path.suffix for path in chunks}) > 1:
        raise ConfigError(
            f"{folder} holds both .torch and {packed.SUFFIX} chunks, perhaps the same ones twice: keep one kind."
        )
    return chunks


def stage_folders(root: Path) -> list[tuple[str, Path]]:
    """Folders of chunks: `root` itself under the name "", or those in it (`train`, `test`) under theirs.

    Raises:
        ConfigError: there are none.
    """
    if root.is_dir() and not _chunks_in(root):
        below = [(path.name, path) for path in sorted(root.iterdir()) if path.is_dir() and _chunks_in(path)]
        if below:
            return below
    find_chunks(root)
    return [("", root)]


def _chunks_in(folder: Path) -> list[Path]:
    files = [*folder.glob("*.torch"), *folder.glob(f"*{packed.SUFFIX}")]
    return sorted(file for file in files if not file.name.startswith("."))  # hidden: still being written


def open_chunk(path: Path) -> list:
    """The list of scene dicts in a chunk, its tensors mapped from the file where its layout allows.

    Raises:
        ChunkError: damaged, cut short, or not such a file.
    """
    if path.suffix == packed.SUFFIX:
        with unpacked(path) as plain:
            return _load(plain, path)
    return _load(path, path)


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A temporary `.torch` file with the content of a `.bl2` file; ChunkError if that is damaged."""
    with tempfile.TemporaryDirectory(prefix="parallax-") as folder:
        plain = Path(folder, path.stem)
        try:
            packed.Packed(path).unpack(plain)
        except (ValueError, OSError) as error:
            raise ChunkError(f"{path} {error}") from error
        yield plain


def _load(file: Path, path: Path) -> list:
    """The list in `file`, which is called `path` in messages."""
    try:
        chunk = read_torch_file(file)
    except TorchFileError as error:
        raise ChunkError(f"{path} {error}: copy or download it again") from error
    if not isinstance(chunk, list):
        raise ChunkError(f"{path} holds a {type(chunk).__name__}, not a list of scenes")
    return chunk


def raw_scenes(chunk: list) -> Iterator[RawScene | SceneError]:
    """The scenes of an open chunk, in order; in the place of one that cannot be used the error that says why."""
    for number, entry in enumerate(chunk):
        try:
            yield _raw_scene(entry, number)
        except SceneError as error:
            yield error


def _raw_scene(entry: object, number: int) -> RawScene:
    if not isinstance(entry, dict):
        raise SceneError(f"scene {number}: a {type(entry).__name__}, not a dict")
    key, cameras, images = entry.get("key"), entry.get("cameras"), entry.get("images")
    if problem := key_problem(key):
        raise SceneError(f"scene {number}: key {str(key)[:60]!r} {problem}")
    if not _is_plain(cameras) or cameras.ndim != 2 or cameras.shape[1] != 18 or cameras.is_complex():
        raise SceneError(f"scene {key}: cameras are not a tensor [frames, 18]")
    if not isinstance(images, list | tuple) or len(images) != len(cameras):
        found = len(images) if isinstance(images, list | tuple) else "no"
        raise SceneError(f"scene {key}: {found} images for {len(cameras)} cameras")
    if not len(images):
        raise SceneError(f"scene {key}: no frames")
    cameras = cameras.detach().to(torch.float32).numpy()
    return RawScene(key, cameras, [_byte_tensor(image) for image in images])


def _is_plain(value: object) -> bool:
    """Whether it is a tensor whose numbers can be read; weights_only loading also lets sparse and meta ones pass."""
    return isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"


def _byte_tensor(image: object) -> Tensor | None:
    usable = _is_plain(image) and image.dtype == torch.uint8 and image.ndim == 1
    return image if usable and image.is_contiguous() and image.numel() else None


def key_problem(key: object) -> str:
    """Why a scene name from a file cannot name a folder, "" if it can: it must not lead elsewhere or be hidden."""
    if not isinstance(key, str) or not key:
        return "is not a name"
    if any(c in key for c in "/\\") or key.startswith(".") or not key.isprintable() or key != key.strip():
        return "cannot name a folder"
    return "is too long" if len(key.encode()) > MAX_KEY_BYTES else ""


def frame_camera(camera: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Camera of a frame from its 18 stored numbers.

    Returns:
        fxfycxcy: pixels of the width x height picture: the float32 value times the size, in float64. [4]
        w2c: world to camera, OpenCV axes, float64. [4, 4]
    """
    camera = camera.astype(np.float64)
    fxfycxcy = camera[:4] * np.array([width, height, width, height], dtype=np.float64)
    w2c = np.eye(4)
    w2c[:3] = camera[6:18].reshape(3, 4)
    return fxfycxcy, w2c


def first_storage_offset(path: Path) -> int:
    """Where in the file the first tensor of a zip chunk begins, bytes; 0 if it holds none."""
    with zipfile.ZipFile(path) as archive:
        records = [r for r in archive.infolist() if r.filename.split("/")[-2:-1] == ["data"] and r.file_size]
    if not records:
        return 0
    first = min(records, key=lambda record: record.header_offset)
    with path.open(
        "rb"
    ) as file:  # the length of the extra field, which pads, stands in the local header only
        file.seek(first.header_offset + 26)
        lengths = file.read(4)
    return (
        first.header_offset
        + 30
        + int.from_bytes(lengths[:2], "little")
        + int.from_bytes(lengths[2:], "little")
    )
