"""Masked autoencoder over posed views: of some views the image is hidden, of others the rays, and LVSM restores them.

Whole views are masked, never patches, and no view loses both. The weights are LVSM's own, which a pre-trained MAE
hands on unchanged, and a head for rays.

Public: MAE, Restored, get_mask_subset_prob.
Original: github.com/lucidrains/lvsm-pytorch 0.1.6.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .encoder import RAY_CHANNELS, PatchHead, existing_views, require_shape
from .lvsm import LVSM

ROUNDINGS = ("random", "floor")
BALANCES = ("elements", "kinds")


def get_mask_subset_prob(
    mask: Tensor,
    prob: float | Tensor,
    min_mask: int = 0,
    min_keep_mask: int = 0,
    *,
    rounding: str = "floor",
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A random part of the entries that are True. bool [b, n]

    Args:
        mask: entries to choose from. bool [b, n]
        prob: the part to choose, one number or one for each row [b]; the count is rounded down.
        min_mask: choose at least so many,
        min_keep_mask: but leave at least so many.
        rounding: "random" rounds the count up as often as its fraction says, so that its mean is exact.
        noise: uniform numbers that decide, smallest first, instead of drawn ones. [b, n]
        generator: where they are drawn from (None: torch's own).
    """
    device = mask.device
    place = generator.device if generator else device
    if noise is None:
        noise = torch.rand(mask.shape, generator=generator, device=place).to(device)
    total = mask.sum(dim=-1)  # [b]
    count = total * prob  # float32
    if rounding == "random":
        count = count + torch.rand(len(mask), generator=generator, device=place).to(device)
    count = torch.minimum(count.floor().long().clamp_min(min_mask), (total - min_keep_mask).clamp_min(0))
    rank = noise.masked_fill(~mask, 2.0).argsort(dim=-1).argsort(dim=-1)  # uniform numbers are below 2
    return mask & (rank < count[:, None])


@dataclass
class Restored:
    """What the model makes of masked views.

    image_mask, ray_mask: views whose image or rays were hidden. bool [b, i]
    images: [b, i, c, h, w] in (0, 1); rays: [b, i, 6, h, w]. Of all views, meaningful for the masked ones.
    """

    image_mask: Tensor
    ray_mask: Tensor
    images: Tensor
    rays: Tensor


