"""Camera checks of a data set: a line a scene, a JSON file and pictures.

Public: check_scenes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..data.scene import Scene, SceneError, Scenes
from ..files import write_text
from ..visualize import save_image
from .check import SceneCheck, check_scene
from .picture import check_picture


def check_scenes(
    scenes: Scenes, output: Path | None, *, most_scenes: int = 0, most_pairs: int = 16, gap: int = 0
) -> list[SceneCheck]:
    """Check the scenes of a data set, print a line for each and, with `output`, write `check.json` and `<scene>.png`.

    Args:
        most_scenes: look at so many scenes, spread evenly over the list; 0: all.
    """
    count = min(len(scenes), most_scenes or len(scenes))
    positions = sorted({round(x) for x in np.linspace(0, len(scenes) - 1, count)})
    checks = []
    for position in tqdm(positions, unit="scene", desc="checking cameras"):
        name = scenes.names[position]
        try:
            scene = scenes[position]
            check = check_scene(scene, gap=gap, most_pairs=most_pairs)
            _write_picture(output, scene, check)
        except SceneError as error:
            check = SceneCheck(name, verdict=f"cannot tell: {error}")
        checks.append(check)
        tqdm.write(_line(check), file=sys.stdout)
    if output:
        write_text(
            output / "check.json", json.dumps([c.figures() for c in checks], indent=1, allow_nan=False)
        )
    return checks


def _write_picture(output: Path | None, scene: Scene, check: SceneCheck) -> None:
    picture = check_picture(scene, check) if output else None
    if picture is not None:
        output.mkdir(parents=True, exist_ok=True)
        save_image(output / f"{scene.name}.png", picture)


def _line(check: SceneCheck) -> str:
    if not check.pairs:
        return f"{check.name}: {check.verdict}"
    return (
        f"{check.name}: {check.verdict} (90 %: {check.percentile_90:.2f}, worst pair: {check.worst:.2f}, third view: "
        f"{check.transfer:.2f} px; {check.in_front:.1%} in front; {check.matches} matches in {len(check.pairs)} pairs, "
        f"gap {check.gap}, {check.left_out} left out)"
    )
