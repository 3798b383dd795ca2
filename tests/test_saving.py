"""Checkpoints survive kills and full disks at every byte and file operation; what is saved is how things were at the call."""

from __future__ import annotations

import errno
import logging
import os
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import src.saving
from src.checkpoint import (
    CheckpointError,
    checkpoint_folders,
    damage,
    find_checkpoints,
    load_training_state,
    load_weights,
    newest_checkpoint,
    step_of,
)
from src.files import Lines
from src.saving import HostMemory, Saver, prune, save_checkpoint

LARGEST_FILE_BYTES = 6000
"""Of `write`: the weights end before 1000, the training state before 3000, the manifest ends before this."""

STRIDE_BYTES = 211
"""Between two bytes at which a save is stopped."""


def write(folder: Path, step: int) -> Path:
    """A checkpoint whose files are larger the later they are written, so that a limit on size stops each of them."""
    weights = {"w": torch.full((40, 3), float(step))}
    return save_checkpoint(folder, step, weights, {"step": step, "m": torch.zeros(99)}, {"text": "x" * 5000})


def steps(folder: Path) -> list[int]:
    return [step_of(path) for path in find_checkpoints(folder)]


def in_a_copy(work: Callable[..., Any], *arguments: Any) -> int:
    """Exit status of a copy of this process that does some work; negative: the signal that killed it."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work(*arguments)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def limit_files(num_bytes: int, *, kill: bool) -> None:
    """From now on no file of this process can grow beyond so many bytes: it is killed when it tries, or gets an error."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if kill else signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))


def die_at_operation(number: int) -> None:
    """Kill this process at its file operation of this number, from 1, before it is done."""
    count = 0

    def step(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, _: tuple) -> None:
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            step()

    sys.addaudithook(hook)
    fsync = os.fsync
    os.fsync = lambda descriptor: (step(), fsync(descriptor))


