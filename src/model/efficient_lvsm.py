"""Efficient-LVSM: two token streams with weights of their own; targets read the inputs of the same layer.

Every input view is encoded by itself, so what a target needs of it - keys and values in each layer - is computed once,
and views can be added and taken away exactly.

Paper: "Efficient-LVSM", arXiv 2602.06478. Original repository: Ayakaee/Efficient-LVSM.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from easydict import EasyDict
from einops import rearrange
from torch import Tensor, nn

from ..config import ConfigError, key, raise_all
from ..geometry.camera import Cameras, Views, plucker
from .base import ImageTokenizer, PoseTokenizer, ViewSynthesizer, patch_size_problems
from .dino_teacher import DinoTeacher
from .kv_cache import KVCache
from .lvsm_decoder_only import posed_image
from .patch import PixelHead, patch_tokenizer
from .transformer import MLP, Attention, BlockStack, RMSNorm, TransformerSettings

QK_NORM_EPS = 1e-5
TEACHER_WIDTH = 768
"""Numbers of a teacher's token: ViT-B, DINOv2 or DINOv3."""


@dataclass(kw_only=True)
class Transformer(TransformerSettings):
    n_layer: int = key("layers of each stream", 12)
    attention_arch: str = key("PyTorch chooses the kernel", "flash", ignored=True)


@dataclass(kw_only=True)
class Tokenizer(ImageTokenizer):
    type: str = key(
        "teacher of the alignment with repa_config: dinov2, or none",
        "none",
        choices=("none", "dinov2", "dinov3"),
    )


