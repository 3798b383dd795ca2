"""Train several models for the same processor time and score them on the same test scenes.

    python -m scripts.compare_families --cpu_seconds 120 --seeds 1 "config/a.yaml" "config/a.yaml training.lr=1e-3" ...

Each contender is one word: a config file and the settings that replace its own, quoted as in a shell. One process; an
interrupted comparison goes on where it stopped. The figures go to --output, the table beside it.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from pathlib import Path

from src.cli import guarded
from src.contest import Contest, hold, table
from src.files import write_text
from src.model import family_config
from src.runtime import start
from src.settings import RunConfig, load_config


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    return guarded(lambda: _run(argv))


def _run(argv: list[str] | None) -> None:
    parser = argparse.ArgumentParser(description="Compare models trained for equal processor time.")
    parser.add_argument("contenders", nargs="+", metavar='"FILE [key=value ...]"')
    parser.add_argument("--cpu_seconds", type=float, default=120.0, help="training time of each model")
    parser.add_argument(
        "--seeds", type=int, default=1, help="trainings of each contender, with seeds 1, 2, ..."
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/comparison.json"), help="the record")
    arguments = parser.parse_args(argv)
    logging.disable(logging.INFO)
    contenders = {" ".join(words.split()): _config(words) for words in arguments.contenders}
    contest = Contest(contenders, arguments.cpu_seconds, list(range(1, arguments.seeds + 1)), [])
    text = table(hold(contest, arguments.output, start(), print))
    write_text(arguments.output.with_suffix(".md"), text)
    print(text)


def _config(words: str) -> RunConfig:
    file, *overrides = shlex.split(words)
    return load_config(file, overrides, family_config)


if __name__ == "__main__":
    sys.exit(main())
