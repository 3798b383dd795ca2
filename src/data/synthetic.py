"""A synthetic multi-view data set of our own: textured rooms with objects, seen by a hand-held camera.

It is written in the chunk format of RealEstate10K (pixelSplat's: see `chunks.py`), so that everything that reads the
real set reads this one. A scene is a function of (seed, mode, number) alone: the same files come out on any number
of processes, and train and test scenes never meet.

    <root>/<mode>/NNNNNN.torch       list of {key, url, timestamps, cameras, images}
    <root>/<mode>/index.json         scene key -> chunk file
    <root>/<mode>/median_depth.json  scene key -> median depth, in the units of its cameras
    <root>/evaluation_index.json     test scene -> {"context": [2 frames], "target": [3 frames between]}

Public: SyntheticSet, Scene, make_scene, find_scene, read_spec, render_frames, scene_depth, median_depth, write_set.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.interpolate import CubicSpline
from tqdm import tqdm

from ..files import replacing, write_text
from .raycast import Box, Cylinder, Poster, Room, Sphere, Texture, Wall, depth, render

MODES = ("train", "test")
SCENES_PER_CHUNK = 16
JPEG_QUALITY = 95
FRAME_TIME_US = 100_000
DEPTH_GRID = 24
"""Rays across and down a frame when the median depth of a scene is measured."""

PALETTES = (
    ("#264653", "#2a9d8f", "#e9c46a", "#f4a261", "#e76f51"),
    ("#f1faee", "#a8dadc", "#457b9d", "#1d3557", "#e63946"),
    ("#606c38", "#283618", "#fefae0", "#dda15e", "#bc6c25"),
    ("#cdb4db", "#ffc8dd", "#ffafcc", "#bde0fe", "#5a7fb0"),
    ("#003049", "#d62828", "#f77f00", "#fcbf49", "#eae2b7"),
    ("#8ecae6", "#219ebc", "#023047", "#ffb703", "#fb8500"),
    ("#f4f1de", "#e07a5f", "#3d405b", "#81b29a", "#f2cc8f"),
    ("#d8e2dc", "#ffe5d9", "#9d8189", "#f4acb7", "#6d6875"),
    ("#335c67", "#fff3b0", "#e09f3e", "#9e2a2b", "#540b0e"),
    ("#edede9", "#d6ccc2", "#8a817c", "#463f3a", "#e0afa0"),
)


@dataclass(frozen=True)
class SyntheticSet:
    """What is rendered. width, height: pixels; frames: per scene."""

    train_scenes: int
    test_scenes: int
    frames: int
    width: int
    height: int
    seed: int

    def __post_init__(self) -> None:
        if self.frames < 5:
            raise ValueError(
                f"{self.frames} frames a scene: at least 5 are needed (2 context, 3 target views)."
            )
        if self.train_scenes < 0 or self.test_scenes < 0 or min(self.width, self.height) < 8:
            raise ValueError(
                "scene counts must not be negative, pictures be at least 8 pixels wide and high."
            )

    def num_scenes(self, mode: str) -> int:
        return self.train_scenes if mode == "train" else self.test_scenes


@dataclass(frozen=True)
class SceneRecord:
    """What the index files of a set say of one scene."""

    mode: str
    key: str
    chunk: str
    median_depth: float
    context: list[int]
    target: list[int]


@dataclass
class Scene:
    """One room with the cameras that saw it. c2w: OpenCV axes, metres. [f, 4, 4]; fxfycxcy: pixels. [4]"""

    key: str
    room: Room
    c2w: np.ndarray
    fxfycxcy: np.ndarray
    context: list[int]
    target: list[int]


# ----------------------------------------------------------------------------------------------- a random scene


def _colors(palette: tuple[str, ...], rng: np.random.Generator, num: int) -> np.ndarray:
    chosen = rng.permutation(len(palette))[:num]
    rgb = [[int(palette[i][k : k + 2], 16) / 255 for k in (1, 3, 5)] for i in chosen]
    return np.clip(np.array(rgb) + rng.normal(0, 0.03, (num, 3)), 0.03, 0.97).astype(np.float32)


def _texture(
    patterns: str, palette: tuple[str, ...], rng: np.random.Generator, low: float, high: float
) -> Texture:
    pattern = str(rng.choice(patterns.split()))
    num = 2 if pattern in ("checks", "stripes", "diagonal", "rings") else 3
    return Texture(
        pattern, _colors(palette, rng, num), float(rng.uniform(low, high)), int(rng.integers(2**30))
    )


def _wall(palette: tuple[str, ...], length: float, height: float, rng: np.random.Generator) -> Wall:
    """A vertical wall, most often with pictures in a row."""
    wall = Wall(_texture("noise panels stripes bricks checks", palette, rng, 0.9, 1.7))
    num = int(rng.integers(0, 3))
    for k in range(num):
        half = rng.uniform(0.35, 0.6, 2)
        center = [(-0.5 + (k + 0.5) / num) * length * 0.8, rng.uniform(0.45, 0.62) * height]
        texture = _texture("rings checks noise diagonal panels", palette, rng, 0.3, 0.6)
        wall.posters.append(
            Poster(
                np.array(center, np.float32), half.astype(np.float32), texture, _colors(palette, rng, 1)[0]
            )
        )
    return wall


def _object(at: np.ndarray, palette: tuple[str, ...], rng: np.random.Generator) -> Sphere | Box | Cylinder:
    """A sphere, box or cylinder that stands on the floor at `at` [2]; some spheres float."""
    texture = _texture("checks stripes noise panels diagonal", palette, rng, 0.35, 0.7)
    kind = rng.choice(3)
    if kind == 0:
        radius = float(rng.uniform(0.3, 0.55))
        height = radius + (rng.uniform(0.3, 1.0) if rng.random() < 0.3 else 0.0)
        return Sphere(np.array([*at, height], np.float32), radius, texture)
    half_height = float(rng.uniform(0.25, 0.8))
    center = np.array([*at, half_height], np.float32)
    if kind == 1:
        yaw = float(rng.uniform(0, np.pi / 2)) if rng.random() < 0.7 else 0.0
        return Box(center, np.array([*rng.uniform(0.25, 0.5, 2), half_height], np.float32), yaw, texture)
    return Cylinder(center, float(rng.uniform(0.22, 0.45)), half_height, texture)


def _stray(step: float, jitter: float, frames: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth random walk around the origin plus the tremble of a hand; vertically less than sideways. [f, 3]"""
    num = 6
    points = np.cumsum(rng.normal(0, step, (num, 3)) * (1, 1, 0.4), 0)
    smooth = CubicSpline(np.linspace(0, 1, num), points - points.mean(0))(np.linspace(0, 1, frames))
    return smooth + rng.normal(0, jitter, (frames, 3))


