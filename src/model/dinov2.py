"""The image tokenizer of UP-LVSM and PT-LVSM: a DINOv2 vision transformer with registers, trained along.

Paper: "DINOv2" arXiv 2304.07193, "Vision Transformers Need Registers" arXiv 2309.16588. Parameter names are
those of Meta's `dinov2_vitb14_reg4_pretrain.pth`, plus `q_norm` and `k_norm` gains where queries and keys are
normalised.

Public: Backbone, DinoTokenizer (settings); DinoV2, image_tokenizer, check_width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from ..config import ConfigError, key, raise_all
from .base import ImageTokenizer
from .patch import check_size
from .transformer import BlockStack, RMSNorm, attention

LAYER_NORM_EPS = 1e-6
QK_NORM_EPS = 1e-3


@dataclass(kw_only=True)
class Backbone:
    """`model.image_tokenizer.backbone`. The published size is ViT-B/14; pretrained weights fit no other."""

    embed_dim: int = key("width of a token; that of the transformer", 768)
    depth: int = key("blocks", 12)
    num_heads: int = key("attention heads; divides embed_dim", 12)
    img_size: int = key("image side the position table is made for, pixels; others resample it", 518)
    num_register_tokens: int = key("extra tokens that belong to no patch", 4)
    mlp_ratio: int = key("hidden width of the MLP, in token widths", 4)

    def __post_init__(self) -> None:
        raise_all(self._problems())

    def _problems(self) -> Iterator[str]:
        where = "model.image_tokenizer.backbone"
        for name, value in vars(self).items():
            if value < 1 and name != "num_register_tokens":
                yield f"{where}.{name} is {value}: expected at least 1."
        if self.num_register_tokens < 0:
            yield (f"{where}.num_register_tokens is {self.num_register_tokens}: expected 0 or more.")
        if self.num_heads > 0 and self.embed_dim % self.num_heads:
            yield (
                f"{where}.embed_dim is {self.embed_dim}, which {where}.num_heads {self.num_heads} does not "
                "divide."
            )


@dataclass(kw_only=True)
class DinoTokenizer(ImageTokenizer):
    """`model.image_tokenizer` of a family that reads its images through DINOv2."""

    backbone: Backbone = key("size of the vision transformer", Backbone)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backbone.img_size < self.patch_size:
            raise ConfigError(
                f"model.image_tokenizer.backbone.img_size is {self.backbone.img_size}: expected at least one "
                f"patch, model.image_tokenizer.patch_size {self.patch_size}."
            )


class DinoAttention(nn.Module):
    def __init__(self, d: int, d_head: int, qk_norm: bool) -> None:
        super().__init__()
        self.d_head = d_head
        self.qkv = nn.Linear(d, 3 * d)
        self.proj = nn.Linear(d, d)
        self.q_norm = RMSNorm(d_head, QK_NORM_EPS) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(d_head, QK_NORM_EPS) if qk_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(attention(self.qkv(x), self.d_head, self.q_norm, self.k_norm))


class DinoMLP(nn.Module):
    def __init__(self, d: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(d, hidden)
        self.fc2 = nn.Linear(hidden, d)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(d))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DinoBlock(nn.Module):
    """Pre-norm block with biases and a gain on each branch. [b, n, d] -> [b, n, d]"""

    def __init__(self, size: Backbone, qk_norm: bool) -> None:
        super().__init__()
        d = size.embed_dim
        self.norm1 = nn.LayerNorm(d, eps=LAYER_NORM_EPS)
        self.attn = DinoAttention(d, d // size.num_heads, qk_norm)
        self.ls1 = LayerScale(d)
        self.norm2 = nn.LayerNorm(d, eps=LAYER_NORM_EPS)
        self.mlp = DinoMLP(d, size.mlp_ratio * d)
        self.ls2 = LayerScale(d)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """[b, 3, h, w] -> [b, n, d], patches row-major."""

    def __init__(self, patch_size: int, d: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, d, patch_size, stride=patch_size)

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image).flatten(2).transpose(1, 2)


class DinoV2(nn.Module):
    """Vision transformer; its output is the normed patch tokens. [b, 3, h, w] in [0, 1] -> [b, n, d]

    Parity: the images are not normalised by ImageNet's mean and deviation, as the pretrained weights would
    expect.
    """

    def __init__(self, size: Backbone, patch_size: int, *, qk_norm: bool) -> None:
        super().__init__()
        d, grid = size.embed_dim, size.img_size // patch_size
        self.patch_size = patch_size
        self.patch_embed = PatchEmbed(patch_size, d)
        self.cls_token = nn.Parameter(torch.empty(1, 1, d))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + grid * grid, d))
        self.num_register_tokens = size.num_register_tokens
        if size.num_register_tokens:  # without registers Meta's files have no such entry
            self.register_tokens = nn.Parameter(torch.empty(1, size.num_register_tokens, d))
            nn.init.normal_(self.register_tokens, std=1e-6)
        self.blocks = BlockStack(DinoBlock(size, qk_norm) for _ in range(size.depth))
        self.norm = nn.LayerNorm(d, eps=LAYER_NORM_EPS)
        nn.init.normal_(self.cls_token, std=1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, image: Tensor) -> Tensor:
        return self.norm(self.blocks(self._embedded(image)))[:, 1 + self.num_register_tokens :]

    def hidden_states(self, image: Tensor, blocks: set[int]) -> dict[int, Tensor]:
        """Patch tokens after the given blocks, counted from 1, without the last norm; later blocks are not run.

        [b, 3, h, w] -> {block: [b, n, d]}
        """
        tokens, found = self._embedded(image), {}
        for number, block in enumerate(self.blocks, start=1):
            if len(found) == len(blocks):
                break
            tokens = block(tokens)
            if number in blocks:
                found[number] = tokens[:, 1 + self.num_register_tokens :]
        return found

    def _embedded(self, image: Tensor) -> Tensor:
        """Class token, registers and patches before the first block. [b, 1 + r + n, d]"""
        check_size(*image.shape[-2:], self.patch_size)
        rows, columns = (side // self.patch_size for side in image.shape[-2:])
        patches = self.patch_embed(image)  # [b, n, d]
        cls_token = self.cls_token.expand(len(image), -1, -1)
        tokens = torch.cat([cls_token, patches], dim=1) + self.position_table(rows, columns)
        if self.num_register_tokens:
            registers = self.register_tokens.expand(len(image), -1, -1)
            tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)
        return tokens

    def position_table(self, rows: int, columns: int) -> Tensor:
        """Position entries, class token first, resampled to the grid. [1, 1 + rows * columns, d]"""
        grid = round((self.pos_embed.shape[1] - 1) ** 0.5)
        if (rows, columns) == (grid, grid):
            return self.pos_embed
        table = (
            self.pos_embed[:, 1:].float().unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
        )  # [1, d, grid, grid]
        table = F.interpolate(table, size=(rows, columns), mode="bicubic", antialias=True)
        return torch.cat([self.pos_embed[:, :1], table.flatten(2).transpose(1, 2)], dim=1)


class ImageBackbone(nn.Module):
    """Holds the vision transformer under its published name."""

    def __init__(self, dino_vit: DinoV2) -> None:
        super().__init__()
        self.dino_vit = dino_vit

    def forward(self, image: Tensor) -> Tensor:
        return self.dino_vit(image)


def image_tokenizer(settings: DinoTokenizer, *, qk_norm: bool) -> nn.Sequential:
    """Views to patch tokens. [b, v, 3, h, w] -> [b * v, n, d]"""
    dino_vit = DinoV2(settings.backbone, settings.patch_size, qk_norm=qk_norm)
    return nn.Sequential(Rearrange("b v c h w -> (b v) c h w"), ImageBackbone(dino_vit))


def check_width(settings: DinoTokenizer, d: int) -> None:
    """Raises ConfigError unless the backbone's tokens are as wide as the transformer's."""
    if settings.backbone.embed_dim != d:
        raise ConfigError(
            f"model.image_tokenizer.backbone.embed_dim is {settings.backbone.embed_dim} and "
            f"model.transformer.d is {d}: expected the same width in both."
        )
