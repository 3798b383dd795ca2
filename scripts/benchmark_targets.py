"""Time and memory against the number of targets: cached context, one dense-masked pass, one pass per target.

    python -m scripts.benchmark_targets --output outputs/targets [--targets 1 2 4 8 16 32 --inputs 2 --size 192]

Writes `targets.json`, `targets.md` and `targets.png`. The defaults are the published pixel model at 192 px, which takes
minutes and gigabytes on a CPU. What is measured and how: src/bench/targets.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, fields
from pathlib import Path

from tqdm import tqdm

from src.bench.measure import machine
from src.bench.targets import Row, Sizes, chart, measure, table
from src.cli import guarded
from src.files import write_text
from src.runtime import start

LARGEST_DIFFERENCE = 1e-5
"""Between the images of any two ways; more is an error, not a matter of speed."""


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    return guarded(lambda: _run(argv))


def _run(argv: list[str] | None) -> None:
    arguments = _parser().parse_args(argv)
    sizes = Sizes(**{f.name: getattr(arguments, f.name) for f in fields(Sizes)})
    device, rows = start(0).device, []
    for num_targets in tqdm(arguments.targets, desc="numbers of targets"):
        rows += measure(sizes, arguments.inputs, num_targets, arguments.repeats, device, arguments.chunk)
    _check(rows)
    report = {"sizes": asdict(sizes), "inputs": arguments.inputs, "machine": machine(device)}
    report["rows"] = [asdict(row) for row in rows]
    write_text(arguments.output / "targets.json", json.dumps(report, indent=2))
    heading = (
        f"Measured on {report['machine']}; {arguments.inputs} context views, {sizes.size} px, patch {sizes.patch}, "
        f"{sizes.layers} blocks of width {sizes.width}; encoding included; cached: {arguments.chunk or 'all'} targets at once."
    )
    text = table(rows, heading)
    write_text(arguments.output / "targets.md", text)
    chart(rows, arguments.output / "targets.png")
    print(text)


def _check(rows: list[Row]) -> None:
    worst = max(rows, key=lambda row: row.difference)
    if not worst.difference <= LARGEST_DIFFERENCE:  # NaN too
        raise ValueError(
            f"{worst.way} with {worst.num_targets} targets differs from the cached images by {worst.difference:g}: "
            f"expected at most {LARGEST_DIFFERENCE:g}."
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure rendering against the number of targets.")
    parser.add_argument("--output", type=Path, default=Path("outputs/targets"), help="folder for the results")
    parser.add_argument("--width", type=int, default=768, help="width of a token")
    parser.add_argument("--heads", type=int, default=16, help="attention heads")
    parser.add_argument("--d_head", type=int, default=64, help="width of a head")
    parser.add_argument("--d_ff", type=int, default=4096, help="hidden width of the MLP")
    parser.add_argument("--layers", type=int, default=6, help="blocks")
    parser.add_argument("--size", type=int, default=192, help="side of the square images, pixels")
    parser.add_argument("--patch", type=int, default=8, help="side of a patch, pixels")
    parser.add_argument("--inputs", type=int, default=2, help="context views")
    parser.add_argument(
        "--chunk", type=int, default=2, help="targets that the cached way renders at once; 0: all"
    )
    parser.add_argument(
        "--targets", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="numbers of targets"
    )
    parser.add_argument("--repeats", type=int, default=3, help="timed renders of each way")
    return parser


if __name__ == "__main__":
    sys.exit(main())
