"""How a run's renders got better while it trained: every checkpoint scored on the held-out scenes.

    python -m scripts.learning_curve --config config/mvldm_tiny.yaml --output outputs/mvldm_curve --steps 200 500 1000 2000

Takes the checkpoints of training.checkpoint_dir, all of them or the --steps named. Writes `curve.json` (each checkpoint's
scores, with swapped cameras where inference.swap_target_cameras asks for it, and those of the floors), `curve.png`, and
`views.png`: the middle target view of the first scenes, as it is and as each checkpoint renders it. Prints a table.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from src.bench.chart import Panel, draw_chart
from src.checkpoint import find_checkpoints, step_of
from src.cli import chosen_config, config_parser, guarded
from src.config import ConfigError
from src.evaluate import RenderedScene, evaluate
from src.files import write_text
from src.inference_fast import make_out_dir, open_session
from src.settings import RunConfig
from src.visualize import enlarged, save_image, sheet

SHOWN_SIDE = 96
"""Least height of a picture on the sheet, pixels."""


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    return guarded(lambda: _run(argv))


def _run(argv: list[str] | None) -> None:
    parser = config_parser("Score every checkpoint of a run.")
    parser.add_argument("--output", type=Path, default=Path("outputs/learning_curve"), metavar="FOLDER")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[], help="checkpoints to score (default: all)"
    )
    parser.add_argument("--scenes", type=int, default=8, help="scenes on the sheet of pictures")
    arguments = parser.parse_intermixed_args(argv)
    config = chosen_config(arguments)
    if config is None:
        return
    checkpoints = chosen_checkpoints(config.training.checkpoint_dir, arguments.steps)
    make_out_dir(str(arguments.output))
    record, rows = {}, {}
    for step, checkpoint in checkpoints.items():
        record[step], views = _scores(config, checkpoint, arguments.scenes)
        rows |= {"truth": views[0]} | {f"{step} steps": views[1]}
    write_text(arguments.output / "curve.json", json.dumps(record, indent=1) + "\n")
    panel = Panel("PSNR, dB", "training steps", _lines(record), logarithmic=False)
    draw_chart([panel], arguments.output / "curve.png")
    save_image(arguments.output / "views.png", sheet(list(rows.values()), list(rows)))
    sys.stdout.write(table(record) + f"\n{arguments.output / 'curve.png'}\n")


def chosen_checkpoints(folder: str, steps: list[int]) -> dict[int, Path]:
    """Step -> checkpoint of a run, in the order of the steps: those asked for, or all if none are.

    Raises:
        ConfigError: the run has no checkpoint, or none of a step that was asked for.
    """
    found = {step_of(path): path for path in find_checkpoints(folder)}
    if not found:
        raise ConfigError(f"training.checkpoint_dir {folder} holds no checkpoint.")
    if missing := sorted(set(steps) - set(found)):
        have = ", ".join(map(str, found))
        raise ConfigError(
            f"{folder} has no checkpoint of step {missing[0]}: there are {have} (training.keep_checkpoints)."
        )
    return {step: found[step] for step in sorted(steps or found)}


def _scores(config: RunConfig, checkpoint: Path, scenes: int) -> tuple[dict, tuple[Tensor, Tensor]]:
    """PSNR of a checkpoint by method, and the middle target of the first scenes: truths and renders [scenes, 3, h, w]."""
    inference = replace(config.inference, checkpoint=str(checkpoint), compute_metrics=True)
    session = open_session(replace(config, inference=inference))
    pictures: list[tuple[Tensor, Tensor]] = []

    def keep(scene: RenderedScene) -> None:
        if len(pictures) < scenes:
            middle = scene.render.shape[1] // 2
            pictures.append((scene.target.image[0, middle].cpu(), scene.render[0, middle].cpu()))

    report = evaluate(
        session.model, session.loader, session.config, session.runtime, metrics=session.metrics, on_scene=keep
    )
    scored = {"render": report["headline"]}
    if report["swapped_cameras"]:
        scored["target cameras swapped"] = report["swapped_cameras"]["mean_over_scenes"]
    scored |= {name.replace("_", " "): floor["mean_over_scenes"] for name, floor in report["floors"].items()}
    truths, renders = (enlarged(torch.stack(images), SHOWN_SIDE) for images in zip(*pictures))
    return scored, (truths, renders)


def _lines(record: dict[int, dict]) -> dict[str, list[tuple[float, float]]]:
    """Method -> (step, PSNR) of every checkpoint."""
    methods = next(iter(record.values()))
    return {name: [(step, scored[name]["psnr"]) for step, scored in record.items()] for name in methods}


def table(record: dict[int, dict]) -> str:
    """Markdown: PSNR of every method, a line for each checkpoint."""
    methods = list(next(iter(record.values())))
    lines = [f"| steps | {' | '.join(methods)} |", "|---" * (1 + len(methods)) + "|"]
    for step, scored in record.items():
        cells = [f"{scored[name]['psnr']:.2f}" for name in methods]
        lines.append(f"| {step} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
