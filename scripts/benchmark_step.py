"""Time, MFU and memory of a training step under different settings; on any device, alone or under torchrun.

    python -m scripts.benchmark_step --config config/uplvsm_x224.yaml [key=value ...] [--variants blocks speed compiled_speed]

Needs neither data nor weights: noise goes through random networks of the config's sizes. Writes `step.json` and `step.md`. What
is measured and how, and the table of variants: src/bench/steps.py.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from src.bench.measure import machine
from src.bench.steps import VARIANTS, measure, number_type, step_flops, table
from src.cli import chosen_config, config_parser, guarded
from src.files import write_text
from src.runtime import setup_logging, start, stop


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    return guarded(lambda: _run(argv))


def _run(argv: list[str] | None) -> None:
    parser = config_parser("Measure a training step under different settings.")
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        default=list(VARIANTS),
        metavar="NAME",
        help=", ".join(VARIANTS),
    )
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each variant")
    parser.add_argument("--output", type=Path, default=Path("outputs/step"), help="folder for the results")
    arguments = parser.parse_intermixed_args(argv)
    config = chosen_config(arguments)
    if config is None:
        return
    training, runtime = config.training, start(config.training.seed)
    setup_logging(runtime.is_main)
    if arguments.steps < 1:
        raise ValueError("--steps must be at least 1.")
    rows = measure(arguments.config, arguments.overrides, arguments.variants, arguments.steps, runtime)
    if runtime.is_main:
        flops, where = step_flops(config), f"{runtime.world} x {machine(runtime.device)}"
        text = (
            f"{arguments.config} on {where}: {training.batch_size_per_gpu} scenes x {training.grad_accum_steps} accumulated a "
            f"process, {training.num_input_views} context views, {training.num_target_views} targets, "
            f"{str(number_type(training)).removeprefix('torch.')}; {flops / 1e12:.3g} TFLOP a step and process.\n\n{table(rows)}"
        )
        report = {"config": str(arguments.config), "overrides": arguments.overrides, "machine": where}
        report |= {"flops": flops, "rows": [asdict(row) for row in rows]}
        write_text(arguments.output / "step.json", json.dumps(report, indent=1) + "\n")
        write_text(arguments.output / "step.md", text)
        print(text)
    stop()


if __name__ == "__main__":
    sys.exit(main())
