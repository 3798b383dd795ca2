"""Parameter names and shapes of the published models, and what a `model` section may not say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from src.config import build
from src.model import build_model, family_config
from src.settings import config_from_tree, load_config, to_plain

CONFIGS = Path(__file__).resolve().parents[2] / "config"

DECODER_ONLY, ENCODER_DECODER, PT, UP = (
    "model.LVSM_scene_decoder_only.Images2LatentScene",
    "model.LVSM_scene_encoder_decoder.Images2LatentScene",
    "src.model.ptlvsm.posedTargetLVSM",
    "src.model.uplvsm.unposedLVSM",
)
# manifest, family, image size, patch size, layer keys other than the defaults, number of parameters
PUBLISHED = [
    ("lvsm/manifest_scene_decoder_only_256", DECODER_ONLY, 256, 8, {}, 170_795_520),
    ("lvsm/manifest_scene_decoder_only_12layer", DECODER_ONLY, 256, 8, {"n_layer": 12}, 85_840_896),
    ("lvsm/manifest_scene_encoder_decoder_256", ENCODER_DECODER, 256, 8, {}, 173_154_816),
    ("uplvsm/manifest_uplvsm_x224", UP, 224, 14, {}, 260_132_743),
    ("uplvsm/manifest_uplvsm_x518", UP, 518, 14, {}, 260_132_743),
    ("uplvsm/manifest_ptlvsm_x224", PT, 224, 14, {}, 258_753_024),
]


def section(family: str, image_size: int, patch_size: int, layers: dict) -> dict:
    return {
        "class_name": family,
        "image_tokenizer": {"image_size": image_size, "patch_size": patch_size},
        "target_pose_tokenizer": {"patch_size": patch_size},
        "transformer": {"special_init": True, "depth_init": True, "use_qk_norm": True, **layers},
    }


@pytest.mark.parametrize(
    "manifest,family,image_size,patch_size,layers,count", PUBLISHED, ids=[row[0] for row in PUBLISHED]
)
def test_names_and_shapes_are_the_published_ones(
    manifest, family, image_size, patch_size, layers, count, shared
):
    published = json.loads((shared / "parity" / f"{manifest}.json").read_text(encoding="utf-8"))
    expected = {k: tuple(v) for k, v in published.items() if not k.startswith("loss_computer.")}
    config = build(family_config(family), section(family, image_size, patch_size, layers), "model", [])
    with torch.device("meta"):
        model = build_model(config)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == expected
    assert sum(parameter.numel() for parameter in model.parameters()) == count


LACT_FILES = {  # layers and width of the fast nets of the published files of LaCT
    "lact_l24_d768_ttt2x": (24, 2),
    "lact_l24_d768_ttt4x": (24, 4),
    "lact_l14_d768_ttt2x": (14, 2),
}
LACT_FILE = """
patch_size: 8
dim: 768
layers: {}
block_config:
  - type: model.SelfAttention
    length_dim: l
    params:
      head_dim: 64
      use_qk_norm: true
  - type: lact_ttt.FastWeightGluMLPMultihead
    params: {{head_dim: 768, inter_multi: {}, base_lr: 0.01, muon_update_steps: 5}}
  - type: model.MLP
    length_dim: vl
    params: {{inter_multi: 4}}
"""


@pytest.mark.parametrize("name", LACT_FILES)
def test_a_published_file_of_lact_loads_as_it_is_and_makes_the_published_names(name, shared, tmp_path):
    published = json.loads((shared / f"parity/lact/manifest_{name}.json").read_text(encoding="utf-8"))
    file = tmp_path / f"{name}.yaml"
    file.write_text(LACT_FILE.format(*LACT_FILES[name]), encoding="utf-8")
    config = load_config(file, [], family_config)
    assert config_from_tree(to_plain(config), family_config) == config
    with torch.device("meta"):
        model = build_model(config.model)
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == published
    ours = load_config(CONFIGS / f"{name}.yaml", [], family_config).model
    assert ours.sub_layers() == config.model.sub_layers()
    assert ours.image_tokenizer == config.model.image_tokenizer


def test_the_config_of_mv_ldm_makes_the_tensors_of_the_published_file(shared):
    path = shared / "parity/mvldm/manifest_mvldm-1.0_re10k_baseline.json"
    published = json.loads(path.read_text(encoding="utf-8"))
    with torch.device("meta"):
        model = build_model(load_config(CONFIGS / "mvldm.yaml", [], family_config).model)
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == published
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_152_511_467


@pytest.mark.parametrize(
    "family,change,message",
    [
        (
            DECODER_ONLY,
            {"transformer": {"d": 100}},
            "model.transformer.d is 100.*model.transformer.d_head 64",
        ),
        (DECODER_ONLY, {"transformer": {"n_layer": 0}}, "model.transformer.n_layer is 0"),
        (ENCODER_DECODER, {"target_pose_tokenizer": {"patch_size": 16}}, "same patch size in both"),
        (
            DECODER_ONLY,
            {"image_tokenizer": {"image_size": 100, "patch_size": 8}},
            "image_size is 100: expected a multiple",
        ),
        (UP, {"transformer": {"d": 512}}, "embed_dim is 768 and model.transformer.d is 512"),
        (
            PT,
            {"image_tokenizer": {"image_size": 224, "patch_size": 8, "backbone": {"num_heads": 5}}},
            "embed_dim is 768, which .*num_heads 5",
        ),
        (
            PT,
            {"image_tokenizer": {"image_size": 224, "patch_size": 8, "backbone": {"img_size": 4}}},
            "backbone.img_size is 4: expected at least one patch",
        ),
        (UP, {"unposed": {"pose_enc_type": "absT_quaR_FoV"}}, "pose_enc_type is 'absT_quaR_FoV'"),
    ],
)
def test_sections_that_contradict_themselves_are_refused_by_key(family, change, message):
    problems: list[str] = []
    assert build(family_config(family), {**section(family, 256, 8, {}), **change}, "model", problems) is None
    assert len(problems) == 1
    assert re.search(message, problems[0]), problems[0]
