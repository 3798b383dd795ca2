"""The closing table of the quickstart: the model beside what doing nothing scores, and what each stage took.

    python -m scripts.quickstart_report --results outputs/quickstart

Exit status 1 if the model misses a mark that it must reach: better than every trivial floor, and at least 1 dB worse
when the target cameras are swapped (it looks at its cameras).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from src.cli import guarded

MUST_BEAT = {
    "nearest_input": "nearest input, copied",
    "mean_of_inputs": "mean of the inputs",
    "mean_colour": "mean colour",
}
AIM = {"plane_warp": "nearest input, warped through one plane"}
LEAST_DROP_DB = 1.0


def verdicts(scores: dict) -> list[tuple[str, float, float, str]]:
    """(row, PSNR in dB, SSIM, verdict) of the model and each floor; MISSED marks what must not happen."""
    model = scores["headline"]
    rows = [("the model", model["psnr"], model["ssim"], "")]
    for name, label in {**MUST_BEAT, **AIM}.items():
        floor = scores["floors"][name]["mean_over_scenes"]
        ahead = model["psnr"] - floor["psnr"]
        if name in AIM:
            verdict = f"aim: {'reached' if ahead > 0 else 'not reached'} ({ahead:+.2f} dB)"
        else:
            verdict = f"must: {'beaten' if ahead > 0 else 'MISSED'} ({ahead:+.2f} dB)"
        rows.append((label, floor["psnr"], floor["ssim"], verdict))
    return rows


def table(scores: dict, stages: list[tuple[str, int]]) -> tuple[str, bool]:
    """The closing text, and whether every mark that must be reached was."""
    rows = verdicts(scores)
    drop = scores["swapped_cameras"]["psnr_drop"]
    looks = f"must: {'reached' if drop >= LEAST_DROP_DB else 'MISSED'}"
    lines = [f"{scores['counts']['evaluated']} test scenes", f"{'':<42}{'PSNR':>8}{'SSIM':>8}"]
    lines += [f"{label:<42}{psnr:>8.2f}{ssim:>8.3f}   {verdict}" for label, psnr, ssim, verdict in rows]
    lines += [
        f"{'drop with swapped target cameras':<42}{drop:>8.2f}{'':>8}   {looks} (at least {LEAST_DROP_DB:g} dB)"
    ]
    lines += ["", *(f"{name:<42}{seconds:>6} s" for name, seconds in stages)]
    lines += [f"{'all stages':<42}{sum(seconds for _, seconds in stages):>6} s"]
    return "\n".join(lines), not any("MISSED" in line for line in lines)


def _read_stages(path: Path) -> list[tuple[str, int]]:
    rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
    return [(name, int(seconds)) for name, seconds in rows]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("outputs/quickstart"), metavar="FOLDER")
    folder = parser.parse_args(argv).results
    passed = False

    def work() -> None:
        nonlocal passed
        scores = json.loads((folder / "scores" / "scores.json").read_text(encoding="utf-8"))
        text, passed = table(scores, _read_stages(folder / "stages.tsv"))
        sys.stdout.write(f"\n{text}\n\nPictures: {(folder / 'page' / 'index.html').resolve()}\n")

    return guarded(work) or int(not passed)


if __name__ == "__main__":
    raise SystemExit(main())
