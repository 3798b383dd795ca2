"""Step time and efficiency on 1 to 512 GPUs, on paper: counted work against bytes between the GPUs.

    python -m scripts.scaling --config config/lvsm_decoder_only_256.yaml [key=value ...] --output outputs/scaling

Writes `scaling.md` and `scaling.png`. The model and its sources: src/scaling.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

from src.bench.chart import Panel, draw_chart
from src.cli import chosen_config, config_parser, guarded
from src.files import write_text
from src.gpus import GPUS
from src.scaling import LINKS, Link, Work, count, ddp_bytes, efficiency, step_seconds, worthwhile

GPU_COUNTS = [2**power for power in range(10)]
CARDS = {gpu.name: gpu for gpu in GPUS}


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    return guarded(lambda: _run(argv))


def _run(argv: list[str] | None) -> None:
    parser = config_parser("Count what a step takes on many GPUs.")
    parser.add_argument("--output", type=Path, default=Path("outputs/scaling"), help="folder for the results")
    parser.add_argument("--gpu", choices=CARDS, default="H100 SXM", metavar="NAME", help=", ".join(CARDS))
    parser.add_argument("--utilisation", type=float, default=0.4, help="assumed part of the GPU's peak")
    parser.add_argument("--total", type=int, default=512, help="samples of a step that all GPUs share")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.total < 1 or not 0 < arguments.utilisation <= 1:
        raise ValueError("--total must be at least 1, and --utilisation above 0 and at most 1.")
    config = chosen_config(arguments)
    if config is None:
        return
    training, card, counts = config.training, CARDS[arguments.gpu], count(config)
    if not card.speed(training):
        raise ValueError(f"{card.name} has no {training.amp_dtype}: add training.amp_dtype=fp16.")

    def work(samples: float) -> Work:
        return counts.work_of(samples, card, training, arguments.utilisation)

    shared = {n: work(arguments.total / n) for n in GPU_COUNTS if n <= arguments.total}
    each = work(training.batch_size_per_gpu)
    panels = [
        Panel(
            f"step of {arguments.total} samples in all, s   (...  work alone)",
            "GPUs",
            {link.name: [(n, step_seconds(w, link, n)) for n, w in shared.items()] for link in LINKS},
            dotted={"": [(n, w.seconds) for n, w in shared.items()]},
        ),
        Panel(
            f"efficiency   (- -  with {training.batch_size_per_gpu} samples a GPU)",
            "GPUs",
            {link.name: [(n, efficiency(w, link, n)) for n, w in shared.items()] for link in LINKS},
            logarithmic=False,
            dashed={link.name: [(n, efficiency(each, link, n)) for n in shared] for link in LINKS},
        ),
    ]
    draw_chart(panels, arguments.output / "scaling.png")
    heading = (
        f"{arguments.config} on {card.name} at {arguments.utilisation:.0%} of their peak (assumed): {each.seconds:.3g} s of work for "
        f"{training.batch_size_per_gpu} samples; {counts.size / 1e6:.0f} MB of gradients, of which each GPU of 512 sends and "
        f"receives {ddp_bytes(counts.size, 512) / 1e6:.0f} MB a step."
    )
    rows = [_row(link, shared, each) for link in LINKS]
    most = max(shared)
    head = [
        f"| between machines | {arguments.total} samples: GPUs at 80 % or more | step on {min(8, most)} | on {most} "
        f"| {training.batch_size_per_gpu} samples a GPU: efficiency of 64 | of 512 | of 512, fsdp |",
        "|---|---|---|---|---|---|---|",
    ]
    text = "\n".join([heading, "", *head, *rows]) + "\n"
    write_text(arguments.output / "scaling.md", text)
    print(text)


def _row(link: Link, shared: dict[int, Work], each: Work) -> str:
    most = max(shared)
    steps = " | ".join(f"{step_seconds(shared[n], link, n):.3g} s" for n in (min(8, most), most))
    parts = " | ".join(f"{efficiency(each, link, n):.0%}" for n in (64, 512))
    sharded = f"{efficiency(each, link, 512, 'fsdp'):.0%}"
    return f"| {link.name} | {worthwhile(shared, link)} | {steps} | {parts} | {sharded} |"


if __name__ == "__main__":
    sys.exit(main())
