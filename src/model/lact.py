"""LaCT: a scene is learnt into fast weights at a cost linear in its views, and rendered from them.

A block is a list of residual sub-layers: attention inside each view, a fast-weight layer (lact_ttt.py) that learns from
all context tokens and is read by every token, and an MLP. No context token sees a target, no target sees another, and the
whole scene is the updated fast weights: any number of cameras is rendered from a state of fixed size.

Paper: "Test-Time Training Done Right", arXiv 2505.23884. Original repository: a1600012888/LaCT, folder lact_nvs.

Public: Config, LaCT, SceneState.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from easydict import EasyDict
from einops import rearrange
from torch import Tensor, nn

from ..config import key, raise_all
from ..geometry.camera import Cameras, Views, full_precision, pixel_rays
from .base import ImageTokenizer, ViewSynthesizer
from .lact_block import Block, Stack, SubLayerParams, sub_layers
from .lact_ttt import FastWeights, column_norms
from .patch import Patchify, PixelHead

CHANNELS = 12
"""Ray origin, unit direction, origin x direction, RGB."""

SceneState = dict[str, Tensor]
"""Fast weights of a batch of scenes, under the names of the parameters that they started from. [b, heads, ., .] each"""


@dataclass(kw_only=True)
class Config:
    """`model` section of LaCT; published files have these keys at their top, see `MOVED` in src/settings_names.py."""

    class_name: str = key("model family", "src.model.lact.LaCT")
    patch_size: int = key("side of a square patch, pixels", least=1)
    dim: int = key("width of a token", least=1)
    layers: int = key("blocks", least=1)
    block_config: list = key("sub-layers of a block: list of {type, length_dim, params}")
    image_size: int = key(
        "image height after resizing, pixels, where training.image_shape gives none; 0: 32 patches",
        0,
        least=0,
    )
    muon_dtype: str = key(
        "number type of Newton-Schulz: bfloat16, as published and fast on GPUs; float32, which is reproducible; auto: "
        "float32 on a CPU and bfloat16 elsewhere",
        "auto",
        choices=("auto", "bfloat16", "float32"),
    )
    init_std: float = key(
        "deviation of the initial linear weights of blocks; narrow models learn faster with 0.02 (768 / dim)^0.5",
        0.02,
    )
    encode_chunk: int = key(
        "context views that `encode` computes at once, 0: all; bounds the memory, not the result", 0, least=0
    )
    streaming: bool = key(
        "learn from each chunk of encode_chunk views by a step of its own: memory is bounded whatever the number of "
        "views, but the result is another",
        False,
    )

    def __post_init__(self) -> None:
        raise_all(self._problems())

    def _problems(self) -> Iterator[str]:
        self.sub_layers()
        if self.image_size % self.patch_size:
            yield (
                f"model.image_size is {self.image_size}: expected a multiple of model.patch_size {self.patch_size}."
            )
        if self.init_std <= 0:
            yield f"model.init_std is {self.init_std}: it must be positive."
        if self.streaming and not self.encode_chunk:
            yield "model.streaming needs chunks: set model.encode_chunk to a number of views."

    @property
    def image_tokenizer(self) -> ImageTokenizer:
        """Height of the images and size of their patches, as every family says them."""
        return ImageTokenizer(image_size=self.image_size or 32 * self.patch_size, patch_size=self.patch_size)

    def sub_layers(self) -> list[SubLayerParams]:
        """The checked sub-layers of a block."""
        return sub_layers(self.block_config, self.dim)


class LaCT(ViewSynthesizer):
    """Fast weights are the scene. Poses are taken as they are: origins are fed, so frame and scale matter."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        d, p = config.dim, config.patch_size
        self.config = config
        self.patchify = Patchify(p)
        self.input_linear = nn.Linear(CHANNELS * p**2, d, bias=False)
        self.input_layernorm = nn.LayerNorm(d, bias=False)
        self.blocks = Stack(Block(d, config.sub_layers(), config.muon_dtype) for _ in range(config.layers))
        self.image_token_decoder = PixelHead(d, p)
        nn.init.normal_(self.input_linear.weight, std=0.02)
        branches = config.layers * len(config.block_config)
        for name, module in self.blocks.named_modules():
            if isinstance(module, nn.Linear):
                joins = name.endswith("c_proj")  # a branch with the residual stream
                nn.init.normal_(module.weight, std=config.init_std / (math.sqrt(branches) if joins else 1.0))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    # ------------------------------------------------------------------------------------------- the contract

    def units(self) -> Iterator[nn.Module]:
        """The initial fast weights are read before the blocks run: their layers stay whole."""
        for block in self.blocks:
            fast = block.fast_layers
            yield from (layer for i, layer in enumerate(block.module_list) if i not in fast)

    def encode(self, input: Views) -> SceneState:
        """Fast weights after the context views, in chunks as `model.encode_chunk` and `model.streaming` say."""
        num_views, chunk = input.cameras.num_views, self.config.encode_chunk
        step = chunk if self.config.streaming else num_views
        state = None
        for i in range(0, num_views, max(step, 1)):
            state = self._learn(_part(input, slice(i, i + step)), state, chunk, keep_norms=True)
        if state is None:
            raise ValueError("LaCT: there is no context view to learn from: give at least one.")
        return state

    def add_views(
        self, state: SceneState, views: Views, chunk: int = 0, *, initial_norms: bool = False
    ) -> SceneState:
        """Fast weights after a further step, from these views alone; `state` is left as it is.

        This is what the published layer does with a state handed in. It is not `encode` of all views together: one
        step was taken for the earlier views and one for these, and a step has the same size whatever the number of
        its views. The order of the views of one call does not matter, that of the calls does. Nothing is forgotten
        on purpose, but every step moves all weights by about as much.

        Args:
            chunk: views that are computed at once, 0: all; bounds the memory, not the result.
            initial_norms: the columns get the norms of the weights before anything was learnt, instead of those of
                `state`, which each step lowers by about 1e-5 of the norm.

        Raises:
            ValueError: the state is not of this model or batch.
        """
        self.check_state(state, len(views.image))
        return self._learn(views, state, chunk, keep_norms=not initial_norms)

    def decode(self, scene: SceneState, cameras: Cameras) -> Tensor:
        self.check_state(scene, len(cameras.c2w))
        chunks, _ = self.blocks([self.tokens(cameras)], self._layers_of(scene), None, 0)
        return self._images(chunks[0], cameras)

    def forward(self, input: Views, target: Views) -> EasyDict:
        """Context and targets through each block together: `decode` of `encode`, in one pass."""
        chunks = [self.tokens(input.cameras, input.image), self.tokens(target.cameras)]
        chunks, _ = self.blocks(chunks, self._initial(len(input.image)), None, 1)
        return EasyDict(render=self._images(chunks[0], target.cameras), cameras=target.cameras)

    # ------------------------------------------------------------------------------------------- states

    def initial_state(self, batch: int) -> SceneState:
        """What is known of a scene before its first view."""
        return self._named(self._initial(batch))

    def check_state(self, state: SceneState, batch: int) -> None:
        """Raises ValueError unless `state` holds the fast weights of this model's layers for `batch` scenes."""
        expected = {name: tuple(w.shape) for name, w in self.initial_state(batch).items()}
        found = {name: tuple(w.shape) for name, w in state.items()}
        wrong = sorted(found.keys() ^ expected.keys()) or [n for n in expected if found[n] != expected[n]]
        if wrong:
            name = wrong[0]
            raise ValueError(
                f"LaCT: the scene state has {name} {found.get(name, 'not at all')}, this model with {batch} scenes needs "
                f"{expected.get(name, 'no such tensor')}: encode the scenes with this model."
            )

    def _learn(self, views: Views, state: SceneState | None, chunk: int, *, keep_norms: bool) -> SceneState:
        batch, step = len(views.image), chunk or views.cameras.num_views
        parts = [_part(views, slice(i, i + step)) for i in range(0, views.cameras.num_views, step)]
        chunks = [self.tokens(part.cameras, part.image) for part in parts]
        known = self._layers_of(state) if state else self._initial(batch)
        norms = None
        if not keep_norms:
            norms = [[column_norms(weights) for weights in block] for block in self._initial(batch)]
        _, learned = self.blocks(chunks, known, norms, len(chunks))
        return self._named(learned)

    def _initial(self, batch: int) -> list[list[FastWeights]]:
        return [[layer.initial(batch) for layer in block.fast_layers.values()] for block in self.blocks]

    def _names(self) -> Iterator[tuple[int, str]]:
        """Number of the block and prefix of each fast-weight layer, in order."""
        for i, block in enumerate(self.blocks):
            for j in block.fast_layers:
                yield i, f"blocks.{i}.module_list.{j}.f."

    def _named(self, layers: list[list[FastWeights]]) -> SceneState:
        flat = [weights for block in layers for weights in block]
        return {
            prefix + part: tensor
            for (_, prefix), weights in zip(self._names(), flat, strict=True)
            for part, tensor in weights._asdict().items()
        }

    def _layers_of(self, state: SceneState) -> list[list[FastWeights]]:
        layers: list[list[FastWeights]] = [[] for _ in self.blocks]
        for i, prefix in self._names():
            layers[i].append(FastWeights(*(state[prefix + part] for part in FastWeights._fields)))
        return layers

    # ------------------------------------------------------------------------------------------- tokens

    def tokens(self, cameras: Cameras, image: Tensor | None = None) -> Tensor:
        """Tokens of posed views, of targets without image. [b, v, n, d]"""
        patches = self.patchify(posed_channels(cameras, image))  # [b * v, n, 12 p * p]
        tokens = self.input_layernorm(self.input_linear(patches))
        return rearrange(tokens, "(b v) n d -> b v n d", v=cameras.num_views)

    def _images(self, tokens: Tensor, cameras: Cameras) -> Tensor:
        """[b, v, n, d] -> [b, v, 3, h, w]"""
        return self.image_token_decoder(
            tokens.flatten(0, 1), cameras.num_views, cameras.height, cameras.width
        )


def posed_channels(cameras: Cameras, image: Tensor | None) -> Tensor:
    """What LaCT reads of a view: ray origin, unit direction, their cross product, then the image in [-1, 1].

    A target has zeros in place of the image, which is mid-grey: nothing else tells it from a context view.
    [b, v, 12, h, w], float32
    """
    ray_o, ray_d = pixel_rays(cameras)
    with full_precision(ray_o.device):
        moment = torch.linalg.cross(ray_o, ray_d, dim=2)
        colour = torch.zeros_like(ray_d) if image is None else 2 * image - 1
        return torch.cat([ray_o, ray_d, moment, colour], dim=2)


def _part(views: Views, index: slice) -> Views:
    return Views(views.image[:, index], views.cameras.views(index))
