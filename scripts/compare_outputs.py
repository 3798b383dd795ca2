"""One table over the output folders of several methods: PSNR, SSIM and LPIPS from the pictures that they saved.

    python -m scripts.compare_outputs --name OURS=outputs/ours --name OTHER=outputs/other --output outputs/comparison

Reads folders of src.inference (with inference.save_targets=true, or its gt_vs_pred.png) and of KaiHelli/lvsm. All
methods must have rendered the same frames of the same scenes; --index restricts the comparison to an evaluation index.
Writes comparison.json, .md and .html; --pictures and --videos add side-by-side ones.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from src.cli import guarded
from src.comparison import compare, table, write_comparison
from src.data.eval_index import read_index
from src.metrics import METRICS, build_metrics
from src.output_folders import named_folder, read_outputs
from src.runtime import start
from src.settings import Pretrained


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        *("--name", "-n"),
        type=named_folder,
        action="append",
        required=True,
        metavar="NAME=FOLDER",
        help="a method and its output folder; once for each method",
    )
    parser.add_argument("--index", default="", metavar="JSON", help="evaluation index: only its views count")
    parser.add_argument("--metrics", nargs="+", choices=list(METRICS), default=list(METRICS))
    parser.add_argument("--vgg16", default=Pretrained().vgg16, metavar="FILE", help="weights under LPIPS")
    parser.add_argument("--output", type=Path, default=Path("outputs/comparison"), metavar="FOLDER")
    parser.add_argument(
        "--pictures", action="store_true", help="write truth and renders of each scene in rows"
    )
    parser.add_argument("--videos", action="store_true", help="write the methods' videos side by side")
    arguments = parser.parse_args(argv)

    def work() -> None:
        device = start().device
        outputs = [read_outputs(name, folder) for name, folder in arguments.name]
        metrics = build_metrics(arguments.metrics, Pretrained(vgg16=arguments.vgg16), device)
        index = read_index(arguments.index) if arguments.index else None
        result = compare(outputs, metrics, index=index, device=device)
        skipped = write_comparison(
            arguments.output, result, pictures=arguments.pictures, videos=arguments.videos
        )
        sys.stdout.write(f"{table(result)}\n\nPage       {arguments.output / 'comparison.html'}\n")
        for reason in skipped:
            sys.stderr.write(f"no video of {reason}\n")

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
