"""Make an evaluation index: which frames of each scene are context and which are to be rendered.

    python -m scripts.generate_index --data DATASET --method v1 --output index.json
    python -m scripts.generate_index --data DATASET --method v2 --num_context_views 5 --output index.json
    python -m scripts.generate_index --data DATASET --method video --index index.json --output index_video.json

DATASET is a full_list.txt or a folder of chunks. v1: a random frame and one that overlaps with it, targets between
them. v2: a random pair that overlaps, further context views and targets between them; also writes
index_num_src_2.json ... with nested sets of context views and equal targets. video: every frame between the context
views of another index. The result depends on the seed and the scenes' names alone; start it again to go on.

Exit status: 0; 1 if no scene got an entry; 2 after a mistake that a message explains.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from src.cli import guarded
from src.data.index_generators import METHODS, PairRules
from src.data.make_index import IndexOptions, Summary, make_index, make_video_index


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description="Make an evaluation index.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--data", required=True, help="full_list.txt or folder of chunks")
    add("--method", required=True, choices=[*METHODS, "video"])
    add("--output", required=True, type=Path, help="JSON file to write")
    add("--index", default="", help="the index whose context views the video uses (video)")
    add("--min_distance", type=int, default=45, help="frames between the outer context views, at least")
    add("--max_distance", type=int, default=135, help="the same, at most")
    add("--min_overlap", type=float, default=0.6, help="of the outer context views, 0 to 1")
    add("--max_overlap", type=float, default=1.0)
    add("--num_context_views", type=int, default=2, help="more than 2 with v2 only")
    add("--num_target_views", type=int, default=3)
    add(
        "--min_tgt_to_ctx_distance",
        type=int,
        default=1,
        help="of a target from any context view, frames (v2)",
    )
    add("--as_published", action="store_true", help="v1 with its quirks: targets may be context views")
    add("--seed", type=int, default=123)
    add(
        "--image_shape",
        type=int,
        nargs=2,
        default=[256, 256],
        metavar="N",
        help="crop, height and width; 0 0: none",
    )
    add("--grid", type=int, nargs=2, default=[64, 64], metavar="N", help="rows and columns of rays per view")
    add("--max_fov", type=float, default=0.0, help="skip scenes with a wider field of view, degrees; 0: none")
    add("--num_processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    return guarded(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    if arguments.method == "video":
        if not arguments.index:
            raise ValueError("--method video needs --index: the index whose context views it keeps.")
        summary = make_video_index(arguments.data, arguments.index, arguments.output)
    else:
        summary = make_index(_options(arguments), arguments.output, arguments.num_processes)
    return _tell(summary)


def _options(arguments: argparse.Namespace) -> IndexOptions:
    """Raises ValueError for numbers that cannot be met."""
    a = arguments
    if a.index:
        raise ValueError("--index belongs to --method video.")
    rules = PairRules(
        min_distance=a.min_distance,
        max_distance=a.max_distance,
        min_overlap=a.min_overlap,
        max_overlap=a.max_overlap,
        num_context=a.num_context_views,
        num_target=a.num_target_views,
        min_target_distance=a.min_tgt_to_ctx_distance,
        as_published=a.as_published,
        grid=tuple(a.grid),
    )
    return IndexOptions(
        dataset=a.data,
        method=a.method,
        rules=rules,
        seed=a.seed,
        image_shape=tuple(a.image_shape) if all(a.image_shape) else (),
        max_fov=a.max_fov,
    )


def _tell(summary: Summary) -> int:
    resumed = f" ({summary.resumed} from before)" if summary.resumed else ""
    sys.stdout.write(
        f"{summary.entries} scenes have an entry, {summary.reasons.total()} have none{resumed}\n"
    )
    for reason, count in summary.reasons.most_common(5):
        sys.stdout.write(f"  {count} without: {reason}\n")
    for path in summary.files:
        sys.stdout.write(f"{path}\n")
    return 0 if summary.entries else 1


if __name__ == "__main__":
    sys.exit(main())
