"""Training in processes of their own that can be killed, and what they leave behind.

The processes are forked from a server that has imported everything already: each starts in a fraction of a second.

Public: Job, run, start, free_port, seen, losses_seen, assert_same_state.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import socket
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tiny_run import records
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from src.checkpoint import find_checkpoints, load_training_state, load_weights
from src.data.loader import TrainingLoader

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["runs", "src.train"])
TIMEOUT_S = 120
"""For one process; they take seconds on an idle core."""


@dataclass(frozen=True)
class Job:
    """One process of a training.

    config: YAML of the run. notes: where it writes what it sees. rank, world, port: its place among several.
    die_in: kill itself right before this update (from 0) and, with `die_after`, right after it, before it is saved.
    """

    config: Path
    notes: Path
    rank: int = 0
    world: int = 1
    port: str = ""
    die_in: int = -1
    die_after: bool = False


def _train(job: Job) -> None:
    """What the process does: train, and note each update's batches and, of the first two, its gradients."""
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    if job.world > 1:
        place = {"RANK": job.rank, "LOCAL_RANK": job.rank, "WORLD_SIZE": job.world, "MASTER_PORT": job.port}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in place.items()}}
    torch.set_num_threads(1)
    multiprocessing.set_start_method(
        "fork", force=True
    )  # loader processes are children of this one and end with it
    from src.train import main

    _note_batches(job)
    gradients: list[list[torch.Tensor]] = []

    def before(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if len(gradients) < 2:
            gradients.append([p.grad.clone() for group in optimizer.param_groups for p in group["params"]])
            torch.save(gradients, job.notes.with_suffix(f".gradients{job.rank}"))

    def after(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        moment = next(iter(optimizer.state.values()))
        if job.die_after and int(moment["step"]) == job.die_in + 1:
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_pre_hook(before)
    register_optimizer_step_post_hook(after)
    os._exit(
        main(["--config", str(job.config)])
    )  # multiprocessing's way to end would wait for loader processes


def _note_batches(job: Job) -> None:
    """Every batch that the loader hands out is noted first; here the process dies before its update."""
    begin, give = TrainingLoader.__init__, TrainingLoader.__next__

    def init(
        loader: TrainingLoader, config: Any, rank: int, world: int, samples_seen: int, *rest: Any
    ) -> None:
        begin(loader, config, rank, world, samples_seen, *rest)
        accum = config.training.grad_accum_steps
        first = samples_seen // (config.training.batch_size_per_gpu * world)
        loader.noted = iter(divmod(number, accum) for number in itertools.count(first))

    def following(loader: TrainingLoader) -> Any:
        batch = give(loader)
        update, part = next(loader.noted)
        if update == job.die_in and not job.die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        views = [batch.scene_name, batch.index[..., 0].tolist(), batch.target_idx.tolist()]
        with job.notes.open("a", encoding="utf-8") as file:
            file.write(json.dumps([[update, part, job.rank], views]) + "\n")
        return batch

    TrainingLoader.__init__, TrainingLoader.__next__ = init, following


def start(job: Job) -> multiprocessing.process.BaseProcess:
    """The process of a job, running."""
    process = SERVER.Process(target=_train, args=(job,))
    process.start()
    return process


def run(*jobs: Job) -> list[int]:
    """Run jobs side by side to their ends; their exit statuses, negative after a signal."""
    processes = [start(job) for job in jobs]
    for process in processes:
        process.join(TIMEOUT_S)
        process.kill()  # no effect on one that has ended
        process.join()
    return [process.exitcode for process in processes]


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


# ----------------------------------------------------------------------------------------------- what they left


def seen(notes: Path) -> dict[tuple[int, int, int], list]:
    """(update, micro-step, rank) -> scene names, frames, target columns. What was done twice must have seen the same."""
    found: dict[tuple[int, int, int], list] = {}
    for line in notes.read_text(encoding="utf-8").splitlines():
        place, views = json.loads(line)
        assert found.setdefault(tuple(place), views) == views, (
            f"update {place} saw something else the second time"
        )
    return found


def losses_seen(run_folder: Path) -> dict[int, float]:
    """Step -> loss; a step that was done twice must have had the same."""
    found: dict[int, set[float]] = defaultdict(set)
    for entry in records(run_folder):
        found[entry["step"]].add(entry["loss"])
    assert all(len(values) == 1 for values in found.values()), found
    return {step: values.pop() for step, values in found.items()}


def assert_same_state(one: Path, other: Path) -> None:
    """The newest checkpoints of two runs are equal bit for bit: weights, optimiser, averages, counters, generators."""
    _assert_equal(load_weights(one), load_weights(other), "weights")
    states = [load_training_state(find_checkpoints(folder)[-1]) for folder in (one, other)]
    _assert_equal(*states, "state")


def _assert_equal(one: Any, other: Any, where: str) -> None:
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            _assert_equal(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for number, (a, b) in enumerate(zip(one, other)):
            _assert_equal(a, b, f"{where}.{number}")
    elif torch.is_tensor(one):
        assert torch.equal(one, other), where
    else:
        assert one == other, where
