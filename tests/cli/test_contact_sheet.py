"""The picture of a results folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts import contact_sheet


def test_columns_are_inputs_truth_and_render_enlarged(tmp_path: Path) -> None:
    scene = tmp_path / "000000"
    scene.mkdir()
    red, green, blue = (
        np.full((4, 8, 3), color, np.uint8) for color in ([255, 0, 0], [0, 255, 0], [0, 0, 255])
    )
    Image.fromarray(red).save(scene / "input.png")
    Image.fromarray(np.concatenate([green, blue])).save(scene / "gt_vs_pred.png")
    out = tmp_path / "sheet.png"
    assert contact_sheet.main(["--results", str(tmp_path), "--output", str(out), "--scale", "3"]) == 0
    row = np.asarray(Image.open(out))[-1]  # [width, 3]
    assert len(row) == 3 * 8 * 3 + 2 * contact_sheet.GAP
    for column, color in enumerate(([255, 0, 0], [0, 255, 0], [0, 0, 255])):
        left = column * (8 * 3 + contact_sheet.GAP)
        assert (row[left : left + 8 * 3] == color).all()


def test_an_empty_folder_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert contact_sheet.main(["--results", str(tmp_path), "--output", str(tmp_path / "x.png")]) == 2
    assert "no scenes" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()
