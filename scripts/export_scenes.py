"""A data set in the form of nerfstudio, for its viewers and trainers.

    python -m scripts.export_scenes --input DATASET --output FOLDER

DATASET is a full_list.txt, a folder of .torch chunks or a list of opencv_cameras.json.
`process_data.py --format nerfstudio --base_path FOLDER` makes the same data set again, to the last bit.

Exit status: 0; 1 if some scenes could not be written; 2 after a mistake that a message explains.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from src.cli import guarded
from src.data.dataset import open_scenes
from src.data.export_nerfstudio import export_scenes


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--input", required=True, help="the data set")
    parser.add_argument("--output", required=True, type=Path, help="folder of the scenes")
    arguments = parser.parse_args(argv)
    return guarded(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    scenes = open_scenes(arguments.input)
    problems = export_scenes(scenes, arguments.output)
    sys.stdout.write(f"{len(scenes) - len(problems)} scenes written to {arguments.output}\n")
    for name, why in problems:
        sys.stdout.write(f"  {name}: {why}\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
