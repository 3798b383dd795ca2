"""Views that cover a scene: k-means over its cameras.

A camera is described by its centre, in units of the spread of all centres, and by its viewing direction, six numbers
of equal weight. The views are the frames nearest to the cluster centres, all different.

Source: the protocol of Long-LRM (arXiv 2410.12781), which LaCT follows without code for it; features and start are ours.

Public: camera_features, kmeans_frames.
"""

from __future__ import annotations

import random

import numpy as np

from .scene import Scene

ITERATIONS = 100
"""Most rounds of k-means; a few dozen frames settle in less than ten."""


def camera_features(scene: Scene, frames: list[int]) -> np.ndarray:
    """Centre over the root mean square distance of the centres from their mean, then unit viewing direction. [f, 6]

    Raises:
        SceneError: a frame has no camera.
    """
    c2w = np.linalg.inv(np.stack([scene.camera(frame)[1] for frame in frames]))
    centres, forward = c2w[:, :3, 3] - c2w[:, :3, 3].mean(axis=0), c2w[:, :3, 2]
    spread = np.sqrt((centres**2).sum(axis=1).mean())
    # Below the resolution of float32 coordinates a distance between centres is rounding, not geometry.
    if spread > 1e-6 * np.abs(c2w[:, :3, 3]).max():
        centres = centres / spread
    return np.concatenate([centres, forward / np.linalg.norm(forward, axis=1, keepdims=True)], axis=1)


def kmeans_frames(features: np.ndarray, num: int, allowed: list[int], rng: random.Random) -> list[int]:
    """Rows of `features` nearest to the centres of `num` clusters.

    The first centre is a random row, each further one the row farthest from all centres so far; then Lloyd's rounds
    until nothing changes. Clusters choose their row one after the other, the tightest fit first, each the nearest that
    is left.

    Args:
        features: of all cameras, which all shape the clusters. [f, d]
        num: clusters; at most the number of allowed rows.
        allowed: rows that may be chosen.

    Returns:
        `num` different rows, ascending.
    """
    centres = _farthest_rows(features, num, rng.randrange(len(features)))
    for _ in range(ITERATIONS):
        labels = _distances(features, centres).argmin(axis=1)
        # An empty cluster keeps its centre.
        moved = np.stack(
            [features[labels == k].mean(axis=0) if (labels == k).any() else centres[k] for k in range(num)]
        )
        if np.array_equal(moved, centres):
            break
        centres = moved
    distances = _distances(features[allowed], centres)  # [a, k]
    rows: list[int] = []
    for cluster in distances.min(axis=0).argsort(kind="stable"):
        row = int(distances[:, cluster].argmin())
        rows.append(allowed[row])
        distances[row] = np.inf
    return sorted(rows)


def _farthest_rows(features: np.ndarray, num: int, first: int) -> np.ndarray:
    """`num` rows, the given one first, each of the others the farthest from those before it. [num, d]"""
    chosen = [first]
    nearest = _distances(features, features[[first]])[:, 0]
    while len(chosen) < num:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, _distances(features, features[[chosen[-1]]])[:, 0])
    return features[chosen]


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances. [m, d], [n, d] -> [m, n]"""
    return ((a[:, None] - b[None]) ** 2).sum(axis=2)
