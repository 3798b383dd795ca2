"""A run that is killed with SIGKILL, whenever, and started again is the run that was never killed, bit for bit."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from runs import Job, assert_same_state, losses_seen, run, seen, start
from tiny_run import write_config, write_scenes

from src.checkpoint import find_checkpoints

SCENES, STEPS = 6, 12
KILLS = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data"), num_scenes=SCENES, num_frames=12)


FORMS = {
    "plain": {},
    "workers and accumulation": {
        "num_workers": 2,
        "grad_accum_steps": 2,
        "dynamic_input_view_num": True,
        "num_views": 6,
    },
}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, data: Path) -> dict[str, tuple[Job, float]]:
    """Runs that are never killed, and the seconds that they took."""
    folder, found = tmp_path_factory.mktemp("straight"), {}
    for name, settings in FORMS.items():
        job = job_of(folder / name.split()[0], data, settings)
        begin = time.monotonic()
        assert run(job) == [0]
        found[name] = job, time.monotonic() - begin
    return found


def job_of(folder: Path, data: Path, settings: dict) -> Job:
    config = write_config(
        folder / "run.yaml", data, folder / "run", **{"train_steps": STEPS, "checkpoint_every": 1, **settings}
    )
    return Job(config, folder / "notes.jsonl")


def folder_of(job: Job) -> Path:
    return job.config.parent / "run"


def assert_same_run(one: Job, other: Job) -> None:
    """Losses, batches (names and views) and last state are equal."""
    assert losses_seen(folder_of(one)) == losses_seen(folder_of(other))
    assert seen(one.notes) == seen(other.notes)
    assert_same_state(folder_of(one), folder_of(other))


def test_a_run_killed_at_random_moments_equals_the_one_that_was_not(
    straight: dict, data: Path, tmp_path: Path
) -> None:
    """Anywhere: while it starts, reads, learns or saves; with several loader processes and accumulation."""
    form = "workers and accumulation"
    whole, duration = straight[form]
    job, rng, newest = job_of(tmp_path, data, FORMS[form]), random.Random(), []
    for _ in range(KILLS):
        process = start(job)
        process.join(rng.uniform(0.0, duration))
        process.kill()
        process.join()
        newest += [path.name for path in find_checkpoints(folder_of(job))[-1:]]
    assert run(job) == [0]
    print(f"newest checkpoint after each kill: {newest}")  # shown where the test fails
    assert_same_run(whole, job)


def test_a_run_killed_at_an_update_equals_the_one_that_was_not(
    straight: dict, data: Path, tmp_path: Path
) -> None:
    """Three updates of two samples make an epoch of six scenes: killed after its last update, before that is saved;
    before the first of the next; and in the middle of an epoch, before the update is saved.
    """
    whole, _ = straight["plain"]
    job = job_of(
        tmp_path, data, {**FORMS["plain"], "async_save": False}
    )  # a kill must find what is saved on the disk
    for update, after in ((2, True), (3, False), (4, True)):
        assert run(replace(job, die_in=update, die_after=after)) == [-signal.SIGKILL]
    assert run(job) == [0]
    assert_same_run(whole, job)
    updates = [json.loads(note)[0][0] for note in job.notes.read_text().splitlines()]
    assert updates.count(2) == updates.count(4) == 2  # what was not saved was done again


def test_loader_processes_of_a_killed_run_end_too(data: Path, tmp_path: Path) -> None:
    """They would hold memory for ever, and the lock of the run's folder, so that it could not be started again."""
    job = job_of(tmp_path, data, {"num_workers": 2, "train_steps": 10_000, "checkpoint_every": 10_000})
    process = start(job)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    _until(lambda: job.notes.is_file() and len(children.read_text().split()) == 2)
    workers = [Path("/proc", number) for number in children.read_text().split()]
    process.kill()
    process.join()
    _until(lambda: not any(worker.exists() for worker in workers))


def _until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "in vain"
        time.sleep(0.05)
