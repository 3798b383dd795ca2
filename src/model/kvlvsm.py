"""KV-LVSM: LVSM decoder-only with a one-way mask, so that a scene is encoded once and rendered many times.

Context tokens never see a target, and targets never see one another. What targets need of the context is then the same
whatever is rendered: its keys and values in every layer, kept in a `KVCache`. A frame costs 1 / (v_in + 1) of LVSM's.

Parameters and their names are LVSM decoder-only's. With `mask: full, camera: none, ray: plucker` this is that model, and
its published weights load here to be fine-tuned with the mask.

The design follows LVSM (arXiv 2410.17242), DVSM (arXiv 2605.29891), SVSM (arXiv 2602.21341) and PRoPE (arXiv 2507.10496).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from easydict import EasyDict
from einops import rearrange, repeat
from torch import Tensor, nn

from ..config import key, raise_all
from ..geometry.camera import Cameras, Views, plucker
from ..geometry.frames import WorldFrame
from .base import ImageTokenizer, PoseTokenizer, ViewSynthesizer, patch_size_problems
from .kv_cache import KVCache, fingerprint
from .patch import PixelHead, patch_tokenizer
from .prope import CAMERA_ENCODINGS, CameraEncoding, camera_encoding
from .transformer import Block, BlockStack, TransformerSettings

QK_NORM_EPS = 1e-5
REMOVABLE = {"global": "none", "causal": "last", "view": "any"}
"""`model.context_scope` -> which views can be taken out of a cache exactly."""


@dataclass(kw_only=True)
class Transformer(TransformerSettings):
    n_layer: int = key("blocks", 24)
    use_qk_norm: bool = key("RMS norm of queries and keys", True)
    special_init: bool = key("model.init decides", True, ignored=True)
    depth_init: bool = key("model.init decides", True, ignored=True)
    init_std: float = key("model.init decides", 0.02, ignored=True)


@dataclass(kw_only=True)
class Config:
    """`model` section of KV-LVSM."""

    class_name: str = key("model family", "src.model.kvlvsm.KVLVSM")
    image_tokenizer: ImageTokenizer = key("patches of the context images")
    target_pose_tokenizer: PoseTokenizer = key("patches of the target rays")
    transformer: Transformer = key("sizes", Transformer)
    mask: str = key(
        "one_way: no context token sees a target; full: all see all, which is LVSM",
        "one_way",
        choices=("one_way", "full"),
    )
    context_scope: str = key(
        "context views see: global, all of them; causal, those before; view, none but themselves",
        "global",
        choices=("global", "causal", "view"),
    )
    camera: str = key(
        "cameras inside attention: prope, gta (without intrinsics) or none", "prope", choices=CAMERA_ENCODINGS
    )
    ray: str = key(
        "ray map that tokens are made of: camray, directions in the camera's own frame; plucker, in the world's",
        "camray",
        choices=("camray", "plucker"),
    )
    init: str = key(
        "depth: smaller weights in deep blocks; sqrt_depth: equal weights, branches times 1 / sqrt(n_layer)",
        "depth",
        choices=("depth", "sqrt_depth"),
    )
    prefix_training: bool = key(
        "each training sample's targets read a random number of the first context views", False
    )

    def __post_init__(self) -> None:
        raise_all(self._problems())

    def _problems(self) -> Iterator[str]:
        yield from patch_size_problems(self.image_tokenizer, self.target_pose_tokenizer)
        if self.camera != "none" and self.transformer.d_head % 8:
            yield (
                f"model.transformer.d_head is {self.transformer.d_head}: model.camera {self.camera} needs a multiple "
                "of 8."
            )
        if self.prefix_training and (self.mask == "full" or self.context_scope == "global"):
            yield (
                "model.prefix_training needs context views that do not see later ones: set model.mask: one_way and "
                "model.context_scope: causal or view."
            )


# ----------------------------------------------------------------------------------------------- blocks


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(queries, keys, values) of the tokens at hand, [b, heads, n, d_head] each -> what the queries read, [b, heads, n, d_head]"""


