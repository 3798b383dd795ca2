"""Two gloo processes train like one with the double batch, whole or sharded, and decide alike about bad steps."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import largest_difference, losses, records, write_config, write_scenes
from worker import SCENARIOS

import src.step
from src.checkpoint import find_checkpoints, load_training_state, read_manifest
from src.optim import clip_or_skip
from src.train import main

TIMEOUT_S = 480
"""For all scenarios together; they take some ten seconds on two idle cores."""


def free_ports(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [str(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, cli_env: dict[str, str]) -> Path:
    """Where both processes left what they saw in every scenario."""
    folder = tmp_path_factory.mktemp("ddp")
    data = write_scenes(folder / "data")
    common = {"batch_size_per_gpu": 1, "train_steps": 4}
    scored = {"eval_every": 2, "vis_every": 2, "ema_decay": 0.9}
    further = {"train_steps": 6, "resume_ckpt": str(folder / "train")}
    fsdp = {"parallel": "fsdp"}
    settings = {
        "train": scored,
        "accumulated": {"grad_accum_steps": 3},
        "nan": {},
        "diverged": {"max_bad_steps": 2, "checkpoint_every": 1},
        "failed": {"grad_accum_steps": 2},
        "no_data": {"max_bad_steps": 2, "checkpoint_every": 1},
        "stopped": {"checkpoint_every": 100},
        "stopped_scoring": {"checkpoint_every": 100, "eval_every": 2},
        "resumed": further,
        "fsdp": fsdp | scored,
        "fsdp_accumulated": fsdp | {"grad_accum_steps": 3, "grad_checkpoint_every": 1},
        "fsdp_no_data": fsdp,
        "fsdp_resumed": fsdp | further,
        "fsdp_three": fsdp | further | {"resume_ckpt": str(folder / "fsdp")},
    }
    for name in SCENARIOS:
        write_config(folder / f"{name}.yaml", data, folder / name, **(common | settings[name]))
    worker = Path(__file__).with_name("worker.py")
    ports = free_ports(len(SCENARIOS))
    path = f"{worker.parent.parent}:{cli_env['PYTHONPATH']}"
    commands = [[sys.executable, str(worker), str(rank), str(folder), *ports] for rank in (0, 1, 2)]
    processes = [
        subprocess.Popen(c, env={**cli_env, "PYTHONPATH": path}, stderr=subprocess.PIPE, text=True)
        for c in commands
    ]
    try:
        errors = [process.communicate(timeout=TIMEOUT_S)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0, 0], "\n".join(errors)
    return folder


def seen(folder: Path, scenario: str) -> list[dict[str, Any]]:
    """What each rank saw."""
    ranks = range(SCENARIOS[scenario])
    return [torch.load(folder / f"{scenario}_rank{rank}.pt", weights_only=True) for rank in ranks]


def alone(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, **training: Any) -> tuple[Path, list]:
    """The same training in this process; its run folder and the gradients of each step."""
    gradients: list = []

    def recording(parameters: Any, *rest: Any, **options: Any) -> Any:
        gradients.append([p.grad.clone() for p in parameters])
        return clip_or_skip(parameters, *rest, **options)

    monkeypatch.setattr(src.step, "clip_or_skip", recording)
    config = write_config(folder / f"{name}.yaml", folder / "data" / "train", folder / name, **training)
    assert main(["--config", str(config)]) == 0
    return folder / name, gradients


def largest(a: list, b: list) -> float:
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("scenario", "accumulate"), [("train", 1), ("accumulated", 3)])
def test_two_processes_equal_one_with_the_double_batch(
    scenario: str, accumulate: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"batch_size_per_gpu": 2, "grad_accum_steps": accumulate, "train_steps": 4}
    single, gradients = alone(folder, f"{scenario}_alone", monkeypatch, **settings)
    for rank in seen(folder, scenario):
        # The first update has learning rate 0, so the second starts from equal weights too.
        for step in (0, 1):
            assert largest(gradients[step], rank["steps"][step]["gradients"]) < 1e-6
    assert largest_difference(folder / scenario, single) < 1e-5
    assert losses(folder / scenario) == pytest.approx(losses(single), rel=1e-4)


def test_all_ranks_hold_the_same_weights_at_every_step(folder: Path) -> None:
    for scenario in SCENARIOS:
        first, *others = seen(folder, scenario)
        for second in others:
            assert first["status"] == second["status"]
            assert len(first["steps"]) == len(second["steps"]) > 0
            for one, other in zip(first["steps"], second["steps"]):
                assert one["stepped"] == other["stepped"]
                assert largest(one["weights"], other["weights"]) == 0
            if not scenario.startswith("fsdp"):  # there each rank has other rows
                assert largest(first["last"], second["last"]) == 0


def test_gradients_travel_once_per_step_however_many_micro_steps_there_are(folder: Path) -> None:
    once, accumulated = seen(folder, "train")[0], seen(folder, "accumulated")[0]
    assert once["reductions"] == accumulated["reductions"] > 0


def test_every_scene_is_evaluated_once_and_the_first_rank_alone_writes(folder: Path) -> None:
    scores = records(folder / "train", "eval")
    assert [entry["step"] for entry in scores] == [2, 4]
    assert [entry["counts"]["evaluated"] for entry in scores] == [6, 6]
    assert [entry["step"] for entry in records(folder / "train")] == [1, 2, 3, 4]
    assert (folder / "train" / "iter_00000002" / "uids.txt").is_file()


def test_a_nan_on_one_rank_skips_the_step_on_all_and_touches_no_weight(folder: Path) -> None:
    for rank in seen(folder, "nan"):
        assert [step["stepped"] for step in rank["steps"]] == [True, False, True, True]
        assert largest(rank["steps"][1]["weights"], rank["steps"][2]["weights"]) == 0
        assert largest(rank["steps"][2]["weights"], rank["steps"][3]["weights"]) > 0
        assert all(torch.isfinite(weight).all() for weight in rank["last"])
    (bad,) = records(folder / "nan", "bad_step")
    assert bad["step"] == 2 and len(bad["scenes"]) == 1  # that of rank 1 alone


def test_a_forward_pass_that_fails_on_one_rank_costs_that_step_on_all(folder: Path) -> None:
    """In the first micro-batch of step 2 and in the last of step 3: no gradient of these steps is left."""
    for rank in seen(folder, "failed"):
        assert rank["status"] == 0
        assert [step["stepped"] for step in rank["steps"]] == [True, True]  # steps 1 and 4
    failed = records(folder / "failed", "bad_step")
    assert [entry["step"] for entry in failed] == [2, 3]
    assert all(entry["problem"] == "ValueError: this scene cannot be used" for entry in failed)
    assert all(len(entry["scenes"]) == 2 for entry in failed)  # those of rank 1 alone
    (last,) = find_checkpoints(folder / "failed")[-1:]
    assert load_training_state(last)["progress"]["bad"] == 2


def test_gradients_after_a_failed_step_are_those_of_their_own_samples(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 4, against one process that takes only steps 1 and 4: in the first the rate is 0, so weights are equal."""
    settings = {
        "batch_size_per_gpu": 2,
        "grad_accum_steps": 2,
        "train_steps": 4,
        "lr": 0.0,
        "weight_decay": 0.0,
    }
    _, gradients = alone(folder, "failed_alone", monkeypatch, **settings)
    for rank in seen(folder, "failed"):
        assert largest(gradients[3], rank["steps"][1]["gradients"]) < 1e-6


