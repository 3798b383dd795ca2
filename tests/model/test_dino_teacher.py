"""The DINOv2 that Efficient-LVSM is aligned with: what it sees, what it says, and that it stays outside the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny_run import write_config, write_scenes
from torch import nn

from src.model import dino_teacher, family_config
from src.model.dino_teacher import DinoTeacher
from src.model.dinov2 import Backbone
from src.runtime import start
from src.settings import load_config
from src.train import main

SIDE = 4
SMALL = Backbone(embed_dim=768, depth=3, num_heads=12, img_size=28, num_register_tokens=0, mlp_ratio=1)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dino_teacher, "SIDE", SIDE)
    monkeypatch.setattr(DinoTeacher.__init__, "__defaults__", (SMALL,))


@pytest.fixture
def teacher() -> DinoTeacher:
    torch.manual_seed(0)
    made = DinoTeacher({1, 3}, 4, SMALL)
    with torch.no_grad():
        for parameter in made.network.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return made


def by_hand(network: nn.Module, image: torch.Tensor, blocks: int) -> torch.Tensor:
    """Tokens of a picture after so many blocks, written out. [1, 3, h, w] -> [1, n, d]"""
    mean = torch.tensor([0.485, 0.456, 0.406])[None, :, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225])[None, :, None, None]
    height, width = image.shape[-2:]
    size = (14 * SIDE, 14 * SIDE * width // height)
    seen = F.interpolate((image - mean) / deviation, size=size, mode="bicubic")
    patches = F.conv2d(seen, network.patch_embed.proj.weight, network.patch_embed.proj.bias, stride=14)
    tokens = torch.cat([network.cls_token, patches.flatten(2).mT], 1)
    tokens = tokens + network.position_table(SIDE, size[1] // 14)
    for block in network.blocks[:blocks]:
        tokens = block(tokens)
    return tokens[:, 1:]


@pytest.mark.parametrize("width", [16, 32])
def test_features_are_hidden_states_on_the_grid_of_the_student(teacher, width):
    image = torch.rand(2, 1, 3, 16, width)
    features = teacher(image)
    assert set(features) == {1, 3}
    for number, found in features.items():
        for one, tokens in zip(image[:, 0], found):
            expected = by_hand(teacher.network, one[None], number)
            grid = expected.mT.unflatten(2, (SIDE, -1))  # [1, d, rows, columns]
            grid = F.interpolate(grid, size=(4, width // 4), mode="bicubic")
            torch.testing.assert_close(tokens, grid.flatten(2).mT[0], rtol=1e-5, atol=1e-5)


def test_the_published_teacher_sees_336_pixels(monkeypatch):
    monkeypatch.undo()
    assert dino_teacher.SIDE * dino_teacher.PATCH == 336
    assert (
        dino_teacher.VIT_B.embed_dim,
        dino_teacher.VIT_B.depth,
        dino_teacher.VIT_B.num_register_tokens,
    ) == (768, 12, 0)


def test_a_block_that_the_teacher_lacks_is_refused():
    with pytest.raises(ValueError, match="block 4 of the teacher, which has 3"):
        DinoTeacher({1, 4}, 4, SMALL)


def aligned(tmp_path: Path, **pretrained: str) -> Path:
    """YAML of a tiny aligned run."""
    path = write_config(
        tmp_path / "run.yaml", write_scenes(tmp_path / "data"), tmp_path / "run", train_steps=2
    )
    extra = [
        "model.class_name=src.model.efficient_lvsm.EfficientLVSM",
        "model.image_tokenizer.type=dinov2",
        "model.repa_config=2-1",
        "model.projector_dim=8",
        "training.checkpoint_every=1",
        *(f"pretrained.{name}={value}" for name, value in pretrained.items()),
    ]
    (tmp_path / "words.json").write_text(json.dumps(extra))
    return path


def run(path: Path, *more: str) -> int:
    words = json.loads((path.parent / "words.json").read_text())
    return main(["--config", str(path), *words, *more])


def test_a_run_loads_its_teacher_from_the_file_and_again_when_it_goes_on(tmp_path, capsys):
    torch.manual_seed(1)
    weights = tmp_path / "teacher.pth"
    torch.save(DinoTeacher({1}, 4, SMALL).network.state_dict(), weights)
    path = aligned(tmp_path, dinov2_teacher=str(weights))
    assert run(path, "training.train_steps=1") == 0
    assert run(path) == 0
    assert capsys.readouterr().err.count(f"tensors of dinov2_teacher from {weights}") == 2
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    terms = {line["step"]: line["proj_loss"] for line in lines if line["kind"] == "train"}
    assert terms.keys() == {1, 2} and all(value > 0 for value in terms.values())
    checkpoint = next((tmp_path / "run").glob("ckpt_*2"))
    assert not any(
        "teacher" in name or "blocks.2." in name for name in load_file(checkpoint / "model.safetensors")
    )


def test_a_missing_file_says_how_to_get_it(tmp_path, capsys):
    assert run(aligned(tmp_path, dinov2_teacher="nowhere.pth")) == 2
    assert "download_weights dinov2_teacher" in capsys.readouterr().err


def test_dinov3_is_refused_in_training_alone(tmp_path, capsys):
    path = aligned(tmp_path, dinov2_teacher="random")
    assert run(path, "model.image_tokenizer.type=dinov3") == 2
    assert "set dinov2" in capsys.readouterr().err
    words = json.loads((tmp_path / "words.json").read_text())
    load_config(path, [*words, "model.image_tokenizer.type=dinov3"], family_config)
    start(0)
