"""Scores: every scene counts once and alike, floors and controls measure what they say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import src.evaluate
from src.config import key
from src.data.batch import Batch
from src.evaluate import RenderedScene, evaluate
from src.floors import floor_images, nearest_input, plane_warp
from src.geometry.camera import Cameras, Views
from src.metrics import PSNR_CAP
from src.model.base import ViewSynthesizer
from src.runtime import Runtime
from src.settings import Inference, RunConfig, Training

SIZE = 16


@dataclass(kw_only=True)
class StubConfig:
    class_name: str = key("family", "stub")


class Stub(ViewSynthesizer):
    """Renders what a function of (context, cameras) says. [b, v, 3, h, w]"""

    def __init__(self, picture: Callable[[Views, Cameras], Tensor]) -> None:
        super().__init__()
        self.picture = picture

    def encode(self, input: Views) -> Views:
        return input

    def decode(self, scene: Views, cameras: Cameras) -> Tensor:
        return self.picture(scene, cameras)


def level(values: Tensor) -> Tensor:
    """Pictures of one grey each. [b, v] -> [b, v, 3, SIZE, SIZE]"""
    return values[..., None, None, None].expand(*values.shape, 3, SIZE, SIZE)


def grey_at_x(scene: Views, cameras: Cameras) -> Tensor:
    """The grey of a picture is the x coordinate of its camera: right for the scenes below."""
    return level(cameras.c2w[..., 0, 3])


class FakeLoader:
    """Batches from memory."""

    def __init__(self, batches: list[Batch], missing: list[tuple[str, str]] = ()) -> None:
        self.batches, self.missing = batches, list(missing)
        self.num_scenes = sum(len(batch.scene_name) for batch in batches)
        self.num_in_index, self.num_null = self.num_scenes + len(self.missing) + 1, 1
        self.index_path, self.index_sha256 = "index.json", "ab" * 32

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


def make_batch(
    names: list[str], first: int, context: list[float], target: list[float], **changes: Any
) -> Batch:
    """Scenes whose pictures have the grey of their camera's x. `frames` are 100 x unless given."""
    greys = torch.tensor(context + target).expand(len(names), -1)
    b, v = greys.shape
    c2w = torch.eye(4).repeat(b, v, 1, 1)
    c2w[..., 0, 3] = greys
    index = torch.stack(
        [(100 * greys).round().long(), torch.arange(first, first + b)[:, None].expand(-1, v)], dim=-1
    )
    fields = {
        "image": level(greys).clone(),
        "c2w": c2w,
        "fxfycxcy": torch.tensor([SIZE, SIZE, SIZE / 2, SIZE / 2]).expand(b, v, 4),
        "camera_scale": torch.ones(b),
        "index": index,
        "target_idx": torch.arange(len(context), v).expand(b, -1),
        "scene_name": names,
        "num_input": len(context),
    }
    return Batch({**fields, **changes})


def score(model: ViewSynthesizer, batches: list[Batch], on_scene: Any = None, **inference: Any) -> dict:
    settings = {"metrics": ["psnr"], "chunk": 0, **inference}
    config = RunConfig(model=StubConfig(), training=Training(use_amp=False), inference=Inference(**settings))
    report = evaluate(model, FakeLoader(batches), config, Runtime(), on_scene=on_scene)
    json.dumps(report, allow_nan=False)
    return report


def offset(amount: float) -> Stub:
    """Renders that are wrong by `amount` everywhere: PSNR is -20 log10(amount)."""
    return Stub(lambda scene, cameras: grey_at_x(scene, cameras) + amount)


# ----------------------------------------------------------------------------------------------- means


def test_the_headline_is_the_mean_over_scenes_and_the_mean_over_images_stands_beside_it() -> None:
    def picture(scene: Views, cameras: Cameras) -> Tensor:
        return grey_at_x(scene, cameras) + (0.1 if cameras.num_views == 1 else 0.01)

    batches = [make_batch(["a"], 0, [0.2], [0.4]), make_batch(["b"], 1, [0.2], [0.3, 0.4, 0.5])]
    report = score(Stub(picture), batches)  # 20 dB for one image, 40 dB for three
    assert report["headline"]["psnr"] == pytest.approx((20 + 40) / 2, abs=1e-3)
    assert report["render"]["mean_over_images"]["psnr"] == pytest.approx((20 + 3 * 40) / 4, abs=1e-3)
    assert (report["render"]["scenes"], report["render"]["images"]) == (2, 4)


def test_scenes_come_in_the_order_of_their_positions() -> None:
    batches = [make_batch(["c", "d"], 2, [0.2], [0.3, 0.4]), make_batch(["a", "b"], 0, [0.2], [0.4])]
    report = score(offset(0.1), batches)
    assert [scene["scene"] for scene in report["scenes"]] == ["a", "b", "c", "d"]


