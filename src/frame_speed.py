"""What a frame costs against the number of context views: LVSM decoder-only, encoder-decoder and KV-LVSM.

Models of equal width and depth with random weights, one scene, one target at a time from what was encoded once. The
contenders take turns, so that whatever else the machine does falls on all of them; figures are medians. Beside the clock,
work is counted (multiply-adds twice) on the meta device.

Public: Sizes, Row, contenders, measure, machine, table, chart.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .config import ConfigError, build
from .files import replacing
from .geometry.camera import Cameras, Views
from .model import build_model, family_config
from .model.base import ViewSynthesizer

LVSM, KV = "LVSM decoder-only", "KV-LVSM"
LATENTS_PER_VIEW = 3
"""Latent tokens of the encoder-decoder, in views: 3072 at 1024 tokens a view, as published."""

COLOURS = {LVSM: (190, 60, 50), "LVSM encoder-decoder": (210, 150, 40), KV: (30, 110, 180)}


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


def build_section(section: dict) -> ViewSynthesizer:
    problems: list[str] = []
    config = build(family_config(section["class_name"]), section, "model", problems)
    if problems:
        raise ConfigError("\n".join(problems))
    return build_model(config).eval()


def scene(num_views: int, size: int, device: torch.device | str, dtype: torch.dtype) -> Views:
    """Noise, seen by cameras that stand side by side."""
    c2w = torch.eye(4, device=device).repeat(1, num_views, 1, 1)
    c2w[..., 0, 3] = torch.arange(num_views, device=device) / max(1, num_views)
    fxfycxcy = torch.full((1, num_views, 4), size / 2, device=device)
    image = torch.rand(1, num_views, 3, size, size, device=device, dtype=dtype)
    return Views(image, Cameras(c2w, fxfycxcy, size, size))


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
    sections: dict[str, dict], num_inputs: int, sizes: Sizes, repeats: int, device: torch.device
) -> list[Row]:
    """All contenders by turns, `repeats` times after one turn that warms up and does not count."""
    dtype = getattr(torch, sizes.dtype)
    models = {name: build_section(section).to(device, dtype) for name, section in sections.items()}
    input, target = scene(num_inputs, sizes.size, device, dtype), scene(1, sizes.size, device, dtype)
    encode_s: dict[str, list[float]] = {name: [] for name in models}
    frame_s: dict[str, list[float]] = {name: [] for name in models}
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        for _ in range(repeats + 1):
            for name, model in models.items():
                state, seconds = timed(lambda model=model: model.encode(input), device)
                encode_s[name].append(seconds)
                _, seconds = timed(
                    lambda model=model, state=state: model.decode(state, target.cameras), device
                )
                frame_s[name].append(seconds)
                del state  # 16 views of a large model fill a memory
    return [
        Row(
            name,
            num_inputs,
            statistics.median(encode_s[name][1:]),
            statistics.median(frame_s[name][1:]),
            *counted(section, num_inputs, sizes.size),
        )
        for name, section in sections.items()
    ]


def timed(work: Callable[[], object], device: torch.device) -> tuple[object, float]:
    """What `work` returns, and the seconds until the device has finished it."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    begin = time.perf_counter()
    result = work()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return result, time.perf_counter() - begin


def counted(section: dict, num_inputs: int, size: int) -> tuple[int, int]:
    """Floating-point operations of encoding and of one frame, counted without computing anything."""
    with torch.device("meta"):
        model = build_section(section)
        input, target = scene(num_inputs, size, "meta", torch.float32), scene(1, size, "meta", torch.float32)
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as encoding:
            state = model.encode(input)
        with FlopCounterMode(display=False) as frame:
            model.decode(state, target.cameras)
    return encoding.get_total_flops(), frame.get_total_flops()


def machine(device: torch.device) -> str:
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return f"{device.type}{threads}, torch {torch.__version__}"


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
    """Frames per second against inputs, both axes logarithmic."""
    width, height, left, right, top, bottom = 760, 440, 70, 200, 40, 50
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    inputs = sorted({r.num_inputs for r in rows})
    rates = [1 / r.frame_s for r in rows]
    low, high = math.floor(math.log10(min(rates))), math.ceil(math.log10(max(rates)) + 1e-9)
    span = math.log2(inputs[-1] / inputs[0]) or 1.0

    def place(num_inputs: int, rate: float) -> tuple[float, float]:
        x = left + (width - left - right) * math.log2(num_inputs / inputs[0]) / span
        y = height - bottom - (height - top - bottom) * (math.log10(rate) - low) / max(1, high - low)
        return x, y

    for power in range(low, high + 1):
        x, y = place(inputs[0], 10.0**power)
        draw.line([(x, y), (width - right, y)], fill=(220, 220, 220))
        draw.text((8, y - 6), f"{10.0**power:g}", fill="black")
    for number in inputs:
        draw.text((place(number, 1)[0] - 4, height - bottom + 8), str(number), fill="black")
    draw.text((8, 10), "frames per second", fill="black")
    draw.text((left + (width - left - right) // 2 - 40, height - 22), "context views", fill="black")
    for name, colour in COLOURS.items():
        points = [place(r.num_inputs, 1 / r.frame_s) for r in rows if r.name == name]
        draw.line(points, fill=colour, width=3)
        for x, y in points:
            draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=colour)
        draw.text((points[-1][0] + 10, points[-1][1] - 6), name, fill=colour)
    with replacing(path) as temporary:
        image.save(temporary)
