"""One of three processes of tests/ddp: runs every scenario in turn and leaves what it saw in files.

python worker.py RANK FOLDER PORT [PORT ...]      (one port per scenario, the same for all ranks)
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import src.evaluate
import src.run
import src.step
from src.data.loader import TrainingLoader
from src.loss import build_image_loss
from src.optim import clip_or_skip
from src.parallel import is_replicated, spread, whole
from src.train import main

SCENARIOS = {
    "train": 2,
    "accumulated": 2,
    "nan": 2,
    "diverged": 2,
    "failed": 2,
    "no_data": 2,
    "stopped": 2,
    "stopped_scoring": 2,
    "resumed": 2,
    "fsdp": 2,
    "fsdp_accumulated": 2,
    "fsdp_no_data": 2,
    "fsdp_resumed": 2,
    "fsdp_three": 3,
}
"""Name -> how many processes take part."""

LOSS_FAULTS = {
    "nan": {2: "nan"},
    "diverged": {2: "nan", 3: "nan", 4: "nan"},
    "failed": {3: "error", 5: "error"},  # the first micro-batch of step 2 and the last of step 3
    "stopped": {2: "sigterm"},
}
"""Scenario -> call of the loss (from 1) on rank 1 alone -> what happens there."""

LOADER_FAULTS = {"no_data": {2: "error", 3: "error"}, "fsdp_no_data": {2: "error"}}
RENDER_FAULTS = {"stopped_scoring": {1: "sigterm"}}
"""The same for batches read, and for scenes rendered in evaluation."""


def strike(fault: str) -> None:
    if fault == "error":
        raise ValueError("this scene cannot be used")
    if fault == "sigterm":
        os.kill(os.getpid(), signal.SIGTERM)


def with_faults(work: Callable, faults: dict[int, str]) -> Callable:
    """The function, which meets a fault in some of its calls."""
    count = 0

    def faulty(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        strike(faults.get(count, ""))
        result = work(*arguments, **options)
        if faults.get(count) == "nan":
            result["loss"] = result["loss"] * float("nan")
        return result

    return faulty


def spoiled_loss(faults: dict[int, str]) -> Callable[..., Callable[[Tensor, Tensor], dict[str, Tensor]]]:
    """`build_image_loss` whose loss meets faults."""

    def build(*arguments: Any) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
        image_loss = with_faults(build_image_loss(*arguments), faults)
        image_loss.at = lambda step: image_loss  # the same in every step
        return image_loss

    return build


READ, RENDER = TrainingLoader.__next__, src.evaluate._render


def run_scenario(name: str, rank: int, folder: Path) -> dict[str, Any]:
    """Train by `folder/<name>.yaml`; per step: weights before, gradients, outcome; the status and the last weights."""
    seen: list[dict[str, Any]] = []
    models: list[nn.Module] = []
    reductions = 0

    def count(_, bucket):
        # No annotations: torch compares them with classes, and here they are strings.
        nonlocal reductions
        reductions += 1
        buffer = bucket.buffer() / torch.distributed.get_world_size()
        work = torch.distributed.all_reduce(buffer, async_op=True)
        return work.get_future().then(lambda future: future.value()[0])

    def remembering(model: nn.Module, *rest: Any) -> Any:
        models.append(model)
        network, twin = spread(model, *rest)
        if is_replicated(network):
            network.register_comm_hook(None, count)
        return network, twin

    def recording(parameters: Any, *rest: Any, **options: Any) -> Any:
        weights = [whole(p.detach()).clone() for p in parameters]
        gradients = [whole(p.grad).clone() for p in parameters]
        outcome = clip_or_skip(parameters, *rest, **options)
        seen.append({"weights": weights, "gradients": gradients, "stepped": outcome.stepped})
        return outcome

    faults = [
        table.get(name, {}) if rank == 1 else {} for table in (LOSS_FAULTS, LOADER_FAULTS, RENDER_FAULTS)
    ]
    src.run.spread = remembering
    src.step.clip_or_skip = recording
    src.run.build_image_loss = spoiled_loss(faults[0])
    TrainingLoader.__next__ = with_faults(READ, faults[1])
    src.evaluate._render = with_faults(RENDER, faults[2])
    status = main(["--config", str(folder / f"{name}.yaml")])
    local = [p.detach() if is_whole(p) else p.detach().to_local() for p in models[0].parameters()]
    return {"status": status, "steps": seen, "last": [p.clone() for p in local], "reductions": reductions}


def is_whole(parameter: Tensor) -> bool:
    return not hasattr(parameter, "to_local")


def run_all(rank: int, folder: Path, ports: list[str]) -> None:
    for (name, world), port in zip(SCENARIOS.items(), ports, strict=True):
        if rank < world:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            torch.save(run_scenario(name, rank, folder), folder / f"{name}_rank{rank}.pt")


if __name__ == "__main__":
    run_all(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
