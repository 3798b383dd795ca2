"""How many target views are rendered at once: what `inference.chunk` says, or what fits the memory of a GPU on paper.

Public: FramesAtOnce, fitting_frames, render_bytes.
"""

from __future__ import annotations

import torch

from .geometry.camera import Views
from .memory import MARGIN, AutocastOnPaper, LiveMemory, autocast_on_paper, views_on_paper
from .model import build_model
from .runtime import device_memory
from .settings import RunConfig

WHAT_FITS = -1
"""Value of `inference.chunk`."""

ON_A_CPU = 4
"""There, more at once are not faster."""


class FramesAtOnce:
    """Of one model on one device; each combination of sizes is counted once."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.counted: dict[tuple[int, ...], int] = {}

    def __call__(self, input: Views, height: int, width: int) -> int:
        """For targets of this size, beside the encoded context; 0: all of them, however many they are."""
        if self.config.inference.chunk != WHAT_FITS:
            return self.config.inference.chunk
        _, free = device_memory(self.device)
        if not free:
            return ON_A_CPU
        sizes = (*input.image.shape[:2], height, width)
        if sizes not in self.counted:
            self.counted[sizes] = fitting_frames(self.config, *sizes, free=free)
        return self.counted[sizes]


def fitting_frames(
    config: RunConfig, samples: int, num_input: int, height: int, width: int, *, free: int
) -> int:
    """As many targets as leave room in `free` bytes, and at least one."""
    one, two = (render_bytes(config, samples, num_input, (height, width), targets) for targets in (1, 2))
    each = two - one
    return max(1, int(MARGIN * free - (one - each)) // each)


def render_bytes(
    config: RunConfig, samples: int, num_input: int, shape: tuple[int, int], num_targets: int
) -> int:
    """Most bytes that rendering so many targets at once holds beside weights and encoded scene.

    shape: height and width of all pictures.
    """
    with torch.device("meta"), torch.no_grad():
        model = build_model(config.model).eval()
        input, target = (views_on_paper(samples, number, *shape) for number in (num_input, num_targets))
        with AutocastOnPaper(), autocast_on_paper(config.training):
            scene = model.encode(input)
            with LiveMemory([*model.parameters(), *model.buffers()]) as live:
                model.decode(scene, model.target_cameras(scene, target))
    return live.peak
