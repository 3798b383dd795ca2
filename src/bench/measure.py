"""What the benchmarks share: a scene of noise, models from a `model` section, clocks, peak memory, counted work.

Public: build_section, skip_unused, scene, timed, Timing, PeakMemory, counted, machine.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..config import ConfigError, build
from ..geometry.camera import Cameras, Views
from ..model import build_model, family_config
from ..model.base import ViewSynthesizer
from ..model.transformer import BlockStack


def build_section(section: dict) -> ViewSynthesizer:
    """The model of a `model` section, for inference. Raises ConfigError."""
    problems: list[str] = []
    config = build(family_config(section["class_name"]), section, "model", problems)
    if problems:
        raise ConfigError("\n".join(problems))
    return build_model(config).eval()


def skip_unused(model: ViewSynthesizer, skips: bool) -> None:
    """Whether last blocks leave out tokens that are not used; as published, every block computes all tokens."""
    for module in model.modules():
        if isinstance(module, BlockStack):
            module.skip_unused = skips


def scene(num_views: int, size: int, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Views:
    """Noise, seen by cameras that stand side by side."""
    c2w = torch.eye(4, device=device).repeat(1, num_views, 1, 1)
    c2w[..., 0, 3] = torch.arange(num_views, device=device) / max(1, num_views)
    fxfycxcy = torch.full((1, num_views, 4), size / 2, device=device)
    image = torch.rand(1, num_views, 3, size, size, device=device, dtype=dtype)
    return Views(image, Cameras(c2w, fxfycxcy, size, size))


@dataclass(frozen=True)
class Timing:
    """wall_s, cpu_s: seconds on the clock, and of all processor cores."""

    wall_s: float
    cpu_s: float


def timed(work: Callable[[], object], device: torch.device) -> tuple[object, Timing]:
    """What `work` returns, and the time until the device has finished it."""
    wait(device)
    begin = time.perf_counter(), time.process_time()
    result = work()
    wait(device)
    return result, Timing(time.perf_counter() - begin[0], time.process_time() - begin[1])


def wait(device: torch.device) -> None:
    """Until an accelerator has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class PeakMemory:
    """`bytes` after the `with` block: most memory beyond what was held before; None: this system does not tell."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes = device, None

    def __enter__(self) -> PeakMemory:
        self.before = self._held()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type != "cpu":
            self.bytes = torch.accelerator.max_memory_allocated(self.device) - self.before
        elif self.before is not None:
            self.bytes = max(0, _status("VmHWM") - self.before)

    def _held(self) -> int | None:
        if self.device.type != "cpu":
            torch.accelerator.reset_peak_memory_stats(self.device)
            return torch.accelerator.memory_allocated(self.device)
        try:
            ctypes.CDLL(None).malloc_trim(0)  # what earlier turns have freed goes back to the system
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is what is held now
        except (OSError, AttributeError, TypeError):  # not Linux with glibc
            return None
        return _status("VmRSS")


def _status(name: str) -> int:
    """Bytes under a name in /proc/self/status, which counts in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def counted(section: dict, num_inputs: int, size: int, *, skips: bool = True) -> tuple[int, int]:
    """Floating-point operations of encoding and of one frame, counted without computing anything.

    skips: as in `skip_unused`.
    """
    with torch.device("meta"):
        model = build_section(section).requires_grad_(False)
        skip_unused(model, skips)
        input, target = scene(num_inputs, size, "meta"), scene(1, size, "meta")
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as encoding:
            state = model.encode(input)
        with FlopCounterMode(display=False) as frame:
            model.decode(state, target.cameras)
    return encoding.get_total_flops(), frame.get_total_flops()


def machine(device: torch.device) -> str:
    """For the heading of a table."""
    if device.type == "cpu":
        return f"cpu, {torch.get_num_threads()} threads, torch {torch.__version__}"
    return f"{torch.get_device_module(device).get_device_name(device)}, torch {torch.__version__}"
