"""Full mask (LVSM) against one-way mask (KV-LVSM) at equal processor time: several seeds, mean and spread.

    python -m scripts.compare_masks --output outputs/masks --cpu_seconds 150 --seeds 3 \
        --data "synthetic" --data "captures training.dataset_path=... inference.view_idx_file_path=..." \
        --config config/quickstart.yaml [key=value ...]

The two are one network of the class KVLVSM, which `model.mask` alone tells apart. Each --data is a name and the settings that
lead to that data set, quoted as in a shell; without any, the config's own data set is used. An interrupted comparison goes on
where it stopped. Writes `<name>.json`, `masks.md` and `masks.png`.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from pathlib import Path

from src.cli import guarded
from src.config import ConfigError
from src.contest import Contest, draw, hold, table
from src.files import write_text
from src.model import family_config
from src.model.kvlvsm import Config
from src.runtime import start
from src.settings import RunConfig, load_config

MASKS = {"full mask (LVSM)": "full", "one-way mask": "one_way"}


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    return guarded(lambda: _run(argv))


def _run(argv: list[str] | None) -> None:
    arguments = _parser().parse_intermixed_args(argv)
    logging.disable(logging.INFO)
    runtime, records = start(), {}
    for name, *overrides in map(shlex.split, arguments.data or ["data"]):
        contest = Contest(
            {mask: _config(arguments, [*overrides, f"model.mask={value}"]) for mask, value in MASKS.items()},
            arguments.cpu_seconds,
            list(range(1, arguments.seeds + 1)),
            arguments.inputs,
        )
        place = arguments.output / f"{name}.json"
        records[name] = hold(contest, place, runtime, lambda line, name=name: print(f"{name}: {line}"))
    text = "\n".join(f"{name}\n\n{table(record)}" for name, record in records.items())
    write_text(arguments.output / "masks.md", text)
    draw(records, arguments.output / "masks.png")
    print(text)


def _config(arguments: argparse.Namespace, overrides: list[str]) -> RunConfig:
    config = load_config(arguments.config, [*arguments.overrides, *overrides], family_config)
    if not isinstance(config.model, Config):
        raise ConfigError(
            f"{arguments.config}: masks are compared with model.class_name src.model.kvlvsm.KVLVSM."
        )
    return config


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Compare LVSM's full mask with the one-way mask.")
    parser.add_argument("--config", required=True, metavar="FILE", help="of class KVLVSM")
    parser.add_argument("--data", action="append", metavar='"NAME [key=value ...]"', help="may be repeated")
    parser.add_argument("--cpu_seconds", type=float, default=150.0, help="training time of each model")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each model, with seeds 1, 2, ...")
    parser.add_argument("--inputs", type=int, nargs="+", default=[1, 2], help="context views to score with")
    parser.add_argument("--output", type=Path, default=Path("outputs/masks"), help="folder for the results")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
    return parser


if __name__ == "__main__":
    sys.exit(main())