def test_a_rank_without_data_stops_all_after_max_bad_steps(folder: Path) -> None:
    for rank in seen(folder, "no_data"):
        assert rank["status"] == 3
        assert [step["stepped"] for step in rank["steps"]] == [True]
    assert [entry["problem"] for entry in records(folder / "no_data", "bad_step")] == [
        "ValueError: this scene cannot be used"
    ] * 2
    for rank in seen(folder, "fsdp_no_data"):
        assert rank["status"] == 0
        assert [step["stepped"] for step in rank["steps"]] == [True] * 3


def test_too_many_bad_steps_stop_all_ranks_with_status_3_and_keep_the_last_checkpoint(folder: Path) -> None:
    for rank in seen(folder, "diverged"):
        assert rank["status"] == 3
        assert [step["stepped"] for step in rank["steps"]] == [True, False, False]
        assert largest(rank["steps"][1]["weights"], rank["last"]) == 0
    newest = find_checkpoints(folder / "diverged")[-1]
    assert read_manifest(newest)["step"] == 2
    assert all(torch.isfinite(weight).all() for weight in seen(folder, "diverged")[0]["last"])


def test_a_signal_to_one_rank_stops_all_at_the_same_step_after_a_checkpoint(folder: Path) -> None:
    for rank in seen(folder, "stopped"):
        assert rank["status"] == 128 + signal.SIGTERM
        assert len(rank["steps"]) == 2
    assert read_manifest(find_checkpoints(folder / "stopped")[-1])["step"] == 2


