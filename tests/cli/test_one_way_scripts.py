"""Fine-tuning LVSM's weights into a model with a cache, and measuring frames, on tiny sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_run import tiny_config, write_config, write_scenes

from scripts import benchmark_frames, benchmark_targets, finetune_one_way
from src.model import build_model

KV = ["model.class_name=src.model.kvlvsm.KVLVSM", "model.camera=none", "model.ray=plucker"]


def lvsm_weights(path: Path, config: Path) -> Path:
    """A file in the published form: LVSM decoder-only with the sizes of `config`."""
    torch.manual_seed(3)
    torch.save({"model": build_model(tiny_config(config).model).state_dict()}, path)
    return path


@pytest.fixture
def lvsm(tmp_path):
    data = write_scenes(tmp_path)
    config = write_config(tmp_path / "tiny.yaml", data, tmp_path / "run", pose_norm="context")
    return config, lvsm_weights(tmp_path / "lvsm.pt", config)


def test_lvsm_weights_become_a_model_with_a_cache(lvsm, tmp_path):
    config, weights = lvsm
    start = [f"training.resume_ckpt={weights}", "training.reset_training_state=true"]
    arguments = ["--config", str(config), *KV, *start]
    assert finetune_one_way.main(arguments) == 0
    report = json.loads((tmp_path / "run" / "one_way.json").read_text(encoding="utf-8"))
    full, before, after = report["scores"].values()
    assert full["psnr"] != before["psnr"] != after["psnr"]
    assert finetune_one_way.main(arguments) == 0  # finished: only scored again


@pytest.mark.parametrize(
    "overrides,message",
    [
        ([], "must be of class src.model.kvlvsm.KVLVSM"),
        ([*KV, "model.mask=full"], "model.mask: one_way"),
        (KV, "training.resume_ckpt must name LVSM's weights"),
    ],
)
def test_what_cannot_be_fine_tuned_is_refused(lvsm, capsys, overrides, message):
    assert finetune_one_way.main(["--config", str(lvsm[0]), *overrides]) == 2
    assert message in capsys.readouterr().err


def test_frames_are_measured_and_counted(tmp_path, capsys):
    words = "--width 32 --d_head 16 --layers 2 --size 16 --patch 4 --inputs 1 3 --repeats 1 --camera none"
    assert benchmark_frames.main(["--output", str(tmp_path), *words.split()]) == 0
    report = json.loads((tmp_path / "frames.json").read_text(encoding="utf-8"))
    rows = {(row["name"], row["num_inputs"]): row for row in report["rows"]}
    assert len(rows) == 6 and all(row["frame_s"] > 0 for row in rows.values())
    ends = 2 * (6 + 3) * 16 * 32 * 16  # tokenizer and head, in both models alike
    for inputs in (1, 3):
        work = [rows[name, inputs]["frame_flop"] - ends for name in ("LVSM decoder-only", "KV-LVSM")]
        assert work[0] == (inputs + 1) * work[1]
    assert (tmp_path / "frames.png").stat().st_size > 1000
    assert (tmp_path / "frames.md").read_text(encoding="utf-8") in capsys.readouterr().out


def test_four_ways_to_render_many_targets_are_measured_and_agree(tmp_path, capsys):
    words = (
        "--width 24 --heads 2 --d_head 8 --d_ff 32 --layers 2 --size 16 --patch 4 --targets 1 3 --repeats 1"
    )
    assert benchmark_targets.main(["--output", str(tmp_path), *words.split()]) == 0
    report = json.loads((tmp_path / "targets.json").read_text(encoding="utf-8"))
    assert [(row["num_targets"], row["way"]) for row in report["rows"]] == [
        (number, way) for number in (1, 3) for way in ("cached", "dense mask", "per target", "re-encoded")
    ]
    assert all(row["difference"] < 1e-5 and row["cpu_s"] > 0 for row in report["rows"])
    assert (tmp_path / "targets.png").is_file() and "| 3 | per target |" in capsys.readouterr().out


def test_ways_that_do_not_agree_are_an_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark_targets, "LARGEST_DIFFERENCE", -1.0)
    words = "--width 24 --heads 2 --d_head 8 --d_ff 32 --layers 1 --size 8 --patch 4 --targets 1 --repeats 1"
    assert benchmark_targets.main(["--output", str(tmp_path), *words.split()]) == 2
    assert "differs from the cached images" in capsys.readouterr().err
