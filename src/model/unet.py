"""MV-LDM's denoiser: Stable Diffusion's UNet on every view, with blocks between its levels in which the views meet.

The UNet sees each view by itself, with a timestep of its own; a multi-view block stands behind every level of the encoder,
the middle and every level of the decoder (`multi_view_block.py`). There is no text: the original feeds a zero token, of
which only biases remain. Everything is built from the settings; nothing is downloaded.

Published checkpoints hold parameters that nothing uses. `keep_unused_parameters` makes a network that holds them too,
frozen; without it there are none, and `unet_weights.py` fits such a checkpoint to that network exactly.

Source: MEt3R, arXiv 2501.06336 (MV-LDM); High-Resolution Image Synthesis with Latent Diffusion Models, arXiv 2112.10752.

Public: Denoiser (settings), MultiViewUNet.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ConfigError, key
from .multi_view_block import MultiViewAttention, multi_view_block
from .transformer import BlockStack
from .unet_blocks import (
    Attention,
    Downsample,
    EmptyTextAttention,
    ResnetBlock,
    SpatialTransformer,
    TimeEmbedding,
    TransformerBlock,
    Upsample,
)

log = logging.getLogger(__name__)

WHERE = "model.denoiser"
DOWN, DOWN_ATTENTION = "DownBlock2D", "CrossAttnDownBlock2D"
MID, MID_ATTENTION = "UNetMidBlock2D", "UNetMidBlock2DCrossAttn"
UP, UP_ATTENTION = "UpBlock2D", "CrossAttnUpBlock2D"


@dataclass(kw_only=True)
class Denoiser:
    """`model.denoiser`. Lists have one entry for each level, from full resolution down (`up_block_types`: upwards)."""

    name: str = key("kind of denoiser", "mv_unet", choices=("mv_unet",))
    down_block_types: list = key(
        f"levels of the encoder: {DOWN_ATTENTION} or {DOWN}", [DOWN_ATTENTION] * 3 + [DOWN]
    )
    mid_block_type: str = key(
        "middle, with attention or without", MID_ATTENTION, choices=(MID_ATTENTION, MID)
    )
    up_block_types: list = key(f"levels of the decoder: {UP_ATTENTION} or {UP}", [UP] + [UP_ATTENTION] * 3)
    block_out_channels: list = key("width of each level", [320, 640, 1280, 1280])
    layers_per_block: int | list = key(
        "residual blocks of a level of the encoder; the decoder has one more", 2
    )
    num_heads: int | list = key("heads of the attention blocks", [5, 10, 20, 20])
    norm_num_groups: int = key("groups of every norm of the UNet", 32, least=1)
    norm_eps: float = key("epsilon of the norms of residual blocks", 1e-5)
    use_linear_projection: bool = key(
        "attention blocks project with linear layers instead of 1x1 convolutions: the same map under other shapes",
        True,
    )
    up_attention: bool = key(
        "attention blocks of the decoder run; published MV-LDM: false, although its files hold them", True
    )
    keep_unused_parameters: bool = key(
        "hold, frozen, what published files have and nothing uses: text attention, attention of the decoder that does "
        "not run",
        False,
    )
    cross_attention_dim: int | list = key(
        "width of the text that never comes; shapes of unused parameters", 1024
    )
    only_cross_attention: bool | list = key(
        "the first attention looks at the text too, that is at nothing; needs keep_unused_parameters", False
    )
    encoder_conditioning: bool = key("multi-view blocks in the encoder", True)
    mid_conditioning: bool = key("multi-view block in the middle", True)
    decoder_conditioning: bool = key("multi-view blocks in the decoder", True)
    multi_view_from_level: int = key("the first level with multi-view blocks; 0: all have them", 0, least=0)
    max_attention_side: int = key(
        "multi-view blocks of the encoder and decoder rest on feature maps with a longer side than this, latent pixels; 0: never",
        32,
        least=0,
    )
    multi_view_attention: MultiViewAttention = key("the multi-view blocks", MultiViewAttention)

    def __post_init__(self) -> None:
        self._check_levels()
        for level, width in enumerate(self.block_out_channels):
            heads = self.of_level("num_heads", level) if self.has_attention(level) else 1
            for name, divisor in (("norm_num_groups", self.norm_num_groups), ("num_heads", heads)):
                if width % divisor:
                    raise ConfigError(
                        f"{WHERE}.block_out_channels has {width}, which {WHERE}.{name} {divisor} does not divide."
                    )
            if self.encoder_conditioning or self.decoder_conditioning:
                self.multi_view_attention.check_width(width)
        if self.block_out_channels[0] % 2:
            raise ConfigError(
                f"{WHERE}.block_out_channels starts with {self.block_out_channels[0]}: it must be even."
            )
        if self.only_cross_attention is not False and not self.keep_unused_parameters:
            raise ConfigError(
                f"{WHERE}.only_cross_attention is {self.only_cross_attention}: attention to no text is of no use; set "
                f"it to false, or {WHERE}.keep_unused_parameters to true for a file that was made so."
            )

    def _check_levels(self) -> None:
        """Every list has the right length and whole numbers (or names) of at least 1."""
        levels = len(self.block_out_channels)
        if not levels:
            raise ConfigError(f"{WHERE}.block_out_channels is empty: expected the width of each level.")
        for name, allowed in (
            ("down_block_types", (DOWN, DOWN_ATTENTION)),
            ("up_block_types", (UP, UP_ATTENTION)),
        ):
            if wrong := [value for value in getattr(self, name) if value not in allowed]:
                raise ConfigError(f"{WHERE}.{name} has {wrong[0]!r}: expected {' or '.join(allowed)}.")
        for name in ("block_out_channels", "layers_per_block", "num_heads", "cross_attention_dim"):
            value = getattr(self, name)
            for number in value if isinstance(value, list) else [value]:
                if type(number) is not int or number < 1:
                    raise ConfigError(
                        f"{WHERE}.{name} has {number!r}: expected a whole number of at least 1."
                    )
        for name, value in vars(self).items():
            if isinstance(value, list) and len(value) != levels:
                raise ConfigError(
                    f"{WHERE}.{name} has {len(value)} entries, {WHERE}.block_out_channels has {levels}: expected one "
                    "for each level."
                )

    @property
    def num_levels(self) -> int:
        return len(self.block_out_channels)

    @property
    def downsampling(self) -> int:
        """Sides of latents must be multiples of this."""
        return 2 ** (self.num_levels - 1)

    def of_level(self, name: str, level: int) -> int:
        """A setting that is one number for all levels or a list."""
        value = getattr(self, name)
        return value[level] if isinstance(value, list) else value

    def has_attention(self, level: int) -> bool:
        """Whether a block of this level has attention inside each view."""
        middle = level == self.num_levels - 1 and self.mid_block_type == MID_ATTENTION
        sides = (self.down_block_types[level], self.up_block_types[self.num_levels - 1 - level])
        return middle or DOWN_ATTENTION in sides or UP_ATTENTION in sides

    def resting_levels(self, height: int, width: int) -> list[int]:
        """Levels whose multi-view blocks rest because latents of this size exceed `max_attention_side` there."""
        longer, limit = max(height, width), self.max_attention_side
        if not limit or not (self.encoder_conditioning or self.decoder_conditioning):
            return []
        levels = range(self.multi_view_from_level, self.num_levels)
        return [level for level in levels if longer > limit * 2**level]


class MultiViewUNet(nn.Module):
    """Predicts the noise of every view. The number of views is free, and views have no order.

    Args:
        settings: sizes and switches.
        in_channels: of a latent, its mask and the encoding of its rays.
        out_channels: channels of a latent.
    """

    def __init__(self, settings: Denoiser, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.settings = settings
        self.unet = UNet(settings, in_channels, out_channels)
        widths = settings.block_out_channels

        levels = list(range(settings.num_levels))

        def block(level: int) -> nn.Module:
            wanted = level >= settings.multi_view_from_level
            return multi_view_block(widths[level], settings.multi_view_attention) if wanted else nn.Identity()

        def stack(wanted: bool, levels: list[int]) -> BlockStack | None:
            return BlockStack(block(level) for level in levels) if wanted else None

        self.cross_attn_blocks_encoder = stack(settings.encoder_conditioning, levels)
        self.cross_attn_blocks_mid = stack(settings.mid_conditioning, levels[-1:])
        self.cross_attn_blocks_decoder = stack(settings.decoder_conditioning, levels[::-1])
        self._told_of_resting = False

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        """Args:
            x: latent, mask and ray encoding of every view. [b, v, in_channels, h, w], sides multiples of 2^(levels - 1)
            timestep: of each sample [b] or of each view [b, v]; views without noise have 0.

        Returns:
            noise estimate; that of context views means nothing. [b, v, out_channels, h, w]
        """
        self._check(x, timestep)
        b, v, _, h, w = x.shape
        unet, resting = self.unet, self._resting(h, w)
        if timestep.ndim == 1:
            timestep = timestep[:, None].expand(b, v)
        emb = unet.time_embedding(timestep.flatten())  # [b v, 4 c]
        x = unet.conv_in(x.flatten(0, 1))  # [b v, c, h, w]
        skips = [x]
        for level, block in enumerate(unet.down_blocks):
            x = block(x, emb, skips)
            if level not in resting:
                # Not onto the skips: they hold the features before the views met.
                x = _meet(self.cross_attn_blocks_encoder, level, x, v)
            if block.downsamplers is not None:
                x = block.downsamplers[0](x)
                skips.append(x)
        x = _meet(self.cross_attn_blocks_mid, 0, unet.mid_block(x, emb), v)
        for number, block in enumerate(unet.up_blocks):
            x = block(x, emb, skips)
            if self.settings.num_levels - 1 - number not in resting:
                x = _meet(self.cross_attn_blocks_decoder, number, x, v)
            if block.upsamplers is not None:
                x = block.upsamplers[0](x)
        return unet.conv_out(F.silu(unet.conv_norm_out(x))).unflatten(0, (b, v))

    def _check(self, x: Tensor, timestep: Tensor) -> None:
        channels, multiple = self.unet.conv_in.in_channels, self.settings.downsampling
        if x.ndim != 5 or x.shape[2] != channels:
            raise ValueError(f"denoiser input is {tuple(x.shape)}: expected [b, v, {channels}, h, w].")
        if x.shape[3] % multiple or x.shape[4] % multiple:
            raise ValueError(
                f"latents of {x.shape[3]} x {x.shape[4]}: with {self.settings.num_levels} levels both sides must be "
                f"multiples of {multiple}. Resize or crop the images."
            )
        if timestep.shape not in (x.shape[:1], x.shape[:2]):
            raise ValueError(
                f"timestep is {tuple(timestep.shape)}: expected [b] or [b, v] of {tuple(x.shape)}."
            )

    def _resting(self, height: int, width: int) -> list[int]:
        """Levels without multi-view blocks, which is said once; in training they would never learn, which is an error."""
        resting = self.settings.resting_levels(height, width)
        if not resting or (self._told_of_resting and not self.training):
            return resting
        what = (
            f"latents of {height} x {width} exceed {WHERE}.max_attention_side {self.settings.max_attention_side}: the "
            f"multi-view blocks of {len(resting)} of {self.settings.num_levels} levels"
        )
        if self.training:
            raise ValueError(
                f"{what} would not learn. Set it to {max(height, width)}, or use smaller images."
            )
        log.warning("%s rest.", what)
        self._told_of_resting = True
        return resting


def _meet(stack: BlockStack | None, index: int, x: Tensor, num_views: int) -> Tensor:
    """One multi-view block on the features of all views, where there is one. [b v, c, h, w] -> the same"""
    if stack is None:
        return x
    return stack.run_group(stack[index], x.unflatten(0, (-1, num_views))).flatten(0, 1)


# ----------------------------------------------------------------------------------------------- the UNet of one view


class UNet(nn.Module):
    """The parts of the UNet under their published names; `MultiViewUNet` runs them."""

    def __init__(self, settings: Denoiser, in_channels: int, out_channels: int) -> None:
        super().__init__()
        widths, levels = settings.block_out_channels, settings.num_levels
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0], 4 * widths[0])
        down, up = [], []
        # Channels of the features, and of the skips in the order of their making.
        width, skips = widths[0], [widths[0]]
        for level in range(levels):
            down.append(DownBlock(settings, level, width))
            width, last = widths[level], level == levels - 1
            skips += [width] * (settings.of_level("layers_per_block", level) + (not last))
        for level in reversed(range(levels)):
            up.append(UpBlock(settings, level, width, skips))
            width = widths[level]
        self.down_blocks = nn.ModuleList(down)
        self.up_blocks = nn.ModuleList(up)
        self.mid_block = MidBlock(settings)
        self.conv_norm_out = nn.GroupNorm(settings.norm_num_groups, widths[0], eps=settings.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)


class DownBlock(nn.Module):
    """One level of the encoder; what follows its multi-view block is in `downsamplers`."""

    def __init__(self, settings: Denoiser, level: int, in_channels: int) -> None:
        super().__init__()
        width, layers = settings.block_out_channels[level], settings.of_level("layers_per_block", level)
        self.resnets = BlockStack(
            _resnet(settings, width if layer else in_channels, width) for layer in range(layers)
        )
        attends = settings.down_block_types[level] == DOWN_ATTENTION
        self.attentions = _attentions(settings, level, layers) if attends else None
        last = level == settings.num_levels - 1
        self.downsamplers = None if last else nn.ModuleList([Downsample(width)])

    def forward(self, x: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        """[b v, in_channels, h, w] -> [b v, width, h, w]; the features after each layer are appended to `skips`."""
        for layer, resnet in enumerate(self.resnets):
            x = self.resnets.run_group(resnet, x, emb)
            if self.attentions is not None:
                x = self.attentions.run_group(self.attentions[layer], x)
            skips.append(x)
        return x


class MidBlock(nn.Module):
    """Between encoder and decoder; without attention it is one residual block."""

    def __init__(self, settings: Denoiser) -> None:
        super().__init__()
        attends, width = settings.mid_block_type == MID_ATTENTION, settings.block_out_channels[-1]
        self.resnets = BlockStack(_resnet(settings, width, width) for _ in range(1 + attends))
        self.attentions = _attentions(settings, settings.num_levels - 1, 1, middle=True) if attends else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """[b v, c, h, w] -> the same"""
        x = self.resnets.run_group(self.resnets[0], x, emb)
        if self.attentions is not None:
            x = self.attentions.run_group(self.attentions[0], x)
            x = self.resnets.run_group(self.resnets[1], x, emb)
        return x


class UpBlock(nn.Module):
    """One level of the decoder; what follows its multi-view block is in `upsamplers`.

    Args:
        skips: channels of the features that the encoder leaves; those which this level takes are taken off the end.
    """

    def __init__(self, settings: Denoiser, level: int, in_channels: int, skips: list[int]) -> None:
        super().__init__()
        width, layers = settings.block_out_channels[level], settings.of_level("layers_per_block", level) + 1
        self.resnets = BlockStack(
            _resnet(settings, (width if layer else in_channels) + skips.pop(), width)
            for layer in range(layers)
        )
        attends = settings.up_block_types[settings.num_levels - 1 - level] == UP_ATTENTION
        self.attends = attends and settings.up_attention
        wanted = self.attends or (attends and settings.keep_unused_parameters)
        self.attentions = _attentions(settings, level, layers) if wanted else None
        if self.attentions is not None and not self.attends:
            self.attentions.requires_grad_(False)
        self.upsamplers = nn.ModuleList([Upsample(width)]) if level else None

    def forward(self, x: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        """[b v, in_channels, h, w] -> [b v, width, h, w]; takes its features off the end of `skips`."""
        for layer, resnet in enumerate(self.resnets):
            x = self.resnets.run_group(resnet, torch.cat([x, skips.pop()], dim=1), emb)
            if self.attends:
                x = self.attentions.run_group(self.attentions[layer], x)
        return x


def _resnet(settings: Denoiser, in_channels: int, out_channels: int) -> ResnetBlock:
    return ResnetBlock(
        in_channels,
        out_channels,
        4 * settings.block_out_channels[0],
        groups=settings.norm_num_groups,
        eps=settings.norm_eps,
    )


def _attentions(settings: Denoiser, level: int, count: int, *, middle: bool = False) -> BlockStack:
    """Attention blocks of a level, inside each view. Those of the middle never are `only_cross_attention`."""
    width, d_text = settings.block_out_channels[level], settings.of_level("cross_attention_dim", level)
    only_text = not middle and settings.of_level("only_cross_attention", level)

    def block() -> TransformerBlock:
        first = (
            EmptyTextAttention(width, d_text)
            if only_text
            else Attention(width, settings.of_level("num_heads", level))
        )
        second = EmptyTextAttention(width, d_text) if settings.keep_unused_parameters else None
        return TransformerBlock(width, first, second)

    return BlockStack(
        SpatialTransformer(
            width,
            [block()],
            groups=settings.norm_num_groups,
            linear_projection=settings.use_linear_projection,
        )
        for _ in range(count)
    )
