"""LaCT beside full attention: counted work, the formulas, where the two cross."""

from __future__ import annotations

import json
import math

import pytest

from scripts import benchmark_views
from src.bench.measure import counted
from src.bench.views import FULL, LACT, Row, Sizes, contenders, crossover, expected_flops, scene_s


@pytest.mark.parametrize("num_inputs", [1, 3])
def test_counted_work_is_that_of_the_formulas(num_inputs):
    sizes = Sizes(width=32, d_head=8, layers=3, size=16, patch=4)
    for name, section in contenders(sizes).items():
        assert (
            counted(section, num_inputs, sizes.size, skips=False) == expected_flops(sizes, num_inputs)[name]
        ), name


def rows(lact: list[float], full: list[float]) -> list[Row]:
    """Seconds for 4, 8, 16, ... inputs."""
    pairs = [(LACT, lact), (FULL, full)]
    return [
        Row(name, 4 * 2**i, s, 0.0, None, None, 1, 1) for name, all_s in pairs for i, s in enumerate(all_s)
    ]


def test_the_crossover_is_interpolated():
    """Linear against quadratic: 10 v and v^2 meet at 10."""
    found = crossover(rows([40.0, 80.0, 160.0], [16.0, 64.0, 256.0]), scene_s)
    assert found == pytest.approx(10.0)
    assert crossover(rows([1.0, 2.0], [3.0, 9.0]), scene_s) == 0.0
    assert math.isinf(crossover(rows([5.0, 9.0], [3.0, 6.0]), scene_s))


def test_the_command_writes_figures_table_and_chart(tmp_path, capsys):
    words = "--width 32 --d_head 8 --layers 2 --size 16 --patch 4 --inputs 1 2"
    assert benchmark_views.main(["--output", str(tmp_path), *words.split()]) == 0
    report = json.loads((tmp_path / "views.json").read_text(encoding="utf-8"))
    assert [(row["num_inputs"], row["name"]) for row in report["rows"]] == [
        (number, name) for number in (1, 2) for name in (LACT, FULL)
    ]
    assert (tmp_path / "views.png").is_file() and "for each further target" in capsys.readouterr().out