def test_results_of_several_ranks_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [make_batch([f"s{i}"], i, [0.2], [0.3 + 0.05 * i, 0.9]) for i in range(5)]
    model = Stub(lambda scene, cameras: grey_at_x(scene, cameras) ** 1.1)
    together = score(model, batches)
    gathered: list[list] = []
    monkeypatch.setattr(src.evaluate, "all_gather_objects", lambda mine: gathered.append(mine) or [mine])
    for rank in range(3):
        score(model, batches[rank::3])
    monkeypatch.setattr(src.evaluate, "all_gather_objects", lambda mine: gathered)
    apart = score(model, batches[:1])
    for name in ("headline", "render", "floors", "scenes"):
        assert apart[name] == together[name]


def test_a_scene_that_was_handed_out_twice_is_an_error() -> None:
    batch = make_batch(["a"], 0, [0.2], [0.4])
    with pytest.raises(AssertionError, match="twice"):
        score(offset(0.1), [batch, batch])


def test_identical_images_have_a_finite_score() -> None:
    report = score(Stub(grey_at_x), [make_batch(["a"], 0, [0.2], [0.4, 0.5])])
    assert report["headline"]["psnr"] == PSNR_CAP


def test_targets_that_are_inputs_too_are_counted_and_scored_with_and_without() -> None:
    def picture(scene: Views, cameras: Cameras) -> Tensor:
        x = cameras.c2w[..., 0, 3]
        return level(torch.where(x < 0.25, x + 0.01, x + 0.1))  # 40 dB at the input view, 20 dB elsewhere

    batches = [
        make_batch(["a"], 0, [0.2, 0.8], [0.2, 0.4, 0.5]),
        make_batch(["b"], 1, [0.1, 0.8], [0.4, 0.5, 0.6]),
    ]
    report = score(Stub(picture), batches)
    a, b = (40 + 20 + 20) / 3, 20
    assert report["counts"]["context_targets"] == 1
    assert report["counts"]["scenes_with_context_targets"] == 1
    assert report["headline"]["psnr"] == pytest.approx((a + b) / 2, abs=1e-3)
    assert report["render"]["without_context_targets"]["mean_over_scenes"]["psnr"] == pytest.approx(
        20, abs=1e-3
    )
    assert report["render"]["without_context_targets"]["images"] == 5
    assert report["scenes"][0]["context_targets"] == [20]


def test_a_scene_of_input_views_alone_has_no_part_in_the_score_without_them() -> None:
    batches = [make_batch(["a"], 0, [0.2], [0.2]), make_batch(["b"], 1, [0.2], [0.4])]
    report = score(offset(0.1), batches)
    assert report["render"]["without_context_targets"]["scenes"] == 1


# ----------------------------------------------------------------------------------------------- floors and controls


def test_floors_of_flat_pictures_are_what_a_pencil_says() -> None:
    report = score(offset(0.01), [make_batch(["a"], 0, [0.2, 0.7], [0.5])])
    floors = {name: table["mean_over_scenes"]["psnr"] for name, table in report["floors"].items()}
    assert floors["nearest_input"] == pytest.approx(13.979, abs=1e-3)  # 0.7 for 0.5: error 0.2
    assert floors["mean_of_inputs"] == pytest.approx(26.021, abs=1e-3)  # 0.45 for 0.5: error 0.05
    assert floors["mean_colour"] == pytest.approx(26.021, abs=1e-3)
    assert "plane_warp" not in floors


def test_floors_are_scored_unless_they_are_switched_off() -> None:
    batches = [make_batch(["a"], 0, [0.2, 0.7], [0.5, 0.3])]
    with_floors, without = (score(offset(0.01), batches, floors=value) for value in (True, False))
    assert set(with_floors["floors"]) == {"nearest_input", "mean_of_inputs", "mean_colour"}
    assert without["floors"] == {} and without["render"] == with_floors["render"]


def cameras(centres: list[list[float]], turn_rad: float = 0.0, size: int = SIZE) -> Cameras:
    c2w = torch.eye(4).repeat(1, len(centres), 1, 1)
    c2w[0, :, :3, 3] = torch.tensor(centres)
    cos, sin = torch.cos(torch.tensor(turn_rad)), torch.sin(torch.tensor(turn_rad))
    c2w[0, -1, :3, :3] = torch.tensor([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])  # the last one about y
    return Cameras(c2w, torch.tensor([20.0, 20.0, size / 2, size / 2]).expand(1, len(centres), 4), size, size)


def test_the_nearest_input_is_the_one_with_the_nearest_centre() -> None:
    inputs = cameras([[0, 0, 0], [1, 0, 0], [3, 0, 0]])
    targets = cameras([[0.4, 0, 0], [0.6, 0, 0], [9, 0, 0]])
    assert nearest_input(inputs, targets).tolist() == [[0, 1, 2]]


