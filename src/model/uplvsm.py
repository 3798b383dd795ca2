"""UP-LVSM: view synthesis without camera poses; a target's pose is estimated from the target image itself.

Between a target image and its render there is nothing but seven numbers, so the model has to agree with
itself on a pose space. It re-renders given views and moves between them, but cannot be steered with cameras
of another world.

Paper: "The Less You Depend, The More You Learn", arXiv 2506.09885. Original repository: ou524u/Less3Depend.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from ..config import key, raise_all
from ..geometry.camera import Cameras, Views, full_precision, plucker
from ..geometry.rotation import decode_pose
from .base import PoseTokenizer, ViewSynthesizer, patch_size_problems
from .dinov2 import DinoTokenizer, check_width, image_tokenizer
from .estimator import PoseEstimator
from .patch import PixelHead, patch_tokenizer
from .ptlvsm import NORM_FLOOR, QK_NORM_EPS
from .transformer import TransformerSettings, transformer_stack


@dataclass(kw_only=True)
class Transformer(TransformerSettings):
    encoder_n_layer: int = key("blocks of the encoder", 6)
    estimator_n_layer: int = key("blocks of the pose estimator", 4)
    decoder_n_layer: int = key("blocks of the decoder", 14)
    n_latent_vectors: int = key("tokens of the scene state", 1024)


@dataclass(kw_only=True)
class Unposed:
    """Top-level section `unposed`."""

    pose_enc_type: str = key("what the estimator puts out", "absT_quaR", choices=("absT_quaR",))
    dino_qknorm: bool = key("RMS norm of queries and keys in the image backbone", True)
    decoder_as_canonical: bool = key("one tokenizer for target rays and first-view rays", False)
    canonical_camera: bool = key("UP-LVSM reads no camera poses", False, ignored=True)
    noise_scale: float = key("UP-LVSM reads no camera poses", -1.0, ignored=True)
    stage_switch_step: int = key("the second training stage does not exist", 200000, ignored=True)
    detach_estimator: bool = key("gradients always reach the estimator", False, ignored=True)


@dataclass(kw_only=True)
class Config:
    """`model` section of UP-LVSM."""

    class_name: str = key("model family", "src.model.uplvsm.unposedLVSM")
    image_tokenizer: DinoTokenizer = key("images to tokens")
    target_pose_tokenizer: PoseTokenizer = key("patches of the target rays")
    transformer: Transformer = key("sizes", Transformer)
    unposed: Unposed = key("treatment of poses", Unposed, section="unposed")

    def __post_init__(self) -> None:
        raise_all(patch_size_problems(self.image_tokenizer, self.target_pose_tokenizer))
        check_width(self.image_tokenizer, self.transformer.d)


class UPLVSM(ViewSynthesizer):
    """The scene state is latent tokens; of all given cameras only the intrinsics are read."""

    target_aware = True
    pretrained_parts = {"dinov2": "image_tokenizer.1.dino_vit."}

    def __init__(self, config: Config) -> None:
        super().__init__()
        sizes, p = config.transformer, config.image_tokenizer.patch_size
        self.image_tokenizer = image_tokenizer(config.image_tokenizer, qk_norm=config.unposed.dino_qknorm)
        self.target_pose_tokenizer = patch_tokenizer(6, p, sizes.d)
        self.canonical_pose_tokenizer = (
            self.target_pose_tokenizer
            if config.unposed.decoder_as_canonical
            else patch_tokenizer(6, p, sizes.d)
        )
        self.n_light_field_latent = nn.Parameter(torch.empty(sizes.n_latent_vectors, sizes.d))
        nn.init.trunc_normal_(self.n_light_field_latent, std=0.02)
        self.transformer_encoder = transformer_stack(sizes.encoder_n_layer, sizes, qk_norm_eps=QK_NORM_EPS)
        self.estimator = PoseEstimator(sizes.estimator_n_layer, sizes, qk_norm_eps=QK_NORM_EPS)
        self.transformer_input_layernorm_decoder = nn.LayerNorm(sizes.d, bias=False)
        self.transformer_decoder = transformer_stack(sizes.decoder_n_layer, sizes, qk_norm_eps=QK_NORM_EPS)
        self.image_token_decoder = PixelHead(sizes.d, p)

    def encode(self, input: Views) -> Tensor:
        """Latents that have read all context images. [b, n_latent_vectors, d]"""
        b = len(input.image)
        first = input.cameras.views(slice(0, 1))
        origin = first.at(torch.eye(4, device=first.c2w.device).expand_as(first.c2w))
        marker = self.canonical_pose_tokenizer(plucker(origin, norm_floor=NORM_FLOOR))  # [b, n, d]
        tokens = self.image_tokenizer(input.image)  # [b * v_in, n, d]
        tokens = rearrange(tokens, "(b v) n d -> b (v n) d", b=b)
        n, latents = marker.shape[1], repeat(self.n_light_field_latent, "n d -> b n d", b=b)
        tokens = torch.cat([latents, tokens[:, :n] + marker, tokens[:, n:]], dim=1)
        return self.transformer_encoder(tokens, used=slice(latents.shape[1]))

    def target_cameras(self, scene: Tensor, target: Views) -> Cameras:
        """Where the model believes the target images were taken from; given poses are not read."""
        v = target.cameras.num_views
        tokens = self.image_tokenizer(target.image)  # [b * v, n, d]
        code = self.estimator(tokens, repeat(scene, "b n d -> (b v) n d", v=v))  # [b * v, 7]
        with full_precision(code.device):
            c2w = decode_pose(code)
        return target.cameras.at(rearrange(c2w, "(b v) i j -> b v i j", v=v))

    def decode(self, scene: Tensor, cameras: Cameras) -> Tensor:
        rays = plucker(cameras, norm_floor=NORM_FLOOR)  # [b, v, 6, h, w]
        targets = self.target_pose_tokenizer(rays)  # [b * v, n, d]
        scene = repeat(scene, "b n d -> (b v) n d", v=cameras.num_views)
        tokens = torch.cat([targets, scene], dim=1)  # [b * v, n + n_latent_vectors, d]
        used = slice(targets.shape[1])
        targets = self.transformer_decoder(self.transformer_input_layernorm_decoder(tokens), used=used)
        return self.image_token_decoder(targets, cameras.num_views, cameras.height, cameras.width)
