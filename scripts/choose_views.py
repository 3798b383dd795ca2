"""Choose the input and target views of every scene of a data set and write them as an evaluation index.

    python -m scripts.choose_views --input DATASET --output index.json --selection kmeans --num_input_views 16

DATASET is a full_list.txt, a folder of .torch chunks or a .json list of scenes. kmeans: inputs cover the cameras, targets
are every 8th frame (the protocol of LaCT on scenes); random; uniform: evenly spaced. Scenes with too few frames get null.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from src.cli import guarded
from src.data.dataset import open_scenes
from src.data.view_choice import SELECTIONS, choose_index, index_text
from src.files import write_text
from src.settings_views import ViewChoice


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    plain = ViewChoice()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--input", required=True, metavar="DATASET")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the index file to write")
    parser.add_argument("--selection", choices=tuple(SELECTIONS), default="kmeans")
    parser.add_argument("--num_input_views", type=int, default=plain.num_input_views)
    parser.add_argument(
        "--num_target_views",
        type=int,
        default=plain.num_target_views,
        help="0: all others, with kmeans every 8th",
    )
    parser.add_argument("--seed", type=int, default=plain.view_seed)
    arguments = parser.parse_args(argv)

    def work() -> None:
        if arguments.num_input_views < 1 or arguments.num_target_views < 0:
            raise ValueError("--num_input_views must be at least 1 and --num_target_views at least 0.")
        choice = ViewChoice(
            view_selection=arguments.selection,
            num_input_views=arguments.num_input_views,
            num_target_views=arguments.num_target_views,
            view_seed=arguments.seed,
        )
        chosen, problems = choose_index(open_scenes(arguments.input), choice)
        for scene, reason in problems:
            print(f"{scene}: {reason}", file=sys.stderr)
        if not chosen:
            raise ValueError(f"{arguments.input}: no scene has enough frames.")
        write_text(arguments.output, index_text(chosen, problems))
        print(f"{arguments.output}: {len(chosen)} scenes, {len(problems)} with too few frames")

    return guarded(work)


if __name__ == "__main__":
    raise SystemExit(main())
