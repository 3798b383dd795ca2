"""LVSM encoder-decoder: an encoder condenses the context views into latents, a decoder renders from them.

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
from .lvsm_decoder_only import QK_NORM_EPS, posed_image
from .patch import PixelHead, patch_tokenizer
from .transformer import TransformerSettings, transformer_stack


@dataclass(kw_only=True)
class Transformer(TransformerSettings):
    encoder_n_layer: int = key("blocks of the encoder", 12)
    decoder_n_layer: int = key("blocks of the decoder", 12)
    n_latent_vectors: int = key("tokens of the scene state", 3072)


@dataclass(kw_only=True)
class Config:
    """`model` section of LVSM encoder-decoder."""

    class_name: str = key("model family", "model.LVSM_scene_encoder_decoder.Images2LatentScene")
    image_tokenizer: ImageTokenizer = key("patches of the context images")
    target_pose_tokenizer: PoseTokenizer = key("patches of the target rays")
    transformer: Transformer = key("sizes", Transformer)

    def __post_init__(self) -> None:
        raise_all(patch_size_problems(self.image_tokenizer, self.target_pose_tokenizer))


class LVSMEncoderDecoder(ViewSynthesizer):
    """The scene state is a fixed number of latent tokens, however many context views there are."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        sizes, p = config.transformer, config.image_tokenizer.patch_size
        self.image_tokenizer = patch_tokenizer(9, p, sizes.d)
        self.target_pose_tokenizer = patch_tokenizer(6, p, sizes.d)
        self.n_light_field_latent = nn.Parameter(torch.empty(sizes.n_latent_vectors, sizes.d))
        nn.init.trunc_normal_(self.n_light_field_latent, std=0.02)
        self.transformer_encoder = transformer_stack(sizes.encoder_n_layer, sizes, qk_norm_eps=QK_NORM_EPS)
        self.transformer_input_layernorm_decoder = nn.LayerNorm(sizes.d, bias=False)
        self.transformer_decoder = transformer_stack(sizes.decoder_n_layer, sizes, qk_norm_eps=QK_NORM_EPS)
        self.image_token_decoder = PixelHead(sizes.d, p)

    def encode(self, input: Views) -> Tensor:
        """Latents that have read all context views. [b, n_latent_vectors, d]"""
        b = len(input.image)
        tokens = self.image_tokenizer(posed_image(input))  # [b * v_in, n, d]
        tokens = rearrange(tokens, "(b v) n d -> b (v n) d", b=b)
        latents = repeat(self.n_light_field_latent, "n d -> b n d", b=b)
        return self.transformer_encoder(torch.cat([latents, tokens], dim=1), used=slice(latents.shape[1]))

    def decode(self, scene: Tensor, cameras: Cameras) -> Tensor:
        targets = self.target_pose_tokenizer(plucker(cameras))  # [b * v, n, d]
        scene = repeat(scene, "b n d -> (b v) n d", v=cameras.num_views)
        tokens = torch.cat([targets, scene], dim=1)  # [b * v, n + n_latent_vectors, d]
        used = slice(targets.shape[1])
        targets = self.transformer_decoder(self.transformer_input_layernorm_decoder(tokens), used=used)
        return self.image_token_decoder(targets, cameras.num_views, cameras.height, cameras.width)