def test_a_signal_to_one_rank_ends_an_evaluation_on_all(folder: Path) -> None:
    for rank in seen(folder, "stopped_scoring"):
        assert rank["status"] == 128 + signal.SIGTERM
        assert len(rank["steps"]) == 2
    assert read_manifest(find_checkpoints(folder / "stopped_scoring")[-1])["step"] == 2
    assert not records(folder / "stopped_scoring", "eval")


def test_sharded_training_equals_whole_training(folder: Path) -> None:
    """Weights, moments, averages, losses and scores; each rank kept about half of the weights."""
    for scenario in ("train", "accumulated", "resumed"):
        sharded = {"train": "fsdp"}.get(scenario, f"fsdp_{scenario}")
        assert largest_difference(folder / scenario, folder / sharded) < 1e-5
        assert losses(folder / sharded) == pytest.approx(losses(folder / scenario), rel=1e-4)
    states = [load_training_state(find_checkpoints(folder / name)[-1]) for name in ("train", "fsdp")]
    one, other = (state["optimizer"]["state"] for state in states)
    assert one.keys() == other.keys()
    for number, moments in one.items():
        assert largest(list(moments.values()), list(other[number].values())) < 1e-6
    averages = [list(state["ema"]["averages"].values()) for state in states]
    assert largest(*averages) < 1e-5
    scores = [[entry["headline"]["psnr"] for entry in records(folder / n, "eval")] for n in ("train", "fsdp")]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3) and len(scores[0]) == 2
    assert (folder / "fsdp" / "iter_00000002" / "uids.txt").is_file()
    sizes = [sum(p.numel() for p in seen(folder, name)[1]["last"]) for name in ("train", "fsdp")]
    assert 0.4 < sizes[1] / sizes[0] < 0.6


def test_what_two_sharded_processes_saved_goes_on_in_one_and_in_three(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"batch_size_per_gpu": 3, "train_steps": 6, "resume_ckpt": str(folder / "fsdp")}
    single, _ = alone(folder, "fsdp_alone", monkeypatch, **settings)
    assert [step["stepped"] for step in seen(folder, "fsdp_three")[2]["steps"]] == [True, True]
    assert largest_difference(single, folder / "fsdp_three") < 1e-5
    assert losses(folder / "fsdp_three") == pytest.approx(losses(single), rel=1e-4)


def test_a_run_goes_on_with_another_number_of_processes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four steps on two processes and two on one consume the samples of six steps on two."""
    assert [step["stepped"] for step in seen(folder, "resumed")[0]["steps"]] == [True, True]
    settings = {"batch_size_per_gpu": 2, "train_steps": 6, "resume_ckpt": str(folder / "train")}
    single, _ = alone(folder, "resumed_alone", monkeypatch, **settings)
    states = [
        load_training_state(find_checkpoints(run)[-1])["progress"] for run in (single, folder / "resumed")
    ]
    assert states[0] == states[1] and states[0]["samples_seen"] == 12
    assert largest_difference(single, folder / "resumed") < 1e-5
