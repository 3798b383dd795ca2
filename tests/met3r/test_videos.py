"""MEt3R of whole videos with exact geometry: reading folders, choosing pairs, the command, and backbones that are given."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from scripts import calibrate_consistency, compare_sampling, score_consistency
from src.config import ConfigError
from src.data.synthetic import SyntheticSet, find_scene, make_scene, read_spec, render_frames, scene_depth
from src.met3r import features
from src.met3r.features import load_features
from src.met3r.geometries import Pair, SyntheticGeometry, load_pair_network
from src.met3r.metric import Options, score_into_first
from src.met3r.report import table
from src.met3r.videos import ClipResult, PairResult, chosen_pairs
from src.output_folders import read_outputs
from src.visualize import save_image

CPU = torch.device("cpu")
SPEC = SyntheticSet(train_scenes=1, test_scenes=2, frames=6, width=32, height=32, seed=5)
METHODS = ("perfect", "tinted", "stuck")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set's settings, and the videos of one of its scenes by three methods in the layout of src.sample."""
    root = tmp_path_factory.mktemp("videos")
    (root / "synthetic.json").write_text(json.dumps(vars(SPEC)))
    scene = make_scene(SPEC, "test", 1)
    frames = render_frames(scene, 32, 32)
    for number, frame in enumerate(frames):
        tint = np.array([1.0, 1.0, 1.0]) if number % 2 else np.array([1.0, 0.8, 0.6])
        pictures = {"perfect": frame, "tinted": (frame * tint).astype(np.uint8), "stuck": frames[0]}
        for method, picture in pictures.items():
            save_image(root / method / "some_folder" / "render" / f"{number:06d}.png", picture)
            save_image(root / method / "some_folder" / "target" / f"{number:06d}.png", frame)
    for method in METHODS:
        (root / method / "some_folder" / "plan.json").write_text(json.dumps({"scene": scene.key}))
    return root


def run(videos: Path, *words: str, output: Path | None = None) -> int:
    names = [word for method in METHODS for word in ("--name", f"{method}={videos / method}")]
    return score_consistency.main([*names, "--output", str(output or videos / "out"), *words])


def test_better_videos_score_lower(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(videos, "--oracle", str(videos), "--pairs", "3", output=tmp_path) == 0
    report = json.loads((tmp_path / "consistency.json").read_text())
    score = {name: found["mean_over_scenes"] for name, found in report["methods"].items()}
    assert score["perfect"] == score["truth"] < 0.7 * min(score["tinted"], score["stuck"])
    key = make_scene(SPEC, "test", 1).key
    scene = report["methods"]["perfect"]["scenes"][key]
    assert [pair["frames"] for pair in scene["pairs"]] == [[0, 1], [2, 3], [4, 5]]
    assert all(0.5 < share <= 1 for pair in scene["pairs"] for share in pair["overlap"])
    assert [p["score"] for p in scene["pairs"]] == pytest.approx(
        [sum(p["directions"]) / 2 for p in scene["pairs"]]
    )
    with Image.open(tmp_path / f"{key}.png") as picture:
        assert picture.size == (6 * 128, 4 * (128 + 18))
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table[:5]] == ["method", *METHODS, "truth"]


