"""`--profile`: a trace with the parts of a step, and a run that is otherwise the same."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from tiny_run import largest_difference, write_config, write_scenes

from src import profiling
from src.train import main


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data"))


def events(run: Path) -> list[dict]:
    with gzip.open(run / "profile" / "rank_0.json.gz", "rt", encoding="utf-8") as file:
        return json.load(file)["traceEvents"]


def test_a_profiled_run_learns_the_same_and_leaves_a_trace(data, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(profiling, "WARM_UP", 2)
    plain, watched = tmp_path / "plain", tmp_path / "watched"
    settings = {"grad_accum_steps": 2, "train_steps": 7}
    assert main(["--config", str(write_config(tmp_path / "a.yaml", data, plain, **settings))]) == 0
    config = write_config(tmp_path / "b.yaml", data, watched, **settings)
    assert main(["--config", str(config), "--profile"]) == 0
    assert largest_difference(plain, watched) == 0
    assert not (plain / "profile").exists()
    named = [event["name"] for event in events(watched) if event.get("cat") == "user_annotation"]
    times = {label: named.count(label) for label in profiling.LABELS}
    assert times == {"data wait": 3, "forward": 6, "objective": 6, "backward": 6, "optimiser": 3}
    assert [name for name in named if name.startswith("ProfilerStep")] == [
        f"ProfilerStep#{n}" for n in (2, 3, 4)
    ]
    told = capsys.readouterr().err.partition("perfetto")[2]
    assert "backward" in told and "aten::" in told


def test_a_run_of_few_steps_is_recorded_too(data, tmp_path) -> None:
    config = write_config(tmp_path / "c.yaml", data, tmp_path / "run", train_steps=2)
    assert main(["--config", str(config), "--profile"]) == 0
    assert "forward" in {event["name"] for event in events(tmp_path / "run")}


def test_a_trace_that_cannot_be_written_does_not_end_the_run(data, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "profile").write_text("in the way")
    config = write_config(tmp_path / "d.yaml", data, run, train_steps=5)
    assert main(["--config", str(config), "--profile"]) == 0
    assert "could not be written" in capsys.readouterr().err
