"""How a training step and a frame grow with input views, side of the picture and batch, beside what paper says of them.

Measured on noise with random weights, in float32 and without recomputation; what the counts say comes from the meta device
(`src/cost.py`, `src/memory.py`): work (multiply-adds twice), most bytes alive at once, and bytes that a step must at least
move. Work over the machine's measured peak, and bytes over its bandwidth, are times that nothing can beat. The families
take turns, and figures are medians.

Public: Sizes, Scale, Row, FAMILIES, AXES, training_config, measure, table, chart, chart_rates.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..cost import StepOnPaper
from ..memory import AutocastOnPaper, LiveMemory
from ..model import family_config
from ..model.base import ViewSynthesizer
from ..runtime import Runtime
from ..settings import RunConfig, config_from_tree
from . import processes, views
from .chart import Panel, draw_chart
from .limits import Limits, seconds
from .measure import PeakMemory, build_section, counted, scene, timed
from .noise import NoiseTraining

DECODER, HALVES, LACT = "LVSM decoder-only", "LVSM encoder-decoder", "LaCT"
FAMILIES = (DECODER, HALVES, LACT)

AXES = {"inputs": "input views", "size": "side of the picture, pixels", "batch": "scenes a step"}
"""Field of `Scale` -> what it is."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of all families: width of a token and of a head; blocks, an even number; side of a patch, pixels; latent tokens of
    the encoder-decoder.
    """

    width: int
    d_head: int
    layers: int
    patch: int
    latents: int


@dataclass(frozen=True)
class Scale:
    """What a cost grows with. inputs: context views. size: side of the square pictures, pixels. batch: scenes a step."""

    inputs: int
    size: int
    batch: int

    def along(self, axis: str, value: int) -> Scale:
        """The same with another value of one of its fields."""
        return replace(self, **{axis: value})


@dataclass(frozen=True)
class Row:
    """One family at one scale. A step has one target for each scene; a frame is one target of one scene.

    encode_s: seconds to encode a scene once; frame_s: a frame from that.
    *_bytes: most memory beyond what was held before, with gradients in a step; None: this system does not tell.
    *_flop: counted work. *_paper_bytes: the same memory, counted. step_moved: bytes that a step reads and writes at least.
    """

    family: str
    scale: Scale
    step_s: float
    step_bytes: int | None
    step_flop: int
    step_paper_bytes: int
    step_moved: int
    encode_s: float
    encode_flop: int
    frame_s: float
    frame_bytes: int | None
    frame_flop: int
    frame_paper_bytes: int


# ----------------------------------------------------------------------------------------------- families


def section(family: str, sizes: Sizes, size: int) -> dict[str, Any]:
    """The `model` section, for square pictures of this side."""
    both = views.Sizes(
        width=sizes.width, d_head=sizes.d_head, layers=sizes.layers, size=size, patch=sizes.patch
    )
    known = views.contenders(both)
    if family == LACT:
        return known[views.LACT]
    decoder_only = known[views.FULL]
    if family == DECODER:
        return decoder_only
    trunk, half = dict(decoder_only["transformer"]), sizes.layers // 2
    del trunk["n_layer"]
    halves = {"encoder_n_layer": half, "decoder_n_layer": half, "n_latent_vectors": sizes.latents}
    return {
        **decoder_only,
        "class_name": "model.LVSM_scene_encoder_decoder.Images2LatentScene",
        "transformer": {**trunk, **halves},
    }


def training_config(family: str, sizes: Sizes, scale: Scale) -> RunConfig:
    """A run in float32 with one target a scene, squared error alone, and nothing computed twice."""
    training = {
        "num_views": scale.inputs + 1,
        "num_input_views": scale.inputs,
        "num_target_views": 1,
        "target_has_input": False,
        "batch_size_per_gpu": scale.batch,
        "perceptual_loss_weight": 0.0,
        "use_amp": False,
        "use_tf32": False,
        "activations": "speed",
    }
    tree = {"model": section(family, sizes, scale.size), "training": training}
    return config_from_tree(tree, family_config, origin=family)


# ----------------------------------------------------------------------------------------------- measuring


def measure(sizes: Sizes, scale: Scale, repeats: int, runtime: Runtime) -> list[Row]:
    """All families by turns, `repeats` times after one turn that warms up and does not count."""
    device = runtime.device
    runs = {f: NoiseTraining(training_config(f, sizes, scale), runtime) for f in FAMILIES}
    models = {f: build_section(section(f, sizes, scale.size)).to(device) for f in FAMILIES}
    input, target = scene(scale.inputs, scale.size, device), scene(1, scale.size, device)
    times: dict[tuple[str, str], list[float]] = {}
    peaks: dict[tuple[str, str], int | None] = {}

    def run(family: str, part: str, work: Callable[[], Any]) -> Any:
        with PeakMemory(device) as peak:
            result, time = timed(work, device)
        times.setdefault((family, part), []).append(seconds(time, device))
        peaks[family, part] = peak.bytes
        return result

    for _ in range(repeats + 1):
        for family in FAMILIES:
            run(family, "step", runs[family].step)
            with torch.inference_mode():
                state = run(family, "encode", partial(models[family].encode, input))
                run(family, "frame", partial(models[family].decode, state, target.cameras))
            del state
    return [
        Row(
            family,
            scale,
            step_s=statistics.median(times[family, "step"][1:]),
            step_bytes=peaks[family, "step"],
            **step_on_paper(training_config(family, sizes, scale)),
            encode_s=statistics.median(times[family, "encode"][1:]),
            frame_s=statistics.median(times[family, "frame"][1:]),
            frame_bytes=peaks[family, "frame"],
            **frame_on_paper(section(family, sizes, scale.size), scale),
        )
        for family in FAMILIES
    ]


def step_on_paper(config: RunConfig) -> dict[str, int]:
    """The fields of a row that say what a step costs, counted.

    A step moves at least: weights, read in both passes; gradients, written; in AdamW four numbers a weight read (itself,
    gradient, two moments) and three written; and what is alive at the worst moment, written and read.
    """
    step = StepOnPaper(config, samples=config.training.batch_size_per_gpu)
    memory = step.memory()
    return {
        "step_flop": step.flops(),
        "step_paper_bytes": memory.activations + memory.gradients,
        "step_moved": 10 * memory.gradients + 2 * memory.activations,
    }


def frame_on_paper(model_section: dict[str, Any], scale: Scale) -> dict[str, int]:
    """The fields of a row that say what a scene and a frame cost, counted."""
    encode_flop, frame_flop = counted(model_section, scale.inputs, scale.size)
    with torch.device("meta"):
        model: ViewSynthesizer = build_section(model_section)
        input, cameras = scene(scale.inputs, scale.size, "meta"), scene(1, scale.size, "meta").cameras
    with torch.no_grad(), AutocastOnPaper():
        state = model.encode(input)
        with LiveMemory([*model.parameters(), *model.buffers(), *_tensors(state)]) as live:
            model.decode(state, cameras)
    return {"encode_flop": encode_flop, "frame_flop": frame_flop, "frame_paper_bytes": live.peak}


def _tensors(state: Any) -> list[Tensor]:
    return [part for part in tree_leaves(state) if isinstance(part, Tensor)]


# ----------------------------------------------------------------------------------------------- showing


def table(rows: list[Row], limits: Limits, axis: str) -> str:
    """Markdown. MFU: counted work over time and measured peak."""
    lines = [
        f"| model | {AXES[axis]} | step, s | MFU | memory, MiB | counted | encode, s | frame, s | MFU | memory, MiB | counted |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in sorted(rows, key=lambda row: FAMILIES.index(row.family)):
        step, frame = r.step_flop / r.step_s / limits.matmul, r.frame_flop / r.frame_s / limits.matmul
        lines.append(
            f"| {r.family} | {getattr(r.scale, axis)} | {r.step_s:.3f} | {step:.0%} | {_mib(r.step_bytes)} "
            f"| {_mib(r.step_paper_bytes)} | {r.encode_s:.3f} | {r.frame_s:.4f} | {frame:.0%} "
            f"| {_mib(r.frame_bytes)} | {_mib(r.frame_paper_bytes)} |"
        )
    return "\n".join(lines) + "\n"


def _mib(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:.0f}"


def chart(rows: list[Row], limits: Limits, axis: str, path: Path) -> None:
    """Time and memory of a step, and unless the batch grows of a frame, against one axis.

    Dashed: counted work at the measured peak of products, counted memory. Dotted: bytes moved at the bandwidth.
    """

    def lines(value: Callable[[Row], float | None]) -> dict[str, list[tuple[float, float]]]:
        found = {f: [(getattr(r.scale, axis), value(r)) for r in rows if r.family == f] for f in FAMILIES}
        return {name: [(x, y) for x, y in line if y] for name, line in found.items()}

    across, mib = AXES[axis], 2**20
    panels = [
        Panel(
            "training step, s   (- -  work / peak,  ...  bytes / bandwidth)",
            across,
            lines(lambda r: r.step_s),
            dashed=lines(lambda r: r.step_flop / limits.matmul),
            dotted=lines(lambda r: r.step_moved / limits.memcpy),
        ),
        Panel(
            "training step, MiB   (- -  counted)",
            across,
            lines(lambda r: (r.step_bytes or r.step_paper_bytes) / mib),
            dashed=lines(lambda r: r.step_paper_bytes / mib),
        ),
    ]
    if axis != "batch":
        panels += [
            Panel(
                "frame of an encoded scene, s   (- -  work / peak)",
                across,
                lines(lambda r: r.frame_s),
                dashed=lines(lambda r: r.frame_flop / limits.matmul),
            ),
            Panel(
                "encoding a scene once, s   (- -  work / peak)",
                across,
                lines(lambda r: r.encode_s),
                dashed=lines(lambda r: r.encode_flop / limits.matmul),
            ),
        ]
    draw_chart(panels, path, columns=2)


def chart_rates(
    rows: list[Row], shared: list[processes.Row], limits: Limits, base: Scale, path: Path
) -> None:
    """Scenes a second: of steps against input views, below what decoding and copying the pictures allow one core; and
    of all processes together.
    """
    counts = sorted({row.scale.inputs for row in rows})
    pictures = 3 * base.size**2 * 4  # bytes of one in float32
    supply = {
        "memcpy of pictures": [(n, limits.memcpy / 2 / ((n + 1) * pictures)) for n in counts],
        "JPEG decode, a core": [(n, limits.jpeg / (n + 1)) for n in counts],
    }
    steps = {f: [(r.scale.inputs, 1 / r.step_s) for r in rows if r.family == f] for f in FAMILIES}
    least = {
        f: [(r.scale.inputs, limits.matmul / r.step_flop) for r in rows if r.family == f] for f in FAMILIES
    }
    wall = [(r.processes, r.samples / r.step_s) for r in shared]
    cores = [(r.processes, r.samples / r.step_cpu_s) for r in shared]
    ideal = [(count, count * cores[0][1] / cores[0][0]) for count, _ in cores]
    panels = [
        Panel(
            "scenes trained a second   (- -  peak / work)", AXES["inputs"], steps, dashed=least, dotted=supply
        ),
        Panel(
            "scenes a second of all processes",
            "processes",
            {"processor time": cores, "on the clock": wall},
            logarithmic=False,
            dotted={"as many times one": ideal},
        ),
    ]
    draw_chart(panels, path, columns=2)
