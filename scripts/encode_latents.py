"""Compute the latents of a data set once, so that training skips the encoder.

    python -m scripts.encode_latents --config config/lvsm_latent_vae_sd35_p4.yaml [--input DATASET] [--output FOLDER]
        [--dtype float16] [--images 16] [--weights CHECKPOINT] [key=value ...]

DATASET is a full_list.txt or a folder of .torch chunks (default: training.dataset_path of the config). FOLDER defaults
to vae_latents/ inside the data set's folder; train with training.vae_latents=vae_latents (or its absolute path). Start
it again to go on where it stopped; torchrun shares the scenes among processes.

Exit status: 0; 2 after a mistake that a message explains.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from src.cli import guarded
from src.data.latents import place_of_latents
from src.model import family_config
from src.pre_encode import DTYPES, encode_dataset, open_codec
from src.runtime import setup_logging, start, stop
from src.settings import load_config

log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Compute the latents of a data set.")
    parser.add_argument("-c", "--config", required=True, help="YAML of the run that will use the latents")
    parser.add_argument("--input", default="", help="data set; default: training.dataset_path")
    parser.add_argument(
        "--output", type=Path, help="folder of the latents; default: vae_latents/ beside the data"
    )
    parser.add_argument("--dtype", default="float16", choices=DTYPES, help="type of the files")
    parser.add_argument("--images", type=int, default=16, help="pictures encoded at once")
    parser.add_argument(
        "--weights", default="", help="checkpoint whose autoencoder is used; default: pretrained.vae"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.images < 1:
        parser.error(f"--images is {arguments.images}: expected at least 1")
    return guarded(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides, family_config)
    path = arguments.input or config.training.dataset_path
    if not isinstance(path, str):
        raise ValueError("training.dataset_path is a list: encode its data sets one by one, with --input.")
    runtime = start(config.training.seed)
    setup_logging(runtime.is_main)
    codec, source = open_codec(config, runtime.device, arguments.weights)
    folder = arguments.output or place_of_latents(path)
    result = encode_dataset(
        config, path, folder, codec, source, runtime, dtype=arguments.dtype, images=arguments.images
    )
    stop()
    sys.stdout.write(
        f"{folder}: {result.scenes} scenes with {result.frames} frames encoded, {result.skipped} were there already, "
        f"{len(result.problems)} could not be encoded\n"
    )
    for name, reason in result.problems:
        log.warning("%s: %s", name, reason)
    return 0


if __name__ == "__main__":
    sys.exit(main())