@dataclass(kw_only=True)
class Config:
    """`model` section of Efficient-LVSM."""

    class_name: str = key("model family", "src.model.efficient_lvsm.EfficientLVSM")
    image_tokenizer: Tokenizer = key("patches of the context images")
    target_pose_tokenizer: PoseTokenizer = key("patches of the target rays")
    transformer: Transformer = key("sizes", Transformer)
    repa_config: str = key(
        "alignment with a frozen teacher while training: pairs `teacher block-layer of ours`, such as `8-2`; empty: none",
        "",
    )
    projector_dim: int = key("hidden width of the projectors of the alignment", 2048, least=1)
    proj_loss_type: str = key(
        "how tokens are compared with the teacher's: smooth L1, squared error or cosine",
        "sl1",
        choices=("sl1", "l2", "cos"),
    )
    proj_loss_weight: float = key("weight of the alignment", 0.5, least=0)

    def __post_init__(self) -> None:
        raise_all(self._problems())

    def _problems(self) -> Iterator[str]:
        yield from patch_size_problems(self.image_tokenizer, self.target_pose_tokenizer)
        for _, student in self.pairs:
            if not 1 <= student <= self.transformer.n_layer:
                yield (
                    f"model.repa_config {self.repa_config}: there is no layer {student}, model.transformer.n_layer is "
                    f"{self.transformer.n_layer}."
                )

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(block of the teacher, layer of ours), both counted from 1."""
        words = self.repa_config.replace(",", " ").split()
        if not all(re.fullmatch(r"\d+-\d+", word) for word in words):
            raise ConfigError(
                f"model.repa_config is {self.repa_config}: expected pairs such as 8-2 (teacher block 8, layer 2)."
            )
        return [(int(teacher), int(student)) for teacher, student in (word.split("-") for word in words)]


# ----------------------------------------------------------------------------------------------- blocks


def norm(d: int) -> nn.LayerNorm:
    """The only kind of norm between the layers here: without gain and bias."""
    return nn.LayerNorm(d, elementwise_affine=False)


class CrossAttention(nn.Module):
    """Queries of one sequence, keys and values of another; no biases."""

    def __init__(self, d: int, d_head: int, qk_norm_eps: float | None) -> None:
        super().__init__()
        self.d_head = d_head
        self.to_q = nn.Linear(d, d, bias=False)
        self.to_kv = nn.Linear(d, 2 * d, bias=False)
        self.fc = nn.Linear(d, d, bias=False)
        self.q_norm = nn.Identity() if qk_norm_eps is None else RMSNorm(d_head, qk_norm_eps)
        self.k_norm = nn.Identity() if qk_norm_eps is None else RMSNorm(d_head, qk_norm_eps)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[b, n, d] -> keys, normed, and values, both [b, heads, n, d_head]"""
        k, v = rearrange(self.to_kv(x), "b n (two heads c) -> two b heads n c", two=2, c=self.d_head)
        return self.k_norm(k), v

    def forward(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[b, n, d] -> [b, n, d]; k and v: [b, heads, m, d_head]"""
        q = self.q_norm(rearrange(self.to_q(x), "b n (heads c) -> b heads n c", c=self.d_head))
        out = F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype))
        return self.fc(rearrange(out, "b heads n c -> b n (heads c)"))


class SelfBlock(nn.Module):
    """One layer of the input stream. [b * v_in, n, d] -> [b * v_in, n, d]"""

    def __init__(self, d: int, d_head: int, qk_norm_eps: float | None) -> None:
        super().__init__()
        self.norm = norm(d)
        self.attn = Attention(d, d_head, qk_norm_eps)
        self.mlp = MLP(d)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm(x))
        return x + self.mlp(self.norm(x))


class SelfCrossBlock(nn.Module):
    """One layer of the target stream: within the view, then to all inputs, then the MLP."""

    def __init__(self, d: int, d_head: int, qk_norm_eps: float | None) -> None:
        super().__init__()
        self.norm = norm(d)
        self.self_attn = Attention(d, d_head, qk_norm_eps)
        self.cross_attn = CrossAttention(d, d_head, qk_norm_eps)
        self.mlp = MLP(d)

    def forward(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """x: [b * v_t, n, d]; k and v of the inputs: [b, heads, v_in * m, d_head]"""
        x = x + self.self_attn(self.norm(x))
        joined = rearrange(self.norm(x), "(b v) n d -> b (v n) d", b=len(k))  # queries do not see one another
        x = x + self.cross_attn(joined, k, v).reshape(x.shape)
        return x + self.mlp(self.norm(x))


# ----------------------------------------------------------------------------------------------- the family


class EfficientLVSM(ViewSynthesizer):
    """The scene is a `KVCache` of the cross attention of every layer; views are independent of one another.

    teacher: needed to train with `repa_config`: images [b, v, 3, h, w] -> {block: tokens [b * v, n, 768]}, on the grid
        of our patches, frozen. It is no part of the model. A run makes the one of `model.image_tokenizer.type`; another
        may be set as an attribute of the object.
    """

    teacher: Callable[[Tensor], dict[int, Tensor]] | None = None

    def __init__(self, config: Config) -> None:
        super().__init__()
        sizes, p = config.transformer, config.image_tokenizer.patch_size
        d, eps = sizes.d, QK_NORM_EPS if sizes.use_qk_norm else None
        self.config = config
        self.rgbp_tokenizer = patch_tokenizer(9, p, d)
        self.target_pose_tokenizer = patch_tokenizer(6, p, d)
        layers = range(sizes.n_layer)
        self.input_self_attn_blocks = BlockStack(SelfBlock(d, sizes.d_head, eps) for _ in layers)
        self.self_cross_blocks = BlockStack(SelfCrossBlock(d, sizes.d_head, eps) for _ in layers)
        self.image_token_decoder = PixelHead(d, p)
        self.image_token_decoder[0] = norm(d)
        for stack in (self.input_self_attn_blocks, self.self_cross_blocks):
            _initialise(stack, sizes)
        if config.pairs:
            self.repa_projector = nn.ModuleDict(
                {stream: _projectors(config.pairs, d, config.projector_dim) for stream in ("input", "target")}
            )

    def encode(self, input: Views) -> KVCache:
        return self._encode(input)[0]

    def add_view(self, scene: KVCache, input: Views) -> KVCache:
        """The scene with further context views, exactly as if all had been encoded together."""
        return scene.appended(self.encode(input))

    def decode(self, scene: KVCache, cameras: Cameras) -> Tensor:
        return self._decode(scene, cameras)[0]

    def forward(self, input: Views, target: Views) -> EasyDict:
        """Beside `render` and `cameras`: `alignment`, the loss terms of `repa_config` while training."""
        scene, inputs = self._encode(input)
        render, targets = self._decode(scene, target.cameras)
        result = EasyDict(render=render, cameras=target.cameras)
        if self.config.pairs and (self.training or self.teacher):
            if self.teacher is None:
                raise ConfigError(
                    "model.repa_config asks for alignment with a teacher, but the model has none: set "
                    "model.image_tokenizer.type: dinov2, the attribute `teacher`, or model.repa_config to nothing."
                )
            with torch.no_grad():
                labels = {"input": self.teacher(input.image), "target": self.teacher(target.image)}
            result.proj_loss = self.alignment_loss({"input": inputs, "target": targets}, labels)
        return result

    def objective(
        self, result: EasyDict, target: Views, image_loss: Callable[[Tensor, Tensor], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        terms = image_loss(result.render, target.image)
        if "proj_loss" not in result:
            return terms
        loss = terms["loss"] + self.config.proj_loss_weight * result.proj_loss
        return {**terms, "loss": loss, "proj_loss": result.proj_loss.detach()}

    def teachers(self) -> dict[str, nn.Module]:
        """The DINOv2 of the alignment, if the settings ask for one and none was given."""
        kind = self.config.image_tokenizer.type
        if not self.config.pairs or kind == "none" or self.teacher:
            return {}
        if kind == "dinov3":
            raise ConfigError(
                "model.image_tokenizer.type dinov3: its weights are not freely available, and it is not built here: set "
                "dinov2, or the model's attribute `teacher`."
            )
        blocks = {block for block, _ in self.config.pairs}
        self.teacher = DinoTeacher(blocks, self.config.image_tokenizer.patch_size)
        return {"dinov2_teacher": self.teacher.network}

    def units(self) -> Iterator[nn.Module]:
        """The input stream asks a layer's cross attention for its keys and values: a unit of its own."""
        yield from (block.cross_attn for block in self.self_cross_blocks)
        yield from super().units()

    def _encode(self, input: Views) -> tuple[KVCache, list[Tensor]]:
        """The scene, and the tokens after each layer, [b * v_in, n, d] each."""
        b, v = input.image.shape[:2]
        x = self.rgbp_tokenizer(posed_image(input))  # [b * v_in, n, d]
        keys, values, after = [], [], []
        for layer, reader in zip(self.input_self_attn_blocks, self.self_cross_blocks):
            x = self.input_self_attn_blocks.run_group(layer, x)
            k, v_ = reader.cross_attn.keys_values(rearrange(reader.norm(x), "(b v) n d -> b (v n) d", b=b))
            keys.append(k), values.append(v_), after.append(x)
        return KVCache(tuple(keys), tuple(values), (x.shape[1],) * v, "any"), after

    def _decode(self, scene: KVCache, cameras: Cameras) -> tuple[Tensor, list[Tensor]]:
        """Images, and the tokens after each layer, [b * v_t, n, d] each."""
        x = self.target_pose_tokenizer(plucker(cameras))  # [b * v_t, n, d]
        after = []
        for layer, k, v in zip(self.self_cross_blocks, scene.keys, scene.values, strict=True):
            x = self.self_cross_blocks.run_group(layer, x, k, v)
            after.append(x)
        return self.image_token_decoder(x, cameras.num_views, cameras.height, cameras.width), after

    def alignment_loss(self, tokens: dict[str, list[Tensor]], labels: dict[str, dict[int, Tensor]]) -> Tensor:
        """Mean distance of projected tokens from the teacher's, over streams, pairs and views.

        Args:
            tokens: stream (`input`, `target`) -> tokens after each of our layers. [b * v, n, d]
            labels: stream -> teacher's block, counted from 1 -> its tokens. [b * v, n, 768]
        """
        terms = []
        for stream, projectors in self.repa_projector.items():
            for teacher, student in self.config.pairs:
                projected = projectors[str(teacher)][str(student)](tokens[stream][student - 1])
                terms.append(
                    _distance(projected.float(), labels[stream][teacher], self.config.proj_loss_type)
                )
        return torch.cat(terms).mean()

    def with_own_names(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Without the projectors of a training that this model does not continue."""
        if self.config.pairs:
            return state
        return {name: x for name, x in state.items() if not name.startswith("repa_projector.")}


def _initialise(stack: BlockStack, sizes: TransformerSettings) -> None:
    """Normal weights, smaller in depth with special_init, in both streams. The original forgets the input stream."""
    for index, block in enumerate(stack):
        depth = index + 1 if sizes.depth_init else len(stack)
        std = sizes.init_std / math.sqrt(2 * depth) if sizes.special_init else sizes.init_std
        for module in block.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)


def _projectors(pairs: list[tuple[int, int]], d: int, hidden: int) -> nn.ModuleDict:
    """{teacher block: {layer of ours: three linear maps with SiLU between them}}"""
    found: dict[str, dict[str, nn.Module]] = {}
    for teacher, student in pairs:
        found.setdefault(str(teacher), {})[str(student)] = nn.Sequential(
            nn.Linear(d, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, TEACHER_WIDTH),
        )
    return nn.ModuleDict({teacher: nn.ModuleDict(students) for teacher, students in found.items()})


def _distance(tokens: Tensor, label: Tensor, kind: str) -> Tensor:
    """Distance of each view's tokens from the teacher's. [b * v, n, c] -> [b * v]"""
    if tokens.shape != label.shape:
        raise ValueError(
            f"the teacher gave tokens {tuple(label.shape)} where ours are {tuple(tokens.shape)}: its features must "
            "lie on the grid of our patches."
        )
    if kind == "cos":
        return -F.cosine_similarity(tokens, label, dim=-1).mean(1)
    compare = F.smooth_l1_loss if kind == "sl1" else F.mse_loss
    return compare(tokens, label, reduction="none").mean((1, 2))
