"""A tiny LaCT-style object on disk: RGBA renderings on a ring, and the list that names it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image


def ring(num: int, radius: float = 2.7, elevation_deg: float = 0.0) -> np.ndarray:
    """World-to-camera poses of cameras on a circle, looking at the origin, z up. [num, 4, 4]"""
    angle, height = 2 * np.pi * np.arange(num) / num, np.deg2rad(elevation_deg)
    poses = np.tile(np.eye(4), (num, 1, 1))
    for w2c, a in zip(poses, angle):
        outward = np.array([np.cos(height) * np.cos(a), np.cos(height) * np.sin(a), np.sin(height)])
        right = np.array([-np.sin(a), np.cos(a), 0])
        w2c[:3, :3] = np.stack([right, np.cross(-outward, right), -outward])
        w2c[:3, 3] = -w2c[:3, :3] @ (radius * outward)
    return poses


def rgba(width: int, height: int, seed: int) -> np.ndarray:
    """A disc in gentle colours with a soft edge; black under zero alpha. uint8 [height, width, 4]"""
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(rows - height / 2, columns - width / 2) / min(width, height)
    alpha = np.clip((0.4 - distance) * 8, 0, 1)
    colours = np.stack([60 + 3 * rows, 180 - 2 * columns, (20 * seed + rows + columns) % 200], axis=2)
    return np.dstack([colours * (alpha > 0)[..., None], 255 * alpha]).astype(np.uint8)


def write_object(folder: Path, name: str = "toy", views: int = 6, size: tuple[int, int] = (40, 30)) -> Path:
    """`folder/<name>/` with its pictures, size (width, height); returns its opencv_cameras.json."""
    width, height = size
    (folder / name / "renderings").mkdir(parents=True)
    entries = []
    for view, w2c in enumerate(ring(views)):
        path = f"renderings/{view:03d}.png"
        Image.fromarray(rgba(width, height, view)).save(folder / name / path)
        intrinsics = {"fx": 50.0, "fy": 51.0, "cx": width / 2 + 1, "cy": height / 2}
        entries.append({"w": width, "h": height, **intrinsics, "w2c": w2c.tolist(), "file_path": path})
    path = folder / name / "opencv_cameras.json"
    path.write_text(json.dumps(entries))
    return path


def write_list(path: Path, *scenes: str) -> Path:
    """A list file of scene names."""
    path.write_text(json.dumps([f"{scene}/opencv_cameras.json" for scene in scenes]))
    return path
