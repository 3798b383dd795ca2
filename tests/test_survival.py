"""Whole runs on disks that are full now and then: what cannot be written is told, and training goes on."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import losses, write_config, write_scenes
from torch.utils.tensorboard import SummaryWriter

import src.saving
import src.train
from src.checkpoint import find_checkpoints, load_training_state, load_weights, step_of
from src.files import Lines
from src.saving import save_checkpoint
from src.train import main


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data"))


@pytest.fixture
def train(data: Path, tmp_path: Path) -> Callable[..., tuple[int, Path]]:
    """Run `main` on the tiny config with other settings; exit status and run folder."""

    def run(name: str = "run", **training: Any) -> tuple[int, Path]:
        config = write_config(tmp_path / f"{name}.yaml", data, tmp_path / name, **training)
        return main(["--config", str(config)]), tmp_path / name

    return run


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_at(monkeypatch: pytest.MonkeyPatch, *full_steps: int) -> None:
    """The disk has no room for the training states of these steps."""

    def save(state: dict, path: Path) -> None:
        if state["progress"]["step"] in full_steps:
            no_space()
        inner(state, path)

    inner = torch.save
    monkeypatch.setattr(torch, "save", save)


def steps(run: Path) -> list[int]:
    return [step_of(path) for path in find_checkpoints(run)]


def assert_same_end(a: Path, b: Path) -> None:
    """Last weights and moments are equal bit for bit."""
    one, other = load_weights(a), load_weights(b)
    assert all(torch.equal(one[name], other[name]) for name in one | other)
    moments = [load_training_state(find_checkpoints(run)[-1])["optimizer"]["state"] for run in (a, b)]
    for number, moment in moments[0].items():
        assert all(torch.equal(moment[name], moments[1][number][name]) for name in moment)


def test_saving_in_the_background_and_not_gives_the_same_checkpoints(train) -> None:
    settings = {"checkpoint_every": 1, "keep_checkpoints": 0}
    _, background = train("background", **settings)
    _, waiting = train("waiting", async_save=False, **settings)
    assert steps(background) == steps(waiting) == [1, 2, 3, 4, 5, 6]
    for one, other in zip(find_checkpoints(background), find_checkpoints(waiting)):
        first, second = load_weights(one), load_weights(other)
        assert all(torch.equal(first[name], second[name]) for name in first | second)


def test_a_save_on_a_full_disk_costs_that_checkpoint_alone(train, monkeypatch, capsys) -> None:
    _, straight = train("straight")
    full_at(monkeypatch, 4)
    status, run = train("run")
    assert status == 0 and steps(run) == [2, 6]
    told = capsys.readouterr().err
    assert "ckpt_0000000000000004 cannot be written ([Errno 28] No space left on device)" in told
    assert_same_end(straight, run)


def test_a_run_whose_last_checkpoint_could_not_be_written_fails_and_is_finished_later(
    train, monkeypatch, capsys
) -> None:
    _, straight = train("straight")
    full_at(monkeypatch, 6)
    status, run = train("run")
    assert status == 2 and steps(run) == [2, 4]
    assert "error: " in (told := capsys.readouterr().err) and "is the disk full" in told.splitlines()[-1]
    monkeypatch.undo()
    assert train("run")[0] == 0
    assert_same_end(straight, run)


def test_logs_curves_and_pictures_that_cannot_be_written_do_not_end_a_run(train, monkeypatch, capsys) -> None:
    _, straight = train("straight")
    capsys.readouterr()
    monkeypatch.setattr(Lines, "append", no_space)
    monkeypatch.setattr(SummaryWriter, "flush", no_space)
    monkeypatch.setattr(src.train, "save_image", no_space)
    status, run = train("run", vis_every=2)
    assert status == 0
    told = capsys.readouterr().err
    for what in ("log.jsonl", "TensorBoard", "a picture"):  # each once, though all happened in every report
        assert told.count(f"{what} cannot be written ([Errno 28] No space left on device)") == 1
    assert_same_end(straight, run)


def test_curves_go_on_in_another_file_when_there_is_room_again(train, monkeypatch) -> None:
    flushes, inner = [], SummaryWriter.flush

    def flush(writer: SummaryWriter) -> None:
        flushes.append(writer)
        if len(flushes) == 2:
            no_space()
        inner(writer)

    monkeypatch.setattr(SummaryWriter, "flush", flush)
    _, run = train()
    assert len(set(map(id, flushes[:2]))) == 1 and flushes[2] is not flushes[1]
    assert flushes[-1] is flushes[2] and list(losses(run)) == [1, 2, 3, 4, 5, 6]


def test_one_checkpoint_in_a_period_is_kept_for_ever(train) -> None:
    _, run = train(checkpoint_every=1, keep_checkpoints=1, keep_checkpoint_every=2)
    assert steps(run) == [2, 4, 6]


def test_the_end_of_a_run_waits_for_its_last_checkpoint(train, monkeypatch) -> None:
    def slow(*arguments: Any) -> Path:
        time.sleep(0.3)
        return save_checkpoint(*arguments)

    monkeypatch.setattr(src.saving, "save_checkpoint", slow)
    status, run = train(checkpoint_every=6)
    assert status == 0 and steps(run) == [6]
