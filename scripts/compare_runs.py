"""Several scored runs on one page, with a slider between their pictures.

    python -m scripts.compare_runs RUN RUN [RUN ...] --output outputs/compare.html [--labels small large]

RUN is a folder that src.inference wrote (src.inference_fast: tables, no pictures). Runs that were scored on different views
(the digests of their index files differ) are refused.

Exit status: 0, or 2 after a mistake that a message explains.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from src.cli import guarded
from src.run_page import read_run, write_run_page


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of results")
    parser.add_argument("--output", required=True, type=Path, help="the page to write, .html")
    parser.add_argument("--labels", nargs="+", default=[], help="a name for each run (default: its folder's)")
    parser.add_argument(
        "--mix_target_aware", action="store_true", help="compare runs that saw the target image too"
    )
    return guarded(lambda: _run(parser.parse_args(argv)))


def _run(arguments: argparse.Namespace) -> None:
    labels = arguments.labels or [""] * len(arguments.runs)
    if len(labels) != len(arguments.runs):
        raise ValueError(f"--labels names {len(labels)} of {len(arguments.runs)} runs.")
    runs = [read_run(folder, label) for folder, label in zip(arguments.runs, labels, strict=True)]
    write_run_page(runs, arguments.output, mix_target_aware=arguments.mix_target_aware)
    sys.stdout.write(f"{arguments.output}\n")


if __name__ == "__main__":
    sys.exit(main())
