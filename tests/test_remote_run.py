"""Whole runs on data behind a URL: as on a folder, and a server that fails neither hangs nor ends them."""

from __future__ import annotations

import json
import time

import pytest
import torch
from range_server import RangeServer
from tiny_run import losses, write_config, write_scenes

from src.inference_fast import main as score
from src.train import main as train

QUICK = [
    "training.remote.timeout_s=0.5",
    "training.remote.attempts=2",
    "training.remote.cache_bytes=0",
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PARALLAX_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path):
    """Six scenes in two chunks."""
    folder = write_scenes(tmp_path / "data")
    scenes = torch.load(folder / "000000.torch", weights_only=True)
    torch.save(scenes[:3], folder / "000000.torch")
    torch.save(scenes[3:], folder / "000001.torch")
    return folder


def run(folder, address, data, *words, **training):
    """A run on the chunks at `address`, with the evaluation index beside the folder `data`; its exit status."""
    path = write_config(folder.with_suffix(".yaml"), data, folder, **training)
    paths = [f"training.dataset_path={address}", f"training.eval_dataset_path={address}"]
    return train(["--config", str(path), *paths, *words])


def scores(folder, address, config, *words):
    """The report of scoring on the scenes at `address`."""
    paths = [f"training.eval_dataset_path={address}", f"inference.inference_out_dir={folder}"]
    quiet = ["inference.generate_website=false", "inference.render_images=false"]
    status = score(["--config", str(config), *paths, *quiet, *words])
    report = folder / "scores.json"
    return status, json.loads(report.read_text()) if report.is_file() else {}


def test_training_and_scoring_equal_those_on_a_folder(tmp_path, data):
    """The second half: a chunk that does not come is left out of the scores, and listed with the reason."""
    with RangeServer(data) as served:
        assert run(tmp_path / "local", data, data, train_steps=2, eval_every=2) == 0
        assert run(tmp_path / "remote", served.url, data, train_steps=2, eval_every=2, num_workers=1) == 0
        assert losses(tmp_path / "remote") == losses(tmp_path / "local")
        _, local = scores(tmp_path / "scores", data, tmp_path / "local.yaml")
        status, remote = scores(tmp_path / "remote_scores", served.url, tmp_path / "local.yaml", *QUICK)
        assert status == 0 and remote["scenes"] == local["scenes"]
        served.asked = []
        served.misbehave("000001.torch", "fine", "cut")
        _, without = scores(tmp_path / "fewer", served.url, tmp_path / "local.yaml", *QUICK)
    assert [entry["scene"] for entry in without["missing"]] == ["scene3", "scene4", "scene5"]
    assert "000001.torch broke off" in without["missing"][0]["reason"]


def test_a_run_goes_on_beside_a_chunk_that_does_not_come(tmp_path, data, capfd):
    """Asked for again, then replaced and counted."""
    with RangeServer(data) as served:
        assert run(tmp_path / "first", served.url, data, *QUICK, "--dry-run") == 0
        served.asked = []
        served.misbehave("000000.torch", "fine", "500")
        assert run(tmp_path / "run", served.url, data, *QUICK, num_workers=1) == 0
    told = capfd.readouterr()
    assert "000000.torch gave HTTP 500" in told.err + told.out and "replaced_scenes" in told.err + told.out
    assert len(losses(tmp_path / "run")) == 6


def test_a_server_that_goes_away_ends_run_and_scoring_with_a_message(tmp_path, data, capfd):
    """In bounded time, with the checkpoint written before kept."""
    impatient = [*QUICK, "training.remote.attempts=1", "training.remote.patience_s=0.2"]
    with RangeServer(data) as served:
        assert run(tmp_path / "run", served.url, data, *impatient, train_steps=2) == 0
        served.asked = []
        served.misbehave("torch", "fine", "fine", "fine", "fine", "slow")
        begin = time.monotonic()
        more = {"train_steps": 50, "max_bad_steps": 2, "num_workers": 1}
        assert run(tmp_path / "run", served.url, data, *impatient, **more) == 3
        assert "all that was asked for failed" in capfd.readouterr().err
        served.asked = []
        served.misbehave("torch", "fine", "slow")
        config = tmp_path / "run.yaml"
        assert scores(tmp_path / "scores", served.url, config, *impatient, "training.num_workers=1")[0] == 2
        told = capfd.readouterr().err
        assert "all that was asked for failed" in told and "Traceback" not in told
        assert time.monotonic() - begin < 20
    assert (tmp_path / "run" / "ckpt_0000000000000002").is_dir()


def test_dry_run_understands_urls(tmp_path, data, capfd):
    with RangeServer(data) as served:
        assert run(tmp_path / "run", served.url, data, "--dry-run") == 0
        assert f"{served.url}: 6 scenes" in capfd.readouterr().out
        assert run(tmp_path / "run", f"{served.url}/nowhere", data, "--dry-run") == 2
        assert "Put beside the chunks" in capfd.readouterr().err
