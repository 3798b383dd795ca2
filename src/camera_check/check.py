"""Whether the cameras of a scene fit its pictures, in pixels, and if not, which known mistake explains it.

Matches between near frames are found without the cameras and cleaned by an epipolar geometry of their own; then the
distance of each match from the epipolar line that the cameras give it is measured. Wrong axes, matrices read the wrong
way round or intrinsics of another picture size show at once, and undoing the right one of them repairs it.

Public: PairCheck, SceneCheck, check_scene.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from ..data.scene import Scene, SceneError
from ..data.transforms import decode_image
from .epipolar import CONVENTIONS, Camera, epipolar_matrix, in_front, sampson, transfer
from .matches import LEAST_MATCHES, Features, consistent, features, matches

GOOD_PX = 1.0
"""Largest median distance of cameras that fit, for pictures up to STANDARD_WIDTH wide; in proportion for wider ones."""
STANDARD_WIDTH = 640
EXPLAINS = 0.5
"""A mistake explains the distance if undoing it leaves less than this part of it."""
LEAST_MOTION = 0.03
"""Near frames: the fewest steps apart at which matches move by this part of the picture's width."""
LARGEST_GAP = 16
LEAST_IN_FRONT = 0.5


@dataclass(frozen=True)
class PairCheck:
    """Two frames and what they have in common.

    points_a, points_b: matches that agree with one another, pixels. [n, 2]
    share: how many of all matches those are.
    distance: from the epipolar lines of the given cameras, pixels. [n]
    """

    frames: tuple[int, int]
    cameras: tuple[Camera, Camera]
    points_a: np.ndarray
    points_b: np.ndarray
    share: float
    distance: np.ndarray

    @property
    def median(self) -> float:
        """Median distance, pixels."""
        return float(np.median(self.distance))


@dataclass
class SceneCheck:
    """Figures of one scene, in pixels of the stored pictures; NaN where nothing could be measured.

    gap: steps between the frames of a pair. left_out: pairs with too few matches, or taken from one place.
    median, percentile_90: over all matches; worst: the largest median of a pair.
    in_front: part of the matches whose point lies in front of both cameras.
    transfer: median distance of points made of two frames and projected into a third (sees errors of scale).
    others: what the median would be if a mistake of CONVENTIONS were undone.
    verdict: one sentence; fits: whether the cameras fit, None if that cannot be told.
    """

    name: str
    gap: int = 0
    pairs: list[PairCheck] = field(default_factory=list)
    left_out: int = 0
    matches: int = 0
    median: float = math.nan
    percentile_90: float = math.nan
    worst: float = math.nan
    in_front: float = math.nan
    transfer: float = math.nan
    others: dict[str, float] = field(default_factory=dict)
    verdict: str = ""
    fits: bool | None = None

    def figures(self) -> dict:
        """Plain values for a JSON file; None for what could not be measured."""
        names = (
            "name",
            "gap",
            "left_out",
            "matches",
            "median",
            "percentile_90",
            "worst",
            "in_front",
            "transfer",
        )
        plain = {name: getattr(self, name) for name in names} | {"pairs": len(self.pairs)}
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in plain.items()}
        return {**plain, "others": self.others, "verdict": self.verdict, "fits": self.fits}


def check_scene(scene: Scene, *, gap: int = 0, most_pairs: int = 16) -> SceneCheck:
    """Compare the cameras of a scene with its pictures.

    Args:
        gap: usable frames between those of a pair; 0: as few as bring enough motion.
        most_pairs: pairs looked at, spread evenly over the scene.
    """
    if not scene.posed:
        return SceneCheck(scene.name, verdict="cannot tell: its photos have no poses")
    read = _Reader(scene)
    if len(read.frames) < 2:
        return SceneCheck(scene.name, verdict=f"cannot tell: {len(read.frames)} usable frames")
    result = SceneCheck(scene.name, gap=gap or _gap(read))
    starts = _spread(len(read.frames) - result.gap, most_pairs)
    for start in starts:
        pair = _pair(read, start, start + result.gap)
        if pair is None:
            result.left_out += 1
        else:
            result.pairs.append(pair)
    if result.pairs:
        _measure(result)
        result.transfer = _transfer(read, result.gap, starts)
    _judge(result)
    return result


