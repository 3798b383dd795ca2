"""Render the synthetic multi-view data set (textured rooms, hand-held camera) in RealEstate10K's chunk format.

    python -m scripts.make_synthetic --output datasets/synthetic --train_scenes 320 --test_scenes 24 --num_processes 2

The same settings give the same files on any number of processes. An interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from src.cli import guarded
from src.data.synthetic import SyntheticSet, write_set


def _size(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"\d+x\d+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form WIDTHxHEIGHT, e.g. 96x64")
    width, height = text.split("x")
    return int(width), int(height)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("datasets/synthetic"), metavar="FOLDER")
    parser.add_argument("--train_scenes", type=int, default=320)
    parser.add_argument("--test_scenes", type=int, default=24)
    parser.add_argument("--frames", type=int, default=8, help="frames of each scene, at least 5")
    parser.add_argument("--size", type=_size, default=(64, 64), metavar="WxH", help="picture size, pixels")
    parser.add_argument("--num_processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=2026, help="another seed makes other rooms")
    arguments = parser.parse_args(argv)

    def work() -> None:
        spec = SyntheticSet(
            train_scenes=arguments.train_scenes,
            test_scenes=arguments.test_scenes,
            frames=arguments.frames,
            width=arguments.size[0],
            height=arguments.size[1],
            seed=arguments.seed,
        )
        write_set(arguments.output, spec, num_processes=arguments.num_processes)

    return guarded(work)


if __name__ == "__main__":
    raise SystemExit(main())
