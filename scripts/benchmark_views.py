"""Time and memory against the number of input views: LaCT beside full attention of the same width and depth.

    python -m scripts.benchmark_views --output outputs/views [--inputs 4 8 16 32 64 --width 384]

Writes `views.json`, `views.md` and `views.png`. What is measured and how: src/bench/views.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, fields
from pathlib import Path

from tqdm import tqdm

from src.bench.measure import machine
from src.bench.views import Sizes, chart, measure, table
from src.cli import guarded
from src.files import write_text
from src.runtime import start


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    return guarded(lambda: _run(argv))


def _run(argv: list[str] | None) -> None:
    arguments = _parser().parse_args(argv)
    sizes = Sizes(**{f.name: getattr(arguments, f.name) for f in fields(Sizes)})
    device, rows = start(0).device, []
    for num_inputs in tqdm(arguments.inputs, desc="numbers of inputs"):
        rows += measure(sizes, num_inputs, arguments.repeats, device)
    report = {"sizes": asdict(sizes), "machine": machine(device), "rows": [asdict(row) for row in rows]}
    write_text(arguments.output / "views.json", json.dumps(report, indent=2))
    text = table(
        rows,
        f"Measured on {report['machine']}; {sizes.layers} blocks of width {sizes.width}, {sizes.size} px, patch "
        f"{sizes.patch}: {sizes.tokens} tokens a view; one target at a time.",
    )
    write_text(arguments.output / "views.md", text)
    chart(rows, arguments.output / "views.png")
    print(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure scenes against the number of input views.")
    parser.add_argument("--output", type=Path, default=Path("outputs/views"), help="folder for the results")
    parser.add_argument("--width", type=int, default=384, help="width of a token")
    parser.add_argument("--d_head", type=int, default=64, help="width of an attention head")
    parser.add_argument("--layers", type=int, default=4, help="blocks")
    parser.add_argument("--size", type=int, default=128, help="side of the square images, pixels")
    parser.add_argument("--patch", type=int, default=8, help="side of a patch, pixels")
    parser.add_argument("--inputs", type=int, nargs="+", default=[4, 8, 16, 32, 64], help="numbers of inputs")
    parser.add_argument("--repeats", type=int, default=1, help="timed turns of each")
    return parser


if __name__ == "__main__":
    sys.exit(main())
