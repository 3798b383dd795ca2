"""Do the cameras of a data set fit its pictures?

    python -m scripts.check_cameras DATASET [--scenes 8] [--pairs 16] [--gap 0] [--output outputs/cameras]

DATASET is a full_list.txt, a folder of .torch chunks or a list of opencv_cameras.json. Prints one line a scene: the
distance, in pixels, of points from where the cameras say that they are; names wrong axes, inverted matrices and intrinsics
of another picture size. With --output also writes check.json and a picture for each scene.

Exit status: 0 if all cameras fit or nothing can be told, 1 if some do not, 2 after a mistake that a message explains.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from src.camera_check.report import check_scenes
from src.cli import guarded
from src.data.dataset import open_scenes


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("dataset", help="the data set")
    parser.add_argument("--scenes", type=int, default=0, help="look at so many scenes, spread evenly; 0: all")
    parser.add_argument("--pairs", type=int, default=16, help="pairs of frames in each scene")
    parser.add_argument(
        "--gap", type=int, default=0, help="steps between the frames of a pair; 0: chosen by motion"
    )
    parser.add_argument("--output", type=Path, help="folder for check.json and the pictures")
    arguments = parser.parse_args(argv)
    return guarded(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    if min(arguments.scenes, arguments.gap, arguments.pairs - 1) < 0:
        raise ValueError("--scenes and --gap must be at least 0, --pairs at least 1.")
    scenes = open_scenes(arguments.dataset)
    checks = check_scenes(
        scenes, arguments.output, most_scenes=arguments.scenes, most_pairs=arguments.pairs, gap=arguments.gap
    )
    return 1 if any(check.fits is False for check in checks) else 0


if __name__ == "__main__":
    sys.exit(main())
