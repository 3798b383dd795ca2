"""What the golden files at hand do not show: files of the same form with other switches, their numbers worked out here."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src.loss import PerceptualLoss
from src.model.dinov2 import Backbone, DinoV2
from src.parity import preprocess, uplvsm
from src.parity.losses import perceptual_network
from src.parity.lvsm import _training
from src.parity.report import Golden


def golden(config: dict, inputs: dict, **given: dict) -> Golden:
    parts = {"system": "made", "case": "made", "kind": "made", "path": Path("made.pt"), "state_dict": {}}
    parts |= {"outputs": {}, "optional": [], "stage": [], "tolerances": [], "extra": {}}
    return Golden(config=config, inputs=inputs, **{**parts, **given})


# ----------------------------------------------------------------------------------------------- optimiser


def test_parameters_of_the_optimizer_may_have_any_name() -> None:
    """The first step of Adam moves every number by the learning rate, against its gradient."""
    config = {"lr": 0.1, "weight_decay": 0.0, "betas": [0.9, 0.95], "warmup": 0, "train_steps": 5}
    config |= {"scheduler_type": "constant", "steps": 1, "grad_clip_norm": 1.0}
    inputs = {}
    for name in ("blocks.0.weight", "keys", "update"):
        inputs |= {name: torch.zeros(2, 3), f"grad_{name}": torch.full((1, 2, 3), 4.0)}
    found = uplvsm.optimizer(golden(config, inputs))
    for name in ("blocks.0.weight", "keys", "update"):
        torch.testing.assert_close(found[name], torch.full((2, 3), -0.1))
    assert found["last_total_norm"] == pytest.approx(4 * math.sqrt(18))


@pytest.mark.parametrize("place", ["run", "training"])
def test_accumulation_is_read_wherever_the_file_gives_it(place: str) -> None:
    optimizer = {"lr": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0.0}
    run = {"optimizer": optimizer, "schedule": {"kind": "linear", "warmup": 1, "total": 4}}
    run |= {"grad_clip_norm": 1.0, "allowed_gradnorm_factor": 5.0, "model": {"training": {}}}
    (run if place == "run" else run["model"]["training"])["grad_accum_steps"] = 3
    assert _training(run).grad_accum_steps == 3


# ----------------------------------------------------------------------------------------------- loss


WIDTHS = [3, 4, "M", 5, 6, "M", 7, 8, 9, 10, "M", 11, 12, 13, 14, "M", 15, 16]


@pytest.mark.parametrize("prefix", ["", "vgg.", "loss_computer.perceptual_loss_module.vgg."])
def test_widths_of_the_loss_network_follow_from_its_weights(prefix: str) -> None:
    wanted = PerceptualLoss(WIDTHS)
    state = {f"{prefix}{name}": tensor for name, tensor in wanted.state_dict().items()}
    state[f"{prefix}features.34.weight"] = torch.zeros(2, 16, 3, 3)  # has no tap
    found = perceptual_network(state, "made.pt")
    images = torch.rand(2, 1, 3, 16, 16)
    assert torch.equal(found(*images), wanted(*images))


def test_a_loss_network_with_a_missing_layer_is_refused() -> None:
    state = PerceptualLoss(WIDTHS).state_dict()
    state = {name: tensor for name, tensor in state.items() if not name.startswith("features.5.")}
    with pytest.raises(ValueError, match=r"made\.pt"):
        perceptual_network(state, "made.pt")


# ----------------------------------------------------------------------------------------------- backbone


def test_a_backbone_without_registers_has_no_such_tensor() -> None:
    size = Backbone(embed_dim=8, depth=1, num_heads=2, img_size=8, num_register_tokens=0)
    network = DinoV2(size, 4, qk_norm=True)
    assert "register_tokens" not in network.state_dict()
    assert network(torch.rand(1, 3, 8, 12)).shape == (1, 6, 8)


# ----------------------------------------------------------------------------------------------- preprocessing


def photo(height: int, width: int) -> np.ndarray:
    """A smooth picture, which survives JPEG. uint8 [h, w, 3]"""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([3 * rows, 2 * columns, rows + columns], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("square, width, offset", [(False, 20, 0), (True, 20, 2)])
def test_of_portrait_pictures_the_originals_take_the_height_for_image_size(
    square: bool, width: int, offset: int
) -> None:
    """40 x 32 -> 24 high, int(24 / 40 * 32) = 19, nearest multiple of 4: 20; the square crop cuts rows."""
    config = {"image_size": 24, "patch_size": 4, "square_crop": square, "scene_scale_factor": 1.0}
    w2c = torch.eye(4).repeat(2, 1, 1)
    w2c[1, 0, 3] = 1.0
    inputs = {"raw_images_uint8": torch.from_numpy(np.stack([photo(40, 32)] * 2)), "w2c": w2c}
    inputs["fxfycxcy"] = torch.tensor([[32.0, 40.0, 16.0, 20.0]] * 2, dtype=torch.float64)
    found = preprocess.from_pictures(golden(config, inputs))
    assert found["images_uint8"].shape == (2, 3, 20 if square else 24, width)
    torch.testing.assert_close(found["fxfycxcy"][0], torch.tensor([20.0, 24.0, 10.0, 12.0 - offset]))
    resized = np.asarray(Image.fromarray(photo(40, 32)).resize((20, 24), Image.Resampling.LANCZOS))
    cropped = resized[offset : 24 - offset]
    assert np.array_equal(found["images_uint8"][0].permute(1, 2, 0).numpy(), cropped)


def jpeg(height: int, width: int) -> torch.Tensor:
    buffer = io.BytesIO()
    Image.fromarray(photo(height, width)).save(buffer, format="JPEG")
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def chunk(frames: list[torch.Tensor]) -> torch.Tensor:
    """Bytes of a chunk with one scene `a`, whose frame i stands at x = i and has focal length 0.5 + i / 10."""
    cameras = torch.zeros(len(frames), 18)
    cameras[:, 0] = cameras[:, 1] = 0.5 + torch.arange(len(frames)) / 10
    cameras[:, 2:4] = 0.5
    cameras[:, 6] = cameras[:, 11] = cameras[:, 16] = 1
    cameras[:, 9] = -torch.arange(len(frames))
    buffer = io.BytesIO()
    torch.save([{"key": "a", "cameras": cameras, "images": frames}], buffer)
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


CHUNK = {"image_size": 8, "patch_size": 4, "square_crop": True, "scene_scale_factor": 1.0}


def test_frames_of_a_chunk_are_numbered_without_the_damaged_ones_as_in_the_originals() -> None:
    frames = [jpeg(16, 16), jpeg(16, 16), jpeg(16, 16)[:30], jpeg(16, 16)]
    inputs = {"chunk_bytes": chunk(frames), "view_indices": {"a": [0, 2]}}
    found = preprocess.from_chunk(golden(CHUNK, inputs))
    focal = [frame["fxfycxcy"][0] / 16 for frame in found["metadata"]["a"]["frames"]]
    assert focal == pytest.approx([0.5, 0.6, 0.8])
    torch.testing.assert_close(found["items"]["a"]["fxfycxcy"][:, 0], torch.tensor([0.5, 0.8]) * 8)


def test_the_data_set_is_checked_with_the_published_size_of_portrait_pictures() -> None:
    inputs = {"chunk_bytes": chunk([jpeg(32, 16), jpeg(32, 16)]), "view_indices": {"a": [0, 1]}}
    found = preprocess.from_chunk(golden(CHUNK, inputs))
    assert found["items"]["a"]["image"].shape == (2, 3, 4, 4)


def test_a_file_may_ask_for_no_draws_of_views() -> None:
    inputs = {"chunk_bytes": chunk([jpeg(16, 16), jpeg(16, 16)]), "view_indices": {}}
    assert preprocess.from_chunk(golden(CHUNK, inputs))["train_view_selector"] == {}
