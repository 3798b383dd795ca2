"""Tiny models and views, made the way a run makes them: from a plain `model` section.

Fixtures: make_model, make_views; both are functions.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from src.config import build
from src.geometry.camera import Cameras, Views
from src.geometry.rotation import decode_pose
from src.model import build_model, family_config
from src.model.base import ViewSynthesizer

LAYERS = {
    "model.LVSM_scene_decoder_only.Images2LatentScene": {"n_layer": 3},
    "model.LVSM_scene_encoder_decoder.Images2LatentScene": {
        "encoder_n_layer": 2,
        "decoder_n_layer": 2,
        "n_latent_vectors": 6,
    },
    "src.model.ptlvsm.posedTargetLVSM": {"n_layer": 3},
    "src.model.uplvsm.unposedLVSM": {
        "encoder_n_layer": 2,
        "estimator_n_layer": 2,
        "decoder_n_layer": 2,
        "n_latent_vectors": 6,
    },
    "src.model.efficient_lvsm.EfficientLVSM": {"n_layer": 3},
    "src.model.kvlvsm.KVLVSM": {"n_layer": 3},
    "src.model.lvsm_prope.LVSMPRoPE": {"n_layer": 3, "d_ff": 32},
}
LATENT = {"d_model": 16, "d_k": 8, "d_v": 8, "num_heads": 3, "d_ff": 32, "num_encoder_layers": 3}
LVSM_PYTORCH = {
    "dim": 16,
    "max_image_size": 8,
    "patch_size": 4,
    "depth": 3,
    "heads": 2,
    "dim_head": 12,
    "rand_input_image_embed": False,  # else two passes in training mode differ
    "dropout_input_ray_prob": 1.0,  # all rays of inputs, always: so the mask embedding learns too
}
LACT = {
    "patch_size": 4,
    "dim": 16,
    "layers": 3,
    "muon_dtype": "float32",
    "block_config": [
        {"type": "model.SelfAttention", "length_dim": "l", "params": {"head_dim": 8}},
        {
            "type": "lact_ttt.FastWeightGluMLPMultihead",
            "params": {"head_dim": 8, "inter_multi": 2, "muon_update_steps": 5},
        },
        {"type": "model.MLP", "params": {"inter_multi": 2}},
    ],
}
UNPOSED = ("src.model.ptlvsm.posedTargetLVSM", "src.model.uplvsm.unposedLVSM")


def model_section(class_name: str, **changes: object) -> dict:
    """`model` section of a tiny model; `changes` go to `transformer`, except `unposed`."""
    if class_name == "lvsm_pytorch.LVSM":
        return {**LVSM_PYTORCH, "class_name": class_name, **changes}
    if class_name == "src.model.lact.LaCT":
        return {**LACT, "class_name": class_name, **changes}
    if class_name == "src.model.lvsm_latent.LVSM":
        sizes = {"image_size": 8, "patch_size": 4, "transformer": {**LATENT, **changes}}
        return {"class_name": class_name, **sizes}
    unposed = class_name in UNPOSED
    section = {
        "class_name": class_name,
        "image_tokenizer": {"image_size": 8, "patch_size": 4},
        "target_pose_tokenizer": {"patch_size": 4},
    }
    if class_name == "src.model.lvsm_prope.LVSMPRoPE":
        del section["target_pose_tokenizer"]
    if unposed:
        section["image_tokenizer"]["backbone"] = {
            "embed_dim": 16,
            "depth": 2,
            "num_heads": 2,
            "img_size": 12,
            "num_register_tokens": 2,
        }
        section["unposed"] = changes.pop("unposed", {})
    section["transformer"] = {
        "d": 16,
        "d_head": 8,
        "special_init": True,
        "depth_init": True,
        "use_qk_norm": True,
        **LAYERS[class_name],
        **changes,
    }
    return section


@pytest.fixture
def make_model() -> Callable[..., ViewSynthesizer]:
    """`make_model(class_name, **changes)`: a tiny model, all weights away from their initial values."""

    def make(class_name: str, **changes: object) -> ViewSynthesizer:
        problems: list[str] = []
        config = build(family_config(class_name), model_section(class_name, **changes), "model", problems)
        assert not problems, problems
        model = build_model(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
        return model

    return make


@pytest.fixture
def make_views() -> Callable[..., Views]:
    """`make_views(num_views, height, width)`: random images of two samples, seen by random cameras."""

    def make(num_views: int, height: int = 8, width: int = 8) -> Views:
        focal = torch.tensor([width, width, width / 2, height / 2], dtype=torch.float32)
        c2w = decode_pose(torch.randn(2, num_views, 7))
        cameras = Cameras(c2w, focal.expand(2, num_views, 4).clone(), height, width)
        return Views(torch.rand(2, num_views, 3, height, width), cameras)

    return make
