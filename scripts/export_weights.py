"""Weights from one form of file to another, both ways: safetensors with a JSON config, or a published trainer's .pt.

    python -m scripts.export_weights SOURCE OUTPUT [--dtype bf16] [--averaged] [--config FILE [key=value ...]]
    python -m scripts.export_weights SOURCE FOLDER --to-hub [--license apache-2.0] [--scores scores.json] [...]

SOURCE: checkpoint, run or hub folder, .safetensors, .pt or .ckpt. OUTPUT: NAME.safetensors or NAME.pt. Tensors are compared
with those of the model: the config comes from the checkpoint folder, from --config, or from a .json beside the source;
files that come without are copied under their own names. --to-hub writes FOLDER/config.json, model.safetensors and a model
card with gaps to fill in, which `src.from_pretrained` and `--checkpoint` read and `hf upload OWNER/NAME FOLDER`
publishes. Nothing in a file is executed. Exit status: 0; 2 after a
mistake that a message explains.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from src.checkpoint import WEIGHTS
from src.cli import guarded
from src.config import ConfigError
from src.export import DTYPES, export_weights
from src.model import family_config
from src.pretrained import CONFIG, write_pretrained
from src.settings import load_config


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="checkpoint folder, run folder, .safetensors, .pt or .ckpt")
    parser.add_argument(
        "output", type=Path, help="file to write, .safetensors or .pt; with --to-hub a folder"
    )
    parser.add_argument(
        "--to-hub", action="store_true", help="write a folder in the form of the Hugging Face hub"
    )
    parser.add_argument(
        "--license", default="other", help="of the weights, for the model card (default: other)"
    )
    parser.add_argument("--scores", type=Path, help="scores.json of this model, for the model card")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="", help="type of all floating numbers")
    parser.add_argument("--averaged", action="store_true", help="running averages (training.ema_decay)")
    parser.add_argument("-c", "--config", type=Path, help="YAML of the model, for files that carry none")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace --config's")
    arguments = parser.parse_intermixed_args(argv)
    return guarded(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    if (arguments.source / CONFIG).is_file():  # a folder in the form of the hub
        arguments.config = arguments.config or arguments.source / CONFIG
        arguments.source = arguments.source / WEIGHTS
    beside = arguments.source.with_suffix(".json")
    path = arguments.config or (beside if arguments.source.is_file() and beside.is_file() else None)
    if arguments.overrides and not path:
        raise ConfigError(f"{arguments.overrides[0]}: settings need a --config that they change.")
    config = load_config(path, arguments.overrides, family_config) if path else None
    how = {"dtype": arguments.dtype, "averaged": arguments.averaged, "config": config}
    if arguments.to_hub:
        card = {"license_name": arguments.license, "scores": arguments.scores}
        done = write_pretrained(arguments.source, arguments.output, **how, **card)
    else:
        done = export_weights(arguments.source, arguments.output, **how)
    lines = [f"{done.output}: {done.num_tensors} tensors, {done.num_bytes / 2**20:.1f} MiB"]
    lines += [f"left out: {count} tensors under {prefix}" for prefix, count in done.report.ignored.items()]
    lines += [f"{name}. taken out of {count} names" for name, count in done.report.renamed.items()]
    if not done.checked:
        lines.append("not compared with any model: name its config with --config")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
