"""One HTML file that shows several runs side by side: tables, and every view with a slider between two of them.

The runs must have been scored on the same views: pages of runs whose index files differ are refused, and so are targets that
saw their own target image beside those that did not, unless asked for. Like `page.py`'s, the page is a single file
without network access, and names from data sets are never read as HTML.

Public: ComparedRun, read_run, write_run_page.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from .config import ConfigError
from .files import replacing
from .page import data_uri, evenly, page_json

TEMPLATE = Path(__file__).with_name("run_page_template.html")
DATA_MARK = "/*DATA*/"

PICTURE_BUDGET_BYTES = 96 * 2**20
"""Of all pictures together; browsers open such a file in about a second."""
SIDES = (64, 512)
"""Smallest and largest height of a view, pixels."""
JPEG_QUALITY = 88
JPEG_BYTES_PER_PIXEL = 0.6
MOST_VIEWS = 4
"""Target views of a scene that are shown; of more, evenly spaced ones."""


@dataclass(frozen=True)
class ComparedRun:
    """A folder that `src.inference` or `src.inference_fast` wrote. label: its name on the page."""

    label: str
    folder: Path
    report: dict[str, Any]

    @property
    def index(self) -> str:
        """Digest of the index file that named the views."""
        return self.report["protocol"]["index_sha256"]


def read_run(folder: Path, label: str = "") -> ComparedRun:
    """Raises ConfigError if there are no scores in it."""
    path = folder / "scores.json"
    try:
        report = json.loads(path.read_bytes())
        run = ComparedRun(label or folder.name, folder, report)
        if not (isinstance(run.index, str) and isinstance(report["scenes"], list) and report["headline"]):
            raise ValueError
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Name a folder that src.inference wrote.") from error
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{path} is no report of src.inference: score the run again.") from error
    return run


def write_run_page(runs: Sequence[ComparedRun], path: Path, *, mix_target_aware: bool = False) -> None:
    """Write the page.

    Args:
        runs: at least two; the order is that of the columns.
        mix_target_aware: also compare runs that saw the target image with runs that did not.

    Raises:
        ConfigError: fewer than two runs, equal labels, or runs that cannot be compared.
    """
    _check(runs, mix_target_aware)
    names = [{scene["scene"] for scene in run.report["scenes"]} for run in runs]
    common = [
        scene["scene"] for scene in runs[0].report["scenes"] if scene["scene"] in set.intersection(*names)
    ]
    if not common:
        raise ConfigError("the runs have no scene in common.")
    head, tail = TEMPLATE.read_text(encoding="utf-8").split(DATA_MARK)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(head)
        file.write(f'{{"runs":{page_json([_about(run) for run in runs])},"scenes":[')
        for i, name in enumerate(tqdm(common, unit="scene", desc="page", disable=len(common) < 50)):
            file.write(("," if i else "") + "\n" + page_json(_scene(runs, name, len(common))))
        file.write("]}" + tail)


def _check(runs: Sequence[ComparedRun], mix_target_aware: bool) -> None:
    if len(runs) < 2:
        raise ConfigError("name at least two runs to compare.")
    if len({run.label for run in runs}) < len(runs):
        raise ConfigError(f"two runs are called {runs[0].label}: tell them apart with --labels.")
    for run in runs[1:]:
        if run.index != runs[0].index:
            raise ConfigError(
                f"{run.folder} was scored on another index ({run.index[:12]}) than {runs[0].folder} "
                f"({runs[0].index[:12]}): their views differ, so their scores cannot be compared. Score both with the same "
                "inference.view_idx_file_path."
            )
    if len({bool(run.report.get("target_aware")) for run in runs}) > 1 and not mix_target_aware:
        raise ConfigError(
            "some of the runs estimated cameras from the target image (target-aware) and others were given cameras: their "
            "scores mean different things. --mix_target_aware compares them all the same."
        )


def _about(run: ComparedRun) -> dict:
    report = run.report
    return {
        "label": run.label,
        "model": str(report.get("model", "")),
        "weights": str(report.get("weights", {}).get("path", "")),
        "digest": str(report.get("weights", {}).get("digest", ""))[:12],
        "headline": report["headline"],
        "target_aware": bool(report.get("target_aware")),
        "scenes": len(report["scenes"]),
        "floors": {name: floor["mean_over_scenes"] for name, floor in report.get("floors", {}).items()},
        "index": run.index[:12],
    }


def _scene(runs: Sequence[ComparedRun], name: str, num_scenes: int) -> dict:
    """One scene: scores of each run, and each shown view as the truth and every run sees it."""
    entries = [next(scene for scene in run.report["scenes"] if scene["scene"] == name) for run in runs]
    frames = entries[0]["frames"]
    shown = evenly(len(frames), MOST_VIEWS)
    pixels = PICTURE_BUDGET_BYTES / num_scenes / JPEG_BYTES_PER_PIXEL / ((len(runs) + 1) * len(shown))
    truth, renders = [], []
    for run, entry in zip(runs, entries, strict=True):
        rows = _rows(
            run.folder / f"{entry['position']:06d}" / "gt_vs_pred.png", len(entry["frames"]), shown, pixels
        )
        truth = truth or rows[0]
        renders.append(rows[1])
    return {
        "scene": name,
        "frames": [frames[i] for i in shown],
        "mean": [entry["mean"] for entry in entries],
        "per_view": [{metric: [v[i] for i in shown] for metric, v in e["per_view"].items()} for e in entries],
        "truth": truth,
        "renders": renders,
    }


def _rows(path: Path, columns: int, shown: list[int], pixels: float) -> tuple[list[str], list[str]]:
    """Data URIs of the truth and of the render of each shown view; empty if the run wrote no pictures."""
    if not path.is_file():
        return [], []
    with Image.open(path) as picture:
        sheet = picture.convert("RGB")
    width, height = sheet.width // columns, sheet.height // 2
    side = round(min(max(math.sqrt(pixels * height / width), SIDES[0]), SIDES[1], height))
    size = (max(1, round(width * side / height)), side)

    def tile(column: int, row: int) -> str:
        left, top = column * width, row * height
        part = sheet.crop((left, top, left + width, top + height))
        stream = io.BytesIO()
        (part if side == height else part.resize(size, Image.Resampling.LANCZOS)).save(
            stream, "JPEG", quality=JPEG_QUALITY
        )
        return data_uri("image/jpeg", stream.getvalue())

    return [tile(column, 0) for column in shown], [tile(column, 1) for column in shown]
