"""Train a small autoencoder on the pictures of a data set and save it in diffusers' folder form.

    python -m scripts.train_tiny_vae --config config/lvsm_latent_tiny.yaml --output checkpoints/vae_tiny
        [--steps 1500] [--pictures 512] [key=value ...]

The architecture is that of `model.vae` in the config, the pictures those of `training.dataset_path`. Use the result
with pretrained.vae=FOLDER. Exit status: 0; 2 after a mistake that a message explains.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from src.cli import guarded
from src.data.dataset import SceneDataset
from src.data.view_settings import ViewSettings
from src.model import family_config
from src.model.vae import ImageCodec
from src.settings import load_config
from src.tiny_vae import sample_pictures, train_autoencoder
from src.vae_files import save_vae


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Train a small autoencoder.")
    parser.add_argument("-c", "--config", required=True, help="YAML of a latent model")
    parser.add_argument("--output", type=Path, required=True, help="folder of the autoencoder")
    parser.add_argument("--steps", type=int, default=1500, help="optimiser steps")
    parser.add_argument("--batch", type=int, default=8, help="pictures per step")
    parser.add_argument("--pictures", type=int, default=512, help="pictures held in memory")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
    arguments = parser.parse_intermixed_args(argv)
    return guarded(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides, family_config)
    seed = config.training.seed
    torch.manual_seed(seed)
    codec = ImageCodec(config.model.vae)
    dataset = SceneDataset(config.training.dataset_path, ViewSettings.of(config))
    pictures = sample_pictures(dataset, arguments.pictures, seed)
    psnr = train_autoencoder(
        codec, pictures, steps=arguments.steps, batch=arguments.batch, lr=arguments.lr, seed=seed
    )
    save_vae(codec, arguments.output)
    sys.stdout.write(
        f"{arguments.output}: {psnr:.2f} dB on {max(1, len(pictures) // 8)} pictures it did not learn from\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