def test_of_equally_near_inputs_the_one_that_looks_the_same_way_is_taken() -> None:
    inputs = cameras([[0, 0, 0], [0, 0, 0]], turn_rad=0.7)
    assert nearest_input(inputs, cameras([[0, 0, 0]], turn_rad=0.6)).tolist() == [[1]]
    assert nearest_input(inputs, cameras([[0, 0, 0]], turn_rad=0.1)).tolist() == [[0]]


def test_the_mean_colour_is_the_mean_of_all_pixels_of_the_inputs() -> None:
    image = torch.rand(1, 2, 3, SIZE, SIZE)
    views = Views(image, cameras([[0, 0, 0], [1, 0, 0]]))
    floor = floor_images(views, cameras([[0, 0, 0]]))["mean_colour"]
    assert torch.allclose(
        floor.images, image.mean(dim=(1, 3, 4))[:, None, :, None, None].expand(1, 1, 3, SIZE, SIZE)
    )


def see_plane(cameras: Cameras, depth: float, texture: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Exact pictures of the plane z = depth by cameras that look along z. [1, v, 3, h, w]"""
    pixels = torch.arange(cameras.height) + 0.5
    pictures = []
    for c2w, (fx, fy, cx, cy) in zip(cameras.c2w[0], cameras.fxfycxcy[0]):
        z = depth - c2w[2, 3]
        x, y = (pixels - cx) / fx * z + c2w[0, 3], (pixels - cy) / fy * z + c2w[1, 3]
        pictures.append(
            texture(x[None, :].expand(len(y), -1), y[:, None].expand(-1, len(x))).expand(3, -1, -1)
        )
    return torch.stack(pictures)[None]


def test_the_plane_warp_is_exact_where_the_scene_is_such_a_plane() -> None:
    depth = 4.0
    whole_pixels = [[0.0, 0.0, 0.0], [0.6, -0.4, 0.0]]  # 20 / 4 pixels a unit: 3 right, 2 up
    inputs, targets = cameras(whole_pixels[:1], size=24), cameras(whole_pixels[1:], size=24)

    def texture(x: Tensor, y: Tensor) -> Tensor:
        return 0.5 + 0.3 * torch.sin(7 * x) * torch.cos(5 * y)

    source = Views(see_plane(inputs, depth, texture), inputs)
    warped = plane_warp(source, targets, torch.tensor([depth]), torch.tensor([[0]]))
    truth = see_plane(targets, depth, texture)
    assert torch.allclose(warped[..., 2:, :-3], truth[..., 2:, :-3], atol=1e-5)
    assert torch.allclose(warped[..., -1], warped[..., -3], atol=1e-6), "outside the input its border repeats"


def test_the_plane_warp_is_exact_for_a_step_forward_onto_an_even_gradient() -> None:
    inputs, targets = cameras([[0.0, 0.0, 0.0]]), cameras([[0.1, 0.05, 1.0]])

    def texture(x: Tensor, y: Tensor) -> Tensor:
        return 0.5 + 0.1 * x - 0.05 * y

    source = Views(see_plane(inputs, 4.0, texture), inputs)
    warped = plane_warp(source, targets, torch.tensor([3.0]), torch.tensor([[0]]))  # 3 from the target
    assert torch.allclose(warped, see_plane(targets, 4.0, texture), atol=1e-5)


def test_median_depths_are_read_in_the_units_of_the_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(src.evaluate, "floor_images", lambda input, target, depth: seen.append(depth) or {})
    (tmp_path / "depth.json").write_text(json.dumps({"a": 6.0, "b": 2.0}))
    batch = make_batch(["a", "b"], 0, [0.2], [0.4], camera_scale=torch.tensor([0.5, 0.25]))
    score(offset(0.1), [batch], median_depth_path=str(tmp_path / "depth.json"))
    assert seen[0].tolist() == [3.0, 0.5]


def test_scenes_without_a_median_depth_have_no_part_in_the_plane_floor(tmp_path: Path) -> None:
    (tmp_path / "depth.json").write_text(json.dumps({"a": 6.0}))
    report = score(
        offset(0.1), [make_batch(["a", "b"], 0, [0.2], [0.4])], median_depth_path=str(tmp_path / "depth.json")
    )
    assert report["floors"]["plane_warp"]["scenes"] == 1
    assert report["floors"]["nearest_input"]["scenes"] == 2


def test_swapping_cameras_costs_a_model_that_looks_at_them() -> None:
    batches = [make_batch(["a"], 0, [0.2], [0.3, 0.4, 0.5]), make_batch(["one"], 1, [0.2], [0.3])]
    report = score(offset(0.01), batches, swap_target_cameras=True)
    # rendered at 0.4, 0.5, 0.3 and wrong by 0.01: errors 0.11, 0.11, 0.19; the scene with one target cannot take part
    wrong = -20 * torch.tensor([0.11, 0.11, 0.19]).double().log10().mean()
    assert report["swapped_cameras"]["scenes"] == 1
    assert report["swapped_cameras"]["psnr_drop"] == pytest.approx(40 - float(wrong), abs=1e-3)


def test_swapping_cameras_costs_nothing_if_the_model_ignores_them() -> None:
    model = Stub(lambda scene, cameras: level(torch.full((1, cameras.num_views), 0.4)))
    report = score(model, [make_batch(["a"], 0, [0.2], [0.3, 0.4, 0.5])], swap_target_cameras=True)
    assert report["swapped_cameras"]["psnr_drop"] == 0


# ----------------------------------------------------------------------------------------------- what goes wrong


def test_a_render_with_nan_is_listed_and_kept_out_of_the_means() -> None:
    def picture(scene: Views, cameras: Cameras) -> Tensor:
        return grey_at_x(scene, cameras) + (0.1 if cameras.num_views == 1 else torch.nan)

    report = score(
        Stub(picture), [make_batch(["a"], 0, [0.2], [0.4]), make_batch(["b"], 1, [0.2], [0.3, 0.4])]
    )
    assert report["headline"]["psnr"] == pytest.approx(20, abs=1e-3)
    assert report["counts"]["evaluated"] == 1
    assert report["missing"] == [{"scene": "b", "reason": "the render holds NaN or inf"}]


def test_if_no_scene_could_be_scored_there_is_no_report() -> None:
    with pytest.raises(ValueError, match=r"no scene of index\.json was evaluated.*NaN"):
        score(offset(torch.nan), [make_batch(["a"], 0, [0.2], [0.4])])


def test_a_missing_depth_file_is_named() -> None:
    with pytest.raises(ValueError, match=r"median_depth_path: nowhere\.json does not exist"):
        score(offset(0.1), [make_batch(["a"], 0, [0.2], [0.4])], median_depth_path="nowhere.json")


# ----------------------------------------------------------------------------------------------- how the model is used


def test_metrics_get_float32_images_outside_of_autocast() -> None:
    seen = []

    def metric(pred: Tensor, target: Tensor) -> Tensor:
        seen.append((pred.dtype, target.dtype, torch.is_autocast_enabled("cpu")))
        return torch.ones(len(pred))

    def picture(scene: Views, cameras: Cameras) -> Tensor:
        assert torch.is_autocast_enabled("cpu")
        return grey_at_x(scene, cameras).bfloat16()

    config = RunConfig(model=StubConfig(), training=Training(use_amp=True, amp_dtype="bf16"))
    loader = FakeLoader([make_batch(["a"], 0, [0.2], [0.4])])
    report = evaluate(Stub(picture), loader, config, Runtime(), metrics={"psnr": metric})
    assert set(seen) == {(torch.float32, torch.float32, False)}
    assert report["protocol"]["precision"] == "bf16"


def test_the_mode_of_the_model_is_restored() -> None:
    modes = []
    model = Stub(lambda scene, cameras: modes.append(model.training) or grey_at_x(scene, cameras))
    model.train()
    score(model, [make_batch(["a"], 0, [0.2], [0.4])])
    assert modes == [False] and model.training


def test_the_chunk_of_views_rendered_at_once_does_not_matter() -> None:
    widths = []
    model = Stub(lambda scene, cameras: widths.append(cameras.num_views) or grey_at_x(scene, cameras) ** 1.1)
    batches = [make_batch(["a"], 0, [0.2], [0.3, 0.4, 0.5, 0.6, 0.7])]
    whole, parts = score(model, batches), score(model, batches, chunk=2)
    assert widths == [5, 2, 2, 1]
    assert whole["scenes"] == parts["scenes"]


def test_the_callback_gets_each_scene_by_itself() -> None:
    seen: list[RenderedScene] = []
    score(offset(0.1), [make_batch(["a", "b"], 3, [0.2, 0.8], [0.4, 0.5])], on_scene=seen.append)
    assert [(scene.name, scene.position) for scene in seen] == [("a", 3), ("b", 4)]
    assert seen[0].input.image.shape == (1, 2, 3, SIZE, SIZE)
    assert torch.allclose(seen[0].render, seen[0].target.image + 0.1)
    assert (seen[0].context, seen[0].frames) == ([20, 80], [40, 50])
    assert seen[0].scores["psnr"] == pytest.approx([20, 20], abs=1e-3)


def test_without_metrics_scenes_are_rendered_and_counted() -> None:
    report = score(offset(0.1), [make_batch(["a"], 0, [0.2], [0.4])], compute_metrics=False)
    assert (report["headline"], report["floors"], report["counts"]["evaluated"]) == ({}, {}, 1)