class KVBlock(Block):
    """LVSM's block that says its keys and values, and is told who reads whom.

    branch_scale: factor of both residual branches.
    """

    branch_scale: float = 1.0

    def forward(
        self, x: Tensor, encoding: CameraEncoding | None, attend: Attend
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[b, n, d] -> tokens [b, n, d], and the keys and values they were read by [b, heads, n, d_head]"""
        attn = self.attn
        q, k, v = self._heads(attn.to_qkv(self.norm1(x)), 3)
        q, k = attn.q_norm(q), attn.k_norm(k)
        if encoding is not None:
            q, k, v = encoding.turn(q, k, v)
        out = attend(q, k, v)
        if encoding is not None:
            out = encoding.back(out)
        x = x + self.branch_scale * attn.fc(rearrange(out, "b heads n c -> b n (heads c)"))
        return x + self.branch_scale * self.mlp(self.norm2(x)), k, v

    def keys_values(self, x: Tensor, encoding: CameraEncoding | None) -> tuple[Tensor, Tensor]:
        """Keys and values alone: all that is needed of the context in the last block."""
        _, weight = self.attn.to_qkv.weight.tensor_split([x.shape[-1]])
        k, v = self._heads(F.linear(self.norm1(x), weight), 2)
        k = self.attn.k_norm(k)
        return (k, v) if encoding is None else encoding.turn_keys(k, v)

    def _heads(self, x: Tensor, parts: int) -> Tensor:
        return rearrange(x, "b n (parts heads c) -> parts b heads n c", parts=parts, c=self.attn.d_head)


def attend_to_all(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def attend_within_views(num_views: int) -> Attend:
    """Each of `num_views` views of equal size sees itself."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        views = (rearrange(x, "b heads (v n) c -> (b v) heads n c", v=num_views) for x in (q, k, v))
        out = F.scaled_dot_product_attention(*views)
        return rearrange(out, "(b v) heads n c -> b heads (v n) c", v=num_views)

    return attend


def attend_to_views_before(num_views: int, past: tuple[Tensor, Tensor] | None) -> Attend:
    """Each view sees itself, those before it, and the keys and values of `past`. [b, heads, m, d_head]

    One call for each view, without a mask: fused kernels can be used, and no mask takes memory.
    """

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n, before = q.shape[2] // num_views, 0
        if past is not None:
            k, v = (torch.cat([old.to(new.dtype), new], dim=2) for old, new in zip(past, (k, v)))
            before = past[0].shape[2]
        ends = (before + n * (i + 1) for i in range(num_views))
        return torch.cat(
            [
                F.scaled_dot_product_attention(queries, k[:, :, :end], v[:, :, :end])
                for queries, end in zip(q.split(n, dim=2), ends)
            ],
            dim=2,
        )

    return attend


def attend_to_context(keys: Tensor, values: Tensor) -> Attend:
    """Each target view, folded into the batch, sees itself and the context: one softmax over both.

    keys, values: of the context. [b, heads, m, d_head]; those of the targets: [b * v_t, heads, n, d_head]
    """

    def with_context(context: Tensor, own: Tensor) -> Tensor:
        own = own.unflatten(0, (len(context), -1))  # [b, v_t, heads, n, c]
        context = context.to(own.dtype)[:, None].expand(-1, own.shape[1], -1, -1, -1)
        return torch.cat([context, own], dim=3).flatten(0, 1)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, with_context(keys, k), with_context(values, v))

    return attend


# ----------------------------------------------------------------------------------------------- the family


@dataclass(frozen=True)
class ContextTokens:
    """What `mask: full` keeps of a scene: it has to be computed anew with each target. tokens: [b, v_in * n, d]"""

    tokens: Tensor
    encoding: CameraEncoding | None


