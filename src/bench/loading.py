"""Samples per second of one loader process: 8 views at 224 pixels, read from converted folders and stacked to a batch.

Public: measure, frames_of_a_turn, SAMPLES.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ..data.batch import collate
from ..data.convert import Options, convert
from ..data.dataset import SceneDataset
from ..data.view_settings import ViewSettings
from .published_data import PATCH, SIZE, VIEWS, convert_to_png, load_sample, run_config
from .ratio import Place, Row, ratio_row, take_turns

SAMPLES = 6
"""Of a turn."""

EXACT_TARGET, FAST_TARGET, FAST_DB = 2.5, 6.0, 40.0


def measure(place: Place) -> list[Row]:
    """Exact pictures, and those of `training.fast_decode`."""
    convert_to_png(place.chunks, place.work / "png")
    convert(Options(place.chunks, place.work / "ours"), num_processes=1, chunk_size=1)
    settings = ViewSettings.of(run_config(place.work / "ours" / "full_list.txt"))
    exact = SceneDataset(str(place.work / "ours" / "full_list.txt"), settings)
    fast = SceneDataset(exact.path, replace(settings, fast_decode=True))
    return [
        _row("8 views at 224, exact pictures", place, exact, EXACT_TARGET),
        _row("8 views at 224, `training.fast_decode`", place, fast, FAST_TARGET),
    ]


def _row(what: str, place: Place, data: SceneDataset, target: float) -> Row:
    picks, png = frames_of_a_turn(data), place.work / "png"
    turns = take_turns(
        what,
        lambda: [torch.stack(field) for field in zip(*(_published(png, data, *pick) for pick in picks))],
        lambda: collate([_ours(data, *pick) for pick in picks], num_input=2),
        place.rounds,
    )
    return ratio_row(what, turns, SAMPLES, "samples/s", target, _verdict(png, data, picks))


def frames_of_a_turn(data: SceneDataset) -> list[tuple[int, list[int]]]:
    """(scene, frames) of each sample of a turn: frames spread evenly over scenes that are long enough."""
    lengths = [data.scenes[position].num_frames for position in range(len(data))]
    usable = [position for position, length in enumerate(lengths) if length >= VIEWS]
    scenes = [usable[number % len(usable)] for number in range(SAMPLES)]
    return [
        (scene, [(number + view * lengths[scene] // VIEWS) % lengths[scene] for view in range(VIEWS)])
        for number, scene in enumerate(scenes)
    ]


def _published(
    folder: Path, data: SceneDataset, position: int, frames: list[int]
) -> tuple[torch.Tensor, ...]:
    return load_sample(folder / "metadata" / f"{data.scenes.names[position]}.json", frames, SIZE, PATCH)


def _ours(data: SceneDataset, position: int, frames: list[int]) -> dict:
    return data.evaluation_sample(position, tuple(frames[:2]), tuple(frames[2:]))


def _verdict(folder: Path, data: SceneDataset, picks: list[tuple[int, list[int]]]) -> str:
    """What the pictures and intrinsics of both ways say to each other."""
    worst = torch.inf
    for pick in picks:
        (images, intrinsics), sample = _published(folder, data, *pick), _ours(data, *pick)
        if not torch.equal(intrinsics, sample["fxfycxcy"]):
            return ""
        errors = (images - sample["image"].float() / 255).square().mean(dim=(1, 2, 3))
        worst = min(worst, -10 * float(errors.max().clamp(min=1e-30).log10()))
    if not data.settings.fast_decode:
        return "bit for bit" if worst > 140 else ""  # float64 / 255 rounded, or float32 / 255
    return f"at least {worst:.1f} dB" if worst >= FAST_DB else ""
