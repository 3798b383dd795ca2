"""The image codec: conventions between pictures and latents, and what stays frozen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from src.config import ConfigError, build
from src.geometry.camera import Cameras, Views
from src.model.lora import Lora, LoraOfType, add_lora, lora_layers, merge
from src.model.ray_downsampler import RayDownsampler
from src.model.vae import ImageCodec, Vae, autoencoder_arguments

PUBLISHED = {"image_range": "zero_to_one", "scale_latents": False, "stochastic_encoder": "always"}
SMALL = {"block_out_channels": [8, 8, 16], "norm_num_groups": 4, "scaling_factor": 0.5, "shift_factor": 0.25}


def codec(**settings: object) -> ImageCodec:
    return ImageCodec(Vae(name="tiny", architecture=SMALL, **settings)).eval()


def views(image: torch.Tensor, posterior: torch.Tensor | None = None) -> Views:
    b, v, _, h, w = image.shape
    cameras = Cameras(torch.eye(4).expand(b, v, 4, 4), torch.ones(b, v, 4), h, w)
    return Views(image, cameras, posterior)


IMAGE = torch.rand(2, 3, 3, 16, 24, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_default_conventions_are_those_the_autoencoders_were_trained_with() -> None:
    ours = codec()
    moments = ours.vae.encode(2 * IMAGE.flatten(0, 1) - 1).latent_dist
    posterior = ours.posterior(IMAGE)
    assert posterior.shape == (2, 3, 2, 4, 4, 6)
    torch.testing.assert_close(posterior[:, :, 0].flatten(0, 1), moments.mean)
    torch.testing.assert_close(posterior[:, :, 1].flatten(0, 1), moments.std)
    latents = ours.latents(views(IMAGE))
    torch.testing.assert_close(latents, (posterior[:, :, 0] - 0.25) * 0.5)
    decoded = ours.vae.decode(moments.mean).sample
    torch.testing.assert_close(ours.decode(latents).flatten(0, 1), ((decoded + 1) / 2).clamp(0, 1))


@torch.no_grad()
def test_published_conventions_feed_pictures_and_latents_as_they_are() -> None:
    theirs = codec(**PUBLISHED)
    moments = theirs.vae.encode(IMAGE.flatten(0, 1)).latent_dist
    torch.testing.assert_close(theirs.posterior(IMAGE)[:, :, 0].flatten(0, 1), moments.mean)
    posterior, noise = theirs.posterior(IMAGE), torch.randn(2, 3, 4, 4, 6)
    torch.testing.assert_close(theirs.draw(posterior, noise), posterior[:, :, 0] + posterior[:, :, 1] * noise)
    decoded = theirs.vae.decode(moments.mean).sample.clamp(0, 1)
    torch.testing.assert_close(theirs.decode(posterior[:, :, 0]).flatten(0, 1), decoded)


@pytest.mark.parametrize(
    "when,training,evaluation", [("training", True, False), ("always", True, True), ("never", False, False)]
)
def test_latents_are_drawn_when_the_settings_say_so(when: str, training: bool, evaluation: bool) -> None:
    ours = codec(stochastic_encoder=when)
    for mode, drawn in ((True, training), (False, evaluation)):
        ours.train(mode)
        first, second = ours.latents(views(IMAGE)), ours.latents(views(IMAGE))
        assert torch.equal(first, second) != drawn
    assert Vae(name="tiny").stochastic_encoder == "training"  # evaluation does not depend on a seed


def test_a_posterior_that_came_along_is_used_instead_of_the_picture() -> None:
    ours = codec()
    posterior = ours.posterior(IMAGE)
    given = ours.latents(views(torch.zeros_like(IMAGE), posterior.half()))
    torch.testing.assert_close(given, ours.latents(views(IMAGE)), atol=2e-3, rtol=0)


@pytest.mark.parametrize("slices", [0, 1, 4, 6])
def test_slices_do_not_change_the_numbers(slices: int) -> None:
    torch.manual_seed(3)
    whole = codec(num_slices_in_parallel=0)
    torch.manual_seed(3)
    sliced = codec(num_slices_in_parallel=slices)
    torch.testing.assert_close(sliced.posterior(IMAGE), whole.posterior(IMAGE), atol=1e-5, rtol=1e-5)
    latents = torch.randn(2, 3, 4, 4, 6)
    torch.testing.assert_close(sliced.decode(latents), whole.decode(latents), atol=1e-5, rtol=1e-5)


def test_the_autoencoder_is_frozen_and_stays_in_eval_mode() -> None:
    ours = codec().train()
    assert ours.training and not any(module.training for module in ours.vae.modules())
    assert not any(p.requires_grad for p in ours.parameters())
    latents = torch.randn(1, 1, 4, 4, 6, requires_grad=True)
    ours.decode(latents).sum().backward()  # an image loss reaches what made the latents
    assert latents.grad.abs().max() > 0


def test_gradients_reach_the_adapters_alone_and_merging_keeps_the_picture() -> None:
    ours = codec()
    part = LoraOfType(lora_rank=2)
    add_lora(ours.vae.decoder, Lora(Linear=part, Conv2d=part))
    for _, low_rank in lora_layers(ours):
        torch.nn.init.normal_(low_rank.lora_B, std=0.1)
    latents = torch.randn(1, 2, 4, 4, 6)
    picture = ours.decode(latents)
    picture.square().sum().backward()
    learned = {name for name, p in ours.named_parameters() if p.grad is not None}
    assert learned and all(name.endswith(("lora_A", "lora_B")) for name in learned)
    merge(ours)
    torch.testing.assert_close(ours.decode(latents), picture, atol=1e-6, rtol=0)


def test_bfloat16_weights_give_float32_latents_near_those_of_float32() -> None:
    torch.manual_seed(5)
    exact = codec()
    torch.manual_seed(5)
    rounded = codec(dtype="bfloat16")
    assert {p.dtype for p in rounded.parameters()} == {torch.bfloat16}
    found = rounded.posterior(IMAGE)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact.posterior(IMAGE), atol=0.05, rtol=0.05)


def test_the_digest_names_encoder_and_range_of_the_pictures_but_not_the_decoder() -> None:
    ours = codec()
    digest = ours.digest()
    with torch.no_grad():
        ours.vae.decoder.conv_in.weight += 1
        assert ours.digest() == digest
        ours.vae.encoder.conv_in.weight[0, 0, 0, 0] += 1e-3
        assert ours.digest() != digest


@pytest.mark.parametrize("name,channels,scale,shift", [
    ("sd15", 4, 0.18215, None), ("sd21", 4, 0.18215, None), ("sdxl", 4, 0.13025, None), ("sd35", 16, 1.5305, 0.0609),
])  # fmt: skip
def test_published_autoencoders(name: str, channels: int, scale: float, shift: float | None) -> None:
    settings = Vae(name=name)
    arguments = autoencoder_arguments(settings)
    assert (settings.channels, settings.factor) == (channels, 8)
    assert (arguments["scaling_factor"], arguments.get("shift_factor")) == (scale, shift)


@pytest.mark.parametrize(
    "section,message",
    [
        ({"name": "sd16"}, "model.vae.name is 'sd16'"),
        (
            {"name": "sd35", "num_latent_channels": 4},
            "num_latent_channels is 4, but the architecture of sd35 makes 16",
        ),
        ({"name": "tiny", "downsample_factor": 8}, "downsample_factor is 8, .* makes 4"),
        ({"name": "tiny", "architecture": {"latents": 3}}, "model.vae.architecture.latents is no argument"),
        ({"name": "custom"}, "names no block_out_channels"),
        ({"name": "tiny", "latent_loss_weight": 0}, "are both 0"),
        ({"name": "tiny", "image_range": "0..1"}, "minus_one_to_one or zero_to_one"),
    ],
)
def test_settings_that_cannot_be_are_refused(section: dict, message: str) -> None:
    problems: list[str] = []
    assert build(Vae, section, "model.vae", problems) is None
    with pytest.raises(ConfigError, match=message):
        raise ConfigError(" ".join(problems))


def test_pictures_that_do_not_fit_are_refused_with_their_size() -> None:
    with pytest.raises(ValueError, match=r"18 x 24 pixels .* multiples of 4"):
        codec().posterior(torch.zeros(1, 1, 3, 18, 24))


def test_rays_are_brought_to_the_size_of_latents() -> None:
    for factor, widths in ((8, [6, 9, 12, 16]), (4, [6, 11, 16])):
        cnn = RayDownsampler(factor, 4, bias=False)
        weights = [layer.weight for layer in cnn if isinstance(layer, torch.nn.Conv2d)]
        assert [w.shape[1] for w in weights] == widths
        assert cnn(torch.randn(3, 6, 32, 48)).shape == (3, 4, 32 // factor, 48 // factor)
    shifted = torch.randn(2, 6, 8, 8)
    torch.testing.assert_close(cnn(torch.cat([shifted, shifted]))[:2], cnn(shifted))


def test_other_families_do_not_import_diffusers(repo_root: Path, cli_env: dict[str, str]) -> None:
    code = "import sys, src.train, src.model.vae, src.vae_files; assert not {'diffusers', 'huggingface_hub'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repo_root, env=cli_env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
