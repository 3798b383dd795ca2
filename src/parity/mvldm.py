"""Readers of the golden files of system `mvldm` (mohammadasim98/mv-ldm) that hold rays or a model.

The original's config says in one place what diffusers builds (`unet`, `unet_scratch`, `vae`) and in others what surrounds
it; `_section` makes our `model` section of both.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..config import ConfigError
from ..geometry.camera import Cameras, rebase
from ..model import family_config
from ..model.diffusion import guided
from ..model.mvldm import MVLDM
from ..model.mvldm_choice import Choice
from ..model.ray_encoding import RayEncoding, encode_rays, view_rays
from ..model.unet import MultiViewUNet
from .measure import checked_settings, gradient_norms, model_with, recording
from .report import Golden

CLASS_NAME = "src.model.mvldm.MVLDM"

DIFFUSERS_DEFAULTS = {
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 1280,
    "only_cross_attention": False,
    "use_linear_projection": False,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
}
"""Of `UNet2DConditionModel`, which files made from scratch leave out."""

ALWAYS_SO = {
    "act_fn": "silu",
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "dual_cross_attention": False,
    "transformer_layers_per_block": 1,
}
"""What is no setting of ours, because it is the same in every Stable Diffusion UNet."""


def ray_encoding(golden: Golden) -> dict:
    """Rays and their encodings, and poses relative to each view."""
    context, target = golden.inputs["context"], golden.inputs["target"]
    cameras = cameras_of([context, target], *golden.config["latent_shape"])
    outputs = {
        name: encode_rays(cameras, _ray_settings(variant))
        for name, variant in golden.config["variants"].items()
    }
    rays = view_rays(cameras_of([context], *golden.config["latent_shape"]))
    outputs["context_origins"], outputs["context_directions"] = (
        x.permute(0, 1, 3, 4, 2).flatten(2, 3) for x in rays
    )
    for view in range(cameras.num_views):
        outputs[f"relative_to_{view}"] = rebase(cameras.c2w, cameras.c2w[:, view])
    return outputs


def model(golden: Golden) -> dict:
    """One evaluation of the denoiser with all stages, guided steps, training steps; with an autoencoder also its two
    directions and a whole sample.
    """
    network, inputs = network_of(golden), golden.inputs
    pictures = "image" in inputs["context"]
    with torch.no_grad():
        outputs, latents = _encoded(network, inputs) if pictures else ({}, inputs["latents"])
        outputs |= _denoised(network, golden, latents)
        if pictures:
            given = inputs["context"]["image"].shape[1]
            outputs["decoded_target"] = network.codec.decode(latents[:, given:])
        if "sample" in inputs:
            outputs["sample"] = _sampled(network, inputs)
    trained = {name: given for name, given in inputs.items() if name.startswith("train_")}
    return outputs | {name: _trained(network, inputs, given, latents) for name, given in trained.items()}


# ----------------------------------------------------------------------------------------------- settings


def network_of(golden: Golden) -> MVLDM:
    """The model with the file's weights; a file of the denoiser alone gets an autoencoder that is never used."""
    tree = _section(golden.config, golden.state_dict)
    state = {name: tensor.float() for name, tensor in golden.state_dict.items()}  # stored as float8
    if golden.config.get("vae") is None:
        unused = MVLDM(checked_settings(family_config(CLASS_NAME), tree, "model")).autoencoder
        state |= {f"autoencoder.{name}": tensor for name, tensor in unused.state_dict().items()}
    return model_with(tree, state, str(golden.path)).eval()


def _section(config: dict, state: dict[str, Tensor]) -> dict:
    """Our `model` section."""
    latent_channels = len(state["denoiser.unet.conv_out.weight"])
    vae = {"name": "tiny", "architecture": {"latent_channels": latent_channels}}
    if config.get("vae") is not None:
        # The original's scale is a constant of its code, whatever the autoencoder's own says.
        vae = {"name": "custom", "architecture": config["vae"] | {"scaling_factor": config["latent_scale"]}}
    multi_view = {name: value for name, value in config["multi_view_attention"].items() if value is not None}
    scheduler = dict(config["scheduler"])
    for name, only in (
        ("name", "ddim"),
        ("clip_sample", False),
        ("set_alpha_to_one", True),
        ("steps_offset", 0),
    ):
        _require(name, scheduler.pop(name), only)
    _require("eta", scheduler.pop("eta"), 0.0)
    scheduler["zero_terminal_snr"] = scheduler.pop("rescale_betas_zero_snr")
    return {
        "class_name": CLASS_NAME,
        "vae": vae | {"stochastic_encoder": "always"},
        "denoiser": _denoiser(config) | {"multi_view_attention": multi_view},
        "ray_encodings": config["ray_encodings"],
        "scheduler": scheduler | {"num_inference_steps": config["num_inference_steps"]},
        "use_cfg": config["use_cfg"],
        "cfg_scale": config["cfg_scale"],
    }


