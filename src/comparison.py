"""Several methods on the same scenes and frames: one table from the pictures that each of them saved.

All methods are scored by the same code on 8-bit pictures. Methods are only comparable on the same views, so a
difference in scenes, frames, sizes or truths is an error that says what differs, never a silent intersection.

Public: compare, table, write_comparison, Comparison.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .data.eval_index import EvaluationIndex
from .files import write_text
from .metrics import Metric
from .output_folders import Outputs
from .visualize import enlarged, save_image, save_video, sheet

SAME_TRUTH = 2 / 255
"""Truths of two methods may differ by so much on average: programs resample a little differently."""

SMALLEST_VIEW = 128
"""Least height of a view in a picture, pixels."""

LISTED = 5
"""Scenes or frames that a message names before it only counts."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2.5rem auto; max-width: 1200px; padding: 0 1.5rem; color: #22211f; background: #f7f5f1; }
h1 { font: 500 2rem/1.2 Georgia, serif; } h2 { font-size: 1.05rem; margin: 2.2rem 0 0.6rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 20px 5px 0; text-align: right; border-bottom: 1px solid #e2ddd4; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 500; color: #6d6962; }
td.best { font-weight: 650; color: #2f7d4f; } p { color: #6d6962; } img { max-width: 100%; border-radius: 4px; }
"""


@dataclass
class Comparison:
    """scores: method -> metric -> scene -> value of each of its frames, in the order of `frames`."""

    outputs: list[Outputs]
    metrics: list[str]
    frames: dict[str, list[int]]
    scores: dict[str, dict[str, dict[str, list[float]]]]
    index: str

    def mean(self, method: str, metric: str, scene: str | None = None) -> float:
        """Mean over the frames of a scene, or over the means of all scenes."""
        scenes = self.scores[method][metric]
        if scene is not None:
            return math.fsum(scenes[scene]) / len(scenes[scene])
        return math.fsum(self.mean(method, metric, name) for name in scenes) / len(scenes)

    def mean_over_images(self, method: str, metric: str) -> float:
        values = [value for scene in self.scores[method][metric].values() for value in scene]
        return math.fsum(values) / len(values)


def compare(
    outputs: Sequence[Outputs],
    metrics: dict[str, Metric],
    *,
    index: EvaluationIndex | None = None,
    device: torch.device,
) -> Comparison:
    """Score the renders of all methods.

    Args:
        outputs: two or more methods, or one.
        metrics: name -> function of ([n, 3, h, w], [n, 3, h, w]) -> [n].
        index: only its scenes and target frames count, and each method must have all of them.

    Raises:
        ValueError: names given twice, other scenes, frames, sizes or truths; no truth at all.
    """
    outputs = list(outputs)
    if len({o.name for o in outputs}) < len(outputs):
        raise ValueError(f"names must differ, found {', '.join(o.name for o in outputs)}.")
    frames = _common_frames(outputs, index)
    scores = {o.name: {metric: {} for metric in metrics} for o in outputs}
    for scene in tqdm(frames, desc="compare", unit="scene"):
        truth, renders = _load_scene(outputs, scene, frames[scene])
        truth = truth.to(device)
        for name, render in renders.items():
            for metric, function in metrics.items():
                with torch.no_grad():
                    scores[name][metric][scene] = function(render.to(device), truth).tolist()
    return Comparison(outputs, list(metrics), frames, scores, index.path if index else "")


def _common_frames(outputs: list[Outputs], index: EvaluationIndex | None) -> dict[str, list[int]]:
    """Scene -> frames that all methods have; raises ValueError with the differences."""
    if index:
        wanted = {(scene, frame) for scene, entry in index.entries.items() for frame in entry.target}
        source = index.path
    else:
        wanted, source = set().union(*(o.frames() for o in outputs)), "another method"
    problems = [
        f"{o.name} ({o.folder}) lacks {_differences(wanted - o.frames(), o)} that {source} has."
        for o in outputs
        if wanted - o.frames()
    ]
    if problems:
        raise ValueError(
            "the methods do not cover the same views:\n  " + "\n  ".join(problems) + "\n"
            "Render the same index with each, or name an index (--index) that all of them cover."
        )
    scenes: dict[str, list[int]] = {}
    for scene, frame in sorted(wanted):
        scenes.setdefault(scene, []).append(frame)
    return scenes


def _differences(missing: set[tuple[str, int]], outputs: Outputs) -> str:
    """Whole scenes first, then frames of scenes that are there."""
    whole = sorted({scene for scene, _ in missing if scene not in outputs.scenes})
    single = sorted((scene, frame) for scene, frame in missing if scene in outputs.scenes)
    parts = []
    if whole:
        parts.append(f"{len(whole)} scenes ({_some(whole)})")
    if single:
        parts.append(f"{len(single)} frames ({_some([f'{frame} of {scene}' for scene, frame in single])})")
    return " and ".join(parts)


def _some(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")


def _load_scene(outputs: list[Outputs], scene: str, frames: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
    """Truths [n, 3, h, w] of the first method that has them, and the renders of each; all checked."""
    truths: dict[str, Tensor] = {}
    renders: dict[str, Tensor] = {}
    for o in outputs:
        views = [o.scenes[scene][frame] for frame in frames]
        renders[o.name] = _stack([view.render.load() for view in views], f"{o.name}, scene {scene}")
        if all(view.truth for view in views):
            truths[o.name] = _stack([view.truth.load() for view in views], f"{o.name}, scene {scene}")
    if not truths:
        raise ValueError(f"scene {scene}: no method saved the true pictures, so nothing can be scored.")
    first, truth = next(iter(truths.items()))
    for name, images in [*renders.items(), *truths.items()]:
        if images.shape != truth.shape:
            sizes = [f"{t.shape[3]} x {t.shape[2]}" for t in (truth, images)]
            raise ValueError(
                f"scene {scene}: the pictures of {first} have {sizes[0]} pixels, those of {name} {sizes[1]}: "
                "scores of different sizes are not comparable."
            )
    for name, images in truths.items():
        apart = (images - truth).abs().mean(dim=(1, 2, 3))
        if apart.max() > SAME_TRUTH:
            raise ValueError(
                f"scene {scene}, frame {frames[int(apart.argmax())]}: the truths of {first} and {name} differ by "
                f"{float(apart.max()) * 255:.1f} of 255 levels on average: other crops or other frames."
            )
    return truth, renders


def _stack(images: list[Tensor], where: str) -> Tensor:
    if len({image.shape for image in images}) > 1:
        raise ValueError(f"{where}: pictures of several sizes.")
    return torch.stack(images)


# ----------------------------------------------------------------------------------------------- results


def table(result: Comparison, *, markdown: bool = False) -> str:
    """Means over scenes, one line a method."""
    rows = [
        [o.name, *(f"{result.mean(o.name, metric):.3f}" for metric in result.metrics)] for o in result.outputs
    ]
    head = ["method", *(metric.upper() for metric in result.metrics)]
    if markdown:
        lines = [head, ["---", *["---:"] * len(result.metrics)], *rows]
        return "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
        )
    width = max(len(row[0]) for row in [head, *rows])
    return "\n".join(
        f"{row[0]:<{width}}" + "".join(f"{cell:>9}" for cell in row[1:]) for row in [head, *rows]
    )


def write_comparison(
    folder: Path, result: Comparison, *, pictures: bool = False, videos: bool = False
) -> list[str]:
    """Write comparison.json, comparison.md, comparison.html and, on request, pictures/ and videos/ of each scene.

    Returns:
        scenes without a common video, each with the reason.
    """
    names = {scene: f"{i:06d}_{_file_name(scene)}" for i, scene in enumerate(result.frames)}
    skipped = []
    for scene in tqdm(names, desc="write", unit="scene", disable=not (pictures or videos)):
        if pictures:
            truth, renders = _load_scene(result.outputs, scene, result.frames[scene])
            labels = ["truth", *(_label(result, method, scene) for method in renders)]
            rows = [enlarged(views, SMALLEST_VIEW) for views in (truth, *renders.values())]
            save_image(folder / "pictures" / f"{names[scene]}.png", sheet(rows, labels))
        if videos:
            problem = _write_video(folder / "videos" / f"{names[scene]}.mp4", result.outputs, scene)
            skipped += [f"{scene}: {problem}"] if problem else []
    write_text(folder / "comparison.json", json.dumps(_tree(result), indent=1, allow_nan=False) + "\n")
    write_text(folder / "comparison.md", f"{table(result, markdown=True)}\n\n{_about(result)}\n")
    shown = names if pictures else {}
    write_text(folder / "comparison.html", "".join(_page(result, shown)))
    return skipped


def _tree(result: Comparison) -> dict:
    methods = {}
    for o in result.outputs:
        values = result.scores[o.name]
        methods[o.name] = {
            "folder": str(o.folder),
            "mean_over_scenes": {m: result.mean(o.name, m) for m in result.metrics},
            "mean_over_images": {m: result.mean_over_images(o.name, m) for m in result.metrics},
            "scenes": {s: {m: values[m][s] for m in result.metrics} for s in result.frames},
        }
    return {"index": result.index, "frames": result.frames, "methods": methods}


def _about(result: Comparison) -> str:
    images = sum(map(len, result.frames.values()))
    return f"Means over {len(result.frames)} scenes ({images} images), from 8-bit pictures." + (
        f" Index: {result.index}." if result.index else ""
    )


def _label(result: Comparison, method: str, scene: str) -> str:
    scores = (f"{metric.upper()} {result.mean(method, metric, scene):.3f}" for metric in result.metrics)
    return "  ".join([method, *scores])


def _file_name(scene: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", scene)[:80]


def _page(result: Comparison, pictures: dict[str, str]) -> Iterator[str]:
    """A page without scripts; names of methods and scenes are shown as text, whatever they hold."""
    yield f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Comparison</title><style>{STYLE}</style>'
    yield f"<h1>{html.escape(' / '.join(o.name for o in result.outputs))}</h1><p>{html.escape(_about(result))}</p>"
    yield from _html_table(result, None)
    for scene in result.frames:
        yield f"<h2>{html.escape(scene)}</h2>"
        yield from _html_table(result, scene)
        if scene in pictures:
            yield f'<p><img loading="lazy" src="pictures/{pictures[scene]}.png" alt="truth and renders"></p>'
    yield "</html>\n"


def _html_table(result: Comparison, scene: str | None) -> Iterator[str]:
    means = {o.name: [result.mean(o.name, m, scene) for m in result.metrics] for o in result.outputs}
    best = [
        (min if m == "lpips" else max)(values[i] for values in means.values())
        for i, m in enumerate(result.metrics)
    ]
    yield "<table><tr><th>method</th>" + "".join(f"<th>{m.upper()}</th>" for m in result.metrics) + "</tr>"
    for name, values in means.items():
        cells = (
            f'<td class="{"best" if len(means) > 1 and value == top else ""}">{value:.3f}</td>'
            for value, top in zip(values, best)
        )
        yield f"<tr><td>{html.escape(name)}</td>{''.join(cells)}</tr>"
    yield "</table>"


def _write_video(path: Path, outputs: list[Outputs], scene: str) -> str:
    """The methods' videos side by side; what is wrong if there can be none."""
    missing = [o.name for o in outputs if scene not in o.videos]
    if missing:
        return f"no video of {', '.join(missing)}"
    sources = [o.videos[scene] for o in outputs]
    counts = [imageio_ffmpeg.count_frames_and_secs(source)[0] for source in sources]
    if len(set(counts)) > 1:
        return f"videos of {' and '.join(map(str, counts))} frames"
    readers = [imageio_ffmpeg.read_frames(source) for source in sources]
    facts = [next(reader) for reader in readers]  # what comes before the frames
    if len({fact["size"][1] for fact in facts}) > 1:
        return "videos of several heights"
    frames = (
        np.concatenate([_frame(data, fact["size"]) for data, fact in zip(row, facts)], axis=1)
        for row in zip(*readers)
    )
    save_video(path, frames, fps=round(facts[0]["fps"]))
    return ""


def _frame(data: bytes, size: tuple[int, int]) -> np.ndarray:
    """uint8 [h, w, 3]; size is (w, h)."""
    return np.frombuffer(data, dtype=np.uint8).reshape(size[1], size[0], 3)
