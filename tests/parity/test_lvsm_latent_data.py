"""Golden files of the data side of lvsm_latent must notice what is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.check_parity import main
from src.data import bounded_views, overlap, transforms
from src.parity import lvsm_latent_data
from src.parity.report import load_golden


def nearest_first(points: np.ndarray, count: int, start: list[int] | None = None) -> list[int]:
    """Farthest points, begun at the wrong end."""
    return bounded_views.farthest_points(
        points, count, [int(np.square(points - points.mean(0)).sum(1).argmin())]
    )


def one_row_more(cameras, one, others, grid):
    """Overlaps by other rays than those of the pixels."""
    return overlap.overlaps(cameras, one, others, (grid[0] + 1, grid[1]))


def axes_swapped(fxfycxcy: np.ndarray) -> np.ndarray:
    return overlap.fields_of_view_deg(fxfycxcy)[..., ::-1].copy()


def true_centre(image, fxfycxcy, height, width, keep_principal_point):
    return transforms.cover_and_crop(image, fxfycxcy, height, width)


@pytest.mark.parametrize(
    "case,name,wrong",
    [
        ("view_samplers", "farthest_points", nearest_first),
        ("crop_and_rays", "cover_and_crop", true_centre),
        ("crop_and_rays", "mirrored_pose", lambda pose: pose),
        ("crop_and_rays", "fields_of_view_deg", axes_swapped),
        ("evaluation_index_generators", "overlaps", one_row_more),
    ],
    ids=["farthest", "principal-point", "mirror", "field-of-view", "overlap-grid"],
)
def test_a_wrong_rule_fails(case, name, wrong, shared, monkeypatch, capsys):
    monkeypatch.setattr(lvsm_latent_data, name, wrong)
    assert main([str(shared / "parity" / "lvsm_latent" / f"{case}.pt")]) == 1


def test_scenes_that_should_be_declined_and_are_not_fail(shared, monkeypatch):
    monkeypatch.setattr(lvsm_latent_data, "SWITCHES", ())
    assert main([str(shared / "parity" / "lvsm_latent" / "dataset_chunk.pt")]) == 1


def test_even_the_order_of_random_draws_is_the_original_one(shared):
    """These entries are optional: with torch's generator behind our samplers they agree all the same."""
    golden = load_golden(shared / "parity" / "lvsm_latent" / "view_samplers.pt")
    ours = lvsm_latent_data.sampler(golden)
    assert ours["boundedv2"] == golden.outputs["boundedv2"] and ours["bounded"] == golden.outputs["bounded"]
    golden = load_golden(shared / "parity" / "lvsm_latent" / "evaluation_index_generators.pt")
    assert lvsm_latent_data.index_generator(golden)["v1"] == golden.outputs["v1"]