def _look_at(eye: np.ndarray, target: np.ndarray, roll_rad: float) -> np.ndarray:
    """Camera to world of a camera at `eye` that looks at `target`, world z up, turned by `roll_rad`. [4, 4]"""
    z = (target - eye) / np.linalg.norm(target - eye)
    x = np.cross(z, (0, 0, 1))
    x /= np.linalg.norm(x)
    y = np.cross(z, x)
    c, s = np.cos(roll_rad), np.sin(roll_rad)
    c2w = np.eye(4)
    c2w[:3] = np.stack([c * x + s * y, c * y - s * x, z, eye], -1)
    return c2w


def _camera_path(size: np.ndarray, frames: int, rng: np.random.Generator) -> np.ndarray:
    """Hand-held walk sideways along one wall, roughly facing the opposite one; the gaze follows at about half the pace.

    Returns:
        camera to world. [f, 4, 4]
    """
    bearing = rng.integers(4) * np.pi / 2 + rng.normal(0, 0.15)
    outward = np.array([np.cos(bearing), np.sin(bearing), 0])
    sideways = np.array([-np.sin(bearing), np.cos(bearing), 0]) * rng.choice([-1, 1])
    drift = sideways * rng.uniform(1.6, 2.4) + outward * rng.uniform(-0.4, 0.4)
    along = np.linspace(-0.5, 0.5, frames)[:, None]
    height = np.array([0, 0, rng.uniform(1.3, 1.6)])
    eyes = outward * 0.36 * min(size[:2]) + height + along * drift + _stray(0.08, 0.01, frames, rng)
    margin = np.array([0.25, 0.25, 0.4])
    low, high = np.array([*-size[:2] / 2, 0]) + margin, np.array([*size[:2] / 2, size[2]]) - margin
    eyes = np.clip(eyes, low, high)
    gaze = -outward * rng.uniform(0.8, 1.2) + (0, 0, rng.uniform(0.75, 0.95))
    gazes = gaze + along * drift * rng.uniform(0.4, 0.8) + _stray(0.06, 0.01, frames, rng)
    rolls = rng.normal(0, 0.015) + rng.normal(0, 0.006, frames)
    return np.stack([_look_at(*pose) for pose in zip(eyes, gazes, rolls)])


