"""Chunks behind a URL against the same on the disk: what reading through the cache costs, and how many bytes are fetched.

The URL is a file:// one, read by byte ranges through fsspec as any other, so that no network is measured.

Public: measure.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..data.batch import collate
from ..data.dataset import SceneDataset
from ..data.remote.scenes import RemoteScenes
from ..data.view_settings import ViewSettings
from .loading import SAMPLES, frames_of_a_turn
from .published_data import VIEWS, run_config
from .ratio import Place, Row, ratio_row, take_turns

RATE_TARGET, BYTES_TARGET = 0.9, 1.0

Pick = tuple[int, list[int]]
"""Position of a scene, and frames of it."""


def measure(place: Place) -> list[Row]:
    """Samples per second with a full cache, and bytes until the first samples were read with an empty one."""
    with _cache_in(place.work / "cache"):
        near = _data(str(place.chunks))
        far = _data(place.chunks.resolve().as_uri())
        assert isinstance(far.scenes, RemoteScenes)
        picks = frames_of_a_turn(near)
        equal = "bit for bit" if all(_same(near, far, pick) for pick in picks) else ""
        fetched = far.scenes.remote.fetched
        turns = take_turns("from a URL", lambda: _read(near, picks), lambda: _read(far, picks), place.rounds)
    whole = sum(file.stat().st_size for file in place.chunks.glob("*.torch"))
    what = f"bytes until {SAMPLES} samples of {VIEWS} views are read from a URL"
    return [
        ratio_row("8 views at 224 from a URL, cached", turns, SAMPLES, "samples/s", RATE_TARGET, equal),
        Row(what, f"{whole / 2**20:.1f} MiB (all)", f"{fetched / 2**20:.1f} MiB", whole / fetched, BYTES_TARGET, equal),
    ]  # fmt: skip


@contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    """Without touching the user's own cache."""
    before = os.environ.get("PARALLAX_CACHE")
    os.environ["PARALLAX_CACHE"] = str(folder)
    try:
        yield
    finally:
        del os.environ["PARALLAX_CACHE"]
        if before is not None:
            os.environ["PARALLAX_CACHE"] = before


def _data(path: str) -> SceneDataset:
    return SceneDataset(path, ViewSettings.of(run_config(Path())))


def _sample(data: SceneDataset, pick: Pick) -> dict:
    position, frames = pick
    return data.evaluation_sample(position, tuple(frames[:2]), tuple(frames[2:]))


def _read(data: SceneDataset, picks: list[Pick]) -> dict:
    return collate([_sample(data, pick) for pick in picks], num_input=2)


def _same(near: SceneDataset, far: SceneDataset, pick: Pick) -> bool:
    ours, theirs = _sample(far, pick), _sample(near, pick)
    return all(ours[name].equal(theirs[name]) for name in ("image", "c2w", "fxfycxcy"))
