"""Fetch scenes of DL3DV's benchmark (140 scenes) from Hugging Face, for `process_data.py --format dl3dv`.

    python -m scripts.download_dl3dv --odir datasets/dl3dv --subset full --only_level4
    python -m scripts.download_dl3dv --odir datasets/dl3dv --subset hash --hash HASH [HASH ...] --only_level4

The data set is given out on request; the token of your account is taken from the environment variable HF_TOKEN. Run it
again to continue after an interruption. Exit status: 0 all files are there, 1 some are not, 2 nothing could be done.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from src.dl3dv import REPOSITORY, SERVER, Remote, fetch_files, scene_files, scene_names
from src.weights import DownloadError

SHOWN = 10
"""Problems of a scene that are listed."""


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    arguments = _parser().parse_args(argv)
    remote = Remote(os.environ.get("HF_TOKEN", ""), arguments.server.rstrip("/"), arguments.repository)
    try:
        return _fetch_scenes(remote, arguments)
    except (DownloadError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted. Run again to continue.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--odir", type=Path, required=True, metavar="FOLDER", help="where the scenes go")
    parser.add_argument(
        "--subset", choices=("full", "hash"), default="full", help="all scenes, or those of --hash"
    )
    parser.add_argument("--hash", nargs="+", default=[], metavar="HASH", help="scenes, with --subset hash")
    parser.add_argument(
        "--only_level4",
        "--level4",
        action="store_true",
        help="only images_4 (960x540), not the larger pictures",
    )
    parser.add_argument(
        "--num_workers", type=int, default=8, help="files fetched at the same time (default: 8)"
    )
    parser.add_argument("--server", default=SERVER, help=argparse.SUPPRESS)
    parser.add_argument("--repository", default=REPOSITORY, help="another data set of the same layout")
    return parser


def _fetch_scenes(remote: Remote, arguments: argparse.Namespace) -> int:
    if (arguments.subset == "hash") != bool(arguments.hash):
        raise DownloadError("--subset hash and --hash HASH belong together.")
    known = scene_names(remote)
    names = arguments.hash or known
    if foreign := [name for name in names if name not in known]:
        raise DownloadError(
            f"{remote.repository} has no scene {foreign[0]}; it lists {len(known)}, first {known[0]}."
        )
    failed = 0
    for number, name in enumerate(names, start=1):
        files = scene_files(remote, name, level4=arguments.only_level4)
        problems = fetch_files(remote, files, arguments.odir, max(1, arguments.num_workers))
        failed += len(problems)
        print(f"{number}/{len(names)} {name}: {len(files) - len(problems)} of {len(files)} files")
        for line in problems[:SHOWN]:
            print(f"  {line}", file=sys.stderr)
    if failed:
        print(f"{failed} files are missing. Run again to continue.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
