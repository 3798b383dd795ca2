"""Frames per second and latency against the number of context views: LVSM decoder-only, encoder-decoder and KV-LVSM.

    python -m scripts.benchmark_frames --output outputs/frames [--width 512 --layers 8 --size 128 --patch 8]

Writes `frames.json`, `frames.md` and `frames.png`. What is measured and how: src/bench/frames.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, fields
from pathlib import Path

from tqdm import tqdm

from src.bench.frames import Sizes, chart, contenders, measure, table
from src.bench.measure import machine
from src.cli import guarded
from src.files import write_text
from src.runtime import start

CLOCKS = {"wall": "wall_s", "processor": "cpu_s"}


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    return guarded(lambda: _run(argv))


def _run(argv: list[str] | None) -> None:
    arguments = _parser().parse_args(argv)
    sizes = Sizes(**{f.name: getattr(arguments, f.name) for f in fields(Sizes)})
    device, sections, rows = start(0).device, contenders(sizes), []
    for num_inputs in tqdm(arguments.inputs, desc="numbers of inputs"):
        rows += measure(sections, num_inputs, sizes, arguments.repeats, device, CLOCKS[arguments.clock])
    where = f"{machine(device)}, {arguments.clock} time, {_sizes(sizes)}"
    report = {"sizes": asdict(sizes), "machine": where, "rows": [asdict(row) for row in rows]}
    write_text(arguments.output / "frames.json", json.dumps(report, indent=2))
    text = table(rows, report["machine"])
    write_text(arguments.output / "frames.md", text)
    chart(rows, arguments.output / "frames.png")
    print(text)


def _sizes(sizes: Sizes) -> str:
    return f"width {sizes.width}, {sizes.layers} layers, {sizes.size} x {sizes.size} pixels, patches of {sizes.patch}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure rendering against the number of context views.")
    parser.add_argument("--output", type=Path, default=Path("outputs/frames"), help="folder for the results")
    parser.add_argument("--width", type=int, default=512, help="width of a token")
    parser.add_argument("--d_head", type=int, default=64, help="width of a head")
    parser.add_argument("--layers", type=int, default=8, help="blocks; an even number")
    parser.add_argument("--size", type=int, default=128, help="side of the square images, pixels")
    parser.add_argument("--patch", type=int, default=8, help="side of a patch, pixels")
    parser.add_argument(
        "--inputs", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="numbers of context views"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed frames of each contender")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="processor: all cores' time, where others use them too",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the models")
    parser.add_argument("--camera", choices=("prope", "gta", "none"), default="prope", help="of KV-LVSM")
    return parser


if __name__ == "__main__":
    sys.exit(main())
