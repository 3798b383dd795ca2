"""The command line that training, scoring and rendering share.

    python -m src.SCRIPT --config FILE [key=value ...] [--print-config]

Public: config_parser, chosen_config, read_config, guarded, printable.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from .model import family_config
from .settings import RunConfig, describe, load_config

USER_ERRORS = (ValueError, OSError)
"""What a wrong setting, a missing file or a bad file raises: shown as a message, not as a traceback."""

LONGEST_LINE = 1000
"""Of a message, characters: a value from a file or a command line that is repeated in it may be of any length."""

LESS_MEMORY = (
    "In training, lower training.batch_size_per_gpu (and raise training.grad_accum_steps by as much) or set "
    "training.activations=memory; in scoring, lower training.batch_size_per_gpu or inference.chunk."
)


def config_parser(description: str) -> argparse.ArgumentParser:
    """The words that choose a config."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("-c", "--config", required=True, metavar="FILE", help="YAML file of the run")
    parser.add_argument(
        "--print-config", action="store_true", help="show the resolved settings and where each comes from"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
    return parser


def read_config(argv: list[str] | None, description: str) -> RunConfig | None:
    """The checked config of a command line; None after `--print-config`, which shows it instead.

    Raises:
        ConfigError: a setting that cannot be used.
    """
    return chosen_config(config_parser(description).parse_intermixed_args(argv))


def chosen_config(arguments: argparse.Namespace) -> RunConfig | None:
    """The same for words that `config_parser` has read."""
    config = load_config(arguments.config, arguments.overrides, family_config)
    if not arguments.print_config:
        return config
    sys.stdout.write(describe(config) + "\n")
    return None


def guarded(work: Callable[[], int | None]) -> int:
    """Run the body of a script. Its exit status, or 2 after a user's mistake, which is told without a traceback."""
    try:
        return work() or 0
    except USER_ERRORS as error:
        message = printable(error)
    except torch.OutOfMemoryError as error:
        message = f"{str(error).partition('. ')[0]}. {LESS_MEMORY}"
    sys.stderr.write(f"error: {message}\n")
    _tell_torchrun(message)
    return 2


def _tell_torchrun(message: str) -> None:
    """torchrun ends with a long report of its own; what it finds in this file stands in it as the cause."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        told = {"message": f"error: {message}", "extraInfo": {"timestamp": str(int(time.time()))}}
        with suppress(OSError):
            Path(file).write_text(json.dumps({"message": told}), encoding="utf-8")


def printable(message: object) -> str:
    """A message about input of somebody else, for a terminal: control characters escaped, lines of bounded length."""
    text = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in str(message))
    lines = (line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ..." for line in text.split("\n"))
    return "\n".join(lines)
