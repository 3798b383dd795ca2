"""One process: device, seeds, precision, log, generators. Several processes: tests/ddp."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from src.config import ConfigError
from src.runtime import (
    Runtime,
    all_gather_objects,
    autocast,
    broadcast_object,
    exact_float32,
    from_main,
    grad_scaler,
    largest_over_ranks,
    mean_over_ranks,
    peak_memory_gib,
    random_state,
    set_precision,
    set_random_state,
    setup_logging,
    start,
    stop,
)

CPU = torch.device("cpu")


@dataclass
class Precision:
    use_amp: bool = True
    amp_dtype: str = "bf16"
    use_tf32: bool = True


@pytest.fixture
def float32_switches():
    """Put the process-wide switches back."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions


def test_alone_there_is_no_process_group_and_collectives_return_what_they_got() -> None:
    runtime = start(seed=3)
    assert (runtime.rank, runtime.world, runtime.is_main) == (0, 1, True)
    assert not torch.distributed.is_initialized()
    assert largest_over_ranks(torch.tensor([0, 15]), runtime).tolist() == [0, 15]
    assert all_gather_objects("x") == ["x"]
    assert broadcast_object({"a": 1}) == {"a": 1}
    assert mean_over_ranks({"a": torch.tensor(2.0), "b": torch.tensor(-1)}, runtime) == {"a": 2.0, "b": -1.0}
    assert mean_over_ranks({}, runtime) == {}
    assert from_main(lambda: 5, runtime) == 5
    stop()


@pytest.fixture
def eight_gpus(monkeypatch) -> list[tuple]:
    """What `start` asks of torch as process 11 of 16 on two machines with 8 GPUs each; nothing is done."""
    calls: list[tuple] = []
    for name, value in (("RANK", "11"), ("WORLD_SIZE", "16"), ("LOCAL_RANK", "3")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("set_device", device)))
    monkeypatch.setattr(
        torch.distributed,
        "init_process_group",
        lambda backend, *, timeout, device_id: calls.append((backend, device_id)),
    )
    return calls


def test_a_process_takes_its_own_gpu_before_nccl_connects_on_it(eight_gpus) -> None:
    own = torch.device("cuda", 3)
    assert start() == Runtime(own, rank=11, world=16, local_rank=3)
    assert eight_gpus == [("set_device", own), ("cpu:gloo,cuda:nccl", own)]


def test_more_processes_than_gpus_are_refused_before_they_meet(eight_gpus, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="--nproc_per_node 2"):
        start()
    assert eight_gpus == []


def test_an_error_on_the_first_rank_is_raised() -> None:
    with pytest.raises(ValueError, match="broken"):
        from_main(lambda: int("broken"), Runtime())


def test_a_seed_fixes_all_generators() -> None:
    def draws() -> list[float]:
        start(seed=11)
        return [torch.rand(()).item(), float(np.random.rand()), random.random()]

    assert draws() == draws()


def test_random_state_survives_a_file_that_may_hold_tensors_and_plain_values_only(tmp_path) -> None:
    np.random.randn()  # numpy now holds a second normal number in store
    torch.save(random_state(CPU), tmp_path / "state.pt")

    def draws() -> list[float]:
        return [torch.rand(()).item(), float(np.random.randn()), float(np.random.rand()), random.random()]

    expected = draws()
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True), CPU)
    assert draws() == expected


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        (Precision(amp_dtype="bf16"), torch.bfloat16),
        (Precision(amp_dtype="fp16"), torch.float16),
        (Precision(amp_dtype="fp32"), torch.float32),
        (Precision(amp_dtype="tf32"), torch.float32),
        (Precision(use_amp=False), torch.float32),
    ],
)
def test_autocast_gives_the_type_that_was_asked_for(precision: Precision, dtype: torch.dtype) -> None:
    with autocast(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_half_precision_on_a_cpu_is_warned_about_once(caplog, monkeypatch) -> None:
    monkeypatch.setattr("src.runtime._warned", set())
    for _ in range(2):
        autocast(CPU, Precision())
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "training.use_amp=false" in caplog.text


@pytest.mark.parametrize(
    ("precision", "tf32"),
    [
        (Precision(use_tf32=True), True),
        (Precision(use_tf32=False), False),
        (Precision(amp_dtype="tf32", use_tf32=False), True),
        (Precision(amp_dtype="fp32", use_tf32=True), False),
        (Precision(use_amp=False, amp_dtype="fp32", use_tf32=True), True),
    ],
)
def test_tf32_switches(precision: Precision, tf32: bool, float32_switches) -> None:
    set_precision(precision)
    assert (torch.get_float32_matmul_precision() == "high") is tf32
    assert torch.backends.cudnn.allow_tf32 is tf32
    with exact_float32():
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
    assert (torch.get_float32_matmul_precision() == "high") is tf32
    assert torch.backends.cudnn.allow_tf32 is tf32


def test_only_fp16_scales_the_loss() -> None:
    assert grad_scaler(CPU, Precision(amp_dtype="fp16")).is_enabled()
    assert not grad_scaler(CPU, Precision(amp_dtype="bf16")).is_enabled()
    assert not grad_scaler(CPU, Precision(use_amp=False, amp_dtype="fp16")).is_enabled()


@pytest.mark.parametrize("is_main", [True, False])
def test_the_first_rank_speaks_and_the_others_report_errors_only(is_main: bool, capsys, monkeypatch) -> None:
    root, ours = logging.getLogger(), logging.getLogger("src")
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setenv("RANK", "3")
    before = root.level, ours.level
    setup_logging(is_main)
    logging.getLogger("src.train").info("step %d", 1)
    logging.getLogger("src.train").error("broken")
    logging.getLogger("other").info("chatter")
    root.setLevel(before[0])
    ours.setLevel(before[1])
    lines = [line[len("12:34:56 ") :] for line in capsys.readouterr().err.splitlines()]
    assert lines == (["step 1", "ERROR: broken"] if is_main else ["[rank 3] ERROR: broken"])


def test_memory_is_counted_in_gib() -> None:
    assert 0.01 < peak_memory_gib(CPU) < 1000
