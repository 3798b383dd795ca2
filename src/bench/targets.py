"""What many targets of one scene cost the one-way model, rendered in three ways that give the same images.

    cached       the context once, then all targets, some at a time, by unmasked attention to its keys and values: our way
    dense mask   one pass over the tokens of context and targets with a boolean mask: the original's way
    per target   one masked pass over the context and one target, for each target
    re-encoded   our way, but the context is encoded again for each target

Random weights, noise for pictures, no gradients; encoding is part of every figure. The ways take turns in one process, so
that whatever else the machine does falls on all of them; figures are medians.

Public: Sizes, Row, measure, table, chart.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..geometry.camera import Cameras, Views
from ..model.base import ViewSynthesizer
from ..model.one_way import OneWayTransformer
from .chart import Panel, draw_chart
from .measure import PeakMemory, Timing, build_section, scene, timed

CACHED, DENSE, SINGLE, AGAIN = "cached", "dense mask", "per target", "re-encoded"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of the model: width of a token, heads and their width, hidden width, blocks; sides of image and patch, pixels."""

    width: int
    heads: int
    d_head: int
    d_ff: int
    layers: int
    size: int
    patch: int


@dataclass(frozen=True)
class Row:
    """One way with one number of targets, encoding included.

    wall_s, cpu_s: seconds on the clock, and of all processor cores.
    peak_bytes: most memory beyond what was held before; None: this system does not tell.
    difference: largest one of any colour from the cached way's images.
    """

    way: str
    num_targets: int
    wall_s: float
    cpu_s: float
    peak_bytes: int | None
    difference: float


class DensePass(nn.Module):
    """The transformer of a one-way model as one pass over all tokens under a boolean mask. Pre-norm blocks."""

    def __init__(self, transformer: OneWayTransformer) -> None:
        super().__init__()
        self.encoder = transformer.encoder

    def read(self, context: Tensor) -> Tensor:
        return context

    def forward(self, targets: Tensor, context: Tensor) -> Tensor:
        b, m, n = len(context), context.shape[1], targets.shape[1]
        x = torch.cat([context, rearrange(targets, "(b v) n d -> b (v n) d", b=b)], dim=1)
        view = torch.arange(x.shape[1] - m, device=x.device) // n + 1
        view = torch.cat([view.new_zeros(m), view])  # 0: context
        mask = (view[None] == 0) | (view[None] == view[:, None])  # i may read j
        for block in self.encoder.layers:
            q, k, v = block.self_attn.project(block.norm1(x))
            scale = block.self_attn.qk_scale.scale
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
            x = x + block.self_attn.o_proj(rearrange(out, "b heads n c -> b n (heads c)"))
            x = x + block.mlp(block.norm2(x))
        return rearrange(self.encoder.norm(x)[:, m:], "b (v n) d -> (b v) n d", n=n)


def models(sizes: Sizes, device: torch.device) -> tuple[ViewSynthesizer, ViewSynthesizer]:
    """The model, and one with the same weights that works under a dense mask."""
    section = {
        "class_name": "src.model.lvsm_latent.LVSM",
        "image_size": sizes.size,
        "patch_size": sizes.patch,
        "transformer": {
            "d_model": sizes.width,
            "num_heads": sizes.heads,
            "d_k": sizes.d_head,
            "d_v": sizes.d_head,
            "d_ff": sizes.d_ff,
            "num_encoder_layers": sizes.layers,
        },
    }
    model, dense = build_section(section).to(device), build_section(section).to(device)
    dense.load_state_dict(model.state_dict())
    dense.transformer = DensePass(dense.transformer)
    return model, dense


def one_by_one(model: ViewSynthesizer, input: Views, cameras: Cameras) -> Tensor:
    """Each target with a pass of its own, context included."""
    views = (cameras.views(slice(i, i + 1)) for i in range(cameras.num_views))
    return torch.cat([model.decode(model.encode(input), view) for view in views], dim=1)


@torch.inference_mode()
def measure(
    sizes: Sizes, num_inputs: int, num_targets: int, repeats: int, device: torch.device, chunk: int = 0
) -> list[Row]:
    """All ways by turns, `repeats` times after one turn that warms up and does not count.

    chunk: targets that the cached way renders at once, 0: all; it bounds the memory.
    """
    model, dense = models(sizes, device)
    input = scene(num_inputs, sizes.size, device, torch.float32)
    cameras = scene(num_targets, sizes.size, device, torch.float32).cameras
    ways: dict[str, Callable[[], Tensor]] = {
        CACHED: lambda: model.render(model.encode(input), cameras, chunk),
        DENSE: lambda: dense.decode(dense.encode(input), cameras),
        SINGLE: lambda: one_by_one(dense, input, cameras),
        AGAIN: lambda: one_by_one(model, input, cameras),
    }
    times: dict[str, list[Timing]] = {way: [] for way in ways}
    peaks, images = {}, {}
    for _ in range(repeats + 1):
        for way, render in ways.items():
            with PeakMemory(device) as peak:
                image, time = timed(render, device)
            times[way].append(time)
            peaks[way], images[way] = peak.bytes, image.cpu()
            del image
    return [
        Row(
            way,
            num_targets,
            statistics.median(time.wall_s for time in times[way][1:]),
            statistics.median(time.cpu_s for time in times[way][1:]),
            peaks[way],
            float((images[way] - images[CACHED]).abs().max()),
        )
        for way in ways
    ]


# ----------------------------------------------------------------------------------------------- showing


def table(rows: list[Row], heading: str) -> str:
    """Markdown; the last columns say how many times the cached way's time each takes."""
    lines = [
        heading,
        "",
        "| targets | way | wall, s | CPU, s | memory, MiB | wall / cached | CPU / cached | difference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        cached = next(c for c in rows if c.way == CACHED and c.num_targets == r.num_targets)
        memory = "-" if r.peak_bytes is None else f"{r.peak_bytes / 2**20:.0f}"
        lines.append(
            f"| {r.num_targets} | {r.way} | {r.wall_s:.3f} | {r.cpu_s:.3f} | {memory} "
            f"| {r.wall_s / cached.wall_s:.2f} | {r.cpu_s / cached.cpu_s:.2f} | {r.difference:.1e} |"
        )
    return "\n".join(lines) + "\n"


def chart(rows: list[Row], path: Path) -> None:
    """Time, and memory if it is known, against the number of targets."""
    ways = dict.fromkeys(row.way for row in rows)
    across = "targets rendered at once"
    panels = [
        Panel(
            "CPU seconds",
            across,
            {way: [(r.num_targets, r.cpu_s) for r in rows if r.way == way] for way in ways},
        )
    ]
    if all(row.peak_bytes for row in rows):
        memory = {way: [(r.num_targets, r.peak_bytes / 2**20) for r in rows if r.way == way] for way in ways}
        panels.append(Panel("memory, MiB", across, memory))
    draw_chart(panels, path)
