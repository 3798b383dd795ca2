"""The machine a run is on: device, processes, seeds, precision, log. The only file that knows "cuda".

The same code runs alone or under torchrun, on GPUs (nccl) or on CPUs (gloo). Alone there is no process group, and the
collectives here return what they were given.

Public: Runtime, start, stop, end_torchrun, autocast, set_precision, exact_float32, grad_scaler, setup_logging, largest_over_ranks,
mean_over_ranks, agree, all_gather_objects, broadcast_object, from_main, random_state, set_random_state, device_memory,
peak_memory_gib.
"""

from __future__ import annotations

import logging
import os
import random
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from .config import ConfigError

log = logging.getLogger(__name__)

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""How long ranks wait for one another: rank 0 writes checkpoints and pictures while the others wait."""

AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision(Protocol):
    """The settings of `training` that choose number formats."""

    use_amp: bool
    amp_dtype: str
    use_tf32: bool


@dataclass(frozen=True)
class Runtime:
    """Where this process stands. `rank` counts over all machines, `local_rank` on this one."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def start(seed: int | None = None) -> Runtime:
    """Pick the device, join the process group that torchrun's environment describes, and seed the generators.

    Args:
        seed: rank r seeds the global generators of torch, numpy and random with seed + r; None leaves them alone.

    Raises:
        ConfigError: more processes than GPUs on this machine.
    """
    rank, world, local_rank = (
        int(os.environ.get(n, d)) for n, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"process {local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}. "
                f"Start torchrun with --nproc_per_node {torch.cuda.device_count()}."
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if world > 1:
        # What hosts tell one another goes through gloo: they do not wait for their devices then.
        backend, bound = ("cpu:gloo,cuda:nccl", device) if device.type == "cuda" else ("gloo", None)
        # With its device nccl connects here, not in the first step: what is wrong between machines is told at once.
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT, device_id=bound)
    if seed is not None:
        torch.manual_seed(seed + rank)
        np.random.seed((seed + rank) % 2**32)
        random.seed(seed + rank)
    return Runtime(device, rank, world, local_rank)


def stop() -> None:
    """Wait for all ranks and leave the process group, if there is one.

    Not for a process that ends with an error: leaving, nccl would wait for the others, which wait for this one. When
    it just ends, torchrun ends the others.
    """
    if dist.is_initialized():
        # Rank 0 may still be writing, and a long wait inside the next call looks like a hang to the watchdog of nccl.
        dist.barrier()
        dist.destroy_process_group()


def end_torchrun(runtime: Runtime) -> None:
    """For a process that ends, as it was asked to, with a status other than 0: torchrun with `--max-restarts` would start
    all processes again, so it is told to end too.
    """
    started, most = (int(os.environ.get(f"TORCHELASTIC_{n}", "0")) for n in ("RESTART_COUNT", "MAX_RESTARTS"))
    if started < most and runtime.local_rank == 0:
        os.kill(os.getppid(), signal.SIGTERM)


