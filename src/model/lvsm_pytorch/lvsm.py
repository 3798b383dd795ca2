"""LVSM as a small library offers it: images and ray maps of any number of views in, the view of one more ray map out.

Decoder-only: the target stands in front of the inputs as a view whose image is masked, and one transformer sees all
tokens. Arguments and results are those of lvsm-pytorch 0.1.6; what stands behind the `*` of `forward`, and the last
four of the constructor, are additions.

Public: LVSM.
Paper: "LVSM: A Large View Synthesis Model with Minimal 3D Inductive Bias", arXiv 2410.17242.
Original: github.com/lucidrains/lvsm-pytorch.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .encoder import RAY_CHANNELS, ImageAndPluckerRayEncoder, PatchHead, existing_views, require_shape
from .perceptual import load_vgg16
from .transformer import DecoderSettings

log = logging.getLogger(__name__)


class LVSM(nn.Module):
    """View synthesis from input images with ray maps.

    Args:
        dim ... decoder_kwargs: see ImageAndPluckerRayEncoder. The target takes a row of the image embeddings too, so
            there are at most max_input_images - 1 inputs.
        dropout_input_ray_prob: probability that an input view loses its rays in training. A view without rays and
            without axial embeddings is an unordered bag of patches.
        perceptual_loss_weight: of the VGG-16 loss; 0.5 for scenes and 1.0 for objects in the paper. That loss exists
            for 3 channels only and needs `vgg16`.
        add_axial_pos_emb, rand_embed_in_eval: see ImageAndPluckerRayEncoder.
        keep_one_input_ray: ray dropout spares one view of each sample. Parity: off.
        vgg16: network of the perceptual loss, images [n, 3, h, w] to features, or the file of torchvision's weights.
            Nothing is downloaded: without it the perceptual loss is left out, and the first loss says so.

    Raises:
        ValueError: sizes that do not fit each other; `vgg16` names no such file.
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
        perceptual_loss_weight: float = 0.5,
        add_axial_pos_emb: bool = False,
        rand_embed_in_eval: bool = False,
        keep_one_input_ray: bool = False,
        vgg16: nn.Module | str | Path | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.patch_size, self.channels = dim, patch_size, channels
        self.dropout_input_ray_prob, self.keep_one_input_ray = dropout_input_ray_prob, keep_one_input_ray
        self.perceptual_loss_weight = perceptual_loss_weight
        self.image_and_ray_encoder = ImageAndPluckerRayEncoder(
            dim,
            max_image_size=max_image_size,
            patch_size=patch_size,
            depth=depth,
            heads=heads,
            max_input_images=max_input_images,
            dim_head=dim_head,
            channels=channels,
            rand_input_image_embed=rand_input_image_embed,
            decoder_kwargs=decoder_kwargs,
            add_axial_pos_emb=add_axial_pos_emb,
            rand_embed_in_eval=rand_embed_in_eval,
        )
        self.unpatchify_to_image = PatchHead(dim, channels, patch_size, squashed=True)
        self.vgg = vgg16 if vgg16 is None or isinstance(vgg16, nn.Module) else load_vgg16(vgg16)
        if self.vgg is not None:
            self.vgg.requires_grad_(False)
        self._told = False

    @property
    def device(self) -> torch.device:
        return self.image_and_ray_encoder.mask_image_embed.device

    def forward(
        self,
        input_images: Tensor,
        input_rays: Tensor,
        target_rays: Tensor,
        target_images: Tensor | None = None,
        num_input_images: Tensor | None = None,
        return_loss_breakdown: bool = False,
        return_embed: bool = False,
        *,
        image_index: Tensor | None = None,
        input_ray_mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor | tuple:
        """A render, its loss, or the tokens behind it.

        Args:
            input_images: [b, i, c, h, w] in [0, 1]
            input_rays: of any ray code, the same for inputs and target. [b, i, 6, h, w]
            target_rays: [b, 6, h, w]
            target_images: asks for the loss. [b, c, h, w] in [0, 1]
            num_input_images: how many inputs of each sample exist; the rest is padding. int64 [b]
            image_index: rows of the image embeddings, target first, instead of drawn or ascending ones. [b, 1 + i]
            input_ray_mask: inputs whose rays are hidden, instead of ray dropout. bool [b, i]
            generator: where ray dropout and image embeddings are drawn from (None: torch's own).

        Returns:
            with return_embed: target tokens [b, h / p, w / p, d] and input tokens [b, i, h / p, w / p, d];
            without target_images: the render [b, c, h, w] in (0, 1);
            else the loss, with return_loss_breakdown (loss, (mean squared error, perceptual loss)).

        Raises:
            ValueError: shapes, counts or numbers of views that do not fit.
        """
        self._check(input_images, input_rays, target_rays, target_images)
        b, i = input_images.shape[:2]
        existing = existing_views("num_input_images", num_input_images, b, i)
        if input_ray_mask is None:
            input_ray_mask = self._dropped_rays(b, i, existing, generator)
        target_first = torch.zeros(b, 1, dtype=torch.bool, device=input_ray_mask.device)
        tokens = self.image_and_ray_encoder(
            torch.cat([torch.zeros_like(input_images[:, :1]), input_images], dim=1),
            torch.cat([target_rays[:, None], input_rays], dim=1),
            image_mask=torch.cat([~target_first, torch.zeros_like(input_ray_mask)], dim=1),
            ray_mask=torch.cat([target_first, input_ray_mask], dim=1),
            num_images=None if num_input_images is None else num_input_images + 1,
            image_index=image_index,
            generator=generator,
        )
        target_tokens, input_tokens = tokens[:, 0], tokens[:, 1:]
        if return_embed:
            return target_tokens, input_tokens
        render = self.unpatchify_to_image(target_tokens)
        if target_images is None:
            return render
        loss, terms = self.loss(render, target_images)
        return (loss, terms) if return_loss_breakdown else loss

    def loss(self, render: Tensor, target_images: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(loss, (mean squared error, perceptual loss)) of renders. Both [b, c, h, w] in [0, 1]."""
        l2 = F.mse_loss(render, target_images.to(render.dtype))
        perceptual = torch.zeros_like(l2)
        if self.perceptual_loss_weight > 0:
            if self.channels != 3 or self.vgg is None:
                self._tell_that_it_is_off()
            else:
                perceptual = self._perceptual(render, target_images)
        return l2 + self.perceptual_loss_weight * perceptual, (l2, perceptual)

    def _perceptual(self, render: Tensor, target_images: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.vgg.eval()(target_images)
        return F.mse_loss(self.vgg(render).float(), wanted.float())

    def _tell_that_it_is_off(self) -> None:
        if self._told:
            return
        self._told = True
        why = (
            f"it needs 3 channels and there are {self.channels}"
            if self.channels != 3
            else "it needs weights: pass vgg16=FILE (`python -m scripts.download_weights vgg16` fetches it)"
        )
        log.warning(
            "The perceptual loss is left out: %s. perceptual_loss_weight=0 silences this message.", why
        )

    def _dropped_rays(
        self, num_samples: int, num_inputs: int, existing: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """Inputs that lose their rays in this pass. bool [b, i]"""
        shape, device = (num_samples, num_inputs), self.device
        if not (self.training and self.dropout_input_ray_prob > 0):
            return torch.zeros(shape, dtype=torch.bool, device=device)
        noise = torch.rand(shape, generator=generator, device=generator.device if generator else device)
        noise = noise.to(device)
        dropped = noise < self.dropout_input_ray_prob
        if not self.keep_one_input_ray:
            return dropped
        if existing is not None:
            noise = noise.masked_fill(~existing, -1.0)  # padding is no view that keeps its rays
        return dropped & (noise < noise.amax(dim=1, keepdim=True))

    def _check(self, images: Tensor, rays: Tensor, target_rays: Tensor, target_images: Tensor | None) -> None:
        require_shape("input_images", images, (None, None, self.channels, None, None), "[b, i, c, h, w]")
        b, i, c, height, width = images.shape
        require_shape("input_rays", rays, (b, i, RAY_CHANNELS, height, width), "[b, i, 6, h, w]")
        require_shape("target_rays", target_rays, (b, RAY_CHANNELS, height, width), "[b, 6, h, w]")
        if target_images is not None:
            require_shape("target_images", target_images, (b, c, height, width), "[b, c, h, w]")
