"""What a run holds of the machine does not grow: files, memory, shared memory, threads, processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny_run import write_config, write_scenes

import src.train

STEPS, WARM = 60, 20
MIB = 2**20
PROC = Path("/proc/self")

pytestmark = pytest.mark.skipif(not PROC.is_dir(), reason="needs /proc")


def held() -> dict[str, int]:
    """Counts and bytes of this process; shared memory is that of its children too."""
    children = (PROC / "task" / str(os.getpid()) / "children").read_text().split()
    shared: dict[str, int] = {}
    for process in ("self", *children):
        for line in Path("/proc", process, "maps").read_text().splitlines():
            if "/dev/shm" in line or "/torch_" in line:
                span, _, _, _, inode = line.split()[:5]
                start, end = (int(address, 16) for address in span.split("-"))
                shared[inode] = end - start
    status = dict(line.split(":", 1) for line in (PROC / "status").read_text().splitlines())
    return {
        "files": len(os.listdir(PROC / "fd")),
        "threads": len(os.listdir(PROC / "task")),
        "processes": len(children),
        "memory": int(status["VmRSS"].split()[0]) * 1024,
        "shared memory": sum(shared.values()),
    }


def test_a_run_that_saves_scores_and_draws_holds_no_more_after_sixty_steps_than_after_twenty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, int]] = []
    report = src.train.report

    def reporting(*arguments, **options) -> None:
        report(*arguments, **options)
        seen.append(held())

    monkeypatch.setattr(src.train, "report", reporting)
    before = held()
    data = write_scenes(tmp_path / "data")
    settings = {"num_workers": 2, "prefetch_factor": 4, "train_steps": STEPS, "checkpoint_every": 3}
    config = write_config(
        tmp_path / "run.yaml",
        data,
        tmp_path / "run",
        vis_every=10,
        eval_every=10,
        keep_checkpoints=2,
        **settings,
    )
    assert src.train.main(["--config", str(config)]) == 0
    early, late = seen[WARM : (WARM + STEPS) // 2], seen[(WARM + STEPS) // 2 :]
    for name, slack in {
        "files": 0,
        "threads": 0,
        "processes": 0,
        "memory": 2 * MIB,
        "shared memory": 0,
    }.items():
        # The least of twenty steps: batches that wait to be used hold files and shared memory too.
        least = [min(moment[name] for moment in moments) for moments in (early, late)]
        assert least[1] <= least[0] + slack, f"{name}: {least}"
    after = held()
    assert after["processes"] <= before["processes"]
    assert after["shared memory"] < before["shared memory"] + MIB
