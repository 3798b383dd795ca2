"""Images and ray maps with masks to tokens that have seen each other, and tokens back to maps.

A view is cut into p x p patches, row-major; inside a patch the vector runs over (channel, pixel row, pixel column),
channel slowest. Image and ray of a patch become one token by two linear maps whose results are added; where the image
or the rays of a view are masked, a learned vector stands for them.

Public: ImageAndPluckerRayEncoder, PatchHead, require_shape, existing_views.
Original: github.com/lucidrains/lvsm-pytorch 0.1.6.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from ..patch import check_size
from .transformer import Decoder, DecoderSettings

RAY_CHANNELS = 6


class Patches(nn.Module):
    """[b, v, c, h, w] -> [b, v, h / p, w / p, c p p]"""

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size

    def forward(self, x: Tensor) -> Tensor:
        p = self.patch_size
        return rearrange(x, "b v c (hh ph) (ww pw) -> b v hh ww (c ph pw)", ph=p, pw=p)


class PatchHead(nn.Sequential):
    """Linear map of tokens to patches of a map, float32 even under autocast. [..., hh, ww, d] -> [..., c, h, w]"""

    def __init__(self, d: int, channels: int, patch_size: int, *, squashed: bool) -> None:
        """`squashed`: a sigmoid follows, for images in (0, 1)."""
        super().__init__(nn.Linear(d, channels * patch_size**2))
        self.patch_size, self.squashed = patch_size, squashed

    def forward(self, tokens: Tensor) -> Tensor:
        x, p = self[0](tokens), self.patch_size
        x = x if x.dtype == torch.float64 else x.float()
        x = x.sigmoid() if self.squashed else x
        return rearrange(x, "... hh ww (c ph pw) -> ... c (hh ph) (ww pw)", ph=p, pw=p)


def require_shape(name: str, tensor: Tensor, expected: tuple[int | None, ...], letters: str) -> None:
    """Raises ValueError unless a tensor has a shape; None stands for any size, `letters` says what the axes are."""
    fits = tensor.ndim == len(expected) and all(e is None or e == n for e, n in zip(expected, tensor.shape))
    if not fits:
        sizes = ", ".join("any" if e is None else str(e) for e in expected)
        raise ValueError(f"{name} is {list(tensor.shape)}: expected [{sizes}], that is {letters}.")


def existing_views(name: str, counts: Tensor | None, num_samples: int, num_views: int) -> Tensor | None:
    """Which views of each sample exist, from how many do. bool [b, v]; None: all.

    Raises:
        ValueError: a count below 1 or above the number of views.
    """
    if counts is None:
        return None
    require_shape(name, counts, (num_samples,), "[b]")
    low, high = (int(x) for x in torch.aminmax(counts))
    if low < 1 or high > num_views:
        raise ValueError(
            f"{name} lies between {low} and {high}: expected 1 to {num_views}, the number of views."
        )
    return torch.arange(num_views, device=counts.device) < counts[:, None]


def normal(*shape: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Standard normal noise from a generator on any device (None: torch's own). [*shape]"""
    place = generator.device if generator else device
    return torch.randn(*shape, generator=generator, device=place).to(device)


