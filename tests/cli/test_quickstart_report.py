"""The quickstart's closing table: what must be reached decides the exit status, what is only aimed at does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts import quickstart_report


def write_results(folder: Path, *, psnr: float = 18.0, drop: float = 1.5) -> None:
    floors = {"nearest_input": 15.0, "mean_of_inputs": 16.0, "mean_colour": 14.0, "plane_warp": 19.0}
    scores = {
        "headline": {"psnr": psnr, "ssim": 0.5},
        "floors": {
            name: {"mean_over_scenes": {"psnr": value, "ssim": 0.3}} for name, value in floors.items()
        },
        "swapped_cameras": {"psnr_drop": drop},
        "counts": {"evaluated": 24},
    }
    (folder / "scores").mkdir()
    (folder / "scores" / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
    (folder / "stages.tsv").write_text("render\t30\ntrain\t300\n", encoding="utf-8")


def test_a_model_above_its_floors_passes_even_below_the_aim(tmp_path, capsys):
    write_results(tmp_path)
    assert quickstart_report.main(["--results", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "aim: not reached (-1.00 dB)" in said
    assert "must: beaten (+2.00 dB)" in said
    assert str(tmp_path / "page" / "index.html") in said
    assert "330 s" in said


@pytest.mark.parametrize("worse", [{"psnr": 15.9}, {"drop": 0.9}], ids=["below a floor", "blind to cameras"])
def test_a_missed_mark_is_exit_status_1(tmp_path, capsys, worse):
    write_results(tmp_path, **worse)
    assert quickstart_report.main(["--results", str(tmp_path)]) == 1
    assert "MISSED" in capsys.readouterr().out


def test_results_that_are_not_there_are_a_message_and_status_2(tmp_path, capsys):
    assert quickstart_report.main(["--results", str(tmp_path)]) == 2
    assert "scores.json" in capsys.readouterr().err
