"""`scripts.learning_curve`: every checkpoint of a run scored as inference_fast scores it, with a chart and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import write_config, write_scenes

from scripts import learning_curve
from src import inference_fast, train


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of 6 steps with checkpoints at 2, 4 and 6."""
    root = tmp_path_factory.mktemp("curve")
    data = write_scenes(root, num_scenes=3)
    kept = {"checkpoint_every": 2, "keep_checkpoints": 0, "lr": 0.05}
    path = str(write_config(root / "tiny.yaml", data, root / "run", **kept))
    assert train.main(["--config", path]) == 0
    return path


def test_the_curve_is_what_each_checkpoint_scores(config: str, tmp_path: Path, capsys) -> None:
    words = ["--config", config, "inference.swap_target_cameras=true", "inference.metrics=[psnr]"]
    assert learning_curve.main([*words, "--output", str(tmp_path), "--steps", "2", "6", "--scenes", "2"]) == 0
    curve = json.loads((tmp_path / "curve.json").read_text(encoding="utf-8"))
    assert list(curve) == ["2", "6"] and "| 6 |" in capsys.readouterr().out
    for step, scored in curve.items():
        checkpoint = Path(config).parent / "run" / f"ckpt_{int(step):016d}"
        own = [f"inference.checkpoint={checkpoint}", f"inference.inference_out_dir={tmp_path / step}"]
        assert inference_fast.main([*words, *own]) == 0
        report = json.loads((tmp_path / step / "scores.json").read_text(encoding="utf-8"))
        assert scored["render"] == report["headline"]
        assert (
            scored["target cameras swapped"]["psnr"] == report["swapped_cameras"]["mean_over_scenes"]["psnr"]
        )
        assert scored["mean of inputs"] == report["floors"]["mean_of_inputs"]["mean_over_scenes"]
    assert curve["2"]["render"] != curve["6"]["render"]
    assert Image.open(tmp_path / "curve.png").size[0] > 100
    views = np.asarray(Image.open(tmp_path / "views.png"))
    height = views.shape[0] // 3  # truth, step 2, step 6
    assert not np.array_equal(views[height : 2 * height], views[2 * height : 3 * height])


def test_a_step_without_checkpoint_is_told(config: str, tmp_path: Path, capsys) -> None:
    assert learning_curve.main(["--config", config, "--output", str(tmp_path), "--steps", "3"]) == 2
    assert "no checkpoint of step 3: there are 2, 4, 6" in capsys.readouterr().err
