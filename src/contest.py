"""Models trained for equal processor time, by turns, and scored on the same scenes.

A contest is interrupted and taken up again at any time: every finished training stands in its record, a JSON file. How
many steps a contender takes follows from timed steps, which are taken by turns too, so that whatever else the machine does
falls on all of them; the learning rate's schedule then ends when the time does.

Public: Contest, hold, table, draw.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from .bench.chart import Panel, draw_chart
from .checkpoint import load_into, load_weights, newest_checkpoint
from .data.eval_index import evaluation_loader
from .evaluate import evaluate
from .files import write_text
from .model import build_model
from .model.base import ViewSynthesizer
from .runtime import Runtime
from .settings import RunConfig, config_digest
from .train import train

ROUNDS, TIMED_STEPS = 3, 12
"""How often each contender's step is timed, and over how many steps each time."""

AS_IN_INDEX = "all"
"""In the record: scored with all context views that the index gives."""


@dataclass(frozen=True)
class Contest:
    """contenders: name -> config. cpu_seconds: processor time of each training, all threads together. seeds: one training
    each. inputs: numbers of context views to score with; empty: those of the index.
    """

    contenders: dict[str, RunConfig]
    cpu_seconds: float
    seeds: list[int]
    inputs: list[int]

    def header(self) -> dict:
        """What a record must agree on to be continued."""
        digests = {name: config_digest(config) for name, config in self.contenders.items()}
        return {"cpu_seconds": self.cpu_seconds, "inputs": self.inputs, "contenders": digests}


def hold(
    contest: Contest, path: Path, runtime: Runtime, say: Callable[[str], None] = lambda line: None
) -> dict:
    """Train and score whatever is missing in the record at `path`, seed by seed, the contenders by turns.

    Args:
        say: told one line about every training.

    Returns:
        the record: `cpu_seconds`, `inputs`, `contenders` (name -> digest of its settings), `step_seconds` (name ->
        processor seconds), `runs` (contender, seed, steps, cpu_seconds, scores by inputs), `floors` (the same of what
        needs no model).

    Raises:
        ValueError: the record belongs to another contest.
    """
    record = _read(contest, path)
    if not record["step_seconds"]:
        record["step_seconds"] = _step_seconds(contest, runtime)
        write_text(path, json.dumps(record, indent=2))
    done = {(run["contender"], run["seed"]) for run in record["runs"]}
    for seed in contest.seeds:
        for name, config in contest.contenders.items():
            if (name, seed) in done:
                continue
            steps = max(1, int(contest.cpu_seconds / record["step_seconds"][name]))
            run, record["floors"] = _train_and_score(_prepared(config, seed), steps, contest.inputs, runtime)
            record["runs"].append({"contender": name, "seed": seed, **run})
            write_text(path, json.dumps(record, indent=2))
            say(f"{name}, seed {seed}, {steps} steps: {_scores(run['scores'])}")
    return record


def _read(contest: Contest, path: Path) -> dict:
    if not path.is_file():
        return {**contest.header(), "step_seconds": {}, "runs": [], "floors": {}}
    record = json.loads(path.read_text(encoding="utf-8"))
    for name, wanted in contest.header().items():
        if record.get(name) != wanted:
            raise ValueError(
                f"{path} is the record of another contest: its {name} is {record.get(name)}, asked for is {wanted}. "
                "Delete it or choose another place."
            )
    return record


# ----------------------------------------------------------------------------------------------- one training


def _prepared(config: RunConfig, seed: int) -> RunConfig:
    """Of a contender: no pictures, checkpoints or scores on the way, and loading counts as its own work."""
    quiet = {
        "vis_every": 0,
        "eval_every": 0,
        "checkpoint_every": 10**9,
        "num_workers": 0,
        "wandb": "disabled",
    }
    return replace(config, training=replace(config.training, seed=seed, **quiet))


