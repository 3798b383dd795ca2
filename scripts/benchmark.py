"""Everything that is meant to be fast, against the plain way of doing the same, as ratios of one run on one machine.

    OMP_NUM_THREADS=1 python -m scripts.benchmark --output outputs/benchmark [--data FOLDER_OF_CHUNKS] [--only loading]

Both sides of a ratio take turns and are timed in processor time; their results are compared in the same run, and a row
whose results differ is not reached. Writes `benchmark.json` and `benchmark.md`. A further subject is a function from
`src.bench.ratio.Place` to rows, and an entry of SUBJECTS.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import cv2
import torch
from tqdm import tqdm

from src.bench import (
    conversion,
    host_memory,
    loading,
    many_scenes,
    remote,
    rendering,
    scoring,
    training_step,
)
from src.bench.measure import machine
from src.bench.pictures import write_chunks
from src.bench.ratio import Place, Row, table
from src.cli import guarded
from src.files import write_text

SUBJECTS: dict[str, Callable[[Place], list[Row]]] = {
    "conversion": conversion.measure,
    "loading": loading.measure,
    "scoring": scoring.measure,
    "many_scenes": many_scenes.measure,
    "remote": remote.measure,
    "host_memory": host_memory.measure,
    "training_step": training_step.measure,
    "rendering": rendering.measure,
}


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    return guarded(lambda: _run(argv))


def _run(argv: list[str] | None) -> None:
    arguments = _parser().parse_args(argv)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows: list[Row] = []
    arguments.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="work-", dir=arguments.output) as work:
        chunks = arguments.data or Path(work, "chunks")
        if not arguments.data:
            write_chunks(chunks, scenes=3, frames=40)
        for name in tqdm(arguments.only or SUBJECTS, desc="subjects"):
            folder = Path(work, name)
            folder.mkdir()
            rows += SUBJECTS[name](Place(chunks, folder, arguments.rounds))
            _write(arguments.output, rows, "pictures made here" if not arguments.data else "given chunks")
    print(table(rows))


def _write(output: Path, rows: list[Row], source: str) -> None:
    """After each subject: what was measured is not lost."""
    where = f"{machine(torch.device('cpu'))}, {source}"
    report = {"machine": where, "rows": [{**asdict(row), "reached": row.reached} for row in rows]}
    write_text(output / "benchmark.json", json.dumps(report, indent=2) + "\n")
    write_text(output / "benchmark.md", f"Measured on {where}.\n\n{table(rows)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Measure everything that is meant to be fast against the plain way."
    )
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/benchmark"), help="folder for the results"
    )
    parser.add_argument(
        "--data", type=Path, help="folder of .torch chunks (default: pictures made on the spot)"
    )
    parser.add_argument(
        "--only", action="append", choices=sorted(SUBJECTS), metavar="NAME", help="measure this alone"
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    return parser


if __name__ == "__main__":
    sys.exit(main())