def _denoiser(config: dict) -> dict:
    """`model.denoiser` without the multi-view blocks."""
    pretrained = config["pretrained_unet_mode"]
    given = DIFFUSERS_DEFAULTS | (config["unet"] if pretrained else config["unet_scratch"])
    for name, only in ALWAYS_SO.items():
        _require(name, given.get(name, only), only)
    if not pretrained:
        given["cross_attention_dim"] = given["block_out_channels"]
    section = {name: _plain(given[name]) for name in DIFFUSERS_DEFAULTS}
    section["num_heads"] = section.pop("attention_head_dim")  # its name in diffusers, by mistake
    for name in ("encoder_conditioning", "mid_conditioning", "decoder_conditioning"):
        section[name] = config[name]
    return section | {"up_attention": not pretrained, "keep_unused_parameters": True}


def _ray_settings(given: dict) -> RayEncoding:
    names = RayEncoding.__dataclass_fields__
    return RayEncoding(**{name: given[name] for name in names if name in given})


def _require(name: str, value: Any, only: Any) -> None:
    if value != only:
        raise ConfigError(f"{name} is {value!r}: our models know {only!r} only.")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# ----------------------------------------------------------------------------------------------- the parts


def cameras_of(parts: list[dict], height: int, width: int) -> Cameras:
    """Cameras of some sets of views, one after another, for images of this size; intrinsics are normalised there, and in
    float64 here, so that they come back unchanged.
    """
    c2w = torch.cat([part["extrinsics"] for part in parts], dim=1)
    k = torch.cat([part["intrinsics"] for part in parts], dim=1).double()
    fxfycxcy = [k[..., 0, 0] * width, k[..., 1, 1] * height, k[..., 0, 2] * width, k[..., 1, 2] * height]
    return Cameras(c2w, torch.stack(fxfycxcy, dim=-1), height, width)


def _encoded(network: MVLDM, inputs: dict) -> tuple[dict, Tensor]:
    """Posterior and latents of all pictures."""
    image = torch.cat([inputs["context"]["image"], inputs["target"]["image"]], dim=1)
    posterior = network.codec.posterior(image)
    mean, deviation = posterior.flatten(0, 1).unbind(1)
    latents = network.codec.draw(posterior, inputs["vae_noise"].view_as(posterior[:, :, 0]))
    stages = {"posterior_mean": mean, "posterior_logvar": 2 * deviation.log()}
    return stages | {"latents": latents}, latents


