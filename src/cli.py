"""The command line that training, scoring and rendering share.

    python -m src.SCRIPT --config FILE [key=value ...] [--print-config]

Public: read_config, guarded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch

from .model import family_config
from .settings import RunConfig, describe, load_config

USER_ERRORS = (ValueError, OSError)
"""What a wrong setting, a missing file or a bad file raises: shown as a message, not as a traceback."""

LESS_MEMORY = (
    "In training, lower training.batch_size_per_gpu (and raise training.grad_accum_steps by as much) or set "
    "training.grad_checkpoint_every=1; in scoring, lower training.batch_size_per_gpu or inference.chunk."
)


def read_config(argv: list[str] | None, description: str) -> RunConfig | None:
    """The checked config of a command line; None after `--print-config`, which shows it instead.

    Raises:
        ConfigError: a setting that cannot be used.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("-c", "--config", required=True, metavar="FILE", help="YAML file of the run")
    parser.add_argument(
        "--print-config", action="store_true", help="show the resolved settings and where each comes from"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
    arguments = parser.parse_intermixed_args(argv)
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
        sys.stderr.write(f"error: {error}\n")
    except torch.OutOfMemoryError as error:
        sys.stderr.write(f"error: {str(error).partition('. ')[0]}. {LESS_MEMORY}\n")
    return 2
