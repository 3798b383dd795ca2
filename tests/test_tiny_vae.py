"""A small autoencoder learns pictures, and its latents need no scaling factor."""

from __future__ import annotations

import pytest
import torch

from src.model.vae import ImageCodec, Vae
from src.tiny_vae import train_autoencoder

SMALL = {"block_out_channels": [8, 8, 8], "norm_num_groups": 4}


def waves(count: int) -> torch.Tensor:
    """Smooth coloured pictures. uint8 [n, 3, 16, 16]"""
    y, x = torch.meshgrid(torch.linspace(0, 3, 16), torch.linspace(0, 3, 16), indexing="ij")
    a, b, c = torch.rand(3, count, 3, 1, 1) * 2
    return (127.5 + 127.5 * torch.sin(a * x + b * y + 3 * c)).to(torch.uint8)


def test_it_learns_and_its_latents_have_unit_spread() -> None:
    codec, pictures = ImageCodec(Vae(name="tiny", architecture=SMALL)), waves(64)
    psnr = train_autoencoder(codec, pictures, steps=100, batch=8, lr=5e-3, seed=0)
    plain = -10 * torch.log10(((pictures.float() / 255 - 0.5) ** 2).mean())  # grey pictures
    assert psnr > plain + 0.5
    posterior = codec.posterior(pictures[None].float() / 255)[0]
    torch.testing.assert_close(posterior[:, 0].std(dim=(0, 2, 3)), torch.ones(4), atol=0.1, rtol=0)
    assert not any(p.requires_grad for p in codec.parameters())


def test_an_autoencoder_without_quant_convolutions_is_refused() -> None:
    codec = ImageCodec(Vae(name="tiny", architecture={**SMALL, "use_quant_conv": False}))
    with pytest.raises(ValueError, match="use_quant_conv"):
        train_autoencoder(codec, waves(8), steps=1, batch=2, lr=1e-3, seed=0)
