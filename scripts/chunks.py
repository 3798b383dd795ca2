"""Copies of a data set with smaller pictures or in another container.

    python -m scripts.chunks rescale    --input DATASET --output FOLDER --min_size 256
    python -m scripts.chunks crop       --input DATASET --output FOLDER --shape 256 256
    python -m scripts.chunks compress   --input FOLDER  --output FOLDER
    python -m scripts.chunks decompress --input FOLDER  --output FOLDER

DATASET is a folder of chunks, a folder with such folders (train, test), or a full_list.txt. Start a command again to go
on where it stopped. rescale brings the shorter side to a size, crop scales pictures to cover a shape and cuts out the
centre; both write JPEG of --quality or PNG, leave pictures alone that fit already, and state the shape in meta.json.
compress packs .torch chunks as .bl2 (blosc2), which training reads too.

Exit status: 0; 1 if some pictures or scenes could not be used; 2 after a mistake that a message explains.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from src.cli import guarded
from src.data.packed import SUFFIX
from src.data.repack import repack
from src.data.rescale import Recipe, rescale


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Copies of a data set.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("rescale", "shorter side to a size"),
        ("crop", "pictures of one shape"),
        ("compress", ".torch chunks to .bl2"),
        ("decompress", ".bl2 chunks to .torch"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--input", required=True, type=Path, help="the data set")
        command.add_argument("--output", required=True, type=Path, help="folder of the copy")
        command.add_argument("--num_processes", type=int, default=os.cpu_count() or 1)
        if name == "rescale":
            command.add_argument("--min_size", type=int, required=True, help="shorter side, pixels")
        if name == "crop":
            command.add_argument("--shape", type=int, nargs=2, required=True, metavar=("H", "W"))
        if name in ("rescale", "crop"):
            command.add_argument("--format", choices=("jpeg", "png"), default="jpeg")
            command.add_argument("--quality", type=int, default=95, help="of JPEG, 1 to 100")
    arguments = parser.parse_args(argv)
    return guarded(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command in ("rescale", "crop"):
        return _rescale(arguments)
    suffix = SUFFIX if arguments.command == "compress" else ".torch"
    chunks, before, after = repack(arguments.input, arguments.output, suffix, arguments.num_processes)
    sys.stdout.write(f"{chunks} chunks written, {before / 2**20:.1f} MiB -> {after / 2**20:.1f} MiB\n")
    return 0


def _rescale(arguments: argparse.Namespace) -> int:
    sides = arguments.shape if arguments.command == "crop" else [arguments.min_size]
    if min(sides) < 1 or not 1 <= arguments.quality <= 100:
        raise ValueError("sizes must be positive, --quality between 1 and 100.")
    size = {"shape": tuple(sides)} if arguments.command == "crop" else {"min_size": sides[0]}
    recipe = Recipe(**size, image_format=arguments.format, quality=arguments.quality)
    report = rescale(arguments.input, arguments.output, recipe, arguments.num_processes)
    unit = "scenes" if arguments.input.is_file() else "chunks"
    sys.stdout.write(f"{report.pictures} pictures written, {report.kept} {unit} were there already\n")
    for where, why in report.problems[:10]:
        sys.stdout.write(f"  {where}: {why}\n")
    if len(report.problems) > 10:
        sys.stdout.write(f"  and {len(report.problems) - 10} more\n")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
