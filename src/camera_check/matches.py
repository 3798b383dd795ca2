"""Points that two pictures have in common, found without any knowledge of their cameras.

Root-SIFT, ratio test, mutual nearest neighbours; then the pairs that some epipolar geometry explains.

Public: Features, features, matches, consistent.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

RATIO = 0.75
"""Largest ratio of the distances to the nearest and the second nearest descriptor (Lowe 2004 has 0.8)."""
LARGEST_SIDE, SMALLEST_SIDE = 1600, 8
"""Larger pictures are searched in a smaller copy, as SIFT's time grows with the area; smaller ones have no features."""
MOST_FEATURES = 4000
EPIPOLAR_PX = 1.0
"""Within so many pixels of the searched copy a pair fits the robust epipolar geometry."""
LEAST_MATCHES = 15
"""Fewer say nothing about a pair of pictures."""


@dataclass(frozen=True)
class Features:
    """Key points of one picture. points: pixels, the first pixel's centre at 0.5. [n, 2]; descriptors: unit length. [n, 128]"""

    points: np.ndarray
    descriptors: np.ndarray


def features(image: np.ndarray) -> Features:
    """Root-SIFT features of a picture. uint8 [h, w, 3]

    Source: Arandjelovic and Zisserman, Three things everyone should know to improve object retrieval, 2012.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    scale = min(1.0, LARGEST_SIDE / max(grey.shape))
    if min(grey.shape) * scale < SMALLEST_SIDE:
        return Features(np.zeros((0, 2)), np.zeros((0, 128), np.float32))
    if scale < 1:
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    found, descriptors = cv2.SIFT_create(nfeatures=MOST_FEATURES).detectAndCompute(grey, None)
    if not found:
        return Features(np.zeros((0, 2)), np.zeros((0, 128), np.float32))
    ratio = np.array([image.shape[1] / grey.shape[1], image.shape[0] / grey.shape[0]])
    # OpenCV counts from the centre of the first pixel.
    points = (np.array([point.pt for point in found]) + 0.5) * ratio
    sums = np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-12)
    return Features(points, np.sqrt(descriptors / sums))


def matches(a: Features, b: Features) -> tuple[np.ndarray, np.ndarray]:
    """Points of two pictures that look alike and are each other's best. -> [n, 2], [n, 2]"""
    if min(len(a.points), len(b.points)) < 2:
        return np.zeros((0, 2)), np.zeros((0, 2))
    matcher = cv2.BFMatcher(cv2.NORM_L2)
    forth = {m.queryIdx: m.trainIdx for m in _distinct(matcher.knnMatch(a.descriptors, b.descriptors, k=2))}
    back = {m.queryIdx: m.trainIdx for m in _distinct(matcher.knnMatch(b.descriptors, a.descriptors, k=2))}
    pairs = np.array([(i, j) for i, j in forth.items() if back.get(j) == i], dtype=int).reshape(-1, 2)
    points_a, points_b = a.points[pairs[:, 0]], b.points[pairs[:, 1]]
    # One point can carry several descriptors of different orientation.
    _, first = np.unique(np.round(np.hstack([points_a, points_b]), 3), axis=0, return_index=True)
    return points_a[first], points_b[first]


def _distinct(candidates: list) -> list:
    return [pair[0] for pair in candidates if len(pair) == 2 and pair[0].distance < RATIO * pair[1].distance]


def consistent(points_a: np.ndarray, points_b: np.ndarray) -> np.ndarray:
    """Which matches one epipolar geometry explains, whichever it is. [n, 2], [n, 2] -> bool [n]; all False if none does"""
    if len(points_a) < LEAST_MATCHES:
        return np.zeros(len(points_a), dtype=bool)
    cv2.setRNGSeed(0)
    try:
        _, kept = cv2.findFundamentalMat(
            points_a,
            points_b,
            cv2.USAC_MAGSAC,
            ransacReprojThreshold=EPIPOLAR_PX,
            confidence=0.9999,
            maxIters=5000,
        )
    except cv2.error:  # its answer where no geometry fits better than chance
        kept = None
    return np.zeros(len(points_a), dtype=bool) if kept is None else kept.ravel().astype(bool)