def setup_logging(is_main: bool) -> None:
    """One line a record, with the time, on standard error. Other ranks report errors only, with their rank."""
    who = "" if is_main else f"[rank {os.environ.get('RANK', '?')}] "
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine(f"%(asctime)s {who}%(short)s%(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING if is_main else logging.ERROR)
    for name in (__package__, "__main__"):  # the second is the script that runs, e.g. src.train
        logging.getLogger(name).setLevel(logging.INFO if is_main else logging.ERROR)


class _OneLine(logging.Formatter):
    """Information without its level; warnings and errors with it."""

    def format(self, record: logging.LogRecord) -> str:
        record.short = "" if record.levelno <= logging.INFO else f"{record.levelname}: "
        return super().format(record)


# ----------------------------------------------------------------------------------------------- precision


def set_precision(training: Precision) -> None:
    """Switch TF32 in float32 products on or off for this process (no effect on CPUs).

    `amp_dtype: tf32` means float32 with TF32, `fp32` full float32, whatever `use_tf32` says.
    """
    tf32 = training.use_tf32
    if training.use_amp and training.amp_dtype in ("tf32", "fp32"):
        tf32 = training.amp_dtype == "tf32"
    _set_tf32(tf32)


def _set_tf32(on: bool) -> None:
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on


@contextmanager
def exact_float32() -> Iterator[None]:
    """Full float32 inside: metrics and cameras would lose 13 of 23 bits to TF32."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    _set_tf32(False)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


_warned: set[str] = set()


def autocast(device: torch.device, training: Precision) -> AbstractContextManager:
    """The context of a forward pass: bf16 or fp16 autocast if asked for, else nothing."""
    if not training.use_amp or training.amp_dtype not in AUTOCAST_TYPES:
        return nullcontext()
    if device.type == "cpu" and "cpu" not in _warned:
        _warned.add("cpu")
        log.warning(
            "%s autocast on a CPU is up to 100 times slower than float32: set training.use_amp=false.",
            training.amp_dtype,
        )
    return torch.autocast(device.type, dtype=AUTOCAST_TYPES[training.amp_dtype])


def grad_scaler(device: torch.device, training: Precision) -> torch.amp.GradScaler:
    """Loss scaling for fp16 gradients; for every other type its methods pass values through."""
    return torch.amp.GradScaler(device.type, enabled=training.use_amp and training.amp_dtype == "fp16")


# ----------------------------------------------------------------------------------------------- between ranks


def largest_over_ranks(values: Tensor, runtime: Runtime) -> Tensor:
    """Elementwise maximum over ranks; stays on the device, and the host does not wait. Same shape"""
    if runtime.world > 1:
        values = values.clone()
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


def agree(numbers: Sequence[int], runtime: Runtime) -> list[int]:
    """The largest of each number over ranks. Hosts wait here for one another, but not for what their devices compute."""
    if runtime.world == 1:
        return list(numbers)
    largest = torch.tensor(numbers, dtype=torch.int64)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest.tolist()


def mean_over_ranks(values: dict[str, Tensor], runtime: Runtime) -> dict[str, float]:
    """Mean over ranks of scalars that every rank has under the same names; one transfer to the host."""
    if not values:
        return {}
    stacked = torch.stack([value.detach().double() for value in values.values()])
    if runtime.world > 1:
        dist.all_reduce(stacked)
    return dict(zip(values, (stacked / runtime.world).tolist()))


def all_gather_objects(value: Any) -> list:
    """What each rank passed, in the order of ranks."""
    if not dist.is_initialized():
        return [value]
    gathered: list = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def broadcast_object(value: Any) -> Any:
    """What rank 0 passed."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_main(work: Callable[[], Any], runtime: Runtime) -> Any:
    """What `work` returns on rank 0, which alone does it; its ValueError or OSError is raised on all ranks."""
    outcome, failure = None, None
    if runtime.is_main:
        try:
            outcome = work()
        except (ValueError, OSError) as error:
            failure = error
    # The others wait here: without the error they would wait for ever.
    outcome, failure = broadcast_object((outcome, failure))
    if failure is not None:
        raise failure
    return outcome


# ----------------------------------------------------------------------------------------------- state of the process


def random_state(device: torch.device) -> dict[str, Any]:
    """The global generators of torch, the device, numpy and random, of types that `weights_only` loading allows."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [kind, keys.tolist(), int(position), int(has_gauss), float(gauss)],
        "random": random.getstate(),
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put the generators where `random_state` found them."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["device"] is not None:
        torch.cuda.set_rng_state(state["device"], device)
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    version, internal, gauss = state["random"]
    random.setstate((version, tuple(internal), gauss))


def device_memory(device: torch.device) -> tuple[int, int]:
    """Bytes of a GPU that tensors of this process hold, and that it may still take; 0 and 0: not known, as on a CPU."""
    if device.type != "cuda":
        return 0, 0
    held, (free, _) = torch.cuda.memory_allocated(device), torch.cuda.mem_get_info(device)
    return held, free + torch.cuda.memory_reserved(device) - held


def peak_memory_gib(device: torch.device) -> float:
    """Most memory held so far: tensors on a GPU, the whole process on a CPU. GiB"""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / (2**30 if sys.platform == "darwin" else 2**20)
