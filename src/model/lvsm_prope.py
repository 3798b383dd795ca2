"""The LVSM of the PRoPE paper: decoder-only, small, with cameras inside attention.

Beside that it differs from LVSM: images enter as they are, in [0, 1]; rays stand direction first; an image patch comes
before its ray patch instead of pixel by pixel; ReLU; a norm behind the last layer. To build on, `kvlvsm` is the better
start: it has the same camera encodings, and a cache.

Paper: arXiv 2507.10496. Original repository: liruilong940607/prope, branch nvs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from ..config import ConfigError, key
from ..geometry.camera import Cameras, Views, pixel_rays
from .base import ImageTokenizer, ViewSynthesizer
from .patch import Patchify
from .prope import CAMERA_ENCODINGS, CameraEncoding, camera_encoding
from .transformer import BlockStack, RMSNorm, TransformerSettings

QK_NORM_EPS = 1e-5


@dataclass(kw_only=True)
class Transformer(TransformerSettings):
    d_head: int = key("width of an attention head; divides d", 48)
    d_ff: int = key("hidden width of the MLP", 1024)
    n_layer: int = key("layers", 6)
    use_qk_norm: bool = key("RMS norm of queries and keys", True)
    special_init: bool = key("all weights start alike", False, ignored=True)
    depth_init: bool = key("all weights start alike", False, ignored=True)


@dataclass(kw_only=True)
class Config:
    """`model` section."""

    class_name: str = key("model family", "src.model.lvsm_prope.LVSMPRoPE")
    image_tokenizer: ImageTokenizer = key("patches of images and rays")
    transformer: Transformer = key("sizes", Transformer)
    camera: str = key(
        "cameras inside attention: prope, gta (without intrinsics) or none", "prope", choices=CAMERA_ENCODINGS
    )
    ray: str = key(
        "ray map that tokens are made of: camray, directions in the camera's own frame; plucker, in the world's",
        "camray",
        choices=("camray", "plucker"),
    )

    def __post_init__(self) -> None:
        if self.camera != "none" and self.transformer.d_head % 8:
            raise ConfigError(
                f"model.transformer.d_head is {self.transformer.d_head}: model.camera {self.camera} needs a multiple "
                "of 8."
            )


class SelfAttention(nn.Module):
    """Attention under the names of torch's MultiheadAttention: rows q, k, v of one weight. [b, n, d] -> [b, n, d]"""

    def __init__(self, sizes: Transformer) -> None:
        super().__init__()
        self.d_head = sizes.d_head
        self.in_proj_weight = nn.Parameter(sizes.init_std * torch.randn(3 * sizes.d, sizes.d))
        self.out_proj = _linear(sizes.d, sizes.d, sizes.init_std)
        for name in ("q_norm", "k_norm"):
            setattr(self, name, RMSNorm(sizes.d_head, QK_NORM_EPS) if sizes.use_qk_norm else nn.Identity())

    def forward(self, x: Tensor, encoding: CameraEncoding | None) -> Tensor:
        qkv = F.linear(x, self.in_proj_weight)
        q, k, v = rearrange(qkv, "b n (three heads c) -> three b heads n c", three=3, c=self.d_head)
        q, k = self.q_norm(q), self.k_norm(k)
        if encoding is not None:
            q, k, v = encoding.turn(q, k, v)
        out = F.scaled_dot_product_attention(q, k, v)
        if encoding is not None:
            out = encoding.back(out)
        return self.out_proj(rearrange(out, "b heads n c -> b n (heads c)"))


