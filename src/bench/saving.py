"""What a checkpoint costs a training: written while the loop waits, and in the background.

Real steps (LVSM decoder-only on noise, AdamW) run between the saves. Three kinds of windows of equally many steps take
turns, so that whatever else the machine does falls on all: without a save, with one that the loop waits for, and with
one in the background. A window ends when its checkpoint is on the disk. Figures are medians.

On a GPU the clock on the wall counts. On a CPU, where training, writing and other programs share the cores, it is
processor time: of the whole process for the save that training waits for (waiting for the disk comes on top of it), of
the training thread for the rest.

Public: Sizes, Report, measure, table.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..model.base import ViewSynthesizer
from ..saving import Saver
from .measure import build_section, scene, wait


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of the model: width of a token and of an attention head; blocks; sides of the square image and of a patch, pixels.
    targets: of a step, which has one scene with two inputs.
    """

    width: int
    d_head: int
    layers: int
    size: int
    patch: int
    targets: int

    @property
    def section(self) -> dict[str, Any]:
        """As a `model` section."""
        return {
            "class_name": "model.LVSM_scene_decoder_only.Images2LatentScene",
            "image_tokenizer": {"image_size": self.size, "patch_size": self.patch},
            "target_pose_tokenizer": {"patch_size": self.patch},
            "transformer": {
                "d": self.width,
                "d_head": self.d_head,
                "n_layer": self.layers,
                "use_qk_norm": True,
            },
        }


@dataclass
class Report:
    """num_bytes: of weights and training state. The rest: seconds, one for each window.

    step: of windows without a save. sync_save: how long the loop waited. async_save: the same for the call that only
    copies. async_lost: by how much the window took longer than one without a save, for whatever reason.
    """

    num_parameters: int
    num_bytes: int
    step: list[float] = field(default_factory=list)
    sync_save: list[float] = field(default_factory=list)
    async_save: list[float] = field(default_factory=list)
    async_lost: list[float] = field(default_factory=list)

    def median(self, name: str) -> float:
        """Of one of the lists, seconds."""
        return statistics.median(getattr(self, name))


def measure(sizes: Sizes, folder: Path, steps: int, repeats: int, device: torch.device) -> Report:
    """Take turns `repeats` times.

    Args:
        folder: where checkpoints go, on the disk that is measured; they are deleted again.
        steps: of a window; raise it until a save in the background ends within.
    """
    model = build_section(sizes.section).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device.type != "cpu")
    step = _step(model, optimizer, sizes, device)
    step()  # makes the moments
    moments = (value for moment in optimizer.state.values() for value in moment.values())
    held = [*model.state_dict().values(), *moments]
    report = Report(sum(p.numel() for p in model.parameters()), sum(t.nbytes for t in held))
    waiting, background = (
        Saver(folder / name, keep=1, background=name == "async") for name in ("sync", "async")
    )
    background.reserve(held)
    on_cpu = device.type == "cpu"
    clock = time.thread_time if on_cpu else time.perf_counter
    whole = time.process_time if on_cpu else time.perf_counter
    for number in tqdm(range(repeats), desc="saves of each kind"):
        alone = _timed(lambda: [step() for _ in range(steps)], device, clock)
        report.step.append(alone / steps)
        report.sync_save.append(_timed(partial(_save, waiting, number, model, optimizer), device, whole))
        begin = clock()
        report.async_save.append(_timed(partial(_save, background, number, model, optimizer), device, clock))
        for _ in range(steps):
            step()
        wait(device)
        background.finish()
        report.async_lost.append(clock() - begin - alone)
    for saver in (waiting, background):
        saver.finish()
        saver.close()
        shutil.rmtree(saver.folder)
    return report


def _step(
    model: ViewSynthesizer, optimizer: torch.optim.Optimizer, sizes: Sizes, device: torch.device
) -> Callable[[], None]:
    """One step of training on noise."""
    input, target = scene(2, sizes.size, device), scene(sizes.targets, sizes.size, device)

    def step() -> None:
        loss = (model(input, target).render - target.image).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _save(saver: Saver, number: int, model: ViewSynthesizer, optimizer: torch.optim.Optimizer) -> None:
    saver.save(number, model.state_dict(), {"optimizer": optimizer.state_dict()}, {})


def _timed(work: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    """Seconds by the clock until the device has finished."""
    wait(device)
    begin = clock()
    work()
    wait(device)
    return clock() - begin


def table(report: Report, machine: str) -> str:
    """As Markdown."""
    sync = report.median("sync_save")
    lines = [
        f"Measured on {machine}: {report.num_parameters / 1e6:.0f} M parameters, {report.num_bytes / 1e9:.2f} GB of weights and "
        f"moments; a step takes {report.median('step'):.3f} s; medians of {len(report.step)}"
        + ("; processor time." if machine.startswith("cpu") else "."),
        "",
        "| | s | share |",
        "|---|---|---|",
        f"| save that training waits for | {sync:.3f} | |",
    ]
    for name, what in (
        ("async_save", "save in the background: training waits"),
        ("async_lost", "the same with what the steps meanwhile lose"),
    ):
        value = report.median(name)
        lines.append(f"| {what} | {value:.3f} | {value / sync:.1%} |")
    return "\n".join(lines)
