"""One HTML file that shows the results of a run: no server, no network, thousands of scenes.

Everything the page needs is inside: scores and small pictures as one JSON block, from which the script in
`page_template.html` builds only the cards in view. Pictures in full size and videos stay in the scene folders beside
the page and are linked; a video that is small enough is embedded as well. Scene names come from data sets, so nothing
of them is ever read as HTML: the JSON escapes `<`, `>` and `&`, and the script only sets text.

Public: write_page, page_html; for other pages: page_json, data_uri, evenly.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from .files import replacing

TEMPLATE = Path(__file__).with_name("page_template.html")
DATA_MARK = "/*DATA*/"

PICTURE_BUDGET_BYTES = 64 * 2**20
VIDEO_BUDGET_BYTES = 32 * 2**20
DIAGRAM_BUDGET_BYTES = 16 * 2**20
"""Sizes of what a page embeds, over all scenes: browsers open such a file in about a second."""

MEDIA = {".mp4": "video/mp4", ".gif": "image/gif", ".png": "image/png"}
"""Suffix of a file that is embedded as it is -> its kind."""

TILE_SIDES = (40, 256)
"""Smallest and largest height of one view in the embedded pictures, pixels."""

MOST_COLUMNS = 6
"""Target views shown in the embedded picture of a scene; of more, evenly spaced ones."""

JPEG_QUALITY = 80
JPEG_BYTES_PER_PIXEL = 0.45
"""Of photos at this quality and size, in base64; a rough figure that only sets the size of the pictures."""


def write_page(out_dir: Path, report: dict) -> Path:
    """Write `<out_dir>/index.html` from a report and the scene folders that this run wrote.

    Args:
        out_dir: holds `<position>/input.png`, `gt_vs_pred.png`, `rendered_video.mp4` (or .gif), `scene_view.png` and
            `rays.png` of each scene, as far as wanted.
        report: what `evaluate` returns, with `weights`.

    Returns:
        path of the page.
    """
    scenes = report["scenes"]
    with ThreadPoolExecutor() as pool:  # PIL decodes and encodes without holding the interpreter's lock
        entries = pool.map(lambda scene: _entry(out_dir, scene, len(scenes)), scenes)
        entries = tqdm(entries, desc="page", unit="scene", total=len(scenes), disable=len(scenes) < 500)
        path = out_dir / "index.html"
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(page_html(report, entries))
    return path


def page_html(report: dict, entries: Iterable[dict]) -> Iterable[str]:
    """The page in pieces, so that its pictures need not be in memory together.

    Args:
        report: what `evaluate` returns, with `weights`.
        entries: one dict a scene: `scene`, `folder`, `mean`, `per_view`, `frames`, `context`, `context_targets`,
            `floor` (metric -> best floor of the scene), and as far as there are such files `input`, `sheet` (each
            {uri, shown, aspect, file}), `video`, `cameras` and `rays` (each {file, uri}).
    """
    head, tail = TEMPLATE.read_text(encoding="utf-8").split(DATA_MARK)
    shown = {name: value for name, value in report.items() if name != "scenes"}
    yield head
    yield f'{{"report":{page_json(shown)},"scenes":['
    for i, entry in enumerate(entries):
        yield ("," if i else "") + "\n" + page_json(entry)
    yield "]}"
    yield tail


def page_json(value: Any) -> str:
    """JSON that may stand inside a script element, whatever the strings in it say."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # ASCII: U+2028 and the like are escaped
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# ----------------------------------------------------------------------------------------------- one scene


def _entry(out_dir: Path, scene: dict, num_scenes: int) -> dict:
    """What the page knows of a scene."""
    folder = f"{scene['position']:06d}"
    kept = ("scene", "mean", "per_view", "frames", "context", "context_targets")
    entry = {"folder": folder, **{name: scene[name] for name in kept}, "floor": _best_floor(scene["floors"])}
    pixels = PICTURE_BUDGET_BYTES / num_scenes / JPEG_BYTES_PER_PIXEL
    num_targets = len(scene["frames"])
    tiles = len(scene["context"]) + 2 * min(num_targets, MOST_COLUMNS)
    for name, file, columns, rows in (
        ("input", "input.png", len(scene["context"]), 1),
        ("sheet", "gt_vs_pred.png", num_targets, 2),
    ):
        path = out_dir / folder / file
        if path.is_file():
            uri, shown, aspect = _thumbnail(path, columns, rows, pixels / tiles)
            entry[name] = {"uri": uri, "shown": shown, "aspect": aspect, "file": f"{folder}/{file}"}
    for name, files, budget in (
        ("video", ("rendered_video.mp4", "rendered_video.gif"), VIDEO_BUDGET_BYTES),
        ("cameras", ("scene_view.png",), DIAGRAM_BUDGET_BYTES),
        ("rays", ("rays.png",), DIAGRAM_BUDGET_BYTES),
    ):
        found = next((file for file in files if (out_dir / folder / file).is_file()), None)
        if found:
            entry[name] = _whole(out_dir, f"{folder}/{found}", budget / num_scenes)
    return entry


def _whole(out_dir: Path, file: str, budget: float) -> dict[str, str]:
    """A file beside the page; its content too, if it has at most `budget` bytes."""
    path = out_dir / file
    if path.stat().st_size > budget:
        return {"file": file}
    return {"file": file, "uri": data_uri(MEDIA[path.suffix], path.read_bytes())}


def _best_floor(floors: dict[str, dict[str, float]]) -> dict[str, float]:
    """Metric -> the best that any floor reaches on the scene; a smaller LPIPS is better."""
    best: dict[str, float] = {}
    for scores in floors.values():
        for metric, value in scores.items():
            better = min if metric == "lpips" else max
            best[metric] = better(best.get(metric, value), value)
    return best


def _thumbnail(path: Path, columns: int, rows: int, pixels: float) -> tuple[str, list[int], float]:
    """A sheet of equal tiles, made small: its data URI, the columns it shows, and width / height of a tile.

    Args:
        pixels: how many each tile may have.
    """
    with Image.open(path) as picture:
        sheet = picture.convert("RGB")
    width, height = sheet.width // columns, sheet.height // rows
    shown = evenly(columns, MOST_COLUMNS)
    if len(shown) < columns:
        chosen = Image.new("RGB", (width * len(shown), sheet.height))
        for place, column in enumerate(shown):
            tile = sheet.crop((column * width, 0, (column + 1) * width, sheet.height))
            chosen.paste(tile, (place * width, 0))
        sheet = chosen
    side = math.sqrt(pixels * height / width)
    side = round(min(max(side, TILE_SIDES[0]), TILE_SIDES[1], height))
    if side < height:
        size = (max(1, round(width * side / height)) * len(shown), side * rows)
        sheet = sheet.resize(size, Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    sheet.save(stream, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return data_uri("image/jpeg", stream.getvalue()), shown, round(width / height, 4)


def evenly(count: int, most: int) -> list[int]:
    """All of 0 ... count - 1, or `most` of them from the first to the last."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
