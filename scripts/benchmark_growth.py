"""How time and memory grow with input views, side of the pictures, batch and processes; beside what paper says.

    OMP_NUM_THREADS=1 python -m scripts.benchmark_growth --output outputs/growth [--width 256 --layers 4]

Measures this machine's limits first, then LVSM decoder-only, encoder-decoder and LaCT. Writes `growth.json`, `growth.md` and
a chart for each axis. What is measured and how: src/bench/growth.py, src/bench/processes.py, src/bench/limits.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, fields
from pathlib import Path

import cv2
import torch
from tqdm import tqdm

from src.bench import growth, processes
from src.bench.growth import AXES, DECODER, Scale, Sizes
from src.bench.limits import Limits, measure_limits
from src.bench.measure import machine
from src.cli import guarded
from src.files import write_text
from src.runtime import start


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    return guarded(lambda: _run(argv))


def _run(argv: list[str] | None) -> None:
    arguments = _parser().parse_args(argv)
    cv2.setNumThreads(1)
    runtime, output = start(0), arguments.output
    sizes = Sizes(**{f.name: getattr(arguments, f.name) for f in fields(Sizes)})
    base = Scale(inputs=2, size=arguments.side, batch=1)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="work-", dir=output) as work:
        limits = measure_limits(runtime.device, Path(work, "pictures"))
        config = growth.training_config(DECODER, sizes, base.along("batch", 4))
        shared = [
            processes.measure(config, count, 3 * arguments.repeats, Path(work))
            for count in tqdm(arguments.processes, desc="processes")
            if runtime.device.type == "cpu" or count <= torch.accelerator.device_count()
        ]
    values = {"inputs": arguments.inputs, "size": arguments.sizes, "batch": arguments.batches}
    scales = {axis: [base.along(axis, value) for value in values[axis]] for axis in AXES}
    measured: dict[Scale, list[growth.Row]] = {}
    for scale in tqdm(dict.fromkeys(s for several in scales.values() for s in several), desc="scales"):
        measured[scale] = growth.measure(sizes, scale, arguments.repeats, runtime)
    rows = {axis: [row for scale in several for row in measured[scale]] for axis, several in scales.items()}
    heading = (
        f"Measured on {machine(runtime.device)}; {sizes.layers} blocks of width {sizes.width}, patches of {sizes.patch}, "
        f"one target; unless they grow: 2 input views of {base.size} px, one scene a step."
    )
    report = {
        "machine": machine(runtime.device),
        "sizes": asdict(sizes),
        "limits": asdict(limits),
        "rows": {axis: [asdict(row) for row in several] for axis, several in rows.items()},
        "processes": [asdict(row) for row in shared],
    }
    write_text(output / "growth.json", json.dumps(report, indent=1) + "\n")
    text = _text(heading, limits, rows, shared)
    write_text(output / "growth.md", text)
    for axis in AXES:
        growth.chart(rows[axis], limits, axis, output / f"growth_{axis}.png")
    growth.chart_rates(rows["inputs"], shared, limits, base, output / "growth_rates.png")
    print(text)


def _text(
    heading: str, limits: Limits, rows: dict[str, list[growth.Row]], shared: list[processes.Row]
) -> str:
    peaks = (
        f"Limits measured in the same run: {limits.matmul / 1e9:.0f} GFLOP/s of float32 products, "
        f"{limits.memcpy / 1e9:.1f} GB/s read and written by a copy, {limits.jpeg:.0f} JPEG files of 640x360 decoded a second by "
        "one core."
    )
    tables = [growth.table(rows[axis], limits, axis) for axis in AXES]
    return "\n".join([heading, "", peaks, "", *tables, processes.table(shared)])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure how the costs of training and rendering grow.")
    parser.add_argument("--output", type=Path, default=Path("outputs/growth"), help="folder for the results")
    parser.add_argument("--width", type=int, default=256, help="width of a token")
    parser.add_argument("--d_head", type=int, default=64, help="width of a head")
    parser.add_argument("--layers", type=int, default=4, help="blocks; an even number")
    parser.add_argument("--patch", type=int, default=8, help="side of a patch, pixels")
    parser.add_argument("--latents", type=int, default=192, help="latent tokens of the encoder-decoder")
    parser.add_argument("--side", type=int, default=64, help="of the pictures where they do not grow, pixels")
    parser.add_argument("--inputs", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="input views")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128, 256], help="sides, pixels")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8], help="scenes a step")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="processes of this machine")
    parser.add_argument("--repeats", type=int, default=3, help="timed turns of each")
    return parser


if __name__ == "__main__":
    sys.exit(main())
