"""LVSM decoder-only: one transformer over all input tokens and a target's ray tokens renders that target.

Paper: "LVSM: A Large View Synthesis Model with Minimal 3D Inductive Bias", arXiv 2410.17242.
Original repository: Haian-Jin/LVSM.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from ..config import key, raise_all
from ..geometry.camera import Cameras, Views, plucker
from .base import ImageTokenizer, PoseTokenizer, ViewSynthesizer, patch_size_problems
from .patch import PixelHead, patch_tokenizer
from .transformer import TransformerSettings, transformer_stack

QK_NORM_EPS = 1e-5


@dataclass(kw_only=True)
class Transformer(TransformerSettings):
    n_layer: int = key("blocks", 24)


@dataclass(kw_only=True)
class Config:
    """`model` section of LVSM decoder-only."""

    class_name: str = key("model family", "model.LVSM_scene_decoder_only.Images2LatentScene")
    image_tokenizer: ImageTokenizer = key("patches of the context images")
    target_pose_tokenizer: PoseTokenizer = key("patches of the target rays")
    transformer: Transformer = key("sizes", Transformer)

    def __post_init__(self) -> None:
        raise_all(patch_size_problems(self.image_tokenizer, self.target_pose_tokenizer))


def posed_image(views: Views) -> Tensor:
    """Image in [-1, 1], moment, ray direction: what LVSM reads of a context view. [b, v, 9, h, w]"""
    return torch.cat([2 * views.image - 1, plucker(views.cameras)], dim=2)


class LVSMDecoderOnly(ViewSynthesizer):
    """The scene state is the input tokens; every target view attends to them and they attend to it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        d, p = config.transformer.d, config.image_tokenizer.patch_size
        self.image_tokenizer = patch_tokenizer(9, p, d)
        self.target_pose_tokenizer = patch_tokenizer(6, p, d)
        self.transformer_input_layernorm = nn.LayerNorm(d, bias=False)
        self.transformer_blocks = transformer_stack(
            config.transformer.n_layer, config.transformer, qk_norm_eps=QK_NORM_EPS
        )
        self.image_token_decoder = PixelHead(d, p)

    def encode(self, input: Views) -> Tensor:
        """Tokens of all context views, view by view. [b, v_in * n, d]"""
        tokens = self.image_tokenizer(posed_image(input))  # [b * v_in, n, d]
        return rearrange(tokens, "(b v) n d -> b (v n) d", b=len(input.image))

    def decode(self, scene: Tensor, cameras: Cameras) -> Tensor:
        targets = self.target_pose_tokenizer(plucker(cameras))  # [b * v, n, d]
        scene = repeat(scene, "b n d -> (b v) n d", v=cameras.num_views)
        tokens = torch.cat([scene, targets], dim=1)  # [b * v, (v_in + 1) * n, d]
        used = slice(scene.shape[1], None)
        targets = self.transformer_blocks(self.transformer_input_layernorm(tokens), used=used)
        return self.image_token_decoder(targets, cameras.num_views, cameras.height, cameras.width)
