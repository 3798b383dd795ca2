"""Train a small autoencoder on the pictures of a data set: latents for trials without downloads, minutes on a CPU.

The loss is the mean squared error plus a faint pull towards the standard normal distribution. At the end the latents
are normalised by changing the 1 x 1 convolutions on either side of them, so that the scaling factor stays 1.

Public: train_autoencoder, sample_pictures.
"""

from __future__ import annotations

import logging
import math
import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import trange

from .data.dataset import SceneDataset
from .data.scene import SceneError
from .model.vae import ImageCodec

log = logging.getLogger(__name__)

KL_WEIGHT = 1e-7
START_LOG_VARIANCE = -8.0
WARMUP = 50
CALIBRATION = 64
"""Pictures from which mean and deviation of the latents are measured."""


def sample_pictures(dataset: SceneDataset, count: int, seed: int) -> Tensor:
    """So many pictures, from random frames of random scenes. uint8 [n, 3, h, w]

    Raises:
        ValueError: not one picture could be read.
    """
    rng, found = random.Random(seed), []
    for _ in range(4 * count):
        scene = dataset.scenes[rng.randrange(len(dataset))]
        try:
            picture = dataset.picture(scene, rng.randrange(scene.num_frames))
        except SceneError:
            continue
        if not found or picture.shape == tuple(found[0].shape):
            found.append(torch.from_numpy(picture.copy()))
        if len(found) == count:
            break
    if not found:
        raise ValueError(f"{dataset.path}: none of its pictures can be read.")
    return torch.stack(found).permute(0, 3, 1, 2).contiguous()


def train_autoencoder(
    codec: ImageCodec, pictures: Tensor, *, steps: int, batch: int, lr: float, seed: int
) -> float:
    """Train in place; the PSNR of reconstructed pictures, dB.

    Args:
        codec: freshly built; its autoencoder needs both quant convolutions.
        pictures: uint8 [n, 3, h, w]; the last eighth is kept for the score.

    Raises:
        ValueError: the autoencoder has no quant convolutions.
    """
    vae = codec.vae
    if vae.quant_conv is None or vae.post_quant_conv is None:
        raise ValueError(
            "model.vae.architecture must not switch off use_quant_conv or use_post_quant_conv here."
        )
    held_out = max(1, len(pictures) // 8)
    learn, score = pictures[:-held_out], pictures[-held_out:]
    learn = learn if len(learn) else score
    generator = torch.Generator().manual_seed(seed)
    vae.requires_grad_(True).train()
    # Nearly without noise at first: with a deviation of 1 it learns for long to ignore its input.
    nn.init.constant_(vae.quant_conv.bias[codec.settings.channels :].data, START_LOG_VARIANCE)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    bar = trange(steps, desc="autoencoder", unit="step")
    for step in bar:
        optimizer.param_groups[0]["lr"] = lr * _schedule(step, steps)
        image = learn[torch.randint(len(learn), (batch,), generator=generator)].float() / 127.5 - 1
        posterior = vae.encode(image).latent_dist
        loss = F.mse_loss(vae.decode(posterior.sample(generator)).sample, image)
        (loss + KL_WEIGHT * posterior.kl().mean()).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0:
            bar.set_postfix(psnr=f"{-10 * math.log10(loss.item() / 4):.1f} dB")
    vae.requires_grad_(False).eval()
    _normalise_latents(codec, learn[:CALIBRATION].float() / 255)
    image = score.float()[None] / 255
    with torch.no_grad():
        error = F.mse_loss(codec.decode(codec.draw(codec.eval().posterior(image))), image).item()
    return -10 * math.log10(error)


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to 0."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP)))


@torch.no_grad()
def _normalise_latents(codec: ImageCodec, image: Tensor) -> None:
    """Make the means of the posteriors of these pictures [n, 3, h, w] have mean 0 and deviation 1 in each channel."""
    mean = codec.posterior(image[None])[0, :, 0]  # [n, c, h, w]
    shift, scale = mean.mean(dim=(0, 2, 3)), mean.std(dim=(0, 2, 3)).clamp_min(1e-6)
    before, after = codec.vae.quant_conv, codec.vae.post_quant_conv
    c = len(scale)
    before.weight[:c] /= scale[:, None, None, None]
    before.bias[:c] = (before.bias[:c] - shift) / scale
    before.bias[c:] -= 2 * scale.log()  # of the logarithm of the variance
    after.bias += after.weight[:, :, 0, 0] @ shift
    after.weight *= scale[:, None, None]
