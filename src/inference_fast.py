"""Score a model on an evaluation index: numbers only.

    python -m src.inference_fast --config config/eval/uplvsm_x224.yaml [key=value ...]
    torchrun --nproc_per_node 8 -m src.inference_fast --config ...

Prints a table and writes `<inference_out_dir>/scores.json`; scenes that could not be scored are listed there and in
`missing_scenes.txt`. With `inference.view_selection` the chosen views go to `chosen_views.json`, an index file. Exit
status 0 when scores were written, 2 after a mistake that a message explains.

Public: main, Session, open_session, make_out_dir, write_report, scores_table.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cli import guarded, read_config
from .config import ConfigError
from .data.eval_index import evaluation_loader
from .evaluate import Metrics, evaluate
from .files import writable, write_text
from .floors import FLOORS
from .metrics import build_metrics
from .model.base import ViewSynthesizer
from .pretrained import load_model
from .runtime import Runtime, from_main, set_precision, setup_logging, start, stop
from .settings import RunConfig

log = logging.getLogger(__name__)

CHOSEN_VIEWS = "chosen_views.json"
"""Index file of the views that `inference.view_selection` chose, for `inference.view_idx_file_path` of other runs."""


@dataclass
class Session:
    """Everything a scoring run needs, ready to use. `weights` says in the report where they came from."""

    config: RunConfig
    runtime: Runtime
    model: ViewSynthesizer
    loader: Any
    metrics: Metrics
    weights: dict[str, str]

    @property
    def out_dir(self) -> Path:
        return Path(self.config.inference.inference_out_dir)


def main(argv: list[str] | None = None) -> int:
    """Score; the exit status."""
    return guarded(lambda: _run(argv))


def _run(argv: list[str] | None) -> None:
    config = read_config(argv, "Score a model on every scene of an evaluation index.")
    if config is None:
        return
    config.inference.compute_metrics = True
    session = open_session(config)
    report = evaluate(session.model, session.loader, config, session.runtime, metrics=session.metrics)
    if session.runtime.is_main:
        write_report(session, report)
    stop()


def open_session(config: RunConfig) -> Session:
    """Join the processes, then build model, data and metrics. What is cheap to check is checked first.

    Raises:
        ConfigError: no data set, no weights, or weights of a metric that are not there.
    """
    runtime = start(config.training.seed)
    setup_logging(runtime.is_main)
    set_precision(config.training)
    path = config.training.eval_dataset_path or config.training.dataset_path
    if not path:
        raise ConfigError(
            "training.eval_dataset_path is empty: name a full_list.txt, a folder of .torch chunks or a .json list of scenes."
        )
    names = config.inference.metrics if config.inference.compute_metrics else []
    metrics = build_metrics(names, config.pretrained, runtime.device)
    pin = runtime.device.type != "cpu"
    loader = evaluation_loader(config, path, rank=runtime.rank, world=runtime.world, pin=pin)
    model, weights = load_model(config)
    from_main(lambda: make_out_dir(config.inference.inference_out_dir), runtime)
    return Session(config, runtime, model.to(runtime.device).eval(), loader, metrics, weights)


def make_out_dir(out_dir: str) -> None:
    """Made before the work, so that hours of it do not end at a folder that cannot be written."""
    if not out_dir:
        raise ConfigError("inference.inference_out_dir is empty: name the folder for the results.")
    folder = Path(out_dir)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"inference.inference_out_dir {folder} is a file: name a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    if not writable(folder):
        raise ConfigError(f"inference.inference_out_dir {folder} is read-only: name another folder.")


# ----------------------------------------------------------------------------------------------- output


def write_report(session: Session, report: dict) -> dict:
    """Write scores.json, missing_scenes.txt and the views that were chosen, print the table; returns the report with the weights named in it."""
    report = {**report, "weights": session.weights}
    write_text(session.out_dir / "scores.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    if session.loader.chosen_index:
        write_text(session.out_dir / CHOSEN_VIEWS, session.loader.chosen_index)
    listed = session.out_dir / "missing_scenes.txt"
    if report["missing"]:
        write_text(listed, "".join(f"{entry['scene']}\t{entry['reason']}\n" for entry in report["missing"]))
        first, wanted = report["missing"][0], report["counts"]["evaluated"] + len(report["missing"])
        log.warning(
            "evaluated %d of %d scenes; %d are missing, first %s: %s (see %s)",
            *(report["counts"]["evaluated"], wanted, len(report["missing"])),
            *(first["scene"], first["reason"], listed),
        )
    else:
        listed.unlink(missing_ok=True)
    sys.stdout.write(scores_table(report) + f"\n\nScores     {session.out_dir / 'scores.json'}\n")
    return report


def scores_table(report: dict) -> str:
    """The report as text: one line a method, metrics in columns; the first line is the headline."""
    metrics, counts, protocol = list(report["headline"]), report["counts"], report["protocol"]
    label = " (target-aware: its poses come from the target images)" if report["target_aware"] else ""
    lines = [
        f"{report['family']}{label}",
        f"index    {protocol['index_file']} (sha256 {str(protocol['index_sha256'])[:16]})",
        f"weights  {report['weights']['path']} (digest {report['weights']['digest'][:16] or 'none'})",
        f"scenes   {counts['evaluated']} evaluated, {counts['missing']} missing, {counts['null']} null in the index",
        f"images   {counts['images']}, {counts['context_targets']} of them also input views "
        f"(in {counts['scenes_with_context_targets']} scenes)",
        f"speed    {report['scenes_per_second']:.2f} scenes/s, {report['seconds']:.1f} s, {protocol['precision']}, "
        f"torch {protocol['torch_version']}",
    ]
    lines += [f"{name}  {value:.4f} (mean over scenes)" for name, value in report["terms"].items()]
    if not metrics:
        return "\n".join(lines)
    render, rest = report["render"], report["render"]["without_context_targets"]
    rows = {
        "mean over scenes": render["mean_over_scenes"],
        "mean over images": render["mean_over_images"],
    }
    if counts["context_targets"]:
        rows["  scenes, without input views as targets"] = rest["mean_over_scenes"]
        rows["  images, without input views as targets"] = rest["mean_over_images"]
    rows |= {f"floor: {FLOORS[name]}": floor["mean_over_scenes"] for name, floor in report["floors"].items()}
    swapped = report["swapped_cameras"]
    if swapped:
        rows["control: target cameras swapped"] = swapped["mean_over_scenes"]
    width = max(map(len, rows))
    lines += ["", " " * width + "".join(f"{metric.upper():>9}" for metric in metrics)]
    for name, values in rows.items():
        cells = ("-" if values[m] is None else f"{values[m]:.3f}" for m in metrics)
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>9}" for cell in cells))
    if swapped and "psnr_drop" in swapped:
        lines.append(
            f"\nPSNR drop with swapped target cameras: {round(swapped['psnr_drop'], 2) + 0.0:.2f} dB"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
