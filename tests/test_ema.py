"""Averaged weights: the formula, that they come and go without a trace, and that a run keeps them across restarts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_run import write_config, write_scenes
from torch import nn

from src import inference_fast, train
from src.checkpoint import load_training_state
from src.ema import Ema, fill_with_averages


def small() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def test_the_average_is_the_sum_that_the_formula_gives() -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
        ema = Ema(model, decay=0.5)
        expected = 1.0
        for update, weight in enumerate((2.0, 4.0, -1.0, 7.0, 3.0, 0.5, 9.0, 1.0, 2.0, 6.0), start=1):
            model.weight.fill_(weight)
            ema.update(model)
            decay = min(0.5, (1 + update) / (10 + update))
            expected = decay * expected + (1 - decay) * weight
    assert ema.averages["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_frozen_weights_are_not_averaged() -> None:
    model = small()
    model.bias.requires_grad_(False)
    assert set(Ema(model, 0.9).averages) == {"weight"}


def test_averages_are_in_place_inside_and_gone_without_a_trace_afterwards() -> None:
    model = small()
    ema = Ema(model, 0.9)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ema.averages["weight"].fill_(5.0)
    with pytest.raises(RuntimeError), ema.applied_to(model):
        assert (model.weight == 5).all()
        raise RuntimeError
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_averages_of_another_model_are_refused_by_name() -> None:
    state = Ema(nn.Linear(4, 2), 0.9).state_dict()
    with pytest.raises(ValueError, match="weight"):
        Ema(small(), 0.9).load_state_dict(state)
    with pytest.raises(ValueError, match="weight"):
        fill_with_averages(small(), state)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ema")
    write_scenes(folder)
    return folder


def run(root: Path, name: str, **training: object) -> Path:
    settings = {"ema_decay": 0.9, "checkpoint_every": 3, "keep_checkpoints": 0} | training
    config = write_config(root / f"{name}.yaml", root / "train", root / name, **settings)
    assert train.main(["--config", str(config)]) == 0
    return root / name


def averages(folder: Path, step: int) -> dict:
    return load_training_state(folder / f"ckpt_{step:016d}")["ema"]


def test_a_resumed_run_has_the_averages_of_an_uninterrupted_one_bit_for_bit(root: Path) -> None:
    straight = run(root, "straight")
    shutil.copytree(straight / f"ckpt_{3:016d}", root / "resumed" / f"ckpt_{3:016d}")
    resumed = averages(run(root, "resumed"), 6)
    expected = averages(straight, 6)
    assert resumed["updates"] == expected["updates"] == 6
    assert all(torch.equal(resumed["averages"][name], t) for name, t in expected["averages"].items())


def test_scoring_takes_the_averages_unless_it_is_told_not_to(root: Path) -> None:
    folder = run(root, "scored", lr=0.05)
    found = {}
    for use in ("true", "false"):
        words = [f"inference.use_ema={use}", f"inference.inference_out_dir={root / use}"]
        assert inference_fast.main(["--config", str(root / "scored.yaml"), *words]) == 0
        found[use] = json.loads((root / use / "scores.json").read_text())
    assert found["true"]["weights"]["averaged"] == "true" and "averaged" not in found["false"]["weights"]
    assert found["true"]["headline"] != found["false"]["headline"]
    with_averages = averages(folder, 6)["averages"]
    assert with_averages
