"""Equal processor time by turns, a record that can be taken up again, means and spreads that are those of the record."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from tiny_run import tiny_config, write_config, write_scenes

from scripts import compare_families, compare_masks
from src import contest
from src.bench.chart import Panel
from src.contest import Contest, draw, hold, table
from src.runtime import start
from src.settings import RunConfig

KV = ["model.class_name=src.model.kvlvsm.KVLVSM", "model.camera=none", "model.ray=plucker"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path / "tiny.yaml", write_scenes(tmp_path / "data"), tmp_path / "run")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Trainings take no time here: a step of n layers is said to take n seconds. Returns (layers, steps) of each."""
    done: list[tuple[int, int]] = []

    def train(config: RunConfig, steps: int, runtime, then=None) -> float:
        done.append((config.model.transformer.n_layer, steps))
        return float(config.model.transformer.n_layer * steps + 5)

    def train_and_score(config, steps, inputs, runtime):
        seconds, layers, seed = (
            train(config, steps, runtime),
            config.model.transformer.n_layer,
            config.training.seed,
        )
        scores = {str(n): {"psnr": 10.0 * layers + seed + n, "ssim": 0.5} for n in inputs}
        return {"steps": steps, "cpu_seconds": seconds, "scores": scores}, {
            str(n): {"mean_of_inputs": {"psnr": 9.0, "ssim": 0.1}} for n in inputs
        }

    monkeypatch.setattr(contest, "_train", train)
    monkeypatch.setattr(contest, "_train_and_score", train_and_score)
    return done


def two_depths(path: Path, **changes) -> Contest:
    shallow = tiny_config(path)
    sizes = replace(shallow.model.transformer, n_layer=4)
    deep = replace(shallow, model=replace(shallow.model, transformer=sizes))
    return Contest(
        **{
            "contenders": {"2": shallow, "4": deep},
            "cpu_seconds": 40,
            "seeds": [1, 2],
            "inputs": [1, 2],
            **changes,
        }
    )


def test_contenders_take_turns_and_get_equal_time(config, quick, tmp_path):
    record = hold(two_depths(config), tmp_path / "record.json", start(0))
    timed, trained = quick[: 2 * 2 * contest.ROUNDS], quick[2 * 2 * contest.ROUNDS :]
    assert [layers for layers, _ in timed] == [2, 2, 4, 4] * contest.ROUNDS
    assert record["step_seconds"] == {"2": 2.0, "4": 4.0}
    assert trained == [(2, 20), (4, 10)] * 2
    assert [(run["contender"], run["seed"]) for run in record["runs"]] == [
        ("2", 1),
        ("4", 1),
        ("2", 2),
        ("4", 2),
    ]


def test_an_interrupted_contest_goes_on_where_it_stopped(config, quick, tmp_path):
    path = tmp_path / "record.json"
    hold(two_depths(config, seeds=[1]), path, start(0))
    before = len(quick)
    record = hold(two_depths(config), path, start(0))
    assert quick[before:] == [(2, 20), (4, 10)]
    assert record == json.loads(path.read_text())
    hold(two_depths(config), path, start(0))
    assert len(quick) == before + 2


def test_a_record_of_other_settings_is_refused(config, quick, tmp_path):
    path = tmp_path / "record.json"
    hold(two_depths(config), path, start(0))
    with pytest.raises(ValueError, match="another contest: its cpu_seconds is 40, asked for is 41"):
        hold(two_depths(config, cpu_seconds=41), path, start(0))


def test_table_and_chart_say_what_the_record_says(config, quick, tmp_path):
    record = hold(two_depths(config), tmp_path / "record.json", start(0))
    text = table(record)
    assert f"| 2 | 2 | 20 | 2000 | 22.50 +- {statistics.stdev([22, 23]):.2f} | 23.50 +- 0.71 |" in text
    assert "| no model: mean of inputs | | | | 9.00 | 9.00 |" in text
    draw({"one": record, "two": record}, tmp_path / "chart.png")
    assert Image.open(tmp_path / "chart.png").width == 2 * 620
    with pytest.raises(ValueError, match=r"Contest\.inputs"):
        draw({"one": {**record, "inputs": []}}, tmp_path / "chart.png")


def test_a_linear_axis_encloses_all_points_with_round_ticks():
    panel = Panel("", "", {"a": [(1, 14.72), (2, 15.56)]}, {"a": [(1, 14.61)]}, logarithmic=False)
    assert panel.ticks()[0] <= 14.61 and panel.ticks()[-1] >= 15.56
    assert [round(tick * 10, 6) % 1 for tick in panel.ticks()] == [0.0] * len(panel.ticks())


def test_both_scripts_train_score_and_write(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(contest, "ROUNDS", 1)
    monkeypatch.setattr(contest, "TIMED_STEPS", 2)
    small = ["--cpu_seconds", "0.05", "--seeds", "1"]
    words = ["--config", str(config), *small, "--inputs", "2", "--output", str(tmp_path / "masks"), *KV]
    assert compare_masks.main(words) == 0
    assert {path.name for path in (tmp_path / "masks").iterdir()} == {"data.json", "masks.md", "masks.png"}
    record = json.loads((tmp_path / "masks" / "data.json").read_text())
    assert [run["contender"] for run in record["runs"]] == list(compare_masks.MASKS)
    assert all(run["scores"]["2"]["psnr"] > 0 and run["cpu_seconds"] > 0 for run in record["runs"])
    assert compare_families.main([*small, "--output", str(tmp_path / "f.json"), str(config)]) == 0
    assert "inputs: all" in (tmp_path / "f.md").read_text()


def test_masks_of_another_family_are_refused(config, tmp_path, capsys):
    assert compare_masks.main(["--config", str(config), "--output", str(tmp_path)]) == 2
    assert "model.mask" in capsys.readouterr().err
