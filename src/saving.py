"""Writing checkpoints: each is whole or not there, the newest stay, and the training loop hardly waits.

A save copies everything to host memory and writes the copy in a thread, so later steps cannot change what is written.
The memory of the copy is kept for the next one: fresh pages cost more than the copying. So a saving process holds the
weights and the training state once more in host memory (pinned for an accelerator: rounded up to powers of two), and
never twice, because a save waits for the one before it.

A save that fails, as on a full disk, is told and costs that checkpoint alone: nothing of it is left behind, those before
it stay, and training goes on to the next.

Public: Saver, HostMemory, save_checkpoint, prune.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .checkpoint import (
    MANIFEST,
    STATE,
    WEIGHTS,
    CheckpointError,
    checkpoint_folders,
    manifest_digest,
    sha256,
    step_of,
)
from .files import claim, sync_to_disk

log = logging.getLogger(__name__)

LOCK = ".lock"
LOCK_WAIT_S = 60
"""How long a run waits for another process in its folder: loader workers outlive a killed one by some seconds."""


class Saver:
    """Saves the checkpoints of one run folder, one at a time. A context manager: leaving it waits for the last save.

    failure: why the newest save could not be written; None if it was, or is still being written.
    """

    def __init__(self, folder: Path, *, keep: int = 0, keep_every: int = 0, background: bool = True) -> None:
        """
        Args:
            folder: of the run; made at the first save.
            keep, keep_every: see `prune`.
            background: write while training goes on; else `save` returns when the checkpoint is on the disk.
        """
        self.folder, self.keep, self.keep_every, self.background = folder, keep, keep_every, background
        self.failure: CheckpointError | None = None
        self._memory = HostMemory()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saving")
        self._pending: Future | None = None
        self._lock: TextIO | None = None

    def claim(self) -> None:
        """Make this process the only one that writes to the folder, until it ends.

        Raises:
            CheckpointError: another process trains there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = claim(self.folder / LOCK, LOCK_WAIT_S)
        if self._lock is None:
            raise CheckpointError(
                f"{self.folder}: another process writes to this run ({(self.folder / LOCK).read_text().strip()}): "
                "stop it, or name another training.checkpoint_dir."
            )

    def reserve(self, like: Iterable[Tensor]) -> None:
        """Prepare memory for copies of such tensors while something else goes on, so that the first save is fast too."""
        if self.background:
            self._pending = self._thread.submit(self._memory.reserve, list(like))

    def save(self, step: int, weights: dict[str, Tensor], state: dict[str, Any], config: dict) -> None:
        """Write a checkpoint of how everything is now; see `save_checkpoint`.

        Waits for the save before, if that is still being written. A failure is logged and kept in `failure`.
        """
        begin = time.perf_counter()
        self.wait()
        copies = self._memory.copy({"weights": weights, "state": state})
        waited_s = time.perf_counter() - begin
        self._pending = self._thread.submit(self._write, step, copies, config, waited_s)
        if not self.background:
            self.wait()
            self._memory = HostMemory()

    def wait(self) -> None:
        """Return when nothing is being written."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def finish(self) -> None:
        """Wait, and raise CheckpointError if the newest save could not be written."""
        self.wait()
        if self.failure:
            raise self.failure

    def close(self) -> None:
        """Wait, and let others write to the folder."""
        self.wait()
        self._thread.shutdown()
        if self._lock:
            self._lock.close()

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, step: int, copies: dict[str, Any], config: dict, waited_s: float) -> None:
        begin = time.perf_counter()
        try:
            self.failure = None
            path = save_checkpoint(self.folder, step, copies["weights"], copies["state"], config)
        except CheckpointError as error:
            self.failure = error
            log.error("%s", error)
            return
        finally:
            self._memory.release(copies)
        log.info("Wrote %s in %.2f s; training waited %.3f s.", path, time.perf_counter() - begin, waited_s)
        try:
            prune(self.folder, step, self.keep, self.keep_every)
        except OSError as error:
            log.warning("Older checkpoints could not be deleted (%s).", error)


# ----------------------------------------------------------------------------------------------- the copy


class HostMemory:
    """Copies of tensors in host memory; the memory of copies that were given back is used again."""

    def __init__(self) -> None:
        self._free: defaultdict[tuple, list[Tensor]] = defaultdict(list)

    def reserve(self, like: Iterable[Tensor]) -> None:
        """Make buffers for copies of such tensors."""
        for tensor in like:
            buffer = _buffer(tensor).zero_()  # touches every page
            self._free[_kind(buffer)].append(buffer)

    def copy(self, value: Any) -> Any:
        """Dicts, lists and tuples made anew, with a copy of every tensor in them; other values as they are."""
        copied = self._copy(value)
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        return copied

    def release(self, copied: Any) -> None:
        """Give back what `copy` made: its memory will be overwritten."""
        if isinstance(copied, Tensor):
            self._free[_kind(copied)].append(copied)
        elif isinstance(copied, dict | list | tuple):
            for item in copied.values() if isinstance(copied, dict) else copied:
                self.release(item)

    def _copy(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            free = self._free[value.dtype, value.shape]
            return (free.pop() if free else _buffer(value)).copy_(value.detach(), non_blocking=True)
        if isinstance(value, dict):
            return {name: self._copy(item) for name, item in value.items()}
        return type(value)(map(self._copy, value)) if isinstance(value, list | tuple) else value


def _kind(tensor: Tensor) -> tuple[torch.dtype, torch.Size]:
    return tensor.dtype, tensor.shape


def _buffer(like: Tensor) -> Tensor:
    """Contiguous memory on the host; pinned, which makes copies from an accelerator some ten times faster."""
    return torch.empty(like.shape, dtype=like.dtype, pin_memory=like.device.type != "cpu")


# ----------------------------------------------------------------------------------------------- on the disk


def save_checkpoint(
    folder: str | Path, step: int, weights: dict[str, Tensor], state: dict[str, Any], config: dict
) -> Path:
    """Write `folder/ckpt_<step>/` so that it is either whole or absent.

    One of the same step is replaced: a run meets one only after it fell back past it because it was damaged.

    Args:
        weights: the model's tensors by name, on the CPU, contiguous, no two in the same memory.
        state: what resuming needs, of types that weights_only loading allows.
        config: the resolved config as plain values.

    Raises:
        CheckpointError: it cannot be written; nothing of it is left behind.
    """
    folder = Path(folder)
    final = folder / f"ckpt_{step:016d}"
    temporary = folder / f".{final.name}.tmp"
    try:
        _clear_away(folder)
        _write_all(temporary, step, weights, state, config)
        if os.path.lexists(final):
            _remove(final)
        os.replace(temporary, final)
        sync_to_disk(folder)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # each library has its own
        shutil.rmtree(temporary, ignore_errors=True)
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{final} cannot be written ({reason}): is the disk full? Checkpoints before it are kept."
        ) from error
    return final


def _write_all(folder: Path, step: int, weights: dict[str, Tensor], state: dict, config: dict) -> None:
    """The files of a checkpoint, the manifest last, each on the disk when this returns."""
    folder.mkdir(parents=True)
    safetensors.torch.save_file(weights, folder / WEIGHTS)
    torch.save(state, folder / STATE)
    shutil.copymode(folder / STATE, folder / WEIGHTS)  # safetensors makes files that nobody else may read
    for name in (WEIGHTS, STATE):
        sync_to_disk(folder / name)
    manifest = {"step": step, "torch": torch.__version__, "config": config}
    digests = {name: sha256(folder / name) for name in (WEIGHTS, STATE)}
    manifest["sha256"] = digests | {MANIFEST: manifest_digest(manifest)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for name in (MANIFEST, "."):
        sync_to_disk(folder / name)


def prune(folder: str | Path, step: int, keep: int, keep_every: int = 0) -> None:
    """Delete old checkpoints, and what interrupted saves and deletions left behind.

    Those after `step` are left alone and do not count: a run that writes before them passed them over as damaged.

    Args:
        step: of the checkpoint that was just written.
        keep: newest to keep; 0: all.
        keep_every: of every so many steps, the first of these on, one is kept for ever; 0: none is.
    """
    _clear_away(Path(folder))
    before = [path for path in checkpoint_folders(folder) if step_of(path) <= step]
    complete = [path for path in before if (path / MANIFEST).is_file()]
    kept = set(complete[-keep:])
    if keep_every:
        # The first of each period, which is a multiple unless that one could not be written.
        first = {step_of(path) // keep_every: path for path in reversed(complete)}
        kept |= {path for period, path in first.items() if period}
    for path in before:
        if path not in complete or (keep and path not in kept):
            _remove(path)


def _clear_away(folder: Path) -> None:
    """Delete what saves that were killed left behind."""
    for path in folder.glob(".ckpt_*.tmp"):
        _remove(path)


def _remove(path: Path) -> None:
    """The manifest goes first: a deletion that is interrupted leaves an incomplete checkpoint, not a damaged one.

    Of a link the link alone: what it leads to is not this run's.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path)
