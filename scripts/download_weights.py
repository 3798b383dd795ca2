"""Fetch published weights, pretrained parts and evaluation indices, and check them.

    python -m scripts.download_weights uplvsm_x224 re10k_index vgg16
    python -m scripts.download_weights --list

Exit status: 0 when all files are in place and right, 2 otherwise.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import sys
from pathlib import Path

from src.weights import TABLE, DownloadError, fetch, place_of


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Fetch published files and check them.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="files to fetch; --list shows their names")
    parser.add_argument(
        "--list", action="store_true", help="show all files, where they go and who needs them"
    )
    parser.add_argument("--dir", type=Path, default=Path("checkpoints"), help="folder of weights")
    parser.add_argument(
        "--index-dir", type=Path, default=Path("datasets/indices"), help="folder of evaluation indices"
    )
    parser.add_argument(
        "--accept-new-digest", action="store_true", help="take a file that differs from the first download"
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.list:
        _print_table(arguments.dir, arguments.index_dir)
        return 0
    if not arguments.names:
        parser.error("give at least one NAME, or --list")
    for name in arguments.names:
        if name not in TABLE:
            near = difflib.get_close_matches(name, TABLE, 1, 0.4)
            parser.error(f"unknown file {name}." + (f" Did you mean {near[0]}?" if near else " See --list."))
    failed = False
    for name in arguments.names:
        target = place_of(TABLE[name], arguments.dir, arguments.index_dir)
        try:
            digest = fetch(
                name,
                TABLE[name],
                target,
                arguments.dir / "digests.json",
                accept_new_digest=arguments.accept_new_digest,
            )
            print(f"{name}: {target} (sha256 {digest[:16]})")
        except (DownloadError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
    return 2 if failed else 0


def _print_table(folder: Path, index_folder: Path) -> None:
    for name, item in TABLE.items():
        digest = f"sha256 {item.sha256}..." if item.sha256 else "digest recorded at first download"
        print(
            f"{name}\n  to    {place_of(item, folder, index_folder)}\n  for   {item.used_by}\n  check {digest}"
        )
        for url in item.urls:
            print(f"  from  {url}")


if __name__ == "__main__":
    sys.exit(main())
