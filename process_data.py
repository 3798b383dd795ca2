"""Convert raw data into a data set folder: `.torch` chunks, DL3DV, nerfstudio, COLMAP, OpenCV cameras, plain photos.

    python process_data.py --base_path datasets/re10k --output_dir datasets/re10k-full_processed --mode train
    python process_data.py --format dl3dv --base_path datasets/dl3dv --output_dir datasets/dl3dv_processed --mode test
    python process_data.py --format images --poses colmap --base_path my_photos --output_dir datasets/mine --mode test

Reads `<base_path>/<mode>/*.torch`, or for the other formats the scenes in `<base_path>/<mode>/` or, where there is no
such folder, in `<base_path>/`. Writes `<output_dir>/<mode>/`; run it again to continue after an interruption. Ends with a
check of the cameras against the pictures (figures, and pictures in `<output_dir>/<mode>/camera_check/`).
Exit status: 0 everything converted, 1 something could not be, 2 wrong arguments, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from src.camera_check.report import check_scenes
from src.cli import printable
from src.config import ConfigError
from src.data.convert import Options, Report, convert
from src.data.dataset import open_scenes
from src.data.import_formats import FORMATS, import_from
from src.data.importing import ImportOptions

SHOWN = 20
"""Problems of each kind that are listed."""


def main(argv: list[str] | None = None) -> int:
    """Parse the arguments, convert, print what failed; the exit status."""
    args = _parser().parse_args(argv)
    target = Path(args.output_dir) / args.mode
    try:
        report = _convert_chunks(args, target) if args.format == "re10k" else _import(args, target)
    except (ConfigError, OSError) as error:
        print(f"process_data.py: {printable(error)}", file=sys.stderr)
        return 2
    except BrokenProcessPool:
        print("process_data.py: a worker died (out of memory?). Run again to continue.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("process_data.py: interrupted. Run again to continue.", file=sys.stderr)
        return 130
    _print(report, target)
    if args.check_scenes and report.written + report.kept:
        check_scenes(
            open_scenes(str(target / "full_list.txt")), target / "camera_check", most_scenes=args.check_scenes
        )
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
        format=args.format,
        images=args.images,
        image_format=args.image_format,
        fov_deg=args.fov,
        poses=args.poses,
    )
    return import_from(options, args.num_processes)


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
        "--format", choices=("re10k", *FORMATS), default="re10k",
        help="re10k: .torch chunks (default); dl3dv, nerfstudio: transforms.json, dl3dv in the order and the world of "
        "its benchmark; colmap: sparse models; opencv: opencv_cameras.json; images: photos. Distortion is removed",
    )  # fmt: skip
    parser.add_argument(
        "--images", default="images_4",
        help="folder of pictures in each scene (default: images_4; where there is none, as the scene's files say)",
    )  # fmt: skip
    parser.add_argument(
        "--poses", choices=("none", "colmap"), default="none",
        help="images: without poses (default), or found by COLMAP's structure from motion",
    )  # fmt: skip
    parser.add_argument(
        "--fov", type=_angle, default=60.0,
        help="images: field of view along the longer side, degrees, of photos that do not state it (default: 60)",
    )  # fmt: skip
    parser.add_argument(
        "--check_scenes", type=int, default=4,
        help="scenes whose cameras are compared with their pictures at the end; 0: none (default: 4)",
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


def _angle(text: str) -> float:
    value = float(text)
    if not 1 <= value <= 170:
        raise argparse.ArgumentTypeError(f"{text} is not an angle between 1 and 170 degrees")
    return value


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
            print(f"  {printable(where)}: {printable(why)}")
        if len(problems) > SHOWN:
            print(f"  ... and {len(problems) - SHOWN} more")


if __name__ == "__main__":
    sys.exit(main())
