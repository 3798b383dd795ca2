"""What a checkpoint costs a training that waits for it, and one that goes on meanwhile (training.async_save).

    python -m scripts.benchmark_saving --output outputs/saving [--width 512 --layers 8 --steps 10 --repeats 5]

Checkpoints go to a folder inside --output, so name a folder on the disk in question; they are deleted again. Writes
`saving.json` and `saving.md`. What is measured and how: src/bench/saving.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, fields
from pathlib import Path

from src.bench.measure import machine
from src.bench.saving import Sizes, measure, table
from src.cli import guarded
from src.files import write_text
from src.runtime import start


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    return guarded(lambda: _run(argv))


def _run(argv: list[str] | None) -> None:
    arguments = _parser().parse_args(argv)
    sizes = Sizes(**{f.name: getattr(arguments, f.name) for f in fields(Sizes)})
    device, output = start(0).device, arguments.output
    report = measure(sizes, output / "checkpoints", arguments.steps, arguments.repeats, device)
    content = {"sizes": asdict(sizes), "machine": machine(device), "report": asdict(report)}
    write_text(output / "saving.json", json.dumps(content, indent=2) + "\n")
    text = table(report, machine(device))
    write_text(output / "saving.md", text + "\n")
    print(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure what a checkpoint costs a training.")
    parser.add_argument("--output", type=Path, default=Path("outputs/saving"), help="folder for the results")
    parser.add_argument("--width", type=int, default=512, help="width of a token")
    parser.add_argument("--d_head", type=int, default=64, help="width of an attention head")
    parser.add_argument("--layers", type=int, default=8, help="blocks")
    parser.add_argument("--size", type=int, default=64, help="side of the square images, pixels")
    parser.add_argument("--patch", type=int, default=8, help="side of a patch, pixels")
    parser.add_argument("--targets", type=int, default=1, help="target views of a step")
    parser.add_argument("--steps", type=int, default=10, help="of a window, which outlasts a save")
    parser.add_argument("--repeats", type=int, default=5, help="saves of each kind")
    return parser


if __name__ == "__main__":
    sys.exit(main())