class KVLVSM(ViewSynthesizer):
    """The scene is a `KVCache`. The module holds no state: one model serves any number of scenes at once."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, sizes, p = config, config.transformer, config.image_tokenizer.patch_size
        std = 0.02 * math.sqrt(768 / sizes.d)  # 0.02 is right for the published width alone
        self.image_tokenizer = patch_tokenizer(9, p, sizes.d)
        self.target_pose_tokenizer = patch_tokenizer(6, p, sizes.d)
        self.transformer_input_layernorm = nn.LayerNorm(sizes.d, bias=False)
        self.transformer_blocks = BlockStack(_block(config, std, i) for i in range(sizes.n_layer))
        self.image_token_decoder = PixelHead(sizes.d, p)
        for part in (self.image_tokenizer, self.target_pose_tokenizer, self.image_token_decoder):
            nn.init.normal_(part[1].weight, std=std)

    # ------------------------------------------------------------------------------------------- contract

    def encode(
        self, input: Views, *, frame: WorldFrame | None = None, keep_images: bool = False
    ) -> KVCache | ContextTokens:
        """The scene of all context views.

        Args:
            frame: the world to put all cameras of this scene in, later ones too, such as `context_frame(c2w)`; None:
                they are given as the model has learned them, as those of a data set are.
            keep_images: keep them in the cache, so that views can be added to a `global` one by encoding all again.
        """
        if self.config.mask == "full":
            if frame or keep_images:
                raise ValueError("model.mask full keeps no cache, hence neither a frame nor images.")
            return self._encode(input)
        scene = self._encode(_placed(input, frame))
        kept = input if keep_images else None
        return replace(scene, fingerprint=self._fingerprint(), frame=frame, context=kept)

    def decode(self, scene: KVCache | ContextTokens, cameras: Cameras) -> Tensor:
        """Images of all given cameras in one pass.

        Raises:
            ValueError: the scene was made by a model of other weights or settings.
        """
        if isinstance(scene, KVCache):
            self._check(scene)
            cameras = scene.frame.apply(cameras) if scene.frame else cameras
        return self._decode(scene, cameras)

    def forward(self, input: Views, target: Views) -> EasyDict:
        scene, cameras = self._encode(input), target.cameras
        if self.training and self.config.prefix_training:
            lengths = torch.randint(1, scene.num_views + 1, (len(input.image),))
            return EasyDict(render=self._decode_prefixes(scene, lengths, cameras), cameras=cameras)
        return EasyDict(render=self._decode(scene, cameras), cameras=cameras)

    def add_view(self, scene: KVCache, input: Views) -> KVCache:
        """The scene with further context views behind those it has, equal to encoding all of them.

        Raises:
            ValueError: the views of a `global` model see one another, and the cache has not kept its images.
        """
        if self.config.mask == "full":
            raise ValueError("model.mask full keeps no cache: encode all views together.")
        self._check(scene)
        if self.config.context_scope != "global":
            return replace(
                scene.appended(self._encode(_placed(input, scene.frame), scene)),
                context=scene.context and _joined(scene.context, input),
            )
        if scene.context is None:
            raise ValueError(
                "with model.context_scope global all views change when one is added: encode all of them again, or "
                "encode with keep_images=True and this does it."
            )
        return self.encode(_joined(scene.context, input), frame=scene.frame, keep_images=True)

    # ------------------------------------------------------------------------------------------- passes

    def _encode(self, input: Views, past: KVCache | None = None) -> KVCache | ContextTokens:
        """Keys and values of the views of `input`, which see those of `past` where the scope is causal."""
        num_views = input.cameras.num_views
        x = self.image_tokenizer(torch.cat([2 * input.image - 1, self._rays(input.cameras)], dim=2))
        n, x = x.shape[1], rearrange(x, "(b v) n d -> b (v n) d", v=num_views)
        encoding = self._camera_encoding(input.cameras)
        if self.config.mask == "full":
            return ContextTokens(x, encoding)
        x, keys, values = self.transformer_input_layernorm(x), [], []
        *others, last = self.transformer_blocks
        for i, block in enumerate(others):
            before = past and (past.keys[i], past.values[i])
            attend = self._context_attention(num_views, before)
            x, k, v = self.transformer_blocks.run_group(block, x, encoding, attend)
            keys.append(k)
            values.append(v)
        k, v = last.keys_values(x, encoding)
        scope = REMOVABLE[self.config.context_scope]
        return KVCache((*keys, k), (*values, v), (n,) * num_views, scope)

    def _context_attention(self, num_views: int, past: tuple[Tensor, Tensor] | None) -> Attend:
        if self.config.context_scope == "causal":
            return attend_to_views_before(num_views, past)
        return attend_within_views(num_views) if self.config.context_scope == "view" else attend_to_all

    def _decode(self, scene: KVCache | ContextTokens, cameras: Cameras) -> Tensor:
        x = self.target_pose_tokenizer(self._rays(cameras))  # [b * v_t, n, d]
        encoding = self._camera_encoding(cameras)
        encoding = encoding and encoding.folded()
        if isinstance(scene, ContextTokens):
            x = self._among_all(scene, x, encoding, cameras.num_views)
        else:
            x = self.transformer_input_layernorm(x)
            for block, k, v in zip(self.transformer_blocks, scene.keys, scene.values, strict=True):
                x, _, _ = self.transformer_blocks.run_group(block, x, encoding, attend_to_context(k, v))
        return self.image_token_decoder(x, cameras.num_views, cameras.height, cameras.width)

    def _among_all(
        self, scene: ContextTokens, targets: Tensor, encoding: CameraEncoding | None, num_views: int
    ) -> Tensor:
        """LVSM: every target in a sequence of its own with all context tokens. [b * v_t, n, d]"""
        context = repeat(scene.tokens, "b n d -> (b v) n d", v=num_views)
        x = self.transformer_input_layernorm(torch.cat([context, targets], dim=1))
        if encoding is not None:
            encoding = scene.encoding.repeated(num_views).joined(encoding)
        for block in self.transformer_blocks:
            x, _, _ = self.transformer_blocks.run_group(block, x, encoding, attend_to_all)
        return x[:, -targets.shape[1] :]

    def _decode_prefixes(self, scene: KVCache, lengths: Tensor, cameras: Cameras) -> Tensor:
        """Targets of sample i see the first lengths[i] context views alone. lengths: [b], on the CPU"""
        order, images = [], []
        for length in lengths.unique().tolist():
            chosen = (lengths == length).nonzero()[:, 0].tolist()
            some = Cameras(cameras.c2w[chosen], cameras.fxfycxcy[chosen], cameras.height, cameras.width)
            images.append(self._decode(scene.samples(chosen).prefix(length), some))
            order += chosen
        return torch.cat(images)[torch.tensor(order).argsort()]

    # ------------------------------------------------------------------------------------------- parts

    def _rays(self, cameras: Cameras) -> Tensor:
        """Moment and direction of every pixel's ray. [b, v, 6, h, w]"""
        if self.config.ray == "camray":  # the moment is 0, and moving the world changes nothing
            identity = torch.eye(4, device=cameras.c2w.device, dtype=cameras.c2w.dtype)
            cameras = cameras.at(identity.expand_as(cameras.c2w))
        return plucker(cameras)

    def _camera_encoding(self, cameras: Cameras) -> CameraEncoding | None:
        patch, width = self.config.image_tokenizer.patch_size, self.config.transformer.d_head
        return camera_encoding(cameras, patch, width, self.config.camera)

    def _fingerprint(self) -> str:
        """Of settings and weights; not asked for while training, when no cache outlives a step."""
        return "" if self.training else fingerprint(self)

    def _check(self, scene: KVCache) -> None:
        trunk = self.config.transformer
        sizes = (trunk.n_layer, trunk.d // trunk.d_head, trunk.d_head)
        if scene.sizes != sizes:
            raise ValueError(
                f"the cache belongs to another model: it has (layers, heads, width of a head) {scene.sizes}, this model "
                f"{sizes}."
            )
        own = self._fingerprint()
        if own and scene.fingerprint and own != scene.fingerprint:
            raise ValueError(
                f"the cache belongs to another model (fingerprint {scene.fingerprint}, this one's is {own}): encode the "
                "scene with the model that renders it."
            )


def _block(config: Config, std: float, index: int) -> KVBlock:
    sizes = config.transformer
    deep = config.init == "depth"
    block = KVBlock(
        sizes.d,
        sizes.d_head,
        qk_norm_eps=QK_NORM_EPS if sizes.use_qk_norm else None,
        init_std=std / math.sqrt(2 * (index + 1)) if deep else std,
    )
    block.branch_scale = 1.0 if deep else sizes.n_layer**-0.5
    return block


def _placed(views: Views, frame: WorldFrame | None) -> Views:
    return Views(views.image, frame.apply(views.cameras)) if frame else views


def _joined(one: Views, two: Views) -> Views:
    """Views of the same size, one after another.

    Raises:
        ValueError: their sizes differ.
    """
    sizes = [(views.cameras.height, views.cameras.width) for views in (one, two)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"kept images must be of one size: {sizes[0]} and {sizes[1]} (height, width) do not join."
        )
    cameras = replace(
        one.cameras,
        c2w=torch.cat([one.cameras.c2w, two.cameras.c2w], dim=1),
        fxfycxcy=torch.cat([one.cameras.fxfycxcy, two.cameras.fxfycxcy], dim=1),
    )
    return Views(torch.cat([one.image, two.image], dim=1), cameras)
