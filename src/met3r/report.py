"""What scoring the videos of several methods leaves behind: a table, consistency.json and a picture of the worst pairs.

Public: videos_of, refuse_free_paths, score_methods, mean_over_scenes, table, write_report.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..files import read_json, write_text
from ..output_folders import Outputs, Picture
from ..visualize import enlarged, save_image, sheet
from .features import colours
from .metric import PairScore, score_into_first
from .videos import ClipResult, PairResult, Scorer, chosen_pairs, score_clip, truths_of

TRUTH = "truth"
LEAST_HEIGHT = 128
"""Of a view in the picture, pixels."""

Videos = dict[str, dict[str, dict[int, Picture]]]
"""Method -> scene -> frame -> picture."""

Results = dict[str, dict[str, ClipResult]]
"""Method -> scene -> scores."""


def videos_of(methods: list[Outputs]) -> Videos:
    """The renders of all methods, and the truth where one of them saved it for all of its scenes.

    Raises:
        ValueError: methods of other scenes or frames: their scores would not be comparable.
    """
    videos: Videos = {
        o.name: {scene: {f: v.render for f, v in views.items()} for scene, views in o.scenes.items()}
        for o in methods
    }
    wanted = methods[0].frames()
    for other in methods[1:]:
        if different := wanted ^ other.frames():
            scene, frame = min(different)
            raise ValueError(
                f"{methods[0].name} and {other.name} do not hold the same frames: {len(different)} are of one alone, "
                f"first frame {frame} of scene {scene}."
            )
    truth = next((found for o in methods if len(found := truths_of(o)) == len(o.scenes)), None)
    return videos | ({TRUTH: truth} if truth and TRUTH not in videos else {})


def refuse_free_paths(methods: list[Outputs]) -> None:
    """Raises ValueError for videos along a made-up path: their frames are none of the scene, whose cameras are known."""
    for method in methods:
        for plan in sorted(method.folder.glob("*/plan.json")):
            if read_json(plan).get("sampling", {}).get("along_path"):
                raise ValueError(
                    f"{plan} is of a path of its own (along_path): exact geometry is known of a scene's frames."
                )


def score_methods(videos: Videos, scorer: Scorer, *, gap: int, most: int) -> Results:
    """Scores of the same pairs for every method."""
    return {
        name: {
            scene: score_clip(
                pictures, scene, chosen_pairs(list(pictures), gap, most), scorer, label=f"{name} {scene}"
            )
            for scene, pictures in scenes.items()
        }
        for name, scenes in videos.items()
    }


def mean_over_scenes(scenes: dict[str, ClipResult]) -> float:
    """Of the scenes with a score; NaN without any."""
    means = [clip.mean for clip in scenes.values() if not math.isnan(clip.mean)]
    return math.fsum(means) / len(means) if means else math.nan


def _spread(scenes: dict[str, ClipResult]) -> float:
    """Standard deviation over the scenes with a score; 0 of a single one, NaN without any."""
    means = [clip.mean for clip in scenes.values() if not math.isnan(clip.mean)]
    return statistics.stdev(means) if len(means) > 1 else 0.0 if means else math.nan


def table(results: Results, distance: str) -> str:
    """One line a method: mean over scenes and their standard deviation, share of the pictures that was compared, pairs, pairs
    without overlap.
    """
    rows = [["method", f"MEt3R ({distance})", "spread", "overlap", "pairs", "empty"]]
    for name, scenes in results.items():
        pairs = [pair for clip in scenes.values() for pair in clip.pairs]
        overlap = math.fsum(clip.overlap for clip in scenes.values()) / len(scenes)
        empty = sum(math.isnan(pair.score) for pair in pairs)
        figures = f"{mean_over_scenes(scenes):.4f}", f"{_spread(scenes):.4f}", f"{overlap:.1%}"
        rows.append([name, *figures, str(len(pairs)), str(empty)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))])
        for row in rows
    )


def write_report(folder: Path, results: Results, videos: Videos, scorer: Scorer, about: dict) -> None:
    """Write consistency.json and, for each scene, <scene>.png: the worst pair of each method."""
    tree = {"about": about, "methods": {name: _tree(scenes) for name, scenes in results.items()}}
    write_text(folder / "consistency.json", json.dumps(tree, indent=1, allow_nan=False) + "\n")
    for scene in next(iter(results.values())):
        panels = [
            _panel(name, scorer, videos[name][scene], scene, clip.worst)
            for name, scenes in results.items()
            if (clip := scenes.get(scene)) and clip.worst
        ]
        if panels:
            save_image(folder / f"{_file_name(scene)}.png", _picture(panels))


def _tree(scenes: dict[str, ClipResult]) -> dict:
    return {
        "mean_over_scenes": _number(mean_over_scenes(scenes)),
        "scenes": {
            scene: {"mean": _number(clip.mean), "pairs": [_pair_tree(pair) for pair in clip.pairs]}
            for scene, clip in scenes.items()
        },
    }


def _pair_tree(pair: PairResult) -> dict:
    return {
        "frames": list(pair.frames),
        "score": _number(pair.score),
        "directions": [_number(score) for score in pair.directions],
        "valid_pixels": pair.valid,
        "overlap": [round(share, 4) for share in pair.overlap],
    }


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def _file_name(scene: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", scene)[:80]


# ----------------------------------------------------------------------------------------------- pictures


@dataclass(frozen=True)
class Panel:
    """One row of the picture. views: both, and both as the first camera sees them [4, 3, h, w]; result: of that direction."""

    label: str
    views: Tensor
    result: PairScore

    @property
    def values(self) -> Tensor:
        """Score map, 0 outside the mask. [1, h, w]"""
        return torch.where(self.result.mask, self.result.score_map, 0.0).clamp_min(0)


def _panel(name: str, scorer: Scorer, pictures: dict[int, Picture], scene: str, worst: PairResult) -> Panel:
    pair = scorer.load(pictures, scene, worst.frames)
    _, directions = scorer(pair)
    options = replace(scorer.options, distance="mse")
    seen = score_into_first(colours(pair.images), scorer.geometry(pair)[0], options).projections[0]
    views = torch.cat([F.interpolate(pair.images[0], size=seen.shape[-2:], mode="area"), seen])
    text = (
        f"{name}  frames {worst.frames[0]}, {worst.frames[1]}: {worst.score:.3f}  (views, drawn, mask, score)"
    )
    return Panel(text, views.cpu(), directions[0])


def _picture(panels: list[Panel]) -> np.ndarray:
    """Score maps run from black over red and yellow to white at the largest value of all. uint8 [h, w, 3]"""
    largest = max(float(panel.values.max()) for panel in panels)
    rows = []
    for panel in panels:
        level = 3 * panel.values.cpu() / max(largest, 1e-8)
        heat = torch.stack([level - k for k in range(3)], dim=1).clamp(0, 1)
        mask = panel.result.mask[:, None].float().expand(-1, 3, -1, -1).cpu()
        rows.append(enlarged(torch.cat([panel.views, mask, heat]), LEAST_HEIGHT))
    return sheet(rows, [panel.label for panel in panels])