def test_the_published_rules_are_an_option(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(videos, "--oracle", str(videos), "--pairs", "1", "--published", "48", output=tmp_path) == 0
    report = json.loads((tmp_path / "consistency.json").read_text())
    pair = next(iter(report["methods"]["perfect"]["scenes"].values()))["pairs"][0]
    assert len(pair["directions"]) == 1
    capsys.readouterr()


def test_known_faults_raise_the_score_and_an_empty_video_has_none(
    videos: Path, capsys: pytest.CaptureFixture
) -> None:
    assert (
        calibrate_consistency.main(["--oracle", str(videos), "--scenes", "1", "--pairs", "3", "--gap", "2"])
        == 0
    )
    lines = [line.rsplit(maxsplit=5) for line in capsys.readouterr().out.splitlines()[1:]]
    score = {name: float(value) for name, value, *_ in lines}
    worse = [
        name
        for name in score
        if name not in ("none: the true frames", "blurred, 5 pixels", "one grey throughout")
    ]
    assert len(worse) == 5 and all(score[name] > score["none: the true frames"] for name in worse)
    assert (
        score["one grey throughout"] == 0
    )  # consistent, and worthless: the score knows nothing of the truth


@pytest.mark.parametrize(
    "words,message",
    [
        ([], "either --oracle"),
        (["--oracle", "nowhere"], "nowhere is no synthetic set"),
        (["--oracle", "SET", "--gap", "6"], "6 frames have no pairs 6 apart"),
        (["--oracle", "SET", "--features", "dino16"], "dino_deitsmall16_pretrain.pth"),
        (["--oracle", "SET", "--distance", "lpips", "--vgg16", "nowhere"], "download_weights vgg16"),
        (["--backbone", "mast3r"], "--code must name a checkout of https://github.com/naver/mast3r"),
    ],
)
def test_mistakes_are_told_in_a_line(
    words: list[str], message: str, videos: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(videos, *(str(videos) if word == "SET" else word for word in words)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_videos_of_other_frames_are_not_compared(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    save_image(tmp_path / "short" / "scene" / "render" / "000000.png", torch.zeros(3, 32, 32))
    words = ["-n", f"a={videos / 'perfect'}", "-n", f"b={tmp_path / 'short'}", "--oracle", str(videos)]
    assert score_consistency.main(words) == 2
    assert "a and b do not hold the same frames: 7" in capsys.readouterr().err


def test_a_video_along_a_path_of_its_own_has_no_exact_geometry(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    save_image(tmp_path / "path" / "scene" / "render" / "000000.png", torch.zeros(3, 32, 32))
    plan = {"scene": "x", "sampling": {"along_path": True}}
    (tmp_path / "path" / "scene" / "plan.json").write_text(json.dumps(plan))
    assert score_consistency.main(["-n", f"a={tmp_path / 'path'}", "--oracle", str(videos)]) == 2
    assert "along_path" in capsys.readouterr().err


def test_sampled_folders_carry_the_name_of_their_scene(videos: Path) -> None:
    assert list(read_outputs("m", videos / "perfect").scenes) == [make_scene(SPEC, "test", 1).key]


def test_pairs_are_neighbours_in_frame_number() -> None:
    assert chosen_pairs([5, 1, 3], 1) == [(1, 3), (3, 5)]
    assert chosen_pairs([5, 1, 3], 2) == [(1, 5)]
    assert chosen_pairs(list(range(41)), 1, 5) == [(0, 1), (10, 11), (20, 21), (29, 30), (39, 40)]
    with pytest.raises(ValueError, match="3 frames have no pairs 3 apart"):
        chosen_pairs([1, 2, 3], 3)


def test_pairs_without_overlap_are_counted_not_averaged() -> None:
    nan = float("nan")
    clip = ClipResult(
        [PairResult((0, 1), s, [s], [v], [o]) for s, v, o in ((0.2, 9, 0.5), (nan, 0, 0.0), (0.4, 9, 1.0))]
    )
    assert clip.mean == pytest.approx(0.3) and clip.overlap == pytest.approx(0.5) and clip.worst.score == 0.4
    assert np.isnan(ClipResult([PairResult((0, 1), nan, [nan], [0], [0.0])]).mean)
    other = ClipResult([PairResult((0, 1), 0.5, [0.5], [9], [1.0])])
    mean, spread = table({"a": {"x": clip, "y": other}}, "rmse").splitlines()[1].split()[1:3]
    assert (mean, spread) == ("0.4000", "0.1414")  # of 0.3 and 0.5


# ----------------------------------------------------------------------------------------------- exact geometry


def test_a_scene_is_found_by_its_key(videos: Path) -> None:
    assert read_spec(videos) == SPEC
    for mode, number in (("train", 0), ("test", 1)):
        ours = make_scene(SPEC, mode, number)
        np.testing.assert_array_equal(find_scene(SPEC, ours.key).c2w, ours.c2w)
    with pytest.raises(ValueError, match="scene 0123 is none"):
        find_scene(SPEC, "0123")


@pytest.mark.parametrize("size", [(32, 32), (48, 64)], ids=["own", "enlarged-wide"])
def test_exact_point_maps_lie_where_the_second_camera_sees_them(videos: Path, size: tuple[int, int]) -> None:
    """Points of the second view, taken through the world into its own camera, fall on their own pixels."""
    height, width = size
    scene = make_scene(SPEC, "test", 1)
    there, back = SyntheticGeometry(videos)(Pair(scene.key, (1, 4), torch.zeros(1, 2, 3, height, width)))
    first, second = (torch.from_numpy(scene.c2w[f]).float() for f in (1, 4))
    to_second = torch.linalg.inv(second) @ first
    own = there.points[0, 1] @ to_second[:3, :3].T + to_second[:3, 3]
    focal = float(scene.fxfycxcy[0]) * max(height, width) / 32
    column = own[..., 0] / own[..., 2] * focal + width / 2
    torch.testing.assert_close(column, (torch.arange(width) + 0.5).expand(height, -1), atol=2e-3, rtol=0)
    torch.testing.assert_close(own, back.points[0, 0], atol=1e-4, rtol=1e-4)
    exact = scene_depth(scene, 4, np.array([focal, focal, width / 2, height / 2]), height, width)
    np.testing.assert_allclose(own[..., 2].numpy(), exact, rtol=1e-4)


def test_frames_that_a_scene_does_not_have_are_refused(videos: Path) -> None:
    key = make_scene(SPEC, "test", 1).key
    with pytest.raises(ConfigError, match="frames 0 to 5, not 6"):
        SyntheticGeometry(videos)(Pair(key, (0, 6), torch.zeros(1, 2, 3, 8, 8)))


# ----------------------------------------------------------------------------------------------- networks that are given

NETWORK = """
import torch

class AsymmetricMASt3R(torch.nn.Module):
    @classmethod
    def from_pretrained(cls, folder):
        return cls()

    def forward(self, view1, view2):
        b, _, h, w = view1["img"].shape
        assert view1["img"].shape == view2["img"].shape
        points = torch.stack(torch.meshgrid(torch.arange(h) - h / 2 + 0.5, torch.arange(w) - w / 2 + 0.5, indexing="ij")[::-1], -1)
        points = torch.cat([points / 20, torch.ones(h, w, 1)], -1).expand(b, h, w, 3)
        conf = torch.full((b, h, w), 2.0)
        return {"pts3d": points, "conf": conf}, {"pts3d_in_other_view": points + view2["img"].mean(), "conf": conf}
"""


def test_a_pair_network_comes_from_folders_that_the_user_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    code, weights = tmp_path / "code", tmp_path / "weights"
    (code / "mast3r").mkdir(parents=True)
    with pytest.raises(ConfigError, match="needs its weights: --weights must name a folder"):
        load_pair_network("mast3r", code, weights, CPU)
    weights.mkdir()
    for name in ("config.json", "model.safetensors"):
        (weights / name).touch()
    with pytest.raises(ConfigError, match=r"mast3r.model cannot be imported"):
        load_pair_network("mast3r", code, weights, CPU)
    sys.modules.pop("mast3r", None)
    (code / "mast3r" / "model.py").write_text(NETWORK)
    geometry = load_pair_network("mast3r", code, weights, CPU)
    images = torch.stack([torch.full((3, 32, 48), 0.25), torch.full((3, 32, 48), 0.75)])[None]
    there, back = geometry(Pair("scene", (0, 1), images))
    assert float((there.points[:, 1] - there.points[:, 0]).mean()) == pytest.approx(0.5)  # 2 * 0.75 - 1
    assert float((back.points[:, 1] - back.points[:, 0]).mean()) == pytest.approx(-0.5)
    result = score_into_first(images, there, Options(distance="mse"))
    assert result.projections.shape == (1, 2, 3, 32, 48)
    with pytest.raises(ValueError, match=r"40 x 32 pixels.*--resize 512"):
        geometry(Pair("scene", (0, 1), torch.zeros(1, 2, 3, 32, 40)))


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks instead of twelve; everything else as published."""
    vits = {name: (replace(size, depth=2), *rest) for name, (size, *rest) in features._VITS.items()}
    monkeypatch.setattr(features, "_VITS", vits)


def dino_weights(
    network_blocks: int, d: int, patch: int, grid: int, registers: int, gains: bool
) -> dict[str, Tensor]:
    """Tensors as in the published files, all of a few constants."""
    block = {
        "norm1.weight": (d,), "norm1.bias": (d,), "attn.qkv.weight": (3 * d, d), "attn.qkv.bias": (3 * d,),
        "attn.proj.weight": (d, d), "attn.proj.bias": (d,), "norm2.weight": (d,), "norm2.bias": (d,),
        "mlp.fc1.weight": (4 * d, d), "mlp.fc1.bias": (4 * d,), "mlp.fc2.weight": (d, 4 * d), "mlp.fc2.bias": (d,),
    }  # fmt: skip
    if gains:
        block |= {"ls1.gamma": (d,), "ls2.gamma": (d,)}
    shapes = {f"blocks.{i}.{name}": shape for i in range(network_blocks) for name, shape in block.items()}
    shapes |= {
        "cls_token": (1, 1, d),
        "pos_embed": (1, 1 + grid * grid, d),
        "norm.weight": (d,),
        "norm.bias": (d,),
    }
    shapes |= {"patch_embed.proj.weight": (d, 3, patch, patch), "patch_embed.proj.bias": (d,)}
    if registers:
        shapes |= {"register_tokens": (1, registers, d), "mask_token": (1, d)}
    g = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=g) * 0.05 for name, shape in shapes.items()}


@pytest.mark.parametrize(
    "name,shape", [("dino16", (2, 384, 16, 14, 0, False)), ("dinov2", (2, 768, 14, 37, 4, True))]
)
def test_dino_features_come_from_the_published_files(
    name: str, shape: tuple, tmp_path: Path, shallow: None
) -> None:
    weights = dino_weights(*shape)
    torch.save(weights, tmp_path / "dino.pth")
    seen = load_features(name, tmp_path / "dino.pth", CPU)
    images = torch.rand(2, 3, 40, 50)
    found = seen(images)
    assert found.shape == (2, shape[1], 40, 50) and found.isfinite().all()
    torch.testing.assert_close(found[:1], seen(images[:1]), atol=1e-4, rtol=1e-4)
    assert (found[0] - found[1]).abs().max() > 1e-3
    weights.pop("norm.bias")
    torch.save(weights, tmp_path / "dino.pth")
    with pytest.raises(ConfigError, match=r"1 tensors do not fit, first norm\.bias"):
        load_features(name, tmp_path / "dino.pth", CPU)


FEATUP = """
import torch

class Stack(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, source, guidance):
        assert guidance.min() < 0, "the picture is normalised"
        return torch.nn.functional.interpolate(source, size=guidance.shape[-2:]) * self.gain

def get_upsampler(name, channels):
    assert name == "jbu_stack"
    return Stack(channels)
"""


def test_featup_upsamples_where_its_code_and_weights_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shallow: None
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    torch.save(dino_weights(2, 384, 16, 14, 0, False), tmp_path / "dino.pth")
    given = tmp_path / "FeatUp", tmp_path / "featup.ckpt"
    with pytest.raises(ConfigError, match="FeatUp needs its code and weights"):
        load_features("dino16", tmp_path / "dino.pth", CPU, featup=given)
    (given[0] / "featup").mkdir(parents=True)
    (given[0] / "featup" / "upsamplers.py").write_text(FEATUP)
    torch.save(
        {"state_dict": {"upsampler.gain": torch.full((384, 1, 1), 3.0), "model.x": torch.ones(1)}}, given[1]
    )
    images = torch.rand(1, 3, 32, 32)
    ours = load_features("dino16", tmp_path / "dino.pth", CPU, featup=given)(images)
    plain = load_features("dino16", tmp_path / "dino.pth", CPU)
    tokens = plain.network(
        (images - torch.tensor([0.485, 0.456, 0.406])[:, None, None])
        / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    )
    expected = 3 * tokens.transpose(1, 2).unflatten(2, (2, 2)).repeat_interleave(16, 2).repeat_interleave(
        16, 3
    )
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_sampling_modes_are_compared_by_one_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The sampler and both scores are called with the same folders; the first failure ends it."""
    calls = []
    for place, status in (
        (compare_sampling.sample, 0),
        (score_consistency, 0),
        (compare_sampling.compare_outputs, 3),
    ):
        monkeypatch.setattr(
            place, "main", lambda words, s=status, p=place: calls.append((p.__name__, words)) or s
        )
    words = ["-c", "x.yaml", "scene_id=3", "--oracle", "set", "--output", str(tmp_path)]
    assert compare_sampling.main(words) == 3
    assert [name for name, _ in calls] == ["src.sample"] * 2 + [
        "scripts.score_consistency",
        "scripts.compare_outputs",
    ]
    assert (
        f"inference.inference_out_dir={tmp_path / 'anchored'}" in calls[0][1] and "scene_id=3" in calls[1][1]
    )
    assert f"independent={tmp_path / 'independent'}" in calls[2][1]
