"""The same training on one process, on two, with accumulation: equal gradients and weights; and who sees which sample."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Job, free_port, run
from tiny_run import largest_difference, tiny_config, write_config, write_scenes

from src.data.loader import training_loader

SCENES = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data"), num_scenes=SCENES, num_frames=40)


def test_one_process_two_and_accumulation_take_the_same_steps(data: Path, tmp_path: Path) -> None:
    """1 x 8 = 2 x 4 = accumulation 2 x 4. The first update has learning rate 0: two gradients at equal weights."""
    forms = {"whole": (1, 8, 1), "two": (2, 4, 1), "accumulated": (1, 4, 2)}
    for name, (world, batch, accum) in forms.items():
        config = write_config(
            tmp_path / f"{name}.yaml", data, tmp_path / name,
            batch_size_per_gpu=batch, grad_accum_steps=accum, train_steps=20, checkpoint_every=20, warmup=5,
        )  # fmt: skip
        port = free_port()
        jobs = [Job(config, tmp_path / f"{name}{rank}.jsonl", rank, world, port) for rank in range(world)]
        assert run(*jobs) == [0] * world
    wanted = torch.load(tmp_path / "whole0.gradients0")
    for other in ("two0.gradients0", "two1.gradients1", "accumulated0.gradients0"):
        found = torch.load(tmp_path / other)
        assert len(found) == len(wanted) == 2
        for ours, theirs in zip(itertools.chain(*found), itertools.chain(*wanted), strict=True):
            assert (ours - theirs).abs().max() < 1e-6
    for other in ("two", "accumulated"):
        assert largest_difference(tmp_path / "whole", tmp_path / other) < 1e-5


def draws(
    data: Path,
    folder: Path,
    updates: int,
    *,
    rank: int = 0,
    world: int = 1,
    samples_seen: int = 0,
    **training: Any,
) -> list[tuple[str, tuple[int, ...]]]:
    """(scene, frames) of every sample that a rank is given in so many updates."""
    config = tiny_config(write_config(folder / "draws.yaml", data, folder / "run", **training))
    loader = training_loader(config, rank=rank, world=world, samples_seen=samples_seen)
    batches = [next(loader) for _ in range(updates * config.training.grad_accum_steps)]
    loader.close()
    return [
        (name, tuple(frames))
        for batch in batches
        for name, frames in zip(batch.scene_name, batch.index[..., 0].tolist(), strict=True)
    ]


def test_with_another_number_of_processes_each_scene_of_the_epoch_is_seen_once(
    data: Path, tmp_path: Path
) -> None:
    """Half an epoch on one process, the rest of it on three, the next one on two with loader processes and
    accumulation.
    """
    first = draws(data, tmp_path, 3, batch_size_per_gpu=2)
    for rank in range(3):
        first += draws(data, tmp_path, 1, rank=rank, world=3, samples_seen=6, batch_size_per_gpu=2)
    then = []
    for rank in range(2):
        settings = {"batch_size_per_gpu": 3, "grad_accum_steps": 2, "num_workers": 2}
        then += draws(data, tmp_path, 1, rank=rank, world=2, samples_seen=12, **settings)
    everything = sorted(f"scene{number}" for number in range(SCENES))
    assert sorted(name for name, _ in first) == sorted(name for name, _ in then) == everything
    assert dict(first) != dict(then)


def test_no_two_ranks_or_workers_see_the_same_draw(data: Path, tmp_path: Path) -> None:
    """Four epochs on two ranks with two loader processes each: every (scene, views) is met once."""
    updates = 4 * SCENES // 4
    seen = [
        draw
        for rank in range(2)
        for draw in draws(data, tmp_path, updates, rank=rank, world=2, batch_size_per_gpu=2, num_workers=2)
    ]
    assert len(seen) == len(set(seen)) == 4 * SCENES
