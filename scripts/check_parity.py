"""Compare our code with golden files of the originals.

    python -m scripts.check_parity FILE [FILE ...] [--as-class CLASS]

Prints for each stored output `system/case/output  max_abs  max_rel  tolerance  ok|FAIL|optional|no such stage|unchecked`,
then totals. Exit status: 0 if nothing failed and nothing is unchecked, 1 otherwise, 2 if a file cannot be read.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from src.cli import guarded
from src.parity import NO_SUCH_STAGE, find_reader
from src.parity.report import check_file, load_golden, passed, print_lines, print_totals


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="golden file (.pt)")
    parser.add_argument(
        "--as-class",
        default="",
        metavar="CLASS",
        help="model.class_name of another family that can be the system's, such as src.model.kvlvsm.KVLVSM for lvsm",
    )
    arguments = parser.parse_args(argv)
    return guarded(lambda: _check(arguments.files, arguments.as_class))


def _check(files: list[str], as_class: str) -> int:
    lines = []
    for file in files:
        golden = replace(load_golden(file), as_class=as_class)
        kind = (golden.system, golden.kind)
        found = check_file(golden, find_reader(*kind), NO_SUCH_STAGE.get(kind, {}))
        print_lines(golden, found)
        lines += found
    print_totals(lines, len(files))
    return 0 if passed(lines) else 1


if __name__ == "__main__":
    sys.exit(main())
