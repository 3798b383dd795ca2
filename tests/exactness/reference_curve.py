"""The stored loss curve: 50 steps of a tiny training on the CPU.

    python tests/exactness/reference_curve.py           compare
    python tests/exactness/reference_curve.py --write   store anew, after a change that is meant to change training

Everything but rounding is fixed: pictures are PNG, the order and the weights come from seeds, there is one thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
FILE = Path(__file__).with_name("reference_curve.json")
STEPS = 50
TOLERANCE = 1e-3
"""Largest relative difference of a loss. Rounding differs between versions of torch and between the vector instructions
of CPUs, and grows from step to step; forcing torch's kernels without vector instructions (ATEN_CPU_CAPABILITY=default)
moves the curve by less than a tenth of this. A wrong sample, schedule or gradient moves it by more than 1e-2.
"""


def curve() -> dict[int, float]:
    """Step -> loss of the training, done anew in a temporary folder."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from tiny_run import losses, write_config, write_scenes

    from src.train import main as train

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = write_scenes(folder / "data", num_scenes=5, num_frames=12, form="PNG")
        config = write_config(
            folder / "run.yaml", data, folder / "run",
            train_steps=STEPS, checkpoint_every=STEPS, warmup=5, grad_accum_steps=2, grad_checkpoint_every=1,
            perceptual_loss_weight=0.0, dynamic_input_view_num=True, num_views=6,
        )  # fmt: skip
        if train(["--config", str(config)]):
            raise RuntimeError("the training failed")
        return losses(folder / "run")


def largest_difference(found: dict[int, float]) -> float:
    """Largest relative difference from the stored losses."""
    stored = json.loads(FILE.read_text(encoding="utf-8"))["losses"]
    if sorted(found) != list(range(1, len(stored) + 1)):
        return float("inf")
    return max(abs(found[step] / loss - 1) for step, loss in enumerate(stored, 1))


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Compare a tiny training with the stored one.")
    parser.add_argument("--write", action="store_true", help="store the curve of this machine")
    write, found = parser.parse_args(argv).write, curve()
    if write:
        tree = {"torch": torch.__version__, "losses": [found[step] for step in sorted(found)]}
        FILE.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
        return 0
    print(f"largest relative difference {largest_difference(found):.2e}, allowed {TOLERANCE:.0e}")
    return int(largest_difference(found) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
