"""Say what a file of weights holds: family, sizes, parts, how it was trained; nothing in it is executed.

    python -m scripts.info FILE_OR_FOLDER

FILE_OR_FOLDER: checkpoint folder, run folder, folder in the form of the hub, .safetensors, .pt or .ckpt. Comments begin with #;
the other lines are `key=value`, ready for a command line.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from src.checkpoint import (
    MANIFEST,
    WEIGHTS,
    clean_names,
    is_checkpoint,
    load_weights,
    newest_checkpoint,
    read_manifest,
    weights_digest,
)
from src.cli import guarded, printable
from src.pretrained import CONFIG, pretrained_config
from src.sizes import sizes_of

MOST_PARTS = 16
"""Parts of a model that are listed one by one."""


def main(argv: list[str] | None = None) -> int:
    """Exit status 0, or 2 if the file cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "path", type=Path, help="checkpoint folder, run folder, hub folder, .safetensors, .pt or .ckpt"
    )
    path = parser.parse_args(argv).path
    return guarded(lambda: print(printable("\n".join(describe(path)))))


def describe(path: Path) -> Iterator[str]:
    """Lines about the weights at `path`."""
    if path.is_dir() and not is_checkpoint(path):
        path = path / WEIGHTS if (path / CONFIG).is_file() else newest_checkpoint(path, (WEIGHTS,)) or path
    state, report = clean_names(load_weights(path), str(path))
    yield f"# {path}"
    yield f"# sha256 {weights_digest(path)}"
    yield from _contents(state)
    yield from (f"# ignored: {count} tensors under {prefix}" for prefix, count in report.ignored.items())
    yield from (f"# {name}. taken out of {count} names" for name, count in report.renamed.items())
    yield from _origin(path)
    for key, value in sorted(sizes_of({name: tuple(tensor.shape) for name, tensor in state.items()}).items()):
        yield f"{key}={str(value).lower() if isinstance(value, bool) else f'{value:g}'}"


def _contents(state: dict[str, Tensor]) -> Iterator[str]:
    """How many numbers of which type, and where they are."""
    types, parts = Counter(), Counter()
    for name, tensor in state.items():
        types[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
        parts[name.partition(".")[0]] += tensor.numel()
    size = sum(tensor.nbytes for tensor in state.values()) / 2**20
    yield (
        f"# {len(state)} tensors, {parts.total():,} numbers ({', '.join(f'{n:,} {t}' for t, n in types.most_common())}), "
        f"{size:.1f} MiB"
    )
    bad = sorted(name for name, t in state.items() if t.is_floating_point() and not t.isfinite().all())
    if bad:
        yield f"# NOT FINITE: {len(bad)} tensors, first {bad[0]}"
    yield from (f"#   {name:<32} {count:>14,}" for name, count in parts.most_common(MOST_PARTS))
    if len(parts) > MOST_PARTS:
        yield f"#   and {len(parts) - MOST_PARTS} more"


def _origin(path: Path) -> Iterator[str]:
    """What lies beside the tensors: where they come from, and the model they are of."""
    if (path / MANIFEST).is_file():
        manifest = read_manifest(path)
        yield f"# written by torch {manifest['torch']} at step {manifest['step']}"
        yield f"# files: {', '.join(sorted(p.name for p in path.iterdir()))}"
        try:
            yield f"model.class_name={manifest['config']['model']['class_name']}"
        except (LookupError, TypeError):
            yield "# its config names no model"
        return
    described = [path.with_suffix(".json"), path.with_name(CONFIG)]
    if path.is_file() and any(place.is_file() for place in described):
        source = path if described[0].is_file() else path.parent
        yield f"model.class_name={pretrained_config(source).model.class_name}"


if __name__ == "__main__":
    sys.exit(main())
