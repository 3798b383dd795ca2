"""Make a model with a cache out of LVSM's published weights, and say what the mask costs before and after training.

    python -m scripts.download_weights lvsm_decoder_only_256 vgg16 vgg19
    python -m scripts.finetune_one_way --config config/kvlvsm_from_lvsm.yaml [key=value ...]

Scores the weights of training.resume_ckpt as they are (full mask: LVSM itself) and with the config's one-way mask, trains,
and scores again. One process or, with torchrun, several. Started anew it goes on where it stopped. The figures go to
`one_way.json` in training.checkpoint_dir.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

from src.checkpoint import load_into, load_weights, newest_checkpoint
from src.cli import guarded, read_config
from src.config import ConfigError
from src.data.eval_index import evaluation_loader
from src.evaluate import evaluate
from src.files import write_text
from src.model import build_model
from src.model.kvlvsm import Config
from src.runtime import Runtime, from_main, set_precision, setup_logging, start, stop
from src.settings import RunConfig
from src.train import train

log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    return guarded(lambda: _run(argv))


def _run(argv: list[str] | None) -> int:
    config = read_config(argv, "Fine-tune LVSM's decoder-only weights with the one-way mask.")
    if config is None:
        return 0
    _check(config)
    runtime = start(config.training.seed)
    setup_logging(runtime.is_main)
    set_precision(config.training)
    source, folder = config.training.resume_ckpt, Path(config.training.checkpoint_dir)
    figures = {
        "before, full mask (LVSM)": score(config, source, "full", runtime),
        "before, one-way mask": score(config, source, "one_way", runtime),
    }
    status = train(config, runtime)
    if status == 0:
        figures["after, one-way mask"] = score(config, newest_checkpoint(folder), "one_way", runtime)
        report = {"weights": str(source), "steps": config.training.train_steps, "scores": figures}
        from_main(lambda: write_text(folder / "one_way.json", json.dumps(report, indent=2)), runtime)
        for name, scores in figures.items():
            log.info("%-26s %s", name, "  ".join(f"{metric} {value:.3f}" for metric, value in scores.items()))
    stop()
    return status


def _check(config: RunConfig) -> None:
    """Raises ConfigError for what this script cannot work with, before anything is loaded."""
    if not isinstance(config.model, Config) or config.model.mask != "one_way":
        raise ConfigError("model must be of class src.model.kvlvsm.KVLVSM with model.mask: one_way.")
    if not config.training.resume_ckpt or not config.training.reset_training_state:
        raise ConfigError(
            "training.resume_ckpt must name LVSM's weights, with training.reset_training_state: true to take the "
            "weights alone."
        )
    if not config.training.eval_dataset_path:
        raise ConfigError("training.eval_dataset_path is empty: name the scenes to score before and after.")


def score(config: RunConfig, weights: str | Path, mask: str, runtime: Runtime) -> dict[str, float]:
    """Means over the evaluation scenes of the network with these weights and this mask.

    LVSM itself, the full mask, gets cameras as it was trained with: in a frame that all views of a sample define.
    """
    if mask == "full":
        config = replace(config, training=replace(config.training, pose_norm="all"))
    model = build_model(replace(config.model, mask=mask, prefix_training=False)).to(runtime.device)
    load_into(model, load_weights(weights), weights)
    loader = evaluation_loader(
        config, config.training.eval_dataset_path, rank=runtime.rank, world=runtime.world
    )
    return evaluate(model, loader, config, runtime)["headline"]


if __name__ == "__main__":
    sys.exit(main())
