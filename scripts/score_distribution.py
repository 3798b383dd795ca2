"""FID and KID of rendered or sampled frames: how alike they and the true frames are as a whole. Lower is better.

    python -m scripts.score_distribution --name anchored=outputs/a --name independent=outputs/b --output outputs/fid.json

Reads the folders that src.sample and src.inference (with inference.save_targets=true) write, all scenes together. KID needs
at least --kid_subset frames, FID at least 2049; scores of fewer would say nothing. Frame by frame, PSNR, SSIM and LPIPS
come from scripts.compare_outputs. Needs `pip install torch-fidelity` and `python -m scripts.download_weights inception_fid`.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from src.cli import guarded
from src.fid import INCEPTION, KID_SUBSET, distribution_scores, features_of, load_inception
from src.files import write_text
from src.output_folders import named_folder, read_outputs
from src.runtime import start


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add(
        "--name",
        "-n",
        type=named_folder,
        action="append",
        required=True,
        metavar="NAME=FOLDER",
        help="a method",
    )
    add("--inception", type=Path, default=Path(INCEPTION), metavar="FILE", help="weights of the network")
    add("--kid_subset", type=int, default=KID_SUBSET, help="frames in each subset of KID")
    add("--output", type=Path, default=Path("outputs/distribution.json"), metavar="FILE")
    arguments = parser.parse_args(argv)
    return guarded(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    methods = [read_outputs(name, folder) for name, folder in arguments.name]
    for method in methods:
        views = [view for scene in method.scenes.values() for view in scene.values()]
        if missing := sum(view.truth is None for view in views):
            raise ValueError(
                f"{method.name}: {method.folder} lacks the truth of {missing} of {len(views)} frames."
            )
        if len(views) < arguments.kid_subset:
            raise ValueError(
                f"{method.name}: {method.folder} holds {len(views)} frames, KID takes {arguments.kid_subset} at a time: "
                "score more scenes together, or choose a smaller --kid_subset."
            )
    network = load_inception(arguments.inception, start().device)
    results = {}
    for method in methods:
        views = [view for scene in method.scenes.values() for view in scene.values()]
        samples, truths = (features_of([getattr(v, w) for v in views], network) for w in ("render", "truth"))
        results[method.name] = distribution_scores(samples, truths, kid_subset=arguments.kid_subset)
    write_text(arguments.output, json.dumps({n: asdict(r) for n, r in results.items()}, indent=1) + "\n")
    sys.stdout.write(f"{'method':<20}{'FID':>10}{'KID':>10}{'+-':>10}{'frames':>8}\n")
    for name, r in results.items():
        fid = "too few" if r.fid is None else f"{r.fid:.2f}"
        sys.stdout.write(f"{name:<20}{fid:>10}{r.kid:>10.5f}{r.kid_deviation:>10.5f}{r.pictures[0]:>8}\n")


if __name__ == "__main__":
    sys.exit(main())
