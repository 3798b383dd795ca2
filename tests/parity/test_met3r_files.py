"""Golden files of MEt3R and of RealEstate10K examples: other sizes and batches pass, deliberate errors are noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from met3r_brute_force import published_outputs

from scripts.check_parity import main
from src.data import transforms, view_reader
from src.met3r import metric, published, splat
from src.parity import met3r as reader
from src.parity import mvldm_data
from src.parity.report import load_golden

CASES = {
    "wide": {
        "b": 1,
        "size": (20, 32),
        "img_size": None,
        "radius": 0.12,
        "points_per_pixel": 10,
        "upsampler": "bicubic",
    },
    "batch_3": {
        "b": 3,
        "size": (16, 16),
        "img_size": 16,
        "radius": 0.15,
        "points_per_pixel": 3,
        "upsampler": "nearest",
    },
    "square_from_tall": {
        "b": 1,
        "size": (26, 18),
        "img_size": 22,
        "radius": 0.1,
        "points_per_pixel": 10,
        "upsampler": "bilinear",
    },
}


def made_up(case: dict) -> dict:
    """A file of the same form: two views of a wavy wall, the second from the side, with what brute force gets."""
    g = torch.Generator().manual_seed(4)
    b, (h, w) = case["b"], case["size"]
    config = {"eps": 1e-5, "background": -10000.0, "metric": "met3r"} | {
        name: case[name] for name in ("img_size", "radius", "points_per_pixel", "upsampler")
    }
    row, column = torch.meshgrid(torch.arange(h) + 0.5 - h / 2, torch.arange(w) + 0.5 - w / 2, indexing="ij")
    z = 2 + 0.3 * torch.rand(b, 2, h, w, generator=g)
    points = torch.stack([column * z / w, row * z / h, z], dim=-1)
    points[:, 1, ..., 0] += 0.2
    inputs = {
        "images": torch.rand(b, 2, 3, h, w, generator=g) * 2 - 1,
        "pts3d": points,
        "conf": 1.5 + 3 * torch.rand(b, 2, h, w, generator=g),
        "low_res_features": torch.randn(2 * b, 5, h // 4, w // 4, generator=g),
        "flow": torch.randn(b, 2, h, w, generator=g),
    }
    outputs = published_outputs(config, inputs, ("cosine", "mse", "rmse", "psnr", "ssim"))
    tolerances = [
        {"match": "*.overlap_mask", "abs": 0, "rel": 0.0},
        {"match": "psnr.score_map", "abs": 1e-2, "rel": 0.0},
        {"match": "ssim.*", "abs": 1e-4, "rel": 0.0},
        {"match": "*.grad_features", "abs": 1e-7, "rel": 0.0, "fro": 1e-4},
        {"match": "*", "abs": 1e-5, "rel": 1e-5},
    ]
    return {
        "system": "mvldm", "case": "made_up", "kind": "consistency_metric", "config": config, "inputs": inputs,
        "outputs": outputs, "tolerances": tolerances, "optional": [], "stage": ["cosine.focal_ndc"],
    }  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_other_sizes_and_batches_agree_with_brute_force(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    torch.save(made_up(CASES[case]), tmp_path / "made_up.pt")
    assert main([str(tmp_path / "made_up.pt")]) == 0, capsys.readouterr().out


def test_brute_force_itself_computes_the_stored_numbers(shared: Path) -> None:
    golden = load_golden(shared / "parity" / "mvldm" / "met3r_b2.pt")
    ours = published_outputs(golden.config, golden.inputs, ("cosine", "ssim"))
    for name in ("score", "score_map", "projections", "zbuf_nearest", "grad_features"):
        torch.testing.assert_close(ours["cosine"][name], golden.outputs["cosine"][name], atol=1e-5, rtol=1e-5)
    # In float64; the stored map has lost digits where variances are differences of nearly equal numbers.
    torch.testing.assert_close(
        ours["ssim"]["score_map"], golden.outputs["ssim"]["score_map"], atol=2e-4, rtol=0
    )


# ----------------------------------------------------------------------------------------------- negative controls


def own_map_alone(maps, height, width):
    return metric.CORRECT.camera(maps, height, width)


MISTAKES = {
    "focal-from-one-view": (published, "_camera", own_map_alone),
    "eps": (reader, "published", lambda eps: published.published(1e-3)),
    "radius": (reader, "ndc_radius", lambda radius, h, w: 1.01 * published.ndc_radius(radius, h, w)),
    "normalised-weights": (metric, "splat", lambda *a, **k: splat.splat(*a, **(k | {"normalize": True}))),
    "one-point-a-pixel": (metric, "splat", lambda *a, **k: splat.splat(*a, **(k | {"points_per_pixel": 1}))),
    "flow-tested-first": (published, "_warp", lambda f, flow: metric.CORRECT.warp(f, flow)),
    "map-of-all-channels": (
        reader,
        "ssim_channels",
        lambda a, b: published.ssim_channels(a, b).mean(1, True),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_right_rules_and_wrong_constants_fail(
    mistake: str, shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(*MISTAKES[mistake])
    assert main([str(shared / "parity" / "mvldm" / "met3r_b2.pt")]) == 1
    capsys.readouterr()


def test_examples_have_the_original_draws_of_views(shared: Path) -> None:
    """These entries are optional: with torch's generator behind our sampler they agree all the same."""
    golden = load_golden(shared / "parity" / "mvldm" / "re10k_example.pt")
    assert mvldm_data.preprocess(golden)["bounded_draws"] == golden.outputs["bounded_draws"]


def test_a_single_context_view_is_not_scaled_as_published(shared: Path) -> None:
    golden = load_golden(shared / "parity" / "mvldm" / "re10k_example.pt")
    golden.inputs["context"] = golden.inputs["context"][:1]
    w2c = golden.inputs["cameras"][golden.inputs["target"][0], 6:].double().reshape(3, 4)
    expected = -w2c[:, :3].T @ w2c[:, 3]
    found = mvldm_data.preprocess(golden)
    torch.testing.assert_close(
        found["target"]["extrinsics"][0, :3, 3].double(), expected, atol=1e-6, rtol=1e-5
    )


def moved_centre(image, fxfycxcy, height, width, keep_principal_point):
    return transforms.cover_and_crop(image, fxfycxcy, height, width)


@pytest.mark.parametrize(
    "place,name,wrong",
    [(mvldm_data, "mirrored_pose", lambda pose: pose), (view_reader, "cover_and_crop", moved_centre)],
    ids=["mirror", "principal-point"],
)
def test_a_wrong_example_fails(place, name, wrong, shared, monkeypatch, capsys) -> None:
    monkeypatch.setattr(place, name, wrong)
    assert main([str(shared / "parity" / "mvldm" / "re10k_example.pt")]) == 1
    capsys.readouterr()
