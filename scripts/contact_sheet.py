"""One picture of the first scenes of a results folder: inputs, truth and render side by side, a scene per row.

    python -m scripts.contact_sheet --results outputs/quickstart/page --scenes 6 --output sheet.png

The scenes are the first ones of the index, not the best.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from src.cli import guarded
from src.files import replacing

GAP, HEADER = 12, 26
"""White between the columns, and the strip with their names, pixels of the enlarged picture."""


def scene_parts(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, truth and render of one scene, views side by side. each uint8 [h, v * w, 3]"""
    inputs = np.asarray(Image.open(folder / "input.png").convert("RGB"))
    both = np.asarray(Image.open(folder / "gt_vs_pred.png").convert("RGB"))
    height = len(both) // 2
    return inputs, both[:height], both[height:]


def contact_sheet(folders: list[Path], scale: int) -> Image.Image:
    """The picture, each pixel of the results enlarged `scale` times.

    Raises:
        ValueError: no scenes.
    """
    rows = [[np.kron(part, np.ones((scale, scale, 1), np.uint8)) for part in scene_parts(f)] for f in folders]
    if not rows:
        raise ValueError(
            "no scenes in the results folder: run src.inference with inference.render_images first."
        )
    widths = [max(row[column].shape[1] for row in rows) for column in range(3)]
    heights = [max(len(part) for part in row) for row in rows]
    page = Image.new("RGB", (sum(widths) + 2 * GAP, HEADER + sum(heights) + 2 * (len(rows) - 1)), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(16)
    left = 0
    for column, name in enumerate(("inputs", "truth", "render")):
        draw.text((left + 2, 4), name, fill="black", font=font)
        top = HEADER
        for row, height in zip(rows, heights):
            page.paste(Image.fromarray(row[column]), (left, top))
            top += height + 2
        left += widths[column] + GAP
    return page


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Make one picture of the first scenes of a results folder.")
    parser.add_argument(
        "--results", type=Path, required=True, metavar="FOLDER", help="output of src.inference"
    )
    parser.add_argument("--scenes", type=int, default=6, help="rows")
    parser.add_argument("--scale", type=int, default=2, help="enlargement")
    parser.add_argument("--output", type=Path, required=True, metavar="PNG")
    arguments = parser.parse_args(argv)

    def work() -> None:
        folders = sorted(path.parent for path in arguments.results.glob("*/gt_vs_pred.png"))
        with replacing(arguments.output) as temporary:
            contact_sheet(folders[: arguments.scenes], arguments.scale).save(temporary)

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
