"""One of two processes of tests/ddp: runs every scenario in turn and leaves what it saw in files.

python worker.py RANK FOLDER PORT [PORT ...]      (one port per scenario, the same for both ranks)
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import src.run
import src.train
from src.loss import build_image_loss
from src.optim import clip_or_skip
from src.train import main

NAN_STEPS = {"nan": {2}, "diverged": {2, 3, 4}}
"""Scenario -> calls of the loss (from 1) that give NaN on rank 1 alone."""

STOP_STEPS = {"stopped": 2}
"""Scenario -> call of the loss (from 1) in which rank 1 alone gets SIGTERM."""

SCENARIOS = ("train", "accumulated", "nan", "diverged", "stopped", "resumed")


class CountingDDP(DistributedDataParallel):
    """Counts reductions of gradients between ranks."""

    reductions = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.register_comm_hook(None, self._count)

    @staticmethod
    def _count(_, bucket):
        # No annotations: torch compares them with classes, and here they are strings.
        CountingDDP.reductions += 1
        buffer = bucket.buffer() / torch.distributed.get_world_size()
        work = torch.distributed.all_reduce(buffer, async_op=True)
        return work.get_future().then(lambda future: future.value()[0])


def spoiled_loss(
    calls: set[int], stop_call: int
) -> Callable[..., Callable[[Tensor, Tensor], dict[str, Tensor]]]:
    """`build_image_loss` whose loss is NaN in `calls`, and which sends SIGTERM to its own process in `stop_call`."""

    def build(*arguments: Any) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
        inner, count = build_image_loss(*arguments), 0

        def image_loss(pred: Tensor, target: Tensor) -> dict[str, Tensor]:
            nonlocal count
            count += 1
            terms = inner(pred, target)
            if count == stop_call:
                os.kill(os.getpid(), signal.SIGTERM)
            if count in calls:
                terms["loss"] = terms["loss"] * float("nan")
            return terms

        image_loss.at = lambda step: image_loss  # the same in every step
        return image_loss

    return build


def run_scenario(name: str, rank: int, folder: Path) -> dict[str, Any]:
    """Train by `folder/<name>.yaml`; per step: weights before, gradients, outcome; the status and the last weights."""
    seen: list[dict[str, Any]] = []
    models: list[torch.nn.Module] = []

    class RememberingDDP(CountingDDP):
        def __init__(self, model: torch.nn.Module, **options: Any) -> None:
            models.append(model)
            super().__init__(model, **options)

    def recording(parameters: Any, *rest: Any, **options: Any) -> Any:
        weights = [p.detach().clone() for p in parameters]
        gradients = [p.grad.clone() for p in parameters]
        outcome = clip_or_skip(parameters, *rest, **options)
        seen.append({"weights": weights, "gradients": gradients, "stepped": outcome.stepped})
        return outcome

    src.run.DistributedDataParallel = RememberingDDP
    src.train.DistributedDataParallel = RememberingDDP
    src.train.clip_or_skip = recording
    calls, stop_call = (NAN_STEPS.get(name, set()), STOP_STEPS.get(name, 0)) if rank == 1 else (set(), 0)
    src.run.build_image_loss = spoiled_loss(calls, stop_call)
    CountingDDP.reductions = 0
    status = main(["--config", str(folder / f"{name}.yaml")])
    last = [p.detach().clone() for p in models[0].parameters()]
    return {"status": status, "steps": seen, "last": last, "reductions": CountingDDP.reductions}


def run_all(rank: int, folder: Path, ports: list[str]) -> None:
    for name, port in zip(SCENARIOS, ports, strict=True):
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        torch.save(run_scenario(name, rank, folder), folder / f"{name}_rank{rank}.pt")


if __name__ == "__main__":
    run_all(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
