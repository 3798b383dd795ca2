"""Table of the runs in `config/`: sizes, batch and what a training step costs, for a person or for the README.

    python -m scripts.list_configs [FILE ...]

Models are built on the meta device: nothing is computed and no memory is taken.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from src.config import ConfigError
from src.cost import step_cost
from src.model import family_config
from src.settings import load_config

HEADER = (
    "| config | image | patch | parameters | batch x accumulation | lr | steps "
    "| weights, gradients, optimiser | kept activations a sample | TFLOP a sample |"
)


def row(path: Path) -> str:
    """One line of the table; raises ConfigError for a file that does not load."""
    config = load_config(path, [], family_config)
    cost, size, training = step_cost(config), config.model.image_tokenizer, config.training
    batch = f"{training.batch_size_per_gpu} x {training.grad_accum_steps}"
    return (
        f"| `{path.stem}` | {size.image_size} | {size.patch_size} | {cost.parameters:,} | {batch} "
        f"| {training.lr:g} | {training.train_steps:,} | {cost.state_bytes / 2**30:.1f} GiB "
        f"| {cost.kept_bytes / 2**30:.2f} GiB | {cost.flops / 1e12:.1f} |"
    )


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Show the runs in config/ with their parameter counts.")
    parser.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help="config files; default: config/*.yaml"
    )
    files = parser.parse_args(argv).files or sorted(Path("config").glob("*.yaml"))
    try:
        rows = [row(path) for path in files]
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join([HEADER, "|---" * (HEADER.count("|") - 1) + "|", *rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
