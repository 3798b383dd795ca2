"""Two torchrun launchers that meet at one rendezvous, as on two machines; one of them loses its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import Job, assert_same_state, free_port, losses_seen, run
from tiny_run import write_config, write_scenes

from src.checkpoint import find_checkpoints, step_of

TIMEOUT_S = 300


def torchrun(config: Path, port: str, *program: str, env: dict[str, str], nodes: int = 2, restarts: int = 0):
    """A launcher with one process, running.

    With the rendezvous' own store, a launcher that starts its processes again because another one did may count other
    attempts than that one, and the processes look for each other under addresses of an earlier attempt.
    """
    env = {**env, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=1", f"--nnodes={nodes}"]
    meeting = ["--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}", f"--max-restarts={restarts}"]
    return subprocess.Popen(
        [*launcher, *meeting, *program, "--config", str(config)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(*launchers: subprocess.Popen) -> list[str]:
    """What they said until their end; those that do not end are killed."""
    try:
        return [launcher.communicate(timeout=TIMEOUT_S)[0] for launcher in launchers]
    finally:
        for launcher in launchers:
            if launcher.poll() is None:
                os.killpg(launcher.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data"))


def test_a_run_on_two_nodes_goes_on_by_itself_and_is_the_run_that_was_not_disturbed(
    data: Path, tmp_path: Path, cli_env: dict[str, str]
) -> None:
    settings = {"batch_size_per_gpu": 1, "train_steps": 6, "checkpoint_every": 2}
    config = write_config(tmp_path / "disturbed.yaml", data, tmp_path / "disturbed", **settings)
    port, mortal = free_port(), str(Path(__file__).with_name("mortal.py"))
    nodes = [torchrun(config, port, mortal, env=cli_env, restarts=3) for _ in range(2)]
    said = ended(*nodes)
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(said)
    assert any("Going on from" in text and "step 2" in text for text in said)

    config = write_config(tmp_path / "straight.yaml", data, tmp_path / "straight", **settings)
    port = free_port()
    assert run(*(Job(config, tmp_path / f"notes{rank}", rank, 2, port) for rank in (0, 1))) == [0, 0]
    assert losses_seen(tmp_path / "disturbed") == losses_seen(tmp_path / "straight")
    assert_same_state(tmp_path / "disturbed", tmp_path / "straight")


@pytest.mark.slow
def test_sigterm_to_torchrun_ends_the_run_after_a_checkpoint_and_is_no_reason_to_restart(
    data: Path, tmp_path: Path, cli_env: dict[str, str]
) -> None:
    run_folder = tmp_path / "run"
    config = write_config(
        tmp_path / "run.yaml", data, run_folder, train_steps=100_000, checkpoint_every=100_000, vis_every=1
    )
    launcher = torchrun(config, free_port(), "-m", "src.train", env=cli_env, nodes=1, restarts=3)
    end = time.monotonic() + TIMEOUT_S
    while not (run_folder / "iter_00000001").is_dir() and time.monotonic() < end:
        time.sleep(0.2)
    launcher.send_signal(signal.SIGTERM)
    (said,) = ended(launcher)
    assert "SIGTERM was received. Start again to go on" in said, said
    assert len(find_checkpoints(run_folder)) == 1 and step_of(find_checkpoints(run_folder)[0]) > 0
