"""Adapters of a latent model's decoder, on their own or written into its weights.

    python -m scripts.lora export --config FILE --checkpoint CHECKPOINT --output adapter.safetensors
    python -m scripts.lora merge  --config FILE --checkpoint CHECKPOINT --output merged.safetensors [--adapter FILE]

`export` writes the factors alone (and a .json beside them). `merge` writes all weights of the model with the adapters
merged; they load into the same config without `model.lora`. With --adapter, CHECKPOINT may be of a model without
adapters. Exit status: 0; 2 after a mistake that a message explains.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import safetensors.torch

from src.checkpoint import load_into, load_weights
from src.cli import guarded
from src.config import ConfigError
from src.files import replacing
from src.model import build_model, family_config
from src.model.lora import adapter_tensors, load_adapter, merge
from src.settings import RunConfig, load_config, to_plain
from src.vae_files import read_adapter, save_adapter


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Export or merge the adapters of a latent model.")
    parser.add_argument("task", choices=("export", "merge"))
    parser.add_argument("-c", "--config", required=True, help="YAML with model.lora")
    parser.add_argument("--checkpoint", required=True, help="weights: a file, checkpoint or run folder")
    parser.add_argument("--output", type=Path, required=True, help="file to write (.safetensors)")
    parser.add_argument(
        "--adapter", type=Path, help="exported adapter to merge instead of the checkpoint's own"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.output.suffix != ".safetensors":
        parser.error(f"--output {arguments.output}: expected a name that ends with .safetensors")
    return guarded(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides, family_config)
    if not hasattr(config.model, "lora") or not config.model.lora.active:
        raise ConfigError(
            f"{arguments.config} has no adapters: model.lora.Conv2d.lora_rank and the like are 0."
        )
    model = build_model(config.model)
    load_into(model, load_weights(arguments.checkpoint), arguments.checkpoint)
    if arguments.task == "export":
        tensors = adapter_tensors(model)
        save_adapter(tensors, {"lora": _lora_section(config)}, arguments.output)
        done = f"{len(tensors) // 2} adapters"
    else:
        if arguments.adapter:
            _replace_adapters(model, config, arguments.adapter)
        merge(model)
        with replacing(arguments.output) as temporary:
            safetensors.torch.save_file({n: t.contiguous() for n, t in model.state_dict().items()}, temporary)
        done = "the merged weights; use them without model.lora"
    sys.stdout.write(f"{arguments.output}: {done}\n")
    return 0


def _lora_section(config: RunConfig) -> dict[str, Any]:
    return to_plain(config)["model"]["lora"]


def _replace_adapters(model: Any, config: RunConfig, path: Path) -> None:
    tensors, described = read_adapter(path)
    if described.get("lora") != _lora_section(config):
        raise ConfigError(
            f"{path} was trained with model.lora {described.get('lora')}: set the same in the config, for alpha scales it."
        )
    load_adapter(model, tensors)


if __name__ == "__main__":
    sys.exit(main())
