"""The sbatch files, with a fake srun and scontrol: what follows from each exit status, and how a signal travels."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

FILES = ("one_node.sbatch", "several_nodes.sbatch")

SRUN = """#!/bin/bash
# Two tasks; like srun it passes signals on and ends with the largest status.
echo "srun $*" >> "$LOG"
shift
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & tasks+=($!); done
trap 'kill -USR1 "${tasks[@]}"' USR1
trap 'kill -TERM "${tasks[@]}"' TERM
worst=0
for task in "${tasks[@]}"; do
    while kill -0 $task 2>/dev/null; do wait $task; status=$?; done
    ((status > worst)) && worst=$status
done
exit $worst
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >> "$LOG"
[[ $1 == show ]] && printf 'node7\\nnode8\\n'
exit 0
"""
PYTHON = """#!/bin/bash
# Ends with the next status in the file STATUSES; `wait` runs until a signal comes.
echo "python $* rank $RANK/$WORLD_SIZE local $LOCAL_RANK at $MASTER_ADDR:$MASTER_PORT" >> "$LOG"
attempt=$(grep -c "rank $RANK/" "$LOG")
status=$(sed -n "${attempt}p" "$STATUSES")
[[ $status != wait ]] && exit $status
trap 'sleep 0.3; exit 138' USR1
trap 'sleep 0.3; exit 143' TERM
echo started >> "$LOG"
while true; do sleep 0.05; done
"""


@pytest.fixture
def job(tmp_path: Path, repo_root: Path):
    """Starts an sbatch file as SLURM would, with the exit statuses of its attempts; the process and its log."""
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", PYTHON)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    log = tmp_path / "log"

    def start(file: str, *statuses: object) -> tuple[subprocess.Popen, Path]:
        (tmp_path / "statuses").write_text("".join(f"{status}\n" for status in statuses))
        log.write_text("")
        env = {
            **os.environ,
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "LOG": str(log),
            "STATUSES": str(tmp_path / "statuses"),
            "SLURM_SUBMIT_DIR": str(repo_root),
            "SLURM_JOB_ID": "41",
            "SLURM_JOB_NODELIST": "node[7-8]",
            "SLURM_NTASKS": "2",
            "MAX_RESTARTS": "2",
        }
        spooled = tmp_path / "slurm_script"  # SLURM runs a copy
        spooled.write_text((repo_root / "scripts" / "slurm" / file).read_text())
        command = ["bash", str(spooled), "--config", "a b.yaml"]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True), log

    return start


@pytest.mark.parametrize("file", [*FILES, "run.sh"])
def test_the_scripts_are_valid_bash(file: str, repo_root: Path) -> None:
    assert subprocess.run(["bash", "-n", repo_root / "scripts" / "slurm" / file]).returncode == 0


@pytest.mark.parametrize("file", FILES)
def test_the_files_ask_for_requeueing_and_for_a_signal_before_the_end(file: str, repo_root: Path) -> None:
    text = (repo_root / "scripts" / "slurm" / file).read_text()
    assert "#SBATCH --requeue\n" in text and "#SBATCH --signal=B:USR1@600\n" in text


@pytest.mark.parametrize(
    ("statuses", "ends_with", "attempts", "requeued"),
    [
        ([0], 0, 1, False),
        ([138], 0, 1, True),
        ([124], 0, 1, True),
        ([2], 2, 1, False),
        ([3], 3, 1, False),
        ([1, 134, 0], 0, 3, False),
        ([1, 1, 1, 0], 1, 3, False),
    ],
)
def test_what_follows_from_an_exit_status(
    job, statuses: list[int], ends_with: int, attempts: int, requeued: bool
) -> None:
    process, log = job(FILES[0], *statuses)
    process.communicate(timeout=60)
    lines = log.read_text().splitlines()
    assert process.returncode == ends_with
    assert sum(line.startswith("srun") for line in lines) == attempts
    assert ("scontrol requeue 41" in lines) == requeued


def test_every_task_knows_its_rank_and_where_to_meet(job) -> None:
    process, log = job(FILES[1], 0)
    process.communicate(timeout=60)
    started = sorted(line for line in log.read_text().splitlines() if line.startswith("python"))
    assert started == [
        f"python -m src.train --config a b.yaml rank {rank}/2 local {rank} at node7:20041" for rank in (0, 1)
    ]


@pytest.mark.parametrize(
    ("number", "ends_with", "requeued"), [(signal.SIGUSR1, 0, True), (signal.SIGTERM, 143, False)]
)
def test_a_signal_reaches_every_process_and_the_job_waits_for_their_checkpoint(
    job, number: int, ends_with: int, requeued: bool
) -> None:
    process, log = job(FILES[0], "wait")
    until = time.monotonic() + 30
    while log.read_text().count("started") < 2 and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == ends_with
    assert ("scontrol requeue 41" in log.read_text()) == requeued
