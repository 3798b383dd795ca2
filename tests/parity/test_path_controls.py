"""Deliberate errors in the camera paths are noticed by the golden files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scripts.check_parity import main
from src.geometry import path_pivot
from src.parity import lvsm_latent_paths

CASE = "lvsm_latent/trajectories"


def failures(shared: Path, capsys: pytest.CaptureFixture) -> set[str]:
    """Names of the outputs that disagree."""
    path = shared / "parity" / f"{CASE}.pt"
    if not path.is_file():
        pytest.skip(f"needs {path}, which is not there")
    status = main([str(path)])
    lines = capsys.readouterr().out.splitlines()
    wrong = {line.split()[0].rpartition("/")[2] for line in lines if line.endswith("FAIL")}
    assert status == (1 if wrong else 0)
    return wrong


def test_without_an_error_all_agree(shared: Path, capsys: pytest.CaptureFixture) -> None:
    assert failures(shared, capsys) == set()


def test_a_path_that_does_not_ease_fails(
    shared: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lvsm_latent_paths, "ease", lambda t: t)
    assert {"t_smooth", "interpolate", "wobble", "intrinsics"} <= failures(shared, capsys)


def test_a_pivot_half_way_between_the_centres_fails(
    shared: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(path_pivot, "PARALLEL", 1.0)
    assert failures(shared, capsys) == {"interpolate", "exaggerated"}


def test_a_small_roll_fails(
    shared: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = path_pivot._encode

    def turned(pose: torch.Tensor, *rest: torch.Tensor) -> tuple:
        translation, angles = real(pose, *rest)
        return translation, angles + torch.tensor([0.0, 1e-4])

    monkeypatch.setattr(path_pivot, "_encode", turned)
    assert "interpolate" in failures(shared, capsys)


def test_a_wobble_of_another_radius_fails(
    shared: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = lvsm_latent_paths.wobble_transform
    monkeypatch.setattr(
        lvsm_latent_paths, "wobble_transform", lambda t, radius, turns: real(t, 1.001 * radius, turns)
    )
    assert failures(shared, capsys) == {"wobble", "exaggerated"}