class Layer(nn.Module):
    """Pre-norm layer with a ReLU. [b, n, d] -> [b, n, d]"""

    def __init__(self, sizes: Transformer) -> None:
        super().__init__()
        self.self_attn = SelfAttention(sizes)
        self.linear1 = _linear(sizes.d, sizes.d_ff, sizes.init_std)
        self.linear2 = _linear(sizes.d_ff, sizes.d, sizes.init_std)
        self.norm1 = nn.LayerNorm(sizes.d, bias=False)
        self.norm2 = nn.LayerNorm(sizes.d, bias=False)

    def forward(self, x: Tensor, encoding: CameraEncoding | None) -> Tensor:
        x = x + self.self_attn(self.norm1(x), encoding)
        return x + self.linear2(self.linear1(self.norm2(x)).relu())


class Encoder(nn.Module):
    """The layers between two norms. [b, n, d] -> [b, n, d]"""

    def __init__(self, sizes: Transformer) -> None:
        super().__init__()
        self.in_norm = nn.LayerNorm(sizes.d, bias=False)
        self.layers = BlockStack(Layer(sizes) for _ in range(sizes.n_layer))
        self.out_norm = nn.LayerNorm(sizes.d, bias=False)

    def forward(self, x: Tensor, encoding: CameraEncoding | None) -> Tensor:
        return self.out_norm(self.layers(self.in_norm(x), encoding))


@dataclass(frozen=True)
class ContextTokens:
    """Tokens of all context views, [b, v_in * n, d], and their cameras."""

    tokens: Tensor
    encoding: CameraEncoding | None


class LVSMPRoPE(ViewSynthesizer):
    """The scene is the input tokens; each target runs through the network together with all of them."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, sizes = config, config.transformer
        pixels = config.image_tokenizer.patch_size**2
        self.patches = Patchify(config.image_tokenizer.patch_size)
        self.input_tokenizer = _linear(9 * pixels, sizes.d, sizes.init_std)
        self.query_tokenizer = _linear(6 * pixels, sizes.d, sizes.init_std)
        self.encoder = Encoder(sizes)
        self.output_layer = _linear(sizes.d, 3 * pixels, sizes.init_std)

    def encode(self, input: Views) -> ContextTokens:
        both = torch.cat([self.patches(input.image), self.patches(self._rays(input.cameras))], dim=-1)
        tokens = rearrange(self.input_tokenizer(both), "(b v) n d -> b (v n) d", b=len(input.image))
        return ContextTokens(tokens, self._camera_encoding(input.cameras))

    def decode(self, scene: ContextTokens, cameras: Cameras) -> Tensor:
        targets = self.query_tokenizer(self.patches(self._rays(cameras)))  # [b * v, n, d]
        context = repeat(scene.tokens, "b n d -> (b v) n d", v=cameras.num_views)
        encoding = scene.encoding
        if encoding is not None:
            own = self._camera_encoding(cameras).folded()
            encoding = encoding.repeated(cameras.num_views).joined(own)
        tokens = self.encoder(torch.cat([context, targets], dim=1), encoding)
        pixels = self.output_layer(tokens[:, -targets.shape[1] :]).float().sigmoid()
        p = self.patches.patch_size
        return rearrange(
            pixels,
            "(b v) (hh ww) (ph pw c) -> b v c (hh ph) (ww pw)",
            **{"v": cameras.num_views, "hh": cameras.height // p, "ph": p, "pw": p},
        )

    def _rays(self, cameras: Cameras) -> Tensor:
        """Direction, then moment. [b, v, 6, h, w]"""
        if self.config.ray == "camray":
            identity = torch.eye(4, device=cameras.c2w.device, dtype=cameras.c2w.dtype)
            cameras = cameras.at(identity.expand_as(cameras.c2w))
        ray_o, ray_d = pixel_rays(cameras)
        return torch.cat([ray_d, torch.linalg.cross(ray_o, ray_d, dim=2)], dim=2)

    def _camera_encoding(self, cameras: Cameras) -> CameraEncoding | None:
        return camera_encoding(
            cameras, self.patches.patch_size, self.config.transformer.d_head, self.config.camera
        )


def _linear(inputs: int, outputs: int, std: float) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(linear.weight, std=std)
    return linear
