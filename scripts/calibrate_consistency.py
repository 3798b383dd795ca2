"""What MEt3R says of faults that are known: true frames of the synthetic set, spoilt in several ways. A table.

    python -m scripts.calibrate_consistency --oracle datasets/synthetic_video --scenes 2 --gap 4

Compares colours with the exact geometry of the set, as scripts.score_consistency --oracle does.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from src.cli import guarded
from src.data.synthetic import make_scene, read_spec
from src.met3r.damage import damaged_videos
from src.met3r.features import colours
from src.met3r.geometries import SyntheticGeometry
from src.met3r.metric import Options
from src.met3r.report import score_methods, table
from src.met3r.videos import Scorer
from src.runtime import start


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--oracle", type=Path, required=True, metavar="FOLDER", help="a synthetic set")
    add("--scenes", type=int, default=2, help="of its test scenes, the first ones")
    add("--gap", type=int, default=1, help="frames from one view of a pair to the other")
    add("--pairs", type=int, default=8, help="most pairs of a video, evenly spread; 0: all")
    add("--distance", choices=("rmse", "mse", "psnr", "ssim", "cosine"), default="rmse")
    arguments = parser.parse_args(argv)
    return guarded(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    spec = read_spec(arguments.oracle)
    scenes = [make_scene(spec, "test", k) for k in range(min(arguments.scenes, spec.test_scenes))]
    if not scenes:
        raise ValueError(f"{arguments.oracle} has no test scenes, or --scenes is not at least 1.")
    options = Options(distance=arguments.distance)
    scorer = Scorer(SyntheticGeometry(arguments.oracle), colours, options, start().device)
    videos = damaged_videos(scenes, spec.height, spec.width)
    results = score_methods(videos, scorer, gap=arguments.gap, most=arguments.pairs)
    sys.stdout.write(table(results, arguments.distance) + "\n")


if __name__ == "__main__":
    sys.exit(main())
