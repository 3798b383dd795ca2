"""Does anchored sampling give a more consistent video than frames sampled each by itself? One command for the answer.

    python -m scripts.compare_sampling --config config/mvldm_tiny.yaml --oracle datasets/synthetic_video \\
        --output outputs/compare_sampling scene_id=0 inference.checkpoint=checkpoints/mvldm_tiny

Samples the same frames in each mode (src.sample), scores their consistency with the exact geometry of the synthetic set
(scripts.score_consistency) and each frame against the truth (scripts.compare_outputs). Words KEY=VALUE are settings of the
run. The truth's own score stands in the first table: what the measure gives perfect frames.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from scripts import compare_outputs, score_consistency
from src import sample


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--config", "-c", required=True, metavar="FILE", help="YAML file of the run")
    add("--oracle", required=True, metavar="FOLDER", help="the synthetic set that holds the scenes")
    add("--modes", nargs="+", default=["anchored", "independent"], help="values of inference.sampling.mode")
    add("--metrics", nargs="+", default=["psnr", "ssim"], help="of single frames")
    add("--gap", default="1", help="frames from one view of a pair to the other")
    add("--output", type=Path, default=Path("outputs/compare_sampling"), metavar="FOLDER")
    add("settings", nargs="*", metavar="KEY=VALUE", help="settings that replace the file's")
    arguments = parser.parse_intermixed_args(argv)
    names = []
    for mode in arguments.modes:
        folder = arguments.output / mode
        own = [f"inference.sampling.mode={mode}", f"inference.inference_out_dir={folder}"]
        if status := sample.main(["--config", arguments.config, *arguments.settings, *own]):
            return status
        names += ["--name", f"{mode}={folder}"]
    where = ["--output", str(arguments.output)]
    status = score_consistency.main([*names, "--oracle", arguments.oracle, "--gap", arguments.gap, *where])
    return status or compare_outputs.main([*names, "--metrics", *arguments.metrics, *where])


if __name__ == "__main__":
    sys.exit(main())
