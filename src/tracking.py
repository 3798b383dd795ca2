"""What a run reports: a console line, `log.jsonl`, TensorBoard files and, if asked for, Weights & Biases.

Only rank 0 reports. The first three are always written; neither a full disk nor a Weights & Biases that cannot be
reached stops a run: what could not be written is told once, and tried again at the next report.

Public: Tracker, Meter, console_line.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from easydict import EasyDict
from torch import Tensor

from .config import ConfigError
from .files import Lines
from .runtime import Runtime, mean_over_ranks, peak_memory_gib
from .settings import RunConfig, to_plain

log = logging.getLogger(__name__)

WANDB_START_S = 60
"""How long to wait for the server at the start, seconds."""

FORMATS = {
    "loss": "loss {:.4f}",
    "psnr": "psnr {:.2f} dB",
    "lr": "lr {:.2e}",
    "grad_norm": "grad {:.3g}",
    "it_per_s": "{:.2f} it/s",
    "images_per_s": "{:.0f} images/s",
    "data_share": "data {:.0%}",
    "memory_gib": "{:.1f} GiB",
    "skipped": "skipped {:.0f}",
}
"""Values of a training record that stand on the console -> how. `skipped` is left out while it is 0."""


def console_line(step: int, total: int, values: dict[str, float]) -> str:
    """`step 120/4000  loss 0.0312  psnr 15.31 dB  lr 1.20e-05 ...`"""
    shown = [f.format(values[n]) for n, f in FORMATS.items() if n in values and (n != "skipped" or values[n])]
    return "  ".join([f"step {step}/{total}", *shown])


class Tracker:
    """Writes the records of a run; a context manager. On ranks other than 0 it does nothing."""

    def __init__(self, folder: str | Path, config: RunConfig, runtime: Runtime, first_step: int = 0) -> None:
        """
        Args:
            folder: where `log.jsonl`, `tensorboard/` and `wandb/` go; made if missing.
            first_step: step at which the run goes on; TensorBoard forgets what an earlier attempt wrote after it.

        Raises:
            ConfigError: the folder cannot be written to.
        """
        self._lines = self._board = self._wandb = None
        self._failing: set[str] = set()
        self._purge_step = first_step + 1 if first_step else None
        if not runtime.is_main:
            return
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lines = Lines(folder / "log.jsonl")
        except OSError as error:
            raise ConfigError(f"training.checkpoint_dir {folder} cannot be written to: {error}") from error
        self._curves = folder / "tensorboard"
        self._wandb = _start_wandb(folder, config)

    def record(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One line of `log.jsonl`: kind, step, time and the values; a number that is not finite is written as null."""
        if self._lines:
            entry = {"kind": kind, "step": step, "time": round(time.time(), 3), **_jsonable(values)}
            with self.going_on_without("log.jsonl"):
                self._lines.append(json.dumps(entry))

    def curves(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Points of curves in TensorBoard and Weights & Biases, named `<kind>/<name>`."""
        named = {f"{kind}/{name}": value for name, value in values.items()}
        if self._lines:
            with self.going_on_without("TensorBoard"):
                self._draw(named, step)
        if self._wandb:
            with self.going_on_without("Weights & Biases"):
                self._wandb.log(named, step=step)

    @contextmanager
    def going_on_without(self, what: str) -> Iterator[None]:
        """Inside, an OSError is told, once until the next success, and training goes on."""
        try:
            yield
        except OSError as error:
            if what not in self._failing:
                log.error("%s cannot be written (%s): is the disk full? Training goes on.", what, error)
            self._failing.add(what)
        else:
            self._failing.discard(what)

    def _draw(self, named: dict[str, float], step: int) -> None:
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter  # a second to import: only where it is needed

            self._board = SummaryWriter(str(self._curves), purge_step=self._purge_step)
        try:
            for name, value in named.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()
        except OSError:
            self._drop_board()
            raise

    def _drop_board(self) -> None:
        """TensorBoard's writer does not recover from an error: the next one begins another file."""
        board, self._board, self._purge_step = self._board, None, None
        with suppress(OSError):
            board.close()

    def close(self) -> None:
        if self._lines:
            self._lines.close()
        if self._board:
            self._drop_board()
        if self._wandb:
            self._wandb.finish()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Meter:
    """Sums over the steps since the last report."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.terms: dict[str, Tensor] = {}
        self.counted = self.steps = self.images = 0
        self.waited_s = self.seconds = 0.0

    def add(
        self, terms: dict[str, Tensor], batches: Sequence[EasyDict], waited_s: float, seconds: float
    ) -> None:
        """Count one step.

        Args:
            terms: scalar loss terms of this rank; empty for a step that is not to enter the means.
            batches: what this rank read.
            waited_s, seconds: time spent waiting for data, and altogether.
        """
        self.steps += 1
        self.images += sum(batch.image.shape[0] * batch.image.shape[1] for batch in batches)
        self.waited_s += waited_s
        self.seconds += seconds
        self.counted += bool(terms)
        for name, value in terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + value

    def means(self, runtime: Runtime) -> dict[str, float]:
        """Mean loss terms over steps and ranks, and speed; all ranks call this."""
        values = mean_over_ranks({name: total / self.counted for name, total in self.terms.items()}, runtime)
        values |= {
            "it_per_s": self.steps / self.seconds,
            "images_per_s": self.images * runtime.world / self.seconds,
            "data_share": self.waited_s / self.seconds,
            "memory_gib": peak_memory_gib(runtime.device),
        }
        return values


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _jsonable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _start_wandb(folder: Path, config: RunConfig) -> Any:
    """The Weights & Biases run, or None: disabled, not installed, without a key or out of reach."""
    training = config.training
    if training.wandb == "disabled":
        return None
    try:
        import wandb
    except ImportError:
        log.warning("training.wandb is %s, but wandb is not installed. Going on without it.", training.wandb)
        return None
    if training.wandb == "online" and not (os.environ.get("WANDB_API_KEY") or wandb.api.api_key):
        log.warning("training.wandb is online, but WANDB_API_KEY is not set. Going on without it.")
        return None
    name = training.wandb_exp_name or folder.resolve().name
    try:
        return wandb.init(
            project=training.wandb_project,
            name=name,
            # The same folder goes on with the same curves after a restart.
            id=hashlib.sha256(f"{name} {folder.resolve()}".encode()).hexdigest()[:16],
            resume="allow" if training.wandb == "online" else None,
            dir=str(folder),
            mode=training.wandb,
            config=to_plain(config),
            settings=wandb.Settings(init_timeout=WANDB_START_S, silent=True),
        )
    except (wandb.errors.Error, OSError, TimeoutError) as error:
        log.warning(
            "Weights & Biases cannot be used (%s). Going on without it.", " ".join(str(error).split())
        )
        return None
