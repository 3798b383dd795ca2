"""PT-LVSM: context images without poses, target cameras given relative to the first context view.

Paper: "The Less You Depend, The More You Learn", arXiv 2506.09885 (there posed-target LVSM).
Original repository: ou524u/Less3Depend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from ..config import key, raise_all
from ..geometry.camera import Cameras, Views, plucker, rebase
from ..geometry.rotation import decode_pose, encode_pose
from .base import PoseTokenizer, ViewSynthesizer, patch_size_problems
from .dinov2 import DinoTokenizer, check_width, image_tokenizer
from .patch import PixelHead, patch_tokenizer
from .transformer import TransformerSettings, transformer_stack

QK_NORM_EPS = 1e-3
NORM_FLOOR = 1e-3


@dataclass(kw_only=True)
class Transformer(TransformerSettings):
    n_layer: int = key("blocks", 24)


@dataclass(kw_only=True)
class Unposed:
    """Top-level section `unposed`."""

    pose_enc_type: str = key("code to which pose noise is added", "absT_quaR", choices=("absT_quaR",))
    dino_qknorm: bool = key("RMS norm of queries and keys in the image backbone", True)
    decoder_as_canonical: bool = key("one tokenizer for target rays and first-view rays", False)
    canonical_camera: bool = key("poses relative to the first context camera", False)
    noise_scale: float = key("deviation of the noise on pose codes while training; not above 0: none", -1.0)
    stage_switch_step: int = key("the second training stage does not exist", 200000, ignored=True)
    detach_estimator: bool = key("there is no estimator", False, ignored=True)


@dataclass(kw_only=True)
class Config:
    """`model` section of PT-LVSM."""

    class_name: str = key("model family", "src.model.ptlvsm.posedTargetLVSM")
    image_tokenizer: DinoTokenizer = key("context images to tokens")
    target_pose_tokenizer: PoseTokenizer = key("patches of the target rays")
    transformer: Transformer = key("sizes", Transformer)
    unposed: Unposed = key("treatment of poses", Unposed, section="unposed")

    def __post_init__(self) -> None:
        raise_all(patch_size_problems(self.image_tokenizer, self.target_pose_tokenizer))
        check_width(self.image_tokenizer, self.transformer.d)


class Scene(NamedTuple):
    """tokens: of all context images, the first marked with its rays. [b, v_in * n, d]
    first_c2w: pose of the first context camera. [b, 4, 4]"""

    tokens: Tensor
    first_c2w: Tensor


class PTLVSM(ViewSynthesizer):
    """Of the context poses only the first is read: its rays mark the first image and fix the world frame."""

    pretrained_parts = {"dinov2": "image_tokenizer.1.dino_vit."}

    def __init__(self, config: Config) -> None:
        super().__init__()
        d, p = config.transformer.d, config.image_tokenizer.patch_size
        self.unposed = config.unposed
        self.image_tokenizer = image_tokenizer(config.image_tokenizer, qk_norm=config.unposed.dino_qknorm)
        self.target_pose_tokenizer = patch_tokenizer(6, p, d)
        self.canonical_pose_tokenizer = (
            self.target_pose_tokenizer if config.unposed.decoder_as_canonical else patch_tokenizer(6, p, d)
        )
        self.transformer_input_layernorm = nn.LayerNorm(d, bias=False)
        self.transformer_blocks = transformer_stack(
            config.transformer.n_layer, config.transformer, qk_norm_eps=QK_NORM_EPS
        )
        self.image_token_decoder = PixelHead(d, p)

    def encode(self, input: Views) -> Scene:
        first = self.perturbed(input.cameras.views(slice(0, 1)))
        marker = self.canonical_pose_tokenizer(self.rays(first, first.c2w[:, 0]))  # [b, n, d]
        tokens = self.image_tokenizer(input.image)  # [b * v_in, n, d]
        tokens = rearrange(tokens, "(b v) n d -> b (v n) d", b=len(input.image))
        n = marker.shape[1]
        tokens = torch.cat([tokens[:, :n] + marker, tokens[:, n:]], dim=1)
        return Scene(tokens, first.c2w[:, 0])

    def decode(self, scene: Scene, cameras: Cameras) -> Tensor:
        rays = self.rays(self.perturbed(cameras), scene.first_c2w)
        targets = self.target_pose_tokenizer(rays)  # [b * v, n, d]
        context = repeat(scene.tokens, "b n d -> (b v) n d", v=cameras.num_views)
        tokens = torch.cat([context, targets], dim=1)  # [b * v, (v_in + 1) * n, d]
        used = slice(context.shape[1], None)
        targets = self.transformer_blocks(self.transformer_input_layernorm(tokens), used=used)
        return self.image_token_decoder(targets, cameras.num_views, cameras.height, cameras.width)

    def rays(self, cameras: Cameras, first_c2w: Tensor) -> Tensor:
        """Pluecker map, seen from the first context camera if `canonical_camera` says so. [b, v, 6, h, w]

        The original drops the whole batch if a pose has a condition number of 1e4 or more; a pose that is no
        rotation belongs refused where data are read, so here it is used as it is.
        """
        if self.unposed.canonical_camera:
            cameras = cameras.at(rebase(cameras.c2w, first_c2w))
        return plucker(cameras, norm_floor=NORM_FLOOR)

    def perturbed(self, cameras: Cameras) -> Cameras:
        """The cameras, while training with noise on their pose codes (quaternions need not have length 1)."""
        if not self.training or self.unposed.noise_scale <= 0:
            return cameras
        code = encode_pose(cameras.c2w)
        return cameras.at(decode_pose(code + self.unposed.noise_scale * torch.randn_like(code)))
