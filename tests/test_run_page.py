"""Several runs on one page: same views or refusal, every picture in its place, nothing of a name read as HTML."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts import compare_runs
from src.config import ConfigError
from src.run_page import read_run, write_run_page

SIDE = 64


def write_run(
    folder: Path, level: int, *, index: str = "a" * 64, name: str = "room", **report: object
) -> Path:
    """A result folder of one scene whose three renders are grey of a level and whose truth is that of the column."""
    rows = [[60, 120, 180], [level, level, level]]
    sheet = np.block([[np.full((SIDE, SIDE), value, np.uint8) for value in row] for row in rows])
    (folder / "000000").mkdir(parents=True)
    Image.fromarray(np.repeat(sheet[..., None], 3, axis=2)).save(folder / "000000" / "gt_vs_pred.png")
    scene = {
        "scene": name, "position": 0, "frames": [4, 5, 9], "mean": {"psnr": level / 10},
        "per_view": {"psnr": [1.0, 2.0, level / 10]},
    }  # fmt: skip
    content = {
        "model": "LVSM", "target_aware": False, "protocol": {"index_sha256": index},
        "headline": {"psnr": level / 10}, "floors": {"nearest": {"mean_over_scenes": {"psnr": 9.5}}},
        "scenes": [scene], "weights": {"path": "w", "digest": "d"}, **report,
    }  # fmt: skip
    (folder / "scores.json").write_text(json.dumps(content))
    return folder


def data_of(page: Path) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1])


def level_of(uri: str) -> float:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))).mean()


def test_each_view_shows_the_truth_and_every_run(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, level) for name, level in (("a", 200), ("b", 30))]
    page = tmp_path / "page.html"
    assert compare_runs.main([*map(str, folders), "--output", str(page), "--labels", "small", "large"]) == 0
    data = data_of(page)
    assert [run["label"] for run in data["runs"]] == ["small", "large"]
    (scene,) = data["scenes"]
    assert scene["frames"] == [4, 5, 9]
    assert [round(level_of(uri)) for uri in scene["truth"]] == pytest.approx([60, 120, 180], abs=2)
    assert [[round(level_of(uri)) for uri in row] for row in scene["renders"]] == [[200] * 3, [30] * 3]
    assert [views["psnr"] for views in scene["per_view"]] == [[1, 2, 20], [1, 2, 3]]


def test_runs_scored_on_other_views_are_refused(tmp_path: Path, capsys) -> None:
    a, b = write_run(tmp_path / "a", 10), write_run(tmp_path / "b", 10, index="b" * 64)
    assert compare_runs.main([str(a), str(b), "--output", str(tmp_path / "p.html")]) == 2
    assert "another index" in capsys.readouterr().err
    assert not (tmp_path / "p.html").exists()


def test_target_aware_scores_stay_apart_unless_asked_for(tmp_path: Path) -> None:
    runs = [
        read_run(write_run(tmp_path / "a", 10)),
        read_run(write_run(tmp_path / "b", 10, target_aware=True)),
    ]
    with pytest.raises(ConfigError, match="target-aware"):
        write_run_page(runs, tmp_path / "p.html")
    write_run_page(runs, tmp_path / "p.html", mix_target_aware=True)


def test_names_from_data_sets_are_never_html(tmp_path: Path) -> None:
    name = "</script><img src=x onerror=alert(1)>"
    runs = [read_run(write_run(tmp_path / label, 10, name=name)) for label in "ab"]
    write_run_page(runs, tmp_path / "p.html")
    assert name not in (tmp_path / "p.html").read_text()
    assert data_of(tmp_path / "p.html")["scenes"][0]["scene"] == name


@pytest.mark.parametrize("content", [None, "no json", "{}", '{"protocol": {"index_sha256": 3}}'])
def test_a_folder_without_scores_is_told(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "scores.json").write_text(content)
    with pytest.raises(ConfigError, match="scores"):
        read_run(tmp_path)