class _Reader:
    """Cameras and features of the usable frames of a scene, each computed once."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.frames = [i for i in range(scene.num_frames) if not _missing(scene, i)]
        self.features: Callable[[int], Features] = cache(self._features)

    def image(self, position: int) -> np.ndarray:
        return decode_image(self.scene.encoded(self.frames[position]))

    def _features(self, position: int) -> Features:
        try:
            return features(self.image(position))
        except ValueError:  # a damaged picture has nothing in common with any other
            return Features(np.zeros((0, 2)), np.zeros((0, 128), np.float32))

    @cache  # noqa: B019 - lives as long as the check of one scene
    def camera(self, position: int) -> Camera:
        fxfycxcy, w2c = self.scene.camera(self.frames[position])
        height, width = self.image(position).shape[:2]
        return Camera(fxfycxcy, w2c, (width, height))


def _missing(scene: Scene, frame: int) -> bool:
    try:
        return bool(scene.missing(frame))
    except SceneError:
        return True


def _spread(count: int, most: int) -> list[int]:
    """At most so many of 0 .. count - 1, evenly, both ends included."""
    return sorted({round(x) for x in np.linspace(0, count - 1, min(count, most))}) if count > 0 else []


def _gap(read: _Reader) -> int:
    """The fewest steps at which matches move enough; the largest at which there are any, if none do."""
    best = 1
    for gap in [g for g in (1, 2, 4, 8, LARGEST_GAP) if g < len(read.frames)]:
        motion, width = [], 1
        for start in _spread(len(read.frames) - gap, 5):
            a, b = matches(read.features(start), read.features(start + gap))
            if len(a) >= LEAST_MATCHES:
                motion.append(np.median(np.linalg.norm(a - b, axis=1)))
                width = read.camera(start).size[0]
        if not motion:
            break
        best = gap
        if np.median(motion) >= LEAST_MOTION * width:
            break
    return best


def _pair(read: _Reader, a: int, b: int) -> PairCheck | None:
    points_a, points_b = matches(read.features(a), read.features(b))
    kept = consistent(points_a, points_b)
    if kept.sum() < LEAST_MATCHES:
        return None
    cameras = read.camera(a), read.camera(b)
    f = epipolar_matrix(*cameras)
    if f is None:
        return None
    points_a, points_b = points_a[kept], points_b[kept]
    frames = read.frames[a], read.frames[b]
    return PairCheck(frames, cameras, points_a, points_b, float(kept.mean()), sampson(f, points_a, points_b))


def _measure(result: SceneCheck) -> None:
    distance = np.concatenate([pair.distance for pair in result.pairs])
    result.matches = len(distance)
    result.median = float(np.median(distance))
    result.percentile_90 = float(np.percentile(distance, 90))
    result.worst = max(pair.median for pair in result.pairs)
    front = [in_front(*pair.cameras, pair.points_a, pair.points_b) for pair in result.pairs]
    result.in_front = float(np.concatenate(front).mean())
    for name, undo in CONVENTIONS.items():
        found = [_distance_without(undo, pair) for pair in result.pairs]
        result.others[name] = float(np.median(np.concatenate(found)))


def _distance_without(undo: Callable[[Camera], Camera], pair: PairCheck) -> np.ndarray:
    f = epipolar_matrix(*map(undo, pair.cameras))
    return np.full(len(pair.points_a), 1e6) if f is None else sampson(f, pair.points_a, pair.points_b)


def _transfer(read: _Reader, gap: int, starts: list[int]) -> float:
    """Points of frames i and i + 2 gap, seen from i + gap."""
    found = []
    for start in starts:
        if start + 2 * gap >= len(read.frames):
            continue
        near, middle, far = (read.features(start + k * gap) for k in range(3))
        a, b = matches(near, middle)
        c, d = matches(near, far)
        second = {tuple(point): i for i, point in enumerate(np.round(c, 3))}
        both = [(i, second[tuple(p)]) for i, p in enumerate(np.round(a, 3)) if tuple(p) in second]
        if len(both) < LEAST_MATCHES:
            continue
        i, j = np.array(both).T
        cameras = [read.camera(start + k * gap) for k in (0, 2, 1)]
        found.append(transfer(*cameras, (a[i], d[j], b[i])))
    return float(np.median(np.concatenate(found))) if found else math.nan


def _judge(result: SceneCheck) -> None:
    if not result.pairs:
        result.verdict = f"cannot tell: none of {result.left_out} pairs of frames has {LEAST_MATCHES} matches and a baseline"
        return
    width = result.pairs[0].cameras[0].size[0]
    good = GOOD_PX * max(1.0, width / STANDARD_WIDTH)
    name, other = min(result.others.items(), key=lambda item: item[1])
    if result.median > good and other < EXPLAINS * result.median and other <= 2 * good:
        result.fits = False
        result.verdict = f"WRONG: {name}: {result.median:.2f} px as they are, {other:.2f} px without that"
    elif result.median > good:
        result.fits = False
        result.verdict = f"POOR: matches lie {result.median:.2f} px from where the cameras put them; no known mistake explains it"
    elif result.in_front < LEAST_IN_FRONT:
        result.fits = False
        result.verdict = (
            f"WRONG: {1 - result.in_front:.0%} of the points lie behind the cameras: the translations have the wrong sign or are the "
            "cameras' centres"
        )
    else:
        result.fits = True
        result.verdict = f"cameras fit: {result.median:.2f} px"