class ImageAndPluckerRayEncoder(nn.Module):
    """Views with masks to tokens.

    Args:
        dim: width of a token.
        max_image_size: checked to be a multiple of patch_size; bounds the images only with add_axial_pos_emb.
        max_input_images: rows of the table of image embeddings, of which each view takes one.
        dim_head: width of a head; heads * dim_head need not be dim.
        channels: of the images.
        rand_input_image_embed: each sample's views take random rows of the table in training; else row j for view j.
        dropout_input_ray_prob: accepted as published; masks are the caller's, and LVSM draws them.
        decoder_kwargs: switches of the transformer, see DecoderSettings; those not given keep their default.
        add_axial_pos_emb: learned embeddings of patch rows and columns (releases up to 0.1.4 always had them).
        rand_embed_in_eval: Parity: random rows also in evaluation, so that two renders of one input differ.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    def __init__(
        self,
        dim: int,
        *,
        max_image_size: int,
        patch_size: int,
        depth: int = 12,
        heads: int = 8,
        max_input_images: int = 32,
        dim_head: int = 64,
        channels: int = 3,
        rand_input_image_embed: bool = True,
        dropout_input_ray_prob: float = 0.0,
        decoder_kwargs: dict | DecoderSettings | None = None,
        add_axial_pos_emb: bool = False,
        rand_embed_in_eval: bool = False,
    ) -> None:
        super().__init__()
        if max_image_size % patch_size:
            raise ValueError(f"max_image_size {max_image_size} is not a multiple of patch_size {patch_size}.")
        self.patch_size, self.channels = patch_size, channels
        self.rand_input_image_embed = rand_input_image_embed
        self.rand_embed_in_eval = rand_embed_in_eval
        if add_axial_pos_emb:
            self.width_embed = _small_noise(max_image_size // patch_size, dim)
            self.height_embed = _small_noise(max_image_size // patch_size, dim)
        self.input_image_embed = _small_noise(max_input_images, dim)
        self.mask_ray_embed = _small_noise(dim)
        self.mask_image_embed = _small_noise(dim)
        self.images_to_patch_tokens = nn.Sequential(
            Patches(patch_size), nn.Linear(channels * patch_size**2, dim)
        )
        self.plucker_rays_to_patch_tokens = nn.Sequential(
            Patches(patch_size), nn.Linear(RAY_CHANNELS * patch_size**2, dim)
        )
        self.decoder = Decoder(dim, depth, heads, dim_head, DecoderSettings.from_kwargs(decoder_kwargs))

    def forward(
        self,
        images: Tensor,
        rays: Tensor,
        image_mask: Tensor | None = None,
        ray_mask: Tensor | None = None,
        num_images: Tensor | None = None,
        *,
        image_index: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Tokens of all views after the transformer. [b, v, h / p, w / p, d]

        Args:
            images: as they are, without a shift to [-1, 1]. [b, v, c, h, w]
            rays: of any ray code. [b, v, 6, h, w]
            image_mask, ray_mask: views whose image or rays the model must not see. bool [b, v]
            num_images: how many views of each sample exist; the rest is padding. int64 [b]
            image_index: row of the image embeddings of each view, instead of drawn or ascending ones. int64 [b, v]
            generator: where random rows are drawn from.

        Raises:
            ValueError: shapes, counts or numbers of views that do not fit.
        """
        self._check(images, rays)
        b, v = images.shape[:2]
        tokens = _masked(self.images_to_patch_tokens(images), image_mask, self.mask_image_embed)
        tokens = tokens + _masked(self.plucker_rays_to_patch_tokens(rays), ray_mask, self.mask_ray_embed)
        hh, ww = tokens.shape[2:4]
        if self.has_axial_embed:
            tokens = tokens + self.height_embed[:hh, None] + self.width_embed[:ww]
        if image_index is None:
            image_index = self._image_index(b, v, generator)
        tokens = tokens + self.input_image_embed[image_index][:, :, None, None]
        valid = existing_views("num_images", num_images, b, v)
        if valid is not None:
            valid = valid.repeat_interleave(hh * ww, dim=1)  # [b, n]
        tokens = self.decoder(rearrange(tokens, "b v hh ww d -> b (v hh ww) d"), valid)
        return rearrange(tokens, "b (v hh ww) d -> b v hh ww d", v=v, hh=hh, ww=ww)

    @property
    def has_axial_embed(self) -> bool:
        return hasattr(self, "height_embed")

    def _image_index(self, num_samples: int, num_views: int, generator: torch.Generator | None) -> Tensor:
        """Rows of the image embeddings, no row twice in a sample. [b, v]"""
        rows, device = len(self.input_image_embed), self.input_image_embed.device
        if self.rand_input_image_embed and (self.training or self.rand_embed_in_eval):
            noise = normal(num_samples, rows, generator=generator, device=device)
            return noise.argsort(dim=-1)[:, :num_views]
        return torch.arange(num_views, device=device).expand(num_samples, -1)

    def _check(self, images: Tensor, rays: Tensor) -> None:
        require_shape("images", images, (None, None, self.channels, None, None), "[b, v, c, h, w]")
        b, v, _, height, width = images.shape
        require_shape("rays", rays, (b, v, RAY_CHANNELS, height, width), "[b, v, 6, h, w]")
        check_size(height, width, self.patch_size)
        rows = len(self.input_image_embed)
        if v > rows:
            raise ValueError(
                f"{v} views, a target included, but max_input_images is {rows}: each view takes one row of the image "
                "embeddings."
            )
        if self.has_axial_embed and max(height, width) > (most := len(self.height_embed) * self.patch_size):
            raise ValueError(
                f"images of {height} x {width} pixels are larger than max_image_size {most}, which bounds them with "
                "add_axial_pos_emb."
            )


def _small_noise(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * 0.02)


def _masked(tokens: Tensor, mask: Tensor | None, embed: Tensor) -> Tensor:
    """Tokens [b, v, hh, ww, d] with `embed` [d] in place of all those of masked views [b, v]."""
    if mask is None:
        return tokens
    require_shape("mask", mask, tuple(tokens.shape[:2]), "[b, v]")
    return torch.where(mask[..., None, None, None], embed, tokens)
