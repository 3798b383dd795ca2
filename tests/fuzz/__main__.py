"""Long runs of the fuzz suite, and one case again.

    python tests/fuzz [--cases 2000] [--seed 1] [--kind NAME ...] [--minutes 0]
    python tests/fuzz --kind NAME --only 417 [--seed 1]

Exit status: 0, or 1 with what was found.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).resolve().parents[n]) for n in (1, 2)
]  # the other tests' data sets, and `src`

from fuzz import all_kinds  # noqa: E402
from fuzz.sandbox import WAIT_SECONDS, Finding, Sandbox  # noqa: E402
from fuzz.table import Table  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    kinds = {kind.name: kind for kind in all_kinds()}
    parser.add_argument("--cases", type=int, default=2000, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", nargs="+", choices=list(kinds), default=list(kinds))
    parser.add_argument("--only", type=int, help="run this case alone, and keep its folder")
    parser.add_argument(
        "--minutes", type=float, default=0, help="stop after so long; 0: when all cases are done"
    )
    arguments = parser.parse_args(argv)
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    sandbox, table, findings = Sandbox(root), Table(), 0
    end = time.monotonic() + (arguments.minutes * 60 or float("inf"))
    numbers = (
        [arguments.only] if arguments.only is not None else range(arguments.cases // len(arguments.kind))
    )
    for number in numbers:
        for name in arguments.kind:
            if time.monotonic() > end:
                break
            faulthandler.dump_traceback_later(10 * WAIT_SECONDS, exit=True)  # what even the alarm cannot stop
            (root / "last.txt").write_text(f"{name} {number} {arguments.seed}\n")
            try:
                result = sandbox.run(kinds[name], number, arguments.seed)
            except Finding as finding:
                result, findings = None, findings + 1
                print(f"\n{finding}\n", flush=True)
            table.add(name, result)
            if arguments.only is not None:
                print(f"{result}\n{sandbox.work}")
    faulthandler.cancel_dump_traceback_later()
    print(table)
    if arguments.only is None:
        shutil.rmtree(root, ignore_errors=True)
    return 1 if findings else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