class MAE(nn.Module):
    """Masked autoencoder around an LVSM.

    Args:
        frac_masked: part of the views of a sample that lose something, at least one. 0 to 1
        frac_images_to_ray_masked: part of those that lose the image; the others lose the rays. 0 to 1
        image_to_ray_loss_weight: weight of image errors against ray errors.
        rounding: how many views a fraction makes. "random" keeps its mean exact; "floor" (parity) never hides an image
            of 2 or 3 views with the default fractions.
        balance: "elements" (parity): one mean over all elements of images and rays together, so that the balance
            depends on the channels and on how many views fell on either side; "kinds": the mean of each, added.

    Raises:
        ValueError: a fraction outside of [0, 1], or an unknown rounding or balance.
    """

    def __init__(
        self,
        lvsm: LVSM,
        frac_masked: float = 0.5,
        frac_images_to_ray_masked: float = 0.5,
        image_to_ray_loss_weight: float = 1.0,
        *,
        rounding: str = "random",
        balance: str = "elements",
    ) -> None:
        super().__init__()
        for name, part in (
            ("frac_masked", frac_masked),
            ("frac_images_to_ray_masked", frac_images_to_ray_masked),
        ):
            if not 0 <= part <= 1:
                raise ValueError(f"{name} is {part}: expected 0 to 1.")
        for name, choice, choices in (("rounding", rounding, ROUNDINGS), ("balance", balance, BALANCES)):
            if choice not in choices:
                raise ValueError(f"{name} is {choice!r}: expected {' or '.join(choices)}.")
        self.lvsm = lvsm
        self.frac_masked, self.frac_images_to_ray_masked = frac_masked, frac_images_to_ray_masked
        self.image_to_ray_loss_weight = image_to_ray_loss_weight
        self.rounding, self.balance = rounding, balance
        self.unpatchify_to_rays = PatchHead(lvsm.dim, RAY_CHANNELS, lvsm.patch_size, squashed=False)

    def forward(
        self,
        images: Tensor,
        rays: Tensor,
        num_images: Tensor | None = None,
        return_image_and_ray_recon: bool = False,
        return_loss_breakdown: bool = False,
        *,
        image_index: Tensor | None = None,
        image_mask: Tensor | None = None,
        ray_mask: Tensor | None = None,
        noise: tuple[Tensor, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor | tuple:
        """The loss of one draw of masks.

        Args:
            images: [b, i, c, h, w] in [0, 1]
            rays: [b, i, 6, h, w]
            num_images: how many views of each sample exist, at least 2. int64 [b]
            image_index: rows of the image embeddings, instead of drawn or ascending ones. [b, i]
            image_mask, ray_mask: both, instead of drawn ones. bool [b, i]
            noise: the two uniform draws behind the masks: which views, and which of them lose the image. each [b, i]
            generator: where masks and image embeddings are drawn from (None: torch's own).

        Returns:
            the loss; with one flag (loss, its pair), with both (loss, (breakdown, reconstruction)).
            breakdown: squared errors of the masked images [k, c, h, w] and of the masked rays [k', 6, h, w];
            reconstruction: (image_mask, images [k, c, h, w]) and (ray_mask, rays [k', 6, h, w]), sample by sample.

        Raises:
            ValueError: shapes or counts that do not fit; fewer than 2 views.
        """
        if image_mask is None or ray_mask is None:
            if (image_mask is None) != (ray_mask is None):
                raise ValueError("image_mask and ray_mask: give both or neither.")
            image_mask, ray_mask = self.draw_masks(images, num_images, noise=noise, generator=generator)
        done = self.restore(
            images, rays, image_mask, ray_mask, num_images, image_index=image_index, generator=generator
        )
        image_errors = (done.images[image_mask] - images[image_mask]) ** 2
        ray_errors = (done.rays[ray_mask] - rays[ray_mask]) ** 2
        image_sum, ray_sum = image_errors.sum(), ray_errors.sum()
        loss = self.combine(image_sum, ray_sum, image_errors.numel(), ray_errors.numel())
        breakdown = (image_errors, ray_errors)
        recon = ((image_mask, done.images[image_mask]), (ray_mask, done.rays[ray_mask]))
        asked = [
            pair
            for flag, pair in ((return_loss_breakdown, breakdown), (return_image_and_ray_recon, recon))
            if flag
        ]
        if not asked:
            return loss
        return loss, asked[0] if len(asked) == 1 else tuple(asked)

    def draw_masks(
        self,
        images: Tensor,
        num_images: Tensor | None = None,
        *,
        noise: tuple[Tensor, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Which views lose their image, and which their rays. Each bool [b, i].

        Raises:
            ValueError: a sample with fewer than 2 views: there is nothing to restore one from.
        """
        b, i = images.shape[:2]
        eligible = existing_views("num_images", num_images, b, i)
        fewest = i if num_images is None else int(num_images.min())
        if fewest < 2:
            raise ValueError(f"a sample has {fewest} view: masking needs at least 2.")
        if eligible is None:
            eligible = torch.ones(b, i, dtype=torch.bool, device=images.device)
        first, second = noise if noise is not None else (None, None)
        options = {"rounding": self.rounding, "generator": generator}
        masked = get_mask_subset_prob(eligible, self.frac_masked, 1, noise=first, **options)
        image_mask = get_mask_subset_prob(masked, self.frac_images_to_ray_masked, noise=second, **options)
        return image_mask, masked & ~image_mask

    def restore(
        self,
        images: Tensor,
        rays: Tensor,
        image_mask: Tensor,
        ray_mask: Tensor,
        num_images: Tensor | None = None,
        *,
        image_index: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Restored:
        """Hide what the masks say and restore it. Arguments as for `forward`."""
        require_shape("image_mask", image_mask, tuple(images.shape[:2]), "[b, i]")
        require_shape("ray_mask", ray_mask, tuple(images.shape[:2]), "[b, i]")
        tokens = self.lvsm.image_and_ray_encoder(
            images,
            rays,
            image_mask=image_mask,
            ray_mask=ray_mask,
            num_images=num_images,
            image_index=image_index,
            generator=generator,
        )
        return Restored(
            image_mask, ray_mask, self.lvsm.unpatchify_to_image(tokens), self.unpatchify_to_rays(tokens)
        )

    def combine(
        self, image_sum: Tensor, ray_sum: Tensor, num_image: int | Tensor, num_ray: int | Tensor
    ) -> Tensor:
        """The loss from sums of squared errors and the numbers of elements in them."""
        weight = self.image_to_ray_loss_weight
        if self.balance == "kinds":
            return weight * image_sum / _at_least_one(num_image) + ray_sum / _at_least_one(num_ray)
        return (weight * image_sum + ray_sum) / _at_least_one(num_image + num_ray)


def _at_least_one(count: int | Tensor) -> int | Tensor:
    return count.clamp_min(1) if torch.is_tensor(count) else max(count, 1)
