"""scripts/benchmark.py: its reference does the same work, and a row counts only with the same results."""

from __future__ import annotations

import json

import pytest
import torch

from scripts import benchmark
from src.bench import conversion, loading, scoring
from src.bench.host_memory import held_bytes
from src.bench.pictures import write_chunks
from src.bench.ratio import Place, Row, Turns, table


@pytest.fixture(scope="module")
def chunks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chunks")
    write_chunks(folder, scenes=1, frames=9)
    return folder


def test_rows_without_equal_results_are_not_reached():
    rows = [Row("a", "1 s", "0.1 s", 10.0, 8.0, equal) for equal in ("bit for bit", "")]
    assert [row.reached for row in rows] == [True, False]
    assert not Row("a", "1 s", "0.2 s", 5.0, 8.0, "bit for bit").reached
    assert "| 10 | 8 | no | NO |" in table(rows)


def test_a_ratio_is_the_median_of_those_of_the_turns():
    assert Turns([4.0, 10.0, 6.0], [2.0, 1.0, 2.0]).ratio == 3.0


def test_loading_is_compared_with_the_published_way(chunks, tmp_path):
    exact, fast = loading.measure(Place(chunks, tmp_path, rounds=1))
    assert exact.equal == "bit for bit" and fast.equal.endswith("dB")
    assert fast.ratio > exact.ratio > 1


def test_different_pictures_are_noticed(chunks, tmp_path, monkeypatch):
    collected = loading._ours

    def shifted(*arguments):
        sample = collected(*arguments)
        return {**sample, "image": sample["image"].roll(1, dims=-1)}

    monkeypatch.setattr(loading, "_ours", shifted)
    assert [row.equal for row in loading.measure(Place(chunks, tmp_path, rounds=1))] == ["", ""]


def test_conversion_is_compared_with_png_files(chunks, tmp_path, monkeypatch):
    rows = conversion.measure(Place(chunks, tmp_path / "a", rounds=1))
    assert all(row.equal.startswith("same pixels") for row in rows) and min(row.ratio for row in rows) > 1
    monkeypatch.setattr(conversion, "MOST_BYTES", 1.0)
    (tmp_path / "b").mkdir()
    assert not any(row.reached for row in conversion.measure(Place(chunks, tmp_path / "b", rounds=1)))


@pytest.mark.slow
def test_scoring_is_compared_with_the_published_way(chunks, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "TARGETS", 1)
    rows = scoring.measure(Place(chunks, tmp_path, rounds=1))
    assert all(row.equal.startswith("PSNR within") for row in rows)


@pytest.mark.parametrize("method", ["render", "mean_colour"])
@pytest.mark.parametrize("metric, least", [("psnr", 1e-3), ("ssim", 1e-5), ("lpips", 1e-5)])
def test_scores_that_differ_are_noticed(method, metric, least):
    def verdict(off: float) -> str:
        scores = {
            name: {m: [0.5, 0.7] for m in ("psnr", "ssim", "lpips")} for name in ("render", "mean_colour")
        }
        scores[method][metric] = [0.5 + off, 0.7 + off]
        means = dict.fromkeys(("psnr", "ssim", "lpips"), 0.6)
        scene = {"scene": "a", "per_view": {m: [0.5, 0.7] for m in means}, "floors": {"mean_colour": means}}
        return scoring._verdict({"a": scores}, {"scenes": [scene]})

    assert verdict(0.9 * least) and not verdict(1.1 * least)
    assert not scoring._verdict({}, {"scenes": [{"scene": "a"}]})


def test_memory_counts_what_is_held():
    before = held_bytes()
    held = torch.ones(400 * 2**20 // 4)  # much more than processes of other tests that end meanwhile
    assert 200 * 2**20 < held_bytes() - before < 500 * 2**20
    del held


def test_the_script_writes_a_table_and_a_report(tmp_path, monkeypatch, capsys):
    row = Row("sorting", "2 s", "1 s", 2.0, 1.5, "same order")
    monkeypatch.setattr(benchmark, "SUBJECTS", {"sorting": lambda place: [row], "other": lambda place: []})
    assert benchmark.main(["--output", str(tmp_path), "--only", "sorting", "--data", str(tmp_path)]) == 0
    assert "| sorting | 2 s | 1 s | 2 | 1.5 | yes | same order |" in capsys.readouterr().out
    report = json.loads((tmp_path / "benchmark.json").read_text())
    assert report["rows"][0]["reached"] is True and "sorting" in (tmp_path / "benchmark.md").read_text()
    assert not list(tmp_path.glob("work-*"))
