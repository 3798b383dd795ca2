"""Turn the newest checkpoint of the demo's training into the file that travels with this repository, with its model card.

    python -m scripts.export_demo --config config/demo.yaml --hardware "one CPU core, 90 minutes"

Writes inference.checkpoint (bfloat16 safetensors) with its config.json, scores it on the config's held-out scenes, and
writes the card, `README.md`, beside it. Prints the scores.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from src.checkpoint import load_weights, newest_checkpoint, read_manifest
from src.cli import guarded
from src.config import ConfigError
from src.data.synthetic import read_spec
from src.evaluate import evaluate
from src.export import export_weights
from src.files import write_text
from src.floors import FLOORS
from src.inference_fast import open_session, scores_table
from src.model import family_config
from src.pretrained import CONFIG
from src.settings import RunConfig, load_config

LARGEST_BYTES, MOST_PARAMETERS = 15 * 2**20, 7_000_000  # what a repository should carry

CARD = """---
library_name: parallax-nvs
license: apache-2.0
tags:
- novel-view-synthesis
---

# Demo weights

`model.safetensors` is a KV-LVSM (`src/model/kvlvsm.py`) with {parameters:.2f} million parameters in bfloat16, settings in
`{told.config}`. It renders {size} x {size} pixels from two photos of a room, and knows no other world than the synthetic rooms of
`scripts/make_synthetic.py`: do not expect anything of photographs.

| | |
|---|---|
| data | {made.train_scenes} rooms of {made.frames} frames, rendered by this repository (`--seed {made.seed}`, mirrored half of the time); no other data |
| training | {steps} steps of {batch} rooms with 2 inputs and {targets} targets each, mean squared error alone |
| hardware | {told.hardware} |
| licence | that of this repository |

Scores on {evaluated} rooms of another seed, which took no part in training (three frames between the two inputs):

| | PSNR | SSIM |
|---|---|---|
{rows}

    python -m scripts.make_synthetic --output datasets/demo --train_scenes 0 --test_scenes 24
    python -m src.inference --config {told.config}
    python -m src.viewer --checkpoint checkpoints/demo --data datasets/demo/test

`{told.config}` says how it was trained; `python -m scripts.export_demo` makes this folder out of a checkpoint.
"""


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    return guarded(lambda: _run(argv))


def _run(argv: list[str] | None) -> None:
    parser = argparse.ArgumentParser(description="Export the demo's weights and write their model card.")
    parser.add_argument("--config", required=True, metavar="FILE")
    parser.add_argument("--hardware", required=True, help="what it was trained on, for the card")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
    arguments = parser.parse_intermixed_args(argv)
    config = load_config(arguments.config, arguments.overrides, family_config)
    checkpoint = newest_checkpoint(Path(config.training.checkpoint_dir))
    if checkpoint is None:
        raise ConfigError(f"training.checkpoint_dir {config.training.checkpoint_dir} holds no checkpoint.")
    parameters = export(checkpoint, place := Path(config.inference.checkpoint))
    session = open_session(config)
    report = evaluate(session.model, session.loader, config, session.runtime, metrics=session.metrics)
    card = model_card(config, report, parameters, read_manifest(checkpoint)["step"], arguments)
    write_text(place.with_name("README.md"), card)
    print(scores_table({**report, "weights": session.weights}))


def export(checkpoint: Path, place: Path) -> int:
    """Write a checkpoint's weights in bfloat16 to `place`, its config beside it, as the hub has it; how many numbers they are.

    Raises:
        ValueError: they are more than a repository should carry.
    """
    parameters = sum(x.numel() for x in load_weights(checkpoint).values())
    if parameters > MOST_PARAMETERS or 2 * parameters > LARGEST_BYTES:
        raise ValueError(f"{checkpoint} has {parameters} parameters: at most {MOST_PARAMETERS} fit here.")
    export_weights(checkpoint, place, dtype="bf16", beside=place.with_name(CONFIG))
    return parameters


def model_card(config: RunConfig, report: dict, parameters: int, steps: int, told: argparse.Namespace) -> str:
    """The card's text, all figures from the run and its scores."""
    training = config.training
    made = read_spec(Path(training.dataset_path).parent)
    floors = {FLOORS[name]: means["mean_over_scenes"] for name, means in report["floors"].items()}
    rows = {"**this model**": report["headline"], **floors}
    return CARD.format(
        parameters=parameters / 1e6,
        told=told,
        size=config.model.image_tokenizer.image_size,
        made=made,
        steps=steps,
        batch=training.batch_size_per_gpu * training.grad_accum_steps,
        targets=training.num_target_views,
        evaluated=report["counts"]["evaluated"],
        rows="\n".join(f"| {name} | {x['psnr']:.2f} | {x['ssim']:.3f} |" for name, x in rows.items()),
    )


if __name__ == "__main__":
    sys.exit(main())
