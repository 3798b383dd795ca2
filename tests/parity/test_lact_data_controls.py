"""Mistakes in the data part of lact that the golden file must show."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import src.parity.lact_data as reader
from src.data import import_transforms, lens, transforms, view_reader
from src.parity.report import FAIL, check_file, load_golden


@pytest.fixture(scope="module")
def golden(shared):
    return load_golden(shared / "parity/lact/cameras_and_data.pt")


def failures(golden) -> set[str]:
    lines = check_file(golden, reader.cameras_and_data, {})
    return {line.name.partition(".")[0] for line in lines if line.verdict == FAIL}


def test_nothing_fails_as_it_is(golden):
    assert failures(golden) == set()


def test_white_before_resizing_shows(golden, monkeypatch):
    monkeypatch.setattr(view_reader, "decode_picture", transforms.decode_image)
    assert failures(golden) == {"dataset0"}


def test_true_ratios_instead_of_the_exact_factor_show(golden, monkeypatch):
    def ours(entry, height, width):
        given = [entry[name] for name in ("fx", "fy", "cx", "cy")]
        image = np.zeros((entry["h"], entry["w"], 3), dtype=np.uint8)
        return torch.from_numpy(transforms.cover_and_crop(image, np.array(given), height, width)[1]).float()

    monkeypatch.setattr(reader, "_published_intrinsics", ours)
    assert "dataset0" in failures(golden)


def test_the_right_pixel_centres_show(golden, monkeypatch):
    monkeypatch.setattr(reader, "Undistorter", lambda *given, published: lens.Undistorter(*given))
    assert failures(golden) == {"dl3dv0"}


def test_the_given_world_shows(golden, monkeypatch):
    monkeypatch.setattr(
        reader,
        "opencv_w2c",
        lambda matrix, undo_world: import_transforms.opencv_w2c(matrix, undo_world=False),
    )
    assert failures(golden) == {"dl3dv0"}
