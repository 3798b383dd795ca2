"""What the score says of faults that are known: perfect frames of the synthetic set, spoilt on purpose.

Public: DAMAGE, damaged_videos.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.synthetic import Scene, render_frames

Damage = Callable[[Tensor, torch.Generator], Tensor]
"""(frames [t, 3, h, w] in [0, 1], random numbers) -> the same, spoilt."""


def _flicker(frames: Tensor, g: torch.Generator) -> Tensor:
    return frames * (0.8 + 0.4 * torch.rand(len(frames), 3, 1, 1, generator=g))


def _shake(frames: Tensor, g: torch.Generator) -> Tensor:
    steps = torch.randint(-1, 2, (len(frames), 2), generator=g).tolist()
    return torch.stack([frame.roll(step, dims=(1, 2)) for frame, step in zip(frames, steps)])


def _soften(frames: Tensor, g: torch.Generator) -> Tensor:
    return F.avg_pool2d(F.pad(frames, (2, 2, 2, 2), mode="replicate"), 5, stride=1)


DAMAGE: dict[str, Damage] = {
    "none: the true frames": lambda frames, g: frames,
    "blurred, 5 pixels": _soften,
    "noise of 0.05": lambda frames, g: frames + 0.05 * torch.randn(frames.shape, generator=g),
    "colours times 0.8 to 1.2": _flicker,
    "moved by a pixel": _shake,
    "in random order": lambda frames, g: frames[torch.randperm(len(frames), generator=g)],
    "the first frame throughout": lambda frames, g: frames[:1].expand_as(frames),
    "one grey throughout": lambda frames, g: frames.mean().expand_as(frames),
}
"""What is done -> how; each frame by itself."""


@dataclass(frozen=True)
class Frame:
    """A picture that is no file."""

    pixels: Tensor

    def load(self) -> Tensor:
        return self.pixels


def damaged_videos(scenes: list[Scene], height: int, width: int) -> dict[str, dict[str, dict[int, Frame]]]:
    """What was done -> scene -> frame -> picture, as `report.score_methods` takes them."""
    videos: dict[str, dict[str, dict[int, Frame]]] = {name: {} for name in DAMAGE}
    for scene in scenes:
        pixels = torch.stack([torch.from_numpy(x) for x in render_frames(scene, height, width)])
        frames = pixels.permute(0, 3, 1, 2) / 255
        for name, damage in DAMAGE.items():
            spoilt = damage(frames, torch.Generator().manual_seed(0)).clamp(0, 1)
            videos[name][scene.key] = dict(enumerate(map(Frame, spoilt)))
    return videos
