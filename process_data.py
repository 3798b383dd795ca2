"""Convert raw data into a data set folder: `.torch` chunks (RealEstate10K, ACID, DL3DV) or DL3DV's benchmark layout.

    python process_data.py --base_path datasets/re10k --output_dir datasets/re10k-full_processed --mode train
    python process_data.py --format dl3dv --base_path datasets/dl3dv --output_dir datasets/dl3dv_processed --mode test

Reads `<base_path>/<mode>/*.torch`, or for the other formats the scenes in `<base_path>/<mode>/` or, where there is no
such folder, in `<base_path>/`. Writes `<output_dir>/<mode>/`. Run it again to continue after an interruption.
Exit status: 0 everything converted, 1 something could not be, 2 wrong arguments, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from src.config import ConfigError
from src.data.convert import Options, Report, convert
from src.data.import_dl3dv import ImportOptions, import_scenes

SHOWN = 20
"""Problems of each kind that are listed."""


def main(argv: list[str] | None = None) -> int:
    """Parse the arguments, convert, print what failed; the exit status."""
    args = _parser().parse_args(argv)
    target = Path(args.output_dir) / args.mode
    try:
        report = _convert_chunks(args, target) if args.format == "re10k" else _import(args, target)
    except (ConfigError, OSError) as error:
        print(f"process_data.py: {error}", file=sys.stderr)
        return 2
    except BrokenProcessPool:
        print("process_data.py: a worker died (out of memory?). Run again to continue.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("process_data.py: interrupted. Run again to continue.", file=sys.stderr)
        return 130
    _print(report, target)
    return 1 if report.failed else 0


def _convert_chunks(args: argparse.Namespace, target: Path) -> Report:
    source = Path(args.base_path) / args.mode
    if not source.is_dir():
        raise ConfigError(f"{source}: no such folder. --base_path names the one above train/ and test/.")
    options = Options(source, target, image_format=args.image_format, verify=args.verify)
    return convert(options, args.num_processes, args.chunk_size)


def _import(args: argparse.Namespace, target: Path) -> Report:
    source = Path(args.base_path)
    options = ImportOptions(
        source=source / args.mode if (source / args.mode).is_dir() else source,
        target=target,
        images=args.images,
        image_format=args.image_format,
        undo_world=args.format == "dl3dv",
        sort=args.format == "dl3dv",
    )
    return import_scenes(options, args.num_processes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--base_path", required=True, help="folder with train/ and test/ of .torch chunks, or of scenes"
    )
    parser.add_argument("--output_dir", required=True, help="folder to write train/ and test/ into")
    parser.add_argument(
        "--mode", choices=("train", "test"), default="train", help="which part (default: train)"
    )
    parser.add_argument(
        "--format", choices=("re10k", "dl3dv", "nerfstudio"), default="re10k",
        help="re10k: .torch chunks (default); dl3dv: <scene>/nerfstudio/transforms.json with pictures, distortion is "
        "removed; nerfstudio: the same, in the order and the world of the file",
    )  # fmt: skip
    parser.add_argument(
        "--images", default="images_4",
        help="dl3dv, nerfstudio: folder of pictures in each scene (default: images_4; where there is none, the paths "
        "in transforms.json)",
    )  # fmt: skip
    parser.add_argument("--num_processes", type=_positive, default=32, help="processes (default: 32)")
    parser.add_argument(
        "--chunk_size", type=_positive, default=10, help="chunk files handed to a process ahead (default: 10)"
    )
    parser.add_argument(
        "--image_format", choices=("jpeg", "png"), default="jpeg",
        help="jpeg: keep the original bytes, or their format where distortion is removed (default); png: decode, about "
        "six times the size",
    )  # fmt: skip
    parser.add_argument(
        "--verify", choices=("decode", "header"), default="decode",
        help="how pictures are checked: decode them (default), or read their headers only (faster)",
    )  # fmt: skip
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


def _print(report: Report, target: Path) -> None:
    """The summary: counts, then the first problems of each kind."""
    print(f"{target}: {report.written} scenes written, {report.kept} were there already.")
    kinds = (
        ("chunks that cannot be read", report.bad_chunks),
        ("scenes that were refused or failed", report.bad_scenes),
        ("frames marked missing", report.bad_frames),
    )
    for title, problems in kinds:
        if not problems:
            continue
        print(f"{len(problems)} {title}:")
        for where, why in problems[:SHOWN]:
            print(f"  {where}: {why}")
        if len(problems) > SHOWN:
            print(f"  ... and {len(problems) - SHOWN} more")


if __name__ == "__main__":
    sys.exit(main())
