"""Train several models for the same processor time and score them on the same test scenes.

    python -m scripts.compare_families --cpu_seconds 120 --seeds 1 "config/a.yaml" "config/a.yaml training.lr=1e-3" ...

Each contender is one word: a config file and the settings that replace its own, quoted as in a shell. Its number of steps follows from a few
timed ones, so that the learning rate's schedule ends when the time does. One process; the table also goes to --output.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from src.checkpoint import load_into, load_weights, newest_checkpoint
from src.cli import guarded
from src.data.eval_index import evaluation_loader
from src.evaluate import evaluate
from src.files import write_text
from src.model import build_model, family_config
from src.runtime import Runtime, start
from src.settings import RunConfig, load_config
from src.train import train

TIMED_STEPS = 20


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    return guarded(lambda: _run(argv))


def _run(argv: list[str] | None) -> None:
    parser = argparse.ArgumentParser(description="Compare models trained for equal processor time.")
    parser.add_argument("contenders", nargs="+", metavar='"FILE [key=value ...]"')
    parser.add_argument("--cpu_seconds", type=float, default=120.0, help="training time of each model")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each contender, with seeds 1, 2, ...")
    parser.add_argument("--output", default="outputs/comparison.json", help="where the figures go")
    arguments = parser.parse_args(argv)
    logging.disable(logging.INFO)
    runtime, rows = start(), []
    for contender in arguments.contenders:
        scores = [contend(contender, seed, arguments.cpu_seconds, runtime) for seed in _seeds(arguments)]
        rows.append({"contender": contender, "runs": scores})
        print(_line(rows[-1]), flush=True)
        write_text(
            arguments.output, json.dumps({"cpu_seconds": arguments.cpu_seconds, "rows": rows}, indent=2)
        )


def _seeds(arguments: argparse.Namespace) -> range:
    return range(1, arguments.seeds + 1)


def contend(contender: str, seed: int, cpu_seconds: float, runtime: Runtime) -> dict:
    """Train and score one contender; steps, seconds a step, and the means over test scenes."""
    file, *overrides = shlex.split(contender)
    settings = [f"training.seed={seed}", "training.checkpoint_every=1000000", "training.eval_every=0"]
    config = load_config(file, [*overrides, *settings, "training.vis_every=0"], family_config)
    seconds = [_train(config, steps, runtime)[0] for steps in (1, 1 + TIMED_STEPS)]
    step_seconds = (seconds[1] - seconds[0]) / TIMED_STEPS
    steps = max(1, int(cpu_seconds / step_seconds))
    _, report = _train(config, steps, runtime, score=True)
    swapped = report["swapped_cameras"] or {}
    drop = {"drop with swapped cameras": swapped["psnr_drop"]} if "psnr_drop" in swapped else {}
    return {"steps": steps, "seconds a step": step_seconds, **report["headline"], **drop}


def _train(config: RunConfig, steps: int, runtime: Runtime, *, score: bool = False) -> tuple[float, dict]:
    """Processor seconds of a fresh run of so many steps, and the report of its scores if asked for."""
    with tempfile.TemporaryDirectory() as folder:
        training = replace(config.training, checkpoint_dir=folder, train_steps=steps)
        config, begin = replace(config, training=training), time.process_time()
        if train(config, runtime):
            raise ValueError(f"{config.model.class_name}: the run did not finish")
        seconds = time.process_time() - begin
        if not score:
            return seconds, {}
        model = build_model(config.model).to(runtime.device)
        load_into(model, load_weights(newest_checkpoint(Path(folder))), folder)
        loader = evaluation_loader(
            config, training.eval_dataset_path or training.dataset_path, rank=0, world=1
        )
        return seconds, evaluate(model, loader, config, runtime)


def _line(row: dict) -> str:
    """Mean over the runs of a contender, with the spread between seeds."""
    parts = []
    for name in row["runs"][0]:
        values = [run[name] for run in row["runs"]]
        spread = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        parts.append(f"{name} {statistics.mean(values):.3f}{spread}")
    return f"{row['contender']}\n    {', '.join(parts)}"


if __name__ == "__main__":
    sys.exit(main())
