"""What a scene costs against the number of its input views: LaCT beside full attention of the same width and depth.

    LaCT             reconstruct once (the fast weights), then each target from them: linear in the views, then constant
    full attention   LVSM decoder-only: each target with all inputs, all tokens attending to all in all layers, as published: quadratic

Random weights, noise for pictures, no gradients. The contenders take turns in one process, so that whatever else the
machine does falls on both; figures are medians. Beside the clock, work is counted (multiply-adds twice) on the meta device.

Public: Sizes, Row, contenders, measure, expected_flops, crossover, table, chart.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .chart import Panel, draw_chart
from .measure import PeakMemory, build_section, counted, scene, skip_unused, timed

LACT, FULL = "LaCT", "full attention"

INTER_MULTI, MUON_STEPS = 2, 5
"""Of the fast weights, as published: one head of the whole width."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of both: width of a token and of an attention head; blocks; sides of the square image and of a patch, pixels."""

    width: int
    d_head: int
    layers: int
    size: int
    patch: int

    @property
    def tokens(self) -> int:
        """Of a view."""
        return (self.size // self.patch) ** 2


@dataclass(frozen=True)
class Row:
    """One contender with one number of input views; for LaCT `encode` is the reconstruction, full attention has none.

    encode_s, frame_s: seconds of all processor cores, for the scene once and for one target.
    encode_bytes, frame_bytes: peak memory beyond what was held before; None: this system does not tell.
    encode_flop, frame_flop: counted work.
    """

    name: str
    num_inputs: int
    encode_s: float
    frame_s: float
    encode_bytes: int | None
    frame_bytes: int | None
    encode_flop: int
    frame_flop: int


def contenders(sizes: Sizes) -> dict[str, dict]:
    """Name -> `model` section."""
    attention = {"head_dim": sizes.d_head, "use_qk_norm": True}
    memory = {"head_dim": sizes.width, "inter_multi": INTER_MULTI, "muon_update_steps": MUON_STEPS}
    return {
        LACT: {
            "class_name": "src.model.lact.LaCT",
            "image_size": sizes.size,
            "patch_size": sizes.patch,
            "dim": sizes.width,
            "layers": sizes.layers,
            "block_config": [
                {"type": "model.SelfAttention", "length_dim": "l", "params": attention},
                {"type": "lact_ttt.FastWeightGluMLPMultihead", "length_dim": "vl", "params": memory},
                {"type": "model.MLP", "length_dim": "vl", "params": {"inter_multi": 4}},
            ],
        },
        FULL: {
            "class_name": "model.LVSM_scene_decoder_only.Images2LatentScene",
            "image_tokenizer": {"image_size": sizes.size, "patch_size": sizes.patch},
            "target_pose_tokenizer": {"patch_size": sizes.patch},
            "transformer": {
                "d": sizes.width,
                "d_head": sizes.d_head,
                "n_layer": sizes.layers,
                "use_qk_norm": True,
            },
        },
    }


@torch.inference_mode()
def measure(sizes: Sizes, num_inputs: int, repeats: int, device: torch.device) -> list[Row]:
    """Both by turns, `repeats` times after one turn that warms up and does not count."""
    sections = contenders(sizes)
    models = {name: build_section(section).to(device) for name, section in sections.items()}
    for model in models.values():
        skip_unused(model, False)
    input, target = scene(num_inputs, sizes.size, device), scene(1, sizes.size, device)
    seconds: dict[tuple[str, str], list[float]] = {}
    peaks: dict[tuple[str, str], int | None] = {}

    def run(name: str, part: str, work: Callable[[], object]) -> object:
        with PeakMemory(device) as peak:
            result, time = timed(work, device)
        seconds.setdefault((name, part), []).append(time.cpu_s if device.type == "cpu" else time.wall_s)
        peaks[name, part] = peak.bytes
        return result

    for _ in range(repeats + 1):
        for name, model in models.items():
            state = run(name, "encode", lambda model=model: model.encode(input))
            run(name, "frame", lambda model=model, state=state: model.decode(state, target.cameras))
            del state
    parts = ("encode", "frame")
    return [
        Row(
            name,
            num_inputs,
            *(statistics.median(seconds[name, part][1:]) for part in parts),
            *(peaks[name, part] for part in parts),
            *counted(section, num_inputs, sizes.size, skips=False),
        )
        for name, section in sections.items()
    ]


def expected_flops(sizes: Sizes, num_inputs: int) -> dict[str, tuple[int, int]]:
    """Name -> work of encoding and of one frame by formula; tokenizers and head included.

    Of LaCT with D the width, p tokens a view and r = 2, each layer takes 68 D^2 + 4 p D + 6 D for an input token,
    40 D^2 + 4 p D for a target token (4 D^2 + 6 D more as published, for keys, values and rates that nobody reads) and
    150 D^3 a scene. Of the last layer the inputs need attention, keys, values, rates and the update alone.
    Full attention: 24 D^2 + 4 n D for each of n tokens.
    """
    d, p, layers, n = sizes.width, sizes.tokens, sizes.layers, num_inputs * sizes.tokens
    pixels = sizes.patch**2
    update = 2 * INTER_MULTI * 6 * d * d
    token = 68 * d * d + 4 * p * d + 6 * d
    last = 8 * d * d + 4 * p * d + 4 * d * d + 6 * d + update  # attention, keys and values, rates, gradients
    newton = 3 * MUON_STEPS * (4 * INTER_MULTI + 2) * d**3
    lact_encode = n * 2 * 12 * pixels * d + (layers - 1) * n * token + n * last + layers * newton
    lact_frame = p * (2 * 12 + 2 * 3) * pixels * d + layers * p * (40 * d * d + 4 * p * d)
    all_tokens = n + p
    full = layers * all_tokens * (24 * d * d + 4 * all_tokens * d) + p * (2 * 6 + 2 * 3) * pixels * d
    return {LACT: (lact_encode, lact_frame), FULL: (n * 2 * 9 * pixels * d, full)}


# ----------------------------------------------------------------------------------------------- showing


def crossover(rows: list[Row], cost: Callable[[Row], float]) -> float:
    """Input views from which on LaCT costs less, interpolated in logarithms; inf: nowhere in the rows; 0: everywhere."""
    gaps = []
    for number in sorted({row.num_inputs for row in rows}):
        lact, full = (next(r for r in rows if (r.name, r.num_inputs) == (n, number)) for n in (LACT, FULL))
        gaps.append((math.log(number), math.log(cost(lact) / cost(full))))
    for (x0, y0), (x1, y1) in itertools.pairwise(gaps):
        if y0 > 0 >= y1:
            return math.exp(x0 + (x1 - x0) * y0 / (y0 - y1))
    return 0.0 if gaps[0][1] <= 0 else math.inf


def scene_s(row: Row) -> float:
    """Seconds until the first target is there."""
    return row.encode_s + row.frame_s


def scene_flop(row: Row) -> float:
    """Work until the first target is there."""
    return row.encode_flop + row.frame_flop


def table(rows: list[Row], heading: str) -> str:
    """Markdown, and below it where the two cross."""
    lines = [
        heading,
        "",
        "| model | inputs | scene once, CPU-s | each target, CPU-s | memory, MiB | scene once, GFLOP | each target, GFLOP |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        most = max(r.encode_bytes or 0, r.frame_bytes or 0)
        lines.append(
            f"| {r.name} | {r.num_inputs} | {r.encode_s:.2f} | {r.frame_s:.2f} | {most / 2**20:.0f} "
            f"| {r.encode_flop / 1e9:.1f} | {r.frame_flop / 1e9:.1f} |"
        )
    lines += ["", "LaCT costs less than full attention"]
    for what, cost in (("in counted work", scene_flop), ("in measured time", scene_s)):
        lines.append(f"- for a scene and one target, {what}: {_from(crossover(rows, cost))};")
    for what, cost in (("work", lambda r: r.frame_flop), ("time", lambda r: r.frame_s)):
        lines.append(f"- for each further target, {what}: {_from(crossover(rows, cost))}.")
    return "\n".join(lines) + "\n"


def _from(views: float) -> str:
    if views == 0:
        return "with every number of inputs measured"
    return "with no number of inputs measured" if math.isinf(views) else f"from {views:.1f} inputs on"


def chart(rows: list[Row], path: Path) -> None:
    """Time and memory against the number of input views."""

    def line(name: str, value: Callable[[Row], float]) -> list[tuple[float, float]]:
        return [(r.num_inputs, value(r)) for r in rows if r.name == name]

    seconds = {
        f"{LACT}, scene and a target": line(LACT, scene_s),
        f"{FULL}, a target": line(FULL, scene_s),
        f"{LACT}, next target": line(LACT, lambda r: r.frame_s),
    }
    panels = [Panel("CPU seconds", "input views", seconds)]
    if all(r.encode_bytes and r.frame_bytes for r in rows):
        memory = {
            name: line(name, lambda r: max(r.encode_bytes, r.frame_bytes) / 2**20) for name in (LACT, FULL)
        }
        panels.append(Panel("peak memory, MiB", "input views", memory))
    draw_chart(panels, path)
