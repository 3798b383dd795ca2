"""The pose mapper learns a bent pose space from examples, goes both ways, and its file can be trusted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from easydict import EasyDict
from photo_folder import UP_LVSM, write_config, write_data_set
from safetensors.torch import save_file

from src.checkpoint import CheckpointError
from src.explore.open_model import open_model
from src.explore.pose_mapper import PoseMapper, relative_poses
from src.fit_pose_mapper import Examples, errors, fit, main
from src.geometry.camera import Cameras
from src.geometry.rotation import decode_pose, encode_pose
from src.model import build_model, family_config
from src.settings import load_config


def bent(true: torch.Tensor) -> torch.Tensor:
    """A pose space of a model's own: another scale, translations squeezed, rotations half as large. [n, 4, 4]"""
    code = encode_pose(true)
    shift = 0.4 * torch.tanh(2 * code[:, :3]) + 0.05
    turned = torch.cat([0.5 * code[:, 3:6], code[:, 6:]], dim=-1)
    return decode_pose(torch.cat([shift, turned], dim=-1))


def examples(scenes: int, seed: int) -> Examples:
    torch.manual_seed(seed)
    parts = []
    for _ in range(scenes):
        true = decode_pose(
            torch.cat([0.6 * torch.randn(8, 3), 0.2 * torch.randn(8, 3), torch.ones(8, 1)], dim=-1)
        )
        frame, far = relative_poses(true[None])
        true = frame.apply(Cameras(true[None], torch.ones(1, 8, 4), 1, 1)).c2w[0].float()
        estimated = bent(true)
        codes = encode_pose(estimated)
        parts.append(Examples(true, estimated, codes[:1].expand(8, -1), codes[far : far + 1].expand(8, -1)))
    return Examples.join(parts)


@pytest.fixture(scope="module")
def mapper() -> PoseMapper:
    return fit(examples(200, 0), 700, seed=0, batch=128, lr=1e-2)


def test_it_beats_the_similarity_on_scenes_that_it_has_not_seen(mapper: PoseMapper) -> None:
    found = errors(mapper, examples(30, 1))
    for way in ("to_model", "to_world"):
        assert found[f"{way}_rotation_deg"] < 0.35 * found[f"similarity_{way}_rotation_deg"]
        assert found[f"{way}_translation"] < 0.75 * found[f"similarity_{way}_translation"]


def test_a_fresh_mapper_is_the_similarity() -> None:
    """For a model whose space is the world's up to place, turn and scale nothing has to be learned."""
    held = examples(5, 2)
    anchor = decode_pose(torch.tensor([[0.3, -0.2, 0.1, 0.1, 0.2, -0.1, 0.9]]))
    scaled = torch.cat([held.true[:, :3, :3], 1.7 * held.true[:, :3, 3:]], dim=-1)
    estimated = anchor @ torch.cat([scaled, held.true[:, 3:]], dim=-2)
    codes = encode_pose(estimated).view(5, 8, 7)
    far = held.true.view(5, 8, 4, 4)[..., :3, 3].norm(dim=-1).argmax(dim=1)
    first = codes[:, :1].expand(-1, 8, -1).reshape(-1, 7)
    farthest = codes[torch.arange(5), far][:, None].expand(-1, 8, -1).reshape(-1, 7)
    fresh = PoseMapper()
    with torch.no_grad():
        torch.testing.assert_close(fresh(held.true, first, farthest), estimated, atol=1e-5, rtol=0)
        torch.testing.assert_close(fresh.back(estimated, first, farthest), held.true, atol=1e-5, rtol=0)


def test_relative_poses_begin_at_the_first_camera_and_end_at_distance_1() -> None:
    c2w = decode_pose(torch.randn(1, 5, 7))
    frame, far = relative_poses(c2w)
    moved = frame.apply(Cameras(c2w, torch.ones(1, 5, 4), 1, 1)).c2w[0]
    torch.testing.assert_close(moved[0], torch.eye(4), atol=1e-5, rtol=0)
    distance = moved[:, :3, 3].norm(dim=-1)
    assert distance.argmax() == far and distance[far] == pytest.approx(1, abs=1e-5)


def test_a_mapping_of_a_place_uses_its_photos(mapper: PoseMapper) -> None:
    held = examples(1, 3)
    given = Cameras(held.true[None], torch.ones(1, 8, 4), 8, 8)
    estimated = Cameras(held.estimated[None], torch.ones(1, 8, 4), 8, 8)
    mapping = mapper.for_place(estimated, given)
    there = mapping(Cameras(held.true[None], torch.ones(1, 8, 4), 8, 8)).c2w[0]
    error = (there[:, :3, 3] - held.estimated[:, :3, 3]).norm(dim=-1).median()
    assert error < 0.1 * held.estimated[:, :3, 3].norm(dim=-1).median() + 0.02
    unposed = mapper.for_place(estimated, None)
    keys = unposed.keys().c2w[0]
    assert (keys[:, :3, 3] - held.true[:, :3, 3]).norm(dim=-1).median() < 0.2


def test_the_file_holds_weights_and_nothing_runs(mapper: PoseMapper, tmp_path: Path) -> None:
    mapper.save(tmp_path / "m.pt", {"held_out": 1.0})
    again = PoseMapper.load(tmp_path / "m.pt")
    for a, b in zip(mapper.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    torch.save(EasyDict(x=1), tmp_path / "hostile.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "m.pt").read_bytes()[:500])
    torch.save({"format": 2}, tmp_path / "other.pt")
    for name in ("hostile.pt", "cut.pt", "other.pt", "none.pt"):
        with pytest.raises(CheckpointError, match=name):
            PoseMapper.load(tmp_path / name)


def test_the_command_writes_it_where_the_model_finds_it(tmp_path: Path) -> None:
    listed, config = write_data_set(tmp_path, 6), write_config(tmp_path / "c.yaml", UP_LVSM)
    weights = tmp_path / "w" / "model.safetensors"
    weights.parent.mkdir()
    save_file(build_model(load_config(config, [], family_config).model).state_dict(), weights)
    more = [f"training.{name}dataset_path={listed}" for name in ("", "eval_")]
    more += [f"inference.view_idx_file_path={tmp_path / 'index.json'}", "pretrained.dinov2=random"]
    words = ["--config", str(config), "--checkpoint", str(weights), "--samples", "3", "--steps", "4", *more]
    assert main(words) == 0
    report = json.loads((weights.parent / "pose_mapper.json").read_text())
    assert report["held_out"]["scenes"] == 1 and report["held_out"]["camera_controlled_psnr"] > 0
    assert report["samples"] == 3 and report["training"]["to_world_rotation_deg"] >= 0
    assert open_model(str(config), str(weights), ["pretrained.dinov2=random"]).mapper is not None
