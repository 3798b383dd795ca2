"""Say what a file of weights is: where it was written, how many tensors, and the sizes the config must have.

    python -m scripts.inspect_checkpoint FILE_OR_FOLDER

Prints one `key=value` a line, ready for a command line or a YAML file. Nothing in the file is executed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from src.checkpoint import MANIFEST, clean_names, load_weights, read_manifest
from src.cli import guarded
from src.sizes import sizes_of


def main(argv: list[str] | None = None) -> int:
    """Exit status 0, or 2 if the file cannot be read."""
    parser = argparse.ArgumentParser(description="Say which config a file of weights fits.")
    parser.add_argument("path", type=Path, help="checkpoint folder, run folder, .safetensors, .pt or .ckpt")
    path = parser.parse_args(argv).path
    return guarded(lambda: print("\n".join(describe(path))))


def describe(path: Path) -> list[str]:
    """Lines about the weights at `path`; comments begin with #."""
    state, report = clean_names(load_weights(path), str(path))
    numbers = sum(tensor.numel() for tensor in state.values())
    lines = [f"# {path}: {len(state)} tensors, {numbers:,} numbers"]
    lines += [f"# ignored: {count} tensors under {prefix}" for prefix, count in report.ignored.items()]
    lines += [f"# {name}. taken out of {count} names" for name, count in report.renamed.items()]
    if (path / MANIFEST).is_file():
        manifest = read_manifest(path)
        lines.append(f"# written by torch {manifest['torch']} at step {manifest['step']}")
        lines.append(f"model.class_name={manifest['config']['model']['class_name']}")
    sizes = sizes_of({name: tuple(tensor.shape) for name, tensor in state.items()})
    lines += [
        f"{key}={str(value).lower() if isinstance(value, bool) else f'{value:g}'}"
        for key, value in sorted(sizes.items())
    ]
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
