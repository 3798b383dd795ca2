"""What a frame costs against the number of context views: LVSM decoder-only, encoder-decoder and KV-LVSM.

Models of equal width and depth with random weights, one scene, one target at a time from what was encoded once. The
contenders take turns, so that whatever else the machine does falls on all of them; figures are medians. All compute every
token of every block, as published: then the layers alone cost LVSM inputs + 1 times what they cost KV-LVSM. Beside the time,
work is counted (multiply-adds twice) on the meta device.

Public: Sizes, Row, contenders, measure, table, chart.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

import torch

from ..config import ConfigError
from .chart import Panel, draw_chart
from .measure import build_section, counted, scene, skip_unused, timed

LVSM, KV = "LVSM decoder-only", "KV-LVSM"
LATENTS_PER_VIEW = 3
"""Latent tokens of the encoder-decoder, in views: 3072 at 1024 tokens a view, as published."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of all contenders. width of a token and of a head; blocks; sides of the square image and of a patch, pixels.

    camera: `model.camera` of KV-LVSM.
    dtype: `float32` or `bfloat16`.
    """

    width: int
    d_head: int
    layers: int
    size: int
    patch: int
    camera: str
    dtype: str


# ----------------------------------------------------------------------------------------------- contenders


def contenders(sizes: Sizes) -> dict[str, dict]:
    """Name -> `model` section; all of the same width and depth."""
    if sizes.layers % 2:
        raise ConfigError(f"layers {sizes.layers}: an even number, which encoder and decoder share.")
    common = {
        "image_tokenizer": {"image_size": sizes.size, "patch_size": sizes.patch},
        "target_pose_tokenizer": {"patch_size": sizes.patch},
    }
    trunk = {"d": sizes.width, "d_head": sizes.d_head, "use_qk_norm": True}
    half, tokens = sizes.layers // 2, (sizes.size // sizes.patch) ** 2
    halves = {"encoder_n_layer": half, "decoder_n_layer": half, "n_latent_vectors": LATENTS_PER_VIEW * tokens}
    return {
        LVSM: {
            "class_name": "model.LVSM_scene_decoder_only.Images2LatentScene",
            "transformer": {**trunk, "n_layer": sizes.layers},
            **common,
        },
        "LVSM encoder-decoder": {
            "class_name": "model.LVSM_scene_encoder_decoder.Images2LatentScene",
            "transformer": {**trunk, **halves},
            **common,
        },
        KV: {
            "class_name": "src.model.kvlvsm.KVLVSM",
            "transformer": {**trunk, "n_layer": sizes.layers},
            "camera": sizes.camera,
            **common,
        },
    }


# ----------------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Row:
    """One contender with one number of context views.

    encode_s, frame_s: seconds to encode the scene once, and to render one target from that.
    encode_flop, frame_flop: counted work of the same.
    """

    name: str
    num_inputs: int
    encode_s: float
    frame_s: float
    encode_flop: int
    frame_flop: int


@torch.inference_mode()
def measure(
    sections: dict[str, dict],
    num_inputs: int,
    sizes: Sizes,
    repeats: int,
    device: torch.device,
    clock: str = "wall_s",
) -> list[Row]:
    """All contenders by turns, `repeats` times after one turn that warms up and does not count.

    clock: field of `Timing`: `cpu_s` on a processor that others use too.
    """
    dtype = getattr(torch, sizes.dtype)
    models = {name: build_section(section).to(device, dtype) for name, section in sections.items()}
    for model in models.values():
        skip_unused(model, False)
    input, target = scene(num_inputs, sizes.size, device, dtype), scene(1, sizes.size, device, dtype)
    encode_s: dict[str, list[float]] = {name: [] for name in models}
    frame_s: dict[str, list[float]] = {name: [] for name in models}
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        for _ in range(repeats + 1):
            for name, model in models.items():
                state, time = timed(lambda model=model: model.encode(input), device)
                encode_s[name].append(getattr(time, clock))
                _, time = timed(lambda model=model, state=state: model.decode(state, target.cameras), device)
                frame_s[name].append(getattr(time, clock))
                del state  # 16 views of a large model fill a memory
    return [
        Row(
            name,
            num_inputs,
            statistics.median(encode_s[name][1:]),
            statistics.median(frame_s[name][1:]),
            *counted(section, num_inputs, sizes.size, skips=False),
        )
        for name, section in sections.items()
    ]


# ----------------------------------------------------------------------------------------------- showing


def table(rows: list[Row], machine: str) -> str:
    """Markdown; ratios are LVSM decoder-only's figure over KV-LVSM's for the same number of inputs."""
    lines = [
        f"Measured on {machine}.",
        "",
        "| model | inputs | frames/s | frame, ms | encode once, ms | GFLOP a frame | GFLOP to encode |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.name} | {r.num_inputs} | {1 / r.frame_s:.2f} | {1e3 * r.frame_s:.1f} | {1e3 * r.encode_s:.1f} "
        f"| {r.frame_flop / 1e9:.2f} | {r.encode_flop / 1e9:.2f} |"
        for r in rows
    ]
    lines += [
        "",
        "| inputs | LVSM / KV-LVSM: work a frame | time a frame | part of inputs + 1 |",
        "|---|---|---|---|",
    ]
    for num_inputs in dict.fromkeys(r.num_inputs for r in rows):
        lvsm, kv = (next(r for r in rows if r.name == n and r.num_inputs == num_inputs) for n in (LVSM, KV))
        faster = lvsm.frame_s / kv.frame_s
        lines.append(
            f"| {num_inputs} | {lvsm.frame_flop / kv.frame_flop:.2f} | {faster:.2f} | {faster / (num_inputs + 1):.2f} |"
        )
    lines += [
        "",
        "Work includes tokenizers, head and camera encoding; in the layers alone the ratio is inputs + 1.",
    ]
    return "\n".join(lines) + "\n"


def chart(rows: list[Row], path: Path) -> None:
    """Frames per second against the number of inputs."""
    names = dict.fromkeys(row.name for row in rows)
    lines = {name: [(row.num_inputs, 1 / row.frame_s) for row in rows if row.name == name] for name in names}
    draw_chart([Panel("frames per second", "context views", lines)], path)