# ----------------------------------------------------------------------------------------------- kills and full disks


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A run folder with whole checkpoints 1 and 2."""
    write(tmp_path, 1)
    write(tmp_path, 2)
    return tmp_path


def test_a_kill_at_any_byte_leaves_the_checkpoints_before_whole(two: Path) -> None:
    def save(limit: int) -> None:
        limit_files(limit, kill=True)
        write(two, 3)

    killed_in = set()
    for limit in range(0, LARGEST_FILE_BYTES, STRIDE_BYTES):
        status = in_a_copy(save, limit)
        if status == 0:
            break
        assert status == -signal.SIGXFSZ
        (left,) = two.glob(".ckpt_*.tmp")
        killed_in |= {path.name for path in left.iterdir()}
        assert newest_checkpoint(two).name.endswith("2") and damage(two / f"ckpt_{1:016d}") is None
    assert limit < LARGEST_FILE_BYTES - STRIDE_BYTES and newest_checkpoint(two).name.endswith("3")
    assert {"model.safetensors", "training_state.pt", "checkpoint.json"} <= killed_in
    assert not list(two.glob(".ckpt_*.tmp"))


def test_a_kill_at_any_file_operation_leaves_a_whole_checkpoint_and_the_next_save_clears_up(tmp_path) -> None:
    """A save and the deletion of the oldest; whatever was whole before is whole until the new one is."""

    def save_and_prune(folder: Path, number: int) -> None:
        die_at_operation(number)
        write(folder, 3)
        prune(folder, 3, keep=1)

    outcomes = []
    for step in (1, 2):
        write(tmp_path / "before", step)
    for number in range(1, 200):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "before", folder)
        status = in_a_copy(save_and_prune, folder, number)
        outcomes.append(step_of(newest_checkpoint(folder)))
        assert all(damage(path) is None for path in find_checkpoints(folder))
        if outcomes[-1] == 2:
            assert steps(folder) == [1, 2]
        write(folder, 4)
        prune(folder, 4, keep=1)
        assert [path.name for path in folder.iterdir()] == [f"ckpt_{4:016d}"]
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert status == 0 and len(outcomes) > 20
    assert outcomes == sorted(outcomes) and set(outcomes) == {2, 3}


def test_a_disk_that_is_full_at_any_byte_costs_that_save_alone(two: Path) -> None:
    def save(limit: int) -> None:
        limit_files(limit, kill=False)
        told = r"is the disk full\? Checkpoints before it are kept"
        with pytest.raises(CheckpointError, match=told) as error:
            write(two, 3)
        assert "\n" not in str(error.value)

    failures = 0
    for limit in range(0, LARGEST_FILE_BYTES, STRIDE_BYTES):
        if in_a_copy(save, limit) == 0:
            failures += 1
            assert not list(two.glob(".*")) and steps(two) == [1, 2]
        else:
            assert steps(two) == [1, 2, 3]
            break
    assert failures > 20
    assert step_of(newest_checkpoint(two)) == 3


# ----------------------------------------------------------------------------------------------- what is kept


def test_the_newest_are_kept_and_one_in_every_period(tmp_path) -> None:
    for step in (2, 4, 6, 8, 10, 12):
        write(tmp_path, step)
    prune(tmp_path, 12, keep=2, keep_every=5)
    assert steps(tmp_path) == [
        6,
        10,
        12,
    ]  # 6: first of 5 to 9; 10: first of 10 to 14; 2 and 4 are before the first 5
    prune(tmp_path, 12, keep=0)
    assert steps(tmp_path) == [6, 10, 12]


def test_damaged_checkpoints_that_were_passed_over_do_not_push_out_whole_ones(tmp_path) -> None:
    for step in (2, 4):
        write(tmp_path, step)
    weights = tmp_path / f"ckpt_{4:016d}" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert step_of(newest_checkpoint(tmp_path)) == 2
    write(tmp_path, 3)
    prune(tmp_path, 3, keep=1)
    assert step_of(newest_checkpoint(tmp_path)) == 3
    write(tmp_path, 4)  # takes the place of the damaged one
    prune(tmp_path, 4, keep=1)
    assert steps(tmp_path) == [4] and damage(find_checkpoints(tmp_path)[0]) is None


def test_what_an_interrupted_deletion_left_is_cleared_away(two: Path) -> None:
    (two / f"ckpt_{1:016d}" / "checkpoint.json").unlink()
    prune(two, 2, keep=0)
    assert [step_of(path) for path in checkpoint_folders(two)] == [2]


def test_a_bit_that_changes_anywhere_in_a_manifest_is_damage(tmp_path) -> None:
    manifest = (
        save_checkpoint(tmp_path, 1, {"w": torch.zeros(1)}, {}, {"lr": 1e-4, "name": "x"}) / "checkpoint.json"
    )
    content = manifest.read_bytes()
    letters = [(position, byte) for position, byte in enumerate(content) if not chr(byte).isspace()]
    for position, byte in letters[::3]:
        manifest.write_bytes(content[:position] + bytes([byte ^ 1]) + content[position + 1 :])
        assert damage(manifest.parent), content[position - 10 : position + 10]


# ----------------------------------------------------------------------------------------------- in the background


def contents(weights: Tensor) -> tuple[dict, dict]:
    return {"w": weights}, {"moments": [weights], "counts": {"step": 1}}


@pytest.mark.parametrize("background", [True, False])
def test_what_is_saved_is_how_it_was_at_the_call(background: bool, tmp_path, held_up) -> None:
    weights = torch.arange(6.0)
    release = held_up() if background else threading.Event()
    with Saver(tmp_path, background=background) as saver:
        saver.save(1, *contents(weights), {})
        weights += 100  # the next step
        release.set()
    assert load_weights(tmp_path)["w"].tolist() == [0, 1, 2, 3, 4, 5]
    assert load_training_state(newest_checkpoint(tmp_path))["moments"][0].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.fixture
def held_up(monkeypatch: pytest.MonkeyPatch) -> Callable[[], threading.Event]:
    """Makes every save wait, before it writes, for the event that is returned."""

    def install() -> threading.Event:
        event, inner = threading.Event(), save_checkpoint

        def slow(*arguments: Any) -> Path:
            assert event.wait(20)
            return inner(*arguments)

        monkeypatch.setattr(src.saving, "save_checkpoint", slow)
        return event

    return install


def test_a_save_does_not_wait_for_the_disk_but_the_next_one_waits_for_it(tmp_path, held_up) -> None:
    release = held_up()
    with Saver(tmp_path) as saver:
        saver.save(1, *contents(torch.zeros(3)), {})
        assert steps(tmp_path) == []
        threading.Timer(0.2, release.set).start()
        saver.save(2, *contents(torch.ones(3)), {})
        assert steps(tmp_path) == [1]
    assert steps(tmp_path) == [1, 2]


def test_a_failed_save_is_told_training_goes_on_and_the_next_one_is_tried(
    tmp_path, monkeypatch, caplog
) -> None:
    weights = torch.zeros(3)
    with Saver(tmp_path) as saver:
        saver.save(1, *contents(weights), {})
        saver.wait()
        monkeypatch.setattr(torch, "save", full_disk)
        with caplog.at_level(logging.ERROR):
            saver.save(2, *contents(weights), {})
            saver.wait()
        assert "ckpt_0000000000000002 cannot be written" in caplog.text and "No space left" in caplog.text
        with pytest.raises(CheckpointError, match="is the disk full"):
            saver.finish()
        monkeypatch.undo()
        saver.save(3, *contents(weights), {})
        saver.finish()
    assert steps(tmp_path) == [1, 3]


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_old_checkpoints_that_cannot_be_deleted_are_no_failure(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(src.saving, "prune", full_disk)
    with Saver(tmp_path, keep=1) as saver:
        saver.save(1, *contents(torch.zeros(3)), {})
        saver.finish()
    assert "could not be deleted" in caplog.text and steps(tmp_path) == [1]


def test_a_mistake_in_the_background_surfaces_in_the_loop(tmp_path) -> None:
    with Saver(tmp_path) as saver:
        saver.save(1, *contents(torch.zeros(1)), {"not": object()})
        with pytest.raises(TypeError, match="not JSON serializable"):
            saver.save(2, *contents(torch.zeros(1)), {})


def test_the_memory_of_a_copy_is_used_again_and_never_more_is_held() -> None:
    memory = HostMemory()
    tensors = {"a": torch.rand(5), "b": [torch.rand(5), torch.rand(2, 3).bfloat16()], "n": 3}
    memory.reserve([tensors["a"], tensors["a"], tensors["b"][1]])
    places = set()
    for _ in range(3):
        copied = memory.copy(tensors)
        assert copied["n"] == 3 and torch.equal(copied["a"], tensors["a"])
        assert torch.equal(copied["b"][1], tensors["b"][1]) and copied["b"][1].dtype == torch.bfloat16
        places |= {tensor.data_ptr() for tensor in (copied["a"], *copied["b"])}
        memory.release(copied)
    assert len(places) == 3
    assert not places & {tensors["a"].data_ptr(), tensors["b"][0].data_ptr()}


def test_a_run_folder_has_one_writer_at_a_time(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(src.saving, "LOCK_WAIT_S", 0.3)
    with Saver(tmp_path) as saver:
        saver.claim()
        with pytest.raises(
            CheckpointError, match=f"another process writes to this run .process {os.getpid()} on"
        ):
            Saver(tmp_path).claim()
    Saver(tmp_path).claim()


# ----------------------------------------------------------------------------------------------- lines


def test_a_line_that_a_kill_cut_off_is_taken_back(tmp_path) -> None:
    path = tmp_path / "log"
    for content, kept in ((b"one\ntwo\nthr", b"one\ntwo\n"), (b"one", b""), (b"", b""), (b"one\n", b"one\n")):
        path.write_bytes(content)
        lines = Lines(path)
        lines.append("new")
        lines.close()
        assert path.read_bytes() == kept + b"new\n"


def test_a_line_that_a_full_disk_cuts_off_is_taken_back(tmp_path) -> None:
    path = tmp_path / "log"

    def work() -> None:
        lines = Lines(path)
        limit_files(10, kill=False)
        lines.append("12345")
        with pytest.raises(OSError, match="File too large"):
            lines.append("6789012")
        limit_files(resource.RLIM_INFINITY, kill=False)
        lines.append("after")

    assert in_a_copy(work) == 0
    assert path.read_text() == "12345\nafter\n"
