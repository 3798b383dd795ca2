"""How well the frames of videos agree in space: MEt3R of every pair of neighbouring frames. Lower is better.

    python -m scripts.score_consistency --name anchored=outputs/a --name independent=outputs/b --oracle datasets/synthetic
    python -m scripts.score_consistency --name mine=outputs/a --backbone mast3r --code mast3r --weights weights/mast3r \\
        --features dino16 --feature_weights dino_deitsmall16_pretrain.pth --resize 512

Reads the folders that src.sample and src.inference (with inference.save_targets=true) write. Where surfaces are comes from
the rooms of the synthetic set (--oracle) or from a network that you have (--backbone). With saved truths their own score
stands in the table too: what the measure gives perfect frames. Writes consistency.json and a picture of each scene's worst
pairs. docs/met3r.md says what the numbers mean.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from src.cli import guarded
from src.met3r.features import FEATURES, load_features, spatial_lpips
from src.met3r.geometries import NETWORKS, Geometry, SyntheticGeometry, load_pair_network
from src.met3r.metric import DISTANCES, Options
from src.met3r.published import ndc_radius, published
from src.met3r.report import refuse_free_paths, score_methods, table, videos_of, write_report
from src.met3r.rules import CORRECT, RADIUS
from src.met3r.videos import Scorer
from src.output_folders import named_folder, read_outputs
from src.runtime import start
from src.settings import Pretrained


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    return guarded(lambda: _run(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
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
    add(
        "--oracle",
        type=Path,
        metavar="FOLDER",
        help="the synthetic set whose scenes these are: exact geometry",
    )
    add("--backbone", choices=list(NETWORKS), help="geometry from a network instead")
    add("--code", type=Path, metavar="FOLDER", help="checkout of the network's repository")
    add("--weights", type=Path, metavar="FOLDER", help="the network's config.json and model.safetensors")
    add("--features", choices=FEATURES, default="colours", help="what --distance cosine compares")
    add("--feature_weights", type=Path, metavar="FILE", help="weights of dino16 or dinov2")
    add("--featup", type=Path, nargs=2, metavar=("CODE", "WEIGHTS"), help="FeatUp's upsampler for dino16")
    add("--distance", choices=DISTANCES, help="default: cosine of features, rmse of colours")
    add("--vgg16", default=Pretrained().vgg16, metavar="FILE", help="weights under --distance lpips")
    add("--gap", type=int, default=1, help="frames from one view of a pair to the other")
    add("--pairs", type=int, default=0, help="most pairs of a video, evenly spread; 0: all")
    add("--radius", type=float, default=RADIUS, help="of a point, pixels")
    add("--resize", type=int, default=0, help="long side of the pictures before all else; 0: as they are")
    add(
        "--one_way",
        action="store_true",
        help="into the first view alone, instead of the mean of both directions",
    )
    add(
        "--published",
        type=int,
        metavar="SIZE",
        help="the original's rules and square size, 256: one way, 0.01 NDC",
    )
    add("--output", type=Path, default=Path("outputs/consistency"), metavar="FOLDER")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    device = start().device
    if bool(arguments.oracle) == bool(arguments.backbone):
        raise ValueError("where are the surfaces? Give either --oracle (synthetic set) or --backbone.")
    distance = arguments.distance or ("rmse" if arguments.features == "colours" else "cosine")
    size = arguments.published
    options = Options(
        distance=distance,
        radius=ndc_radius(0.01, size, size) if size else arguments.radius,
        size=(size, size) if size else None,
        rules=published() if size else CORRECT,
        lpips=spatial_lpips(arguments.vgg16, device) if distance == "lpips" else None,
    )
    geometry: Geometry = (
        SyntheticGeometry(arguments.oracle)
        if arguments.oracle
        else load_pair_network(arguments.backbone, arguments.code, arguments.weights, device)
    )
    featup = tuple(arguments.featup) if arguments.featup else None
    features = load_features(arguments.features, arguments.feature_weights, device, featup=featup)
    both_ways = not (arguments.one_way or size)
    scorer = Scorer(geometry, features, options, device, both_ways=both_ways, resize=arguments.resize)
    methods = [read_outputs(name, folder) for name, folder in arguments.name]
    if arguments.oracle:
        refuse_free_paths(methods)
    videos = videos_of(methods)
    results = score_methods(videos, scorer, gap=arguments.gap, most=arguments.pairs)
    about = {key: str(value) for key, value in vars(arguments).items() if value} | {"distance": distance}
    write_report(arguments.output, results, videos, scorer, about)
    sys.stdout.write(f"{table(results, distance)}\n\nWrote      {arguments.output / 'consistency.json'}\n")


if __name__ == "__main__":
    sys.exit(main())