def _step_seconds(contest: Contest, runtime: Runtime) -> dict[str, float]:
    """Processor seconds of one step of each contender: the median of rounds in which they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in contest.contenders}
    for _ in range(ROUNDS):
        for name, config in contest.contenders.items():
            one, more = (
                _train(_prepared(config, contest.seeds[0]), steps, runtime) for steps in (1, 1 + TIMED_STEPS)
            )
            # Starting costs the same in both; on a busy machine noise may outweigh a few steps.
            seconds[name].append(max((more - one) / TIMED_STEPS, 0.1 * more / (1 + TIMED_STEPS)))
    return {name: statistics.median(values) for name, values in seconds.items()}


def _train(
    config: RunConfig, steps: int, runtime: Runtime, then: Callable[[RunConfig], None] = lambda config: None
) -> float:
    """Processor seconds of a fresh training of so many steps. `then` gets its config while its weights exist."""
    with tempfile.TemporaryDirectory() as folder:
        training = replace(config.training, checkpoint_dir=folder, train_steps=steps)
        config, begin = replace(config, training=training), time.process_time()
        if train(config, runtime):
            raise ValueError(f"{config.model.class_name}: the run did not finish")
        seconds = time.process_time() - begin
        then(config)
    return seconds


def _train_and_score(
    config: RunConfig, steps: int, inputs: list[int], runtime: Runtime
) -> tuple[dict, dict[str, dict]]:
    """What the record says of one training, and the floors by inputs."""
    reports: dict[str, dict] = {}

    def score(trained: RunConfig) -> None:
        folder = trained.training.checkpoint_dir
        model = build_model(trained.model).to(runtime.device)
        load_into(model, load_weights(newest_checkpoint(Path(folder))), folder)
        for number in inputs or [0]:
            reports[str(number) if number else AS_IN_INDEX] = _report(trained, model, number, runtime)

    seconds = _train(config, steps, runtime, score)
    scores = {number: _figures(report) for number, report in reports.items()}
    floors = {number: _floors(report) for number, report in reports.items()}
    return {"steps": steps, "cpu_seconds": seconds, "scores": scores}, floors


def _report(config: RunConfig, model: ViewSynthesizer, num_inputs: int, runtime: Runtime) -> dict:
    """Scores on the evaluation scenes with so many context views; 0: those of the index."""
    config = replace(config, inference=replace(config.inference, num_context_views=num_inputs))
    scenes = config.training.eval_dataset_path or config.training.dataset_path
    return evaluate(model, evaluation_loader(config, scenes, rank=0, world=1), config, runtime)


def _figures(report: dict) -> dict[str, float]:
    """Means over scenes, and what swapped target cameras cost where that was asked for."""
    swapped = report["swapped_cameras"] or {}
    drop = {"drop with swapped cameras": swapped["psnr_drop"]} if "psnr_drop" in swapped else {}
    return {**report["headline"], **drop}


def _floors(report: dict) -> dict[str, dict[str, float]]:
    return {name: means["mean_over_scenes"] for name, means in report["floors"].items()}


# ----------------------------------------------------------------------------------------------- showing


def table(record: dict) -> str:
    """Markdown: mean over the seeds and their spread (standard deviation), then the floors."""
    numbers = list(record["floors"])
    head = [f"PSNR, inputs: {number}" for number in numbers]
    lines = [
        f"| {record['cpu_seconds']:g} CPU seconds each | seeds | steps | ms a step | {' | '.join(head)} |",
        "|---" * (4 + len(numbers)) + "|",
    ]
    for name in record["contenders"]:
        runs = [run for run in record["runs"] if run["contender"] == name]
        if not runs:
            continue
        cells = [_mean_and_spread([run["scores"][number]["psnr"] for run in runs]) for number in numbers]
        step_ms = 1e3 * record["step_seconds"][name]
        lines.append(f"| {name} | {len(runs)} | {runs[0]['steps']} | {step_ms:.0f} | {' | '.join(cells)} |")
    for floor in record["floors"][numbers[0]]:
        cells = [f"{record['floors'][number][floor]['psnr']:.2f}" for number in numbers]
        lines.append(f"| no model: {floor.replace('_', ' ')} | | | | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _mean_and_spread(values: list[float]) -> str:
    spread = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def _scores(scores: dict[str, dict[str, float]]) -> str:
    return ", ".join(f"{figures['psnr']:.2f} dB with inputs: {number}" for number, figures in scores.items())


def draw(records: dict[str, dict], path: Path) -> None:
    """PSNR against the number of inputs, a panel for each record: lines are means over seeds, dots single trainings.

    Raises:
        ValueError: a contest was scored with the views of its index alone, so there is nothing to draw along.
    """
    panels = []
    for title, record in records.items():
        if not record["inputs"]:
            raise ValueError("a chart needs Contest.inputs: numbers of context views to score with.")
        dots = {name: _points(record, name) for name in record["contenders"]}
        lines = {
            name: [(x, statistics.mean(y for at, y in points if at == x)) for x in record["inputs"]]
            for name, points in dots.items()
        }
        panels.append(Panel(f"PSNR, dB: {title}", "context views", lines, dots, logarithmic=False))
    draw_chart(panels, path)


def _points(record: dict, name: str) -> list[tuple[float, float]]:
    """(context views, PSNR) of every training of a contender."""
    runs = [run for run in record["runs"] if run["contender"] == name]
    return [(number, run["scores"][str(number)]["psnr"]) for run in runs for number in record["inputs"]]
