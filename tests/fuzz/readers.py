"""Who reads data sets: training, scoring, conversion and the scripts.

Public: SCENES, FRAMES, SIZE, INDEX, LISTED, KEPT, loads, convert, converts, script, index_of, and the readers of a list.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import raw_chunks
import torch

import process_data
from scripts import check_cameras, choose_views, chunks, generate_index
from src.data.eval_index import evaluation_loader
from src.data.loader import training_loader
from src.settings import RunConfig

from .sandbox import Case, Finding, Reader, Skipped, command

SCENES, FRAMES, SIZE = 3, 12, (32, 20)
INDEX = {f"scene{n}": {"context": [0, 8], "target": [2, 4, 5]} for n in range(SCENES)}


def _require_usable(batch: Any) -> None:
    """What a model is given are numbers it can learn from."""
    for name, value in batch.items():
        if isinstance(value, torch.Tensor) and not torch.isfinite(value.float()).all():
            raise Finding(f"a batch has {name} that is not finite")
    if (batch.fxfycxcy[..., :2] <= 0).any():
        raise Finding("a batch has a focal length that is not positive")


def _load(config: RunConfig, path: str) -> None:
    """Batches for training and for scoring."""
    training = training_loader(config, rank=0, world=1)
    for _ in range(2):
        _require_usable(next(training))
    scoring = evaluation_loader(config, path, rank=0, world=1)
    for batch in scoring:
        _require_usable(batch)
    report = training.report()
    if report["replaced_scenes"] or report["unusable_files_or_scenes"] or scoring.missing:
        raise Skipped("scenes were replaced or left out")


def loads(name: str, **settings: Any) -> Reader:
    """Training and scoring on a data set; `settings` are keys of `training`."""

    def load(case: Case) -> None:
        path = case.given / name
        _load(raw_chunks.config(path, case.given / "index.json", **settings), str(path))

    return load


def convert(case: Case, *words: str, source: str = "") -> None:
    """`process_data.py`, with an output folder in which a scene was finished before."""
    argv = (
        "--base_path",
        case.given / source,
        "--output_dir",
        case.output,
        "--num_processes",
        "1",
        "--check_scenes",
        "0",
    )
    command(process_data.main, *argv, *words)


def converts(*words: str, source: str = "") -> Reader:
    """The same with further words, of a folder inside the input."""

    def converts_it(case: Case) -> None:
        convert(case, *words, source=source)

    return converts_it


def script(main: Callable[[list[str]], int | None], *words: str) -> Reader:
    """A script; `GIVEN` and `OUT` in its words stand for the folders."""

    def run(case: Case) -> None:
        places = {"GIVEN": str(case.given), "OUT": str(case.output)}
        argv = [word.replace("GIVEN", places["GIVEN"]).replace("OUT", places["OUT"]) for word in words]
        command(main, *argv)

    run.__name__ = " ".join([main.__module__, words[0]])
    return run


def index_of(data: str) -> Reader:
    """`scripts.generate_index` of a data set in the input."""
    words = (
        "--data",
        data,
        "--method",
        "v1",
        "--output",
        "OUT/made.json",
        "--num_processes",
        "1",
        "--grid",
        "8",
        "8",
    )
    return script(
        generate_index.main, *words, "--min_distance", "3", "--max_distance", "8", "--image_shape", "0", "0"
    )


KEPT = {
    "train/metadata/kept.json": json.dumps(
        {
            "scene_name": "kept",
            "frames": [
                {"image_path": "../images/kept/00000.jpg", "fxfycxcy": [9.0] * 4, "w2c": np.eye(4).tolist()}
            ],
        }
    ).encode(),
    "train/images/kept/00000.jpg": raw_chunks.picture(8, 8, 0),
}
"""A scene that an earlier conversion finished."""


LISTED = "train/full_list.txt"
RESCALES_LISTED = script(
    chunks.main,
    "crop",
    "--input",
    f"GIVEN/{LISTED}",
    "--output",
    "OUT/crop",
    "--shape",
    "8",
    "8",
    "--num_processes",
    "1",
)
CHOOSES = script(
    choose_views.main, "--input", f"GIVEN/{LISTED}", "--output", "OUT/chosen.json", "--num_input_views", "3"
)
CHECKS = script(
    check_cameras.main, f"GIVEN/{LISTED}", "--output", "OUT/check", "--pairs", "1", "--scenes", "1"
)