def _denoised(network: MVLDM, golden: Golden, latents: Tensor) -> dict:
    """The denoiser at given timesteps, and guided steps from the middle and the last level."""
    inputs, size = golden.inputs, latents.shape[-2:]
    given = inputs["context"]["extrinsics"].shape[1]
    levels = network.schedule.timesteps(golden.config["num_inference_steps"])
    level = torch.full((len(latents),), inputs["step_timestep"])
    noisy = network.schedule.add_noise(latents[:, given:], inputs["noise"], level)
    cameras = cameras_of([inputs["context"], inputs["target"]], *size)
    condition = network.condition(cameras, given, size)
    x = torch.cat([torch.cat([latents[:, :given], noisy], dim=1), condition], dim=2)
    with recording(_stages(network.denoiser)) as calls:
        out = network.denoiser(x, inputs["denoiser_timesteps"])
    stages = {name: results[0][1] for name, results in calls.items() if results}

    def step(level: int, following: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Unconditional and guided prediction, and the latents after the step."""
        now = torch.full((len(latents),), level)
        with_context = network.predict(torch.cat([latents[:, :given], noisy], dim=1), condition, now, given)
        alone = network.predict(noisy, condition[:, given:], now, 0)
        prediction = (
            guided(with_context, alone, network.config.cfg_scale) if network.config.use_cfg else with_context
        )
        return alone, prediction, network.schedule.step(noisy, prediction, level, following)

    stride = golden.config["scheduler"]["num_train_timesteps"] // golden.config["num_inference_steps"]
    following = inputs["step_timestep"] - stride
    alone, prediction, after = step(inputs["step_timestep"], following if following >= 0 else None)
    return {
        "ray_encodings": condition[:, :, 1:],
        "timesteps": torch.tensor(levels),
        "noisy_target_latents": noisy,
        "denoiser_input": x,
        "conditional": stages | {"out": out},
        "unconditional_out": alone,
        "cfg_pred": prediction,
        "ddim_prev_sample": after,
        "ddim_last_step": step(levels[-1], None)[2],
    }


def _stages(denoiser: MultiViewUNet) -> dict[str, nn.Module]:
    """Name of a stored stage -> the module whose result it is."""
    unet = denoiser.unet
    modules: dict[str, nn.Module] = {"time_embedding": unet.time_embedding, "conv_in": unet.conv_in}
    for level, block in enumerate(unet.down_blocks):
        modules |= {f"down{level}_resnet{i}": layer for i, layer in enumerate(block.resnets)}
        modules |= {f"down{level}_attention{i}": layer for i, layer in enumerate(block.attentions or ())}
    for place in ("encoder", "mid", "decoder"):
        stack = getattr(denoiser, f"cross_attn_blocks_{place}")
        modules |= {f"multiview_{place}_{i}": block for i, block in enumerate(stack or ())}
    return modules


def _sampled(network: MVLDM, inputs: dict) -> dict:
    """A whole sample of the target views, with its draws given."""
    given, (height, width) = inputs["sample"], inputs["context"]["image"].shape[-2:]
    context, target = (cameras_of([inputs[name]], height, width) for name in ("context", "target"))
    posterior = network.codec.posterior(inputs["context"]["image"])
    latents = network.codec.draw(posterior, given["vae_noise"].view_as(posterior[:, :, 0]))
    sample = network.sample(latents, context, target, given["x_T"], steps=given["num_inference_steps"])
    c2w = torch.cat([context.c2w, target.c2w], dim=1)
    return {"relative_extrinsics": rebase(c2w, c2w[:, 0]), "images": network.codec.decode(sample)}


# ----------------------------------------------------------------------------------------------- training


def _trained(network: MVLDM, inputs: dict, given: dict, latents: Tensor) -> dict:
    """One forward and backward pass with the decisions of the file."""
    num_context = inputs["context"]["extrinsics"].shape[1]
    choices = [_choice(given, num_context, latents.shape[1], level) for level in given["timesteps"]]
    seen = [*choices[0].context, *choices[0].target]  # the same views in every sample
    if "vae_noise" in given:
        latents = _encoded_again(network, inputs, given["vae_noise"], seen)
    noise = torch.zeros_like(latents)
    noise[:, list(choices[0].target)] = given["target_noise"]
    cameras = cameras_of([inputs["context"], inputs["target"]], *latents.shape[-2:])
    if network.config.ray_encodings.channels != 6:
        cameras, choices = _moved_as_published(cameras, choices)
    calls: list[tuple[Tensor, Tensor, Tensor]] = []
    handle = network.denoiser.register_forward_hook(lambda _, args, out: calls.append((*args, out.detach())))
    network.zero_grad(set_to_none=True)
    result = network.denoise(latents, cameras, noise, choices)
    handle.remove()
    loss = network.objective(result, None, None)["loss"]
    loss.backward()
    seen_by_network, timestep, prediction = calls[0]
    norms = {name.removeprefix("denoiser."): norm for name, norm in gradient_norms(network).items()}
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return {
        "loss": loss.detach(),
        "denoiser_input": seen_by_network,
        "timestep": timestep,
        "pred": prediction,
        "grad_norms": norms,
        "total_grad_norm": float(nn.utils.get_total_norm(gradients)),
    }


def _choice(given: dict, num_context: int, num_views: int, level: int) -> Choice:
    """The decisions of a training step. One context view alone sends the others to the targets.

    Parity: the original takes the number that the kept view had among all context views as that of the reference in the
    new list, where it may be a target. Ours is always a context view.
    """
    targets = range(num_context, num_views)
    if given["n_context"] == 1:
        kept = given["kept_context_view"]
        context, target = (kept,), (*targets, *(view for view in range(num_context) if view != kept))
        reference = kept
    else:
        context, target = tuple(range(given["n_context"])), tuple(targets)
        reference = given["reference_view"]
    decisions = given["decisions"]
    return Choice(
        context,
        target,
        reference=None if decisions["absolute_poses"] else reference,
        unconditional=decisions["unconditional"],
        level=level,
    )


def _moved_as_published(cameras: Cameras, choices: list[Choice]) -> tuple[Cameras, list[Choice]]:
    """Poses in the frame of the reference view already, in float32 as in the original, and choices that say so.

    Ours are made in float64; ten octaves of the encoding make 1e-4 of the last digit in which they differ.
    """
    choice = choices[0]  # the same views in every sample
    if choice.reference is None:
        return cameras, choices
    view = (*choice.context, *choice.target)[choice.reference]
    c2w = torch.linalg.inv(cameras.c2w[:, view : view + 1]) @ cameras.c2w
    return cameras.at(c2w), [replace(choice, reference=None) for choice in choices]


@torch.no_grad()
def _encoded_again(network: MVLDM, inputs: dict, vae_noise: Tensor, seen: list[int]) -> Tensor:
    """Latents of all views; the noise of the posterior is given for those that are used, in the order of their use."""
    image = torch.cat([inputs["context"]["image"], inputs["target"]["image"]], dim=1)
    posterior = network.codec.posterior(image)
    noise = torch.zeros_like(posterior[:, :, 0])
    noise[:, seen] = vae_noise.view(len(image), len(seen), *noise.shape[2:])
    return network.codec.draw(posterior, noise)
