"""Records of a run can be read back, and Weights & Biases can never stop it."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import tiny_config, write_config

from src.config import ConfigError
from src.runtime import Runtime
from src.settings import RunConfig
from src.tracking import Meter, Tracker, console_line


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return tiny_config(write_config(tmp_path / "c.yaml", tmp_path / "data", tmp_path / "run"))


def test_records_and_curves_can_be_read_back(config: RunConfig, tmp_path: Path) -> None:
    with Tracker(tmp_path / "run", config, Runtime()) as tracker:
        tracker.record(
            "train", 3, {"loss": 0.5, "grad_norm": float("nan"), "nested": {"a": [float("inf"), 1]}}
        )
        tracker.curves("train", 3, {"loss": 0.5})
    with Tracker(tmp_path / "run", config, Runtime(), first_step=3) as tracker:
        tracker.record("train", 4, {"loss": 0.25})
        tracker.curves("train", 4, {"loss": 0.25})
    first, second = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    assert (first["kind"], first["step"], first["loss"], first["grad_norm"]) == ("train", 3, 0.5, None)
    assert first["nested"] == {"a": [None, 1]}
    assert second["loss"] == 0.25
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [(point.step, point.value) for point in board.Scalars("train/loss")] == [(3, 0.5), (4, 0.25)]


def test_other_ranks_write_nothing(config: RunConfig, tmp_path: Path) -> None:
    with Tracker(tmp_path / "run", config, Runtime(rank=1, world=2)) as tracker:
        tracker.record("train", 1, {"loss": 1.0})
        tracker.curves("train", 1, {"loss": 1.0})
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_to_is_a_mistake_with_a_message(
    config: RunConfig, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written to"):
        Tracker(tmp_path / "file" / "run", config, Runtime())


class FakeWandb(types.ModuleType):
    """Stands for the package: remembers what it was told, or is out of reach."""

    class errors:
        class Error(Exception):
            pass

    def __init__(self, *, reachable: bool, key: str | None) -> None:
        super().__init__("wandb")
        self.reachable, self.api = reachable, types.SimpleNamespace(api_key=key)
        self.options: dict[str, Any] = {}
        self.logged: list[tuple[dict, int]] = []
        self.finished = False

    def Settings(self, **options: Any) -> dict:
        return options

    def init(self, **options: Any) -> FakeWandb:
        if not self.reachable:
            raise self.errors.Error("no route to host")
        self.options = options
        return self

    def log(self, values: dict, step: int) -> None:
        self.logged.append((values, step))

    def finish(self) -> None:
        self.finished = True


def use(
    wandb: FakeWandb, mode: str, config: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config.training.wandb = mode
    with Tracker(folder, config, Runtime()) as tracker:
        tracker.curves("train", 5, {"loss": 0.5})


def test_wandb_gets_the_curves_and_the_config_and_no_key_of_ours(
    config: RunConfig, tmp_path, monkeypatch
) -> None:
    wandb = FakeWandb(reachable=True, key="from netrc")
    use(wandb, "online", config, tmp_path / "run", monkeypatch)
    assert wandb.logged == [({"train/loss": 0.5}, 5)] and wandb.finished
    assert wandb.options["name"] == "run" and wandb.options["config"]["training"]["lr"] == 2e-3
    first = wandb.options["id"]
    use(wandb, "online", config, tmp_path / "run", monkeypatch)
    assert wandb.options["id"] == first


@pytest.mark.parametrize(
    ("mode", "reachable", "key", "message"),
    [
        ("online", False, "key", "no route to host"),
        ("online", True, None, "WANDB_API_KEY"),
        ("offline", False, None, "no route"),
    ],
)
def test_wandb_that_fails_is_told_and_gone_without(
    mode: str,
    reachable: bool,
    key: str | None,
    message: str,
    config: RunConfig,
    tmp_path,
    monkeypatch,
    caplog,
) -> None:
    use(FakeWandb(reachable=reachable, key=key), mode, config, tmp_path / "run", monkeypatch)
    assert message in caplog.text and "Going on without it" in caplog.text


def test_wandb_is_not_imported_unless_asked_for(config: RunConfig, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would fail
    Tracker(tmp_path / "run", config, Runtime()).close()


def test_a_missing_wandb_is_told_and_gone_without(config: RunConfig, tmp_path, monkeypatch, caplog) -> None:
    use(None, "online", config, tmp_path / "run", monkeypatch)
    assert "wandb is not installed" in caplog.text


def test_means_leave_out_bad_steps_and_speed_counts_all(monkeypatch) -> None:
    meter, batch = Meter(), types.SimpleNamespace(image=torch.zeros(2, 4, 3, 1, 1))
    meter.add({"loss": torch.tensor(1.0)}, [batch], 0.5, 1.0)
    meter.add({}, [batch], 0.5, 1.0)
    meter.add({"loss": torch.tensor(3.0)}, [batch], 0.5, 2.0)
    means = meter.means(Runtime())
    assert (means["loss"], means["it_per_s"], means["images_per_s"], means["data_share"]) == (
        2.0,
        0.75,
        6.0,
        0.375,
    )


def test_the_console_line_has_units_and_shows_skipped_steps_only_if_there_are_any() -> None:
    line = console_line(7, 10, {"loss": 0.03125, "psnr": 15.0, "lr": 4e-4, "skipped": 0, "other": 1.0})
    assert line == "step 7/10  loss 0.0312  psnr 15.00 dB  lr 4.00e-04"
    assert console_line(7, 10, {"skipped": 2}).endswith("skipped 2")