def _clear_spots(eyes: np.ndarray, size: np.ndarray, num: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Up to `num` places on the floor, apart from each other and from the camera's way. [2] each"""
    spots: list[np.ndarray] = []
    for _ in range(200):
        spot = rng.uniform(-0.5, 0.5, 2) * (size[:2] - 1.4)
        far_from_camera = np.linalg.norm(eyes[:, :2] - spot, axis=-1).min() > 1.3
        if far_from_camera and all(np.linalg.norm(other - spot) > 0.95 for other in spots):
            spots.append(spot)
        if len(spots) == num:
            break
    return spots


def make_scene(spec: SyntheticSet, mode: str, number: int) -> Scene:
    """Scene `number` of `mode`; depends on nothing but (spec.seed, mode, number) and the frame count and size."""
    rng = np.random.default_rng([spec.seed, MODES.index(mode), number])
    palette = PALETTES[rng.integers(len(PALETTES))]
    size = rng.uniform((5.0, 5.0, 2.7), (6.0, 6.0, 3.1)).astype(np.float32)
    c2w = _camera_path(size, spec.frames, rng)
    walls = [_wall(palette, size[1], size[2], rng) for _ in range(2)]
    walls += [_wall(palette, size[0], size[2], rng) for _ in range(2)]
    walls.append(Wall(_texture("checks planks noise diagonal panels", palette, rng, 0.8, 1.5)))
    pale = 0.75 + 0.25 * _colors(palette, rng, 2)
    walls.append(Wall(Texture("noise", pale, 1.5, int(rng.integers(2**30)))))
    spots = _clear_spots(c2w[:, :3, 3], size, int(rng.integers(3, 7)), rng)
    objects = [_object(spot, palette, rng) for spot in spots]
    light = np.array([*rng.uniform(-0.8, 0.8, 2), size[2] - 0.3], np.float32)
    warmth = np.array([1.0, rng.uniform(0.92, 1.0), rng.uniform(0.82, 1.0)])
    room = Room(size, walls, objects, light, (rng.uniform(0.85, 1.1) * warmth).astype(np.float32))
    focal = spec.height / (2 * np.tan(np.radians(rng.uniform(54, 66)) / 2))
    fxfycxcy = np.array([focal, focal, spec.width / 2, spec.height / 2])
    context, target = _evaluation_views(spec.frames, rng)
    return Scene(_scene_key(spec, mode, number), room, c2w, fxfycxcy, context, target)


def _scene_key(spec: SyntheticSet, mode: str, number: int) -> str:
    return hashlib.sha256(f"{spec.seed}/{mode}/{number}".encode()).hexdigest()[:16]


def find_scene(spec: SyntheticSet, key: str) -> Scene:
    """The scene of that key; ValueError if the set has none."""
    for mode in MODES:
        for number in range(spec.num_scenes(mode)):
            if _scene_key(spec, mode, number) == key:
                return make_scene(spec, mode, number)
    raise ValueError(f"scene {key} is none of the synthetic set of seed {spec.seed}.")


def _evaluation_views(frames: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Two context frames some three quarters of the scene apart, and three frames between them."""
    gap = int(np.clip(round(rng.uniform(0.6, 0.9) * frames), 4, frames - 1))
    first = int(rng.integers(0, frames - gap))
    between = rng.choice(np.arange(first + 1, first + gap), 3, replace=False)
    return [first, first + gap], sorted(int(i) for i in between)


# ----------------------------------------------------------------------------------------------- its files


def render_frames(scene: Scene, height: int, width: int) -> list[np.ndarray]:
    """All pictures of a scene. [height, width, 3] uint8 each"""
    return [render(scene.room, c2w, scene.fxfycxcy, height, width) for c2w in scene.c2w]


def scene_depth(scene: Scene, frame: int, fxfycxcy: np.ndarray, height: int, width: int) -> np.ndarray:
    """Depth of one frame along the optical axis, metres, for a camera of other pixels than the scene's. [height, width]"""
    return depth(scene.room, scene.c2w[frame], fxfycxcy, height, width)


def median_depth(scene: Scene) -> float:
    """Median over all frames of the depth along the optical axis, metres (the unit of the cameras)."""
    scale = DEPTH_GRID / (2 * scene.fxfycxcy[[2, 3, 2, 3]])  # the principal point is the centre
    depths = [depth(scene.room, c2w, scene.fxfycxcy * scale, DEPTH_GRID, DEPTH_GRID) for c2w in scene.c2w]
    return float(np.median(np.stack(depths)))


def _chunk_entry(scene: Scene, spec: SyntheticSet) -> dict:
    """The scene as RealEstate10K's chunks hold it."""
    intrinsics = scene.fxfycxcy / (spec.width, spec.height, spec.width, spec.height)
    w2c = np.linalg.inv(scene.c2w)[:, :3].reshape(-1, 12)
    head = np.concatenate([intrinsics, (0, 0)])
    cameras = np.concatenate([np.tile(head, (spec.frames, 1)), w2c], 1)
    return {
        "key": scene.key,
        "url": "synthetic",
        "timestamps": torch.arange(spec.frames, dtype=torch.int64) * FRAME_TIME_US,
        "cameras": torch.from_numpy(cameras.astype(np.float32)),
        "images": [_jpeg(frame) for frame in render_frames(scene, spec.height, spec.width)],
    }


def _jpeg(picture: np.ndarray) -> torch.Tensor:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8)


def _write_chunk(job: tuple[SyntheticSet, str, int, Path]) -> list[SceneRecord]:
    """Render and write one chunk unless it is there; what the index files say of its scenes."""
    spec, mode, number, path = job
    torch.set_num_threads(1)
    first = number * SCENES_PER_CHUNK
    last = min(first + SCENES_PER_CHUNK, spec.num_scenes(mode))
    scenes = [make_scene(spec, mode, i) for i in range(first, last)]
    if not path.is_file():
        entries = [_chunk_entry(scene, spec) for scene in scenes]
        stream = io.BytesIO()  # saved to a file, its temporary name would be inside: other bytes in each run
        torch.save(entries, stream)
        with replacing(path) as temporary:
            temporary.write_bytes(stream.getvalue())
    return [
        SceneRecord(mode, scene.key, path.name, median_depth(scene), scene.context, scene.target)
        for scene in scenes
    ]


def _write_json(path: Path, tree: dict) -> None:
    write_text(path, json.dumps(tree, indent=1) + "\n")


def _jobs(spec: SyntheticSet, root: Path) -> Iterator[tuple[SyntheticSet, str, int, Path]]:
    for mode in MODES:
        for number in range(-(-spec.num_scenes(mode) // SCENES_PER_CHUNK)):
            yield spec, mode, number, root / mode / f"{number:06d}.torch"


def write_set(root: Path, spec: SyntheticSet, *, num_processes: int = 1) -> None:
    """Render the set below `root`. Chunks that are there are kept; the result does not depend on `num_processes`.

    Raises:
        ValueError: `root` holds a synthetic set with other settings.
    """
    _claim(root, spec)
    jobs = list(_jobs(spec, root))
    views_file = root / "evaluation_index.json"  # written last: with it and all chunks the set is complete
    if views_file.is_file() and all(path.is_file() for *_, path in jobs):
        return
    records: list[SceneRecord] = []
    with (
        multiprocessing.get_context("spawn").Pool(max(1, min(num_processes, len(jobs)))) as pool,
        tqdm(total=spec.train_scenes + spec.test_scenes, desc="render", unit="scene") as bar,
    ):
        for finished in pool.imap(_write_chunk, jobs):
            records += finished
            bar.update(len(finished))
    for mode in MODES:
        mine = [record for record in records if record.mode == mode]
        _write_json(root / mode / "index.json", {r.key: r.chunk for r in mine})
        _write_json(root / mode / "median_depth.json", {r.key: r.median_depth for r in mine})
    views = {r.key: {"context": r.context, "target": r.target} for r in records if r.mode == "test"}
    _write_json(views_file, views)


def read_spec(root: Path) -> SyntheticSet:
    """What a set was made with; ValueError if `root` is none."""
    try:
        return SyntheticSet(**json.loads((root / "synthetic.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{root} is no synthetic set of scripts.make_synthetic ({error}).") from None


def _claim(root: Path, spec: SyntheticSet) -> None:
    """Make the folders and note the settings, so that chunks of two different sets never mix."""
    note = root / "synthetic.json"
    if note.is_file():
        found = json.loads(note.read_text(encoding="utf-8"))
        if found != asdict(spec):
            raise ValueError(
                f"{note} says {found}, asked for was {asdict(spec)}: delete {root} or choose another."
            )
    for mode in MODES:
        (root / mode).mkdir(parents=True, exist_ok=True)
    _write_json(note, asdict(spec))
