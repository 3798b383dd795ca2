"""Train under random kills, full disks and corrupted checkpoints, and compare with a run that was left alone.

    python -m scripts.soak --output outputs/soak [--kills 100 --minutes 60 --processes 1 --launcher fork --disk FOLDER]

Writes `soak.json` and `soak.md`; what happens and what is compared: src/soak/rounds.py. --disk names a folder on a file
system smaller than 1 GiB, which is filled for real (mount -t tmpfs -o size=16m tmpfs FOLDER); without it the size of
files is limited instead. Linux only. Exit status: 0; 1 if anything was lost, differed or hung, told line by line; 2 after
a mistake that a message explains.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from src.cli import guarded
from src.files import write_text
from src.soak.life import LAUNCHERS
from src.soak.rounds import Soak, run_soak, table


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("outputs/soak"), help="folder, best a new one")
    parser.add_argument("--disk", type=Path, help="folder for the runs, on a small file system")
    parser.add_argument("--kills", type=int, default=100, help="end with the round that reaches so many")
    parser.add_argument("--minutes", type=float, default=60.0, help="or with the one that takes so long")
    parser.add_argument("--processes", type=int, default=1, help="of the training")
    parser.add_argument("--steps", type=int, default=150, help="of each round")
    parser.add_argument("--launcher", choices=tuple(LAUNCHERS), default="fork", help="what starts them")
    parser.add_argument("--seed", type=int, default=0, help="other moments and faults")
    arguments = parser.parse_args(argv)
    return guarded(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    soak = Soak(
        folder=arguments.output.resolve(),
        disk=(arguments.disk or arguments.output).resolve(),
        kills=arguments.kills,
        minutes=arguments.minutes,
        world=arguments.processes,
        steps=arguments.steps,
        launcher=arguments.launcher,
        seed=arguments.seed,
    )
    tally = run_soak(soak)
    settings = {**asdict(soak), "folder": str(soak.folder), "disk": str(soak.disk)}
    report = {"soak": settings, "tally": asdict(tally)}
    write_text(soak.folder / "soak.json", json.dumps(report, indent=2) + "\n")
    text = table(soak, tally)
    write_text(soak.folder / "soak.md", text + "\n")
    sys.stdout.write("\n".join([text, *tally.wrong]) + "\n")
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
