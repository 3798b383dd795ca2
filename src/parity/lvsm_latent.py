"""Readers of the golden files of system `lvsm_latent` that hold a model: LVSM with a view mask (KaiHelli/lvsm)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..geometry.camera import Cameras, Views, plucker, rebase
from ..geometry.frames import POSE_FRAMES
from ..loss import ImageLoss
from ..model import build_model
from ..model.base import ViewSynthesizer
from ..model.lvsm_latent import Config
from ..optim import learning_rate, parameter_groups
from ..settings import Training
from .measure import checked_settings, gradient_norms, model_with, train
from .report import Golden

CLASS_NAME = "src.model.lvsm_latent.LVSM"


def model(golden: Golden) -> dict:
    """One forward and backward pass; the draws of the encoder come from the file."""
    network = model_with(_section(golden.config), golden.state_dict, str(golden.path)).eval()
    context, target = _views(golden.inputs)
    outputs = _poses_and_rays(golden.inputs, context, target)
    if network.vae is not None:
        outputs |= _posterior(network, context)
        context = _with_latents(network, context, golden.inputs.get("encoder_noise"))
        target = _with_latents(network, target, golden.inputs.get("target_latent_noise"))
    with _recording(network) as calls:
        result = network(context, target)
    errors = (result.render - target.image).square()
    losses = {"vis_mse": errors.mean()}
    if network.vae is not None:
        outputs |= {"latent": result.latent, "target_latent": network.vae.latents(target)}
        losses["latent_mse"] = (result.latent - outputs["target_latent"]).square().mean()
    losses[golden.extra["grad_norms_of"]].backward()
    return {
        **outputs,
        **_stages(network, calls, len(context.image)),
        "image": result.render,
        "losses": losses,
        "psnr": (-10 * errors.mean(dim=(2, 3, 4)).log10()).flatten().tolist(),
        "grad_norms": gradient_norms(network),
    }


def train_steps(golden: Golden) -> dict:
    """A short training run on given batches, and statistics of the weights after it."""
    config = golden.config
    network = model_with(_section(config["model"]), golden.state_dict, str(golden.path))
    training = _training(config["schedule"] | config["optimizer"])
    training.grad_accum_steps, training.grad_clip_norm = config["accumulate"], config["clip_norm"]
    training.allowed_gradnorm_factor = float("inf")  # the original skips nothing
    passes = train(
        network, [_views(batch) for batch in golden.inputs["batches"]], ImageLoss(1.0, {}), training
    )
    size = config["accumulate"]
    updates = [passes[first : first + size] for first in range(0, len(passes), size)]
    return {
        "steps": [
            {
                "losses": [one.losses["loss"] for one in update],
                "grad_norm": update[-1].grad_norm,
                "lr": update[-1].lr,
            }
            for update in updates
        ],
        "final_parameters": {
            name: {
                "norm": float(p.detach().double().norm()),
                "mean": float(p.detach().double().mean()),
                "std": float(p.detach().double().std()),
                "first": p.detach().flatten()[:4],
            }
            for name, p in network.named_parameters()
        },
    }


def schedule(golden: Golden) -> dict:
    """The learning rate of every step."""
    training = _training(golden.config)
    return {"lr": [learning_rate(step, training) for step in range(golden.config["max_steps"])]}


def groups(golden: Golden) -> dict:
    """Names of the trained parameters with and without weight decay."""
    network = build_model(checked_settings(Config, _section(golden.config), "model"))
    names = {id(p): name for name, p in network.named_parameters()}
    decay, no_decay = parameter_groups(network, 0.05)
    found = {"trainable_decay": decay, "trainable_no_decay": no_decay}
    return {key: sorted(names[id(p)] for p in group["params"]) for key, group in found.items()}


# ----------------------------------------------------------------------------------------------- settings


def _section(config: dict) -> dict:
    """Our `model` section with the sizes and conventions of a golden file. The size of pictures is no matter here."""
    section = {name: config[name] for name in ("patch_size", "num_input_channels", "transformer")}
    section |= {"class_name": CLASS_NAME, "image_size": 0, "image_range": "zero_to_one"}
    section |= {"ray_order": "direction_first", "patch_order": "channel_first"}
    # It sets an initial value alone, which the file's weights replace; the original derives it where it is missing.
    section["transformer"] = {
        **section["transformer"],
        "qk_exp_seq_len": section["transformer"].get("qk_exp_seq_len") or 2,
    }
    factor = 1
    if given := config.get("vae"):
        factor = given["downsample_factor"]
        section["vae"] = {
            "name": "custom",
            "architecture": given["autoencoder_config"],
            "num_latent_channels": given["num_latent_channels"],
            "downsample_factor": factor,
            "num_slices_in_parallel": given["num_slices_in_parallel"] or 0,
            "stochastic_encoder": "always" if given["stochastic_encoder"] else "never",
            "image_range": "zero_to_one",
            "scale_latents": False,
            "image_loss_weight": 1.0,
        }
    if config.get("lora"):
        section["lora"] = config["lora"]
    section["image_size"] = section["patch_size"] * factor
    return section


def _training(given: dict) -> Training:
    beta1, beta2 = given.get("betas", (0.9, 0.95))
    return Training(
        lr=given["lr"],
        beta1=beta1,
        beta2=beta2,
        adam_eps=given.get("eps", 1e-8),
        weight_decay=given.get("weight_decay", 0.05),
        scheduler_type="cosine_min",
        initial_lr=given["initial_lr"],
        min_lr=given["min_lr"],
        warmup=given["warmup_steps"],
        train_steps=given["max_steps"],
    )


# ----------------------------------------------------------------------------------------------- inputs


def _views(inputs: dict) -> tuple[Views, Views]:
    """Context and targets in the frame that the context defines."""
    parts = [inputs["context"], inputs["target"]]
    poses = torch.cat([part["extrinsics"] for part in parts], dim=1)  # [b, v, 4, 4]
    first = parts[0]["extrinsics"].shape[1]
    moved = torch.stack([POSE_FRAMES["mean_rotation"](one, 1.0, slice(first)) for one in poses])
    views = []
    for part, c2w in zip(parts, (moved[:, :first], moved[:, first:])):
        height, width = part["image"].shape[-2:]
        k = part["intrinsics"]  # normalised
        fxfycxcy = torch.stack(
            [k[..., 0, 0] * width, k[..., 1, 1] * height, k[..., 0, 2] * width, k[..., 1, 2] * height], dim=-1
        )
        views.append(Views(part["image"], Cameras(c2w, fxfycxcy, height, width)))
    return views[0], views[1]


def _poses_and_rays(inputs: dict, context: Views, target: Views) -> dict:
    first = inputs["context"]["extrinsics"][:, 0]
    both = {"context": context, "target": target}
    return {
        "extrinsics_first_camera": {name: rebase(inputs[name]["extrinsics"], first) for name in both},
        "extrinsics_average_camera": {name: views.cameras.c2w for name, views in both.items()},
        "plucker_rays": {
            name: plucker(views.cameras, order="direction_first") for name, views in both.items()
        },
    }


def _posterior(network: ViewSynthesizer, context: Views) -> dict:
    mean, deviation = network.vae.posterior(context.image).unbind(2)
    return {"context_latent_mean": mean, "context_latent_std": deviation}


def _with_latents(network: ViewSynthesizer, views: Views, draws: list[Tensor] | None) -> Views:
    """The views with a posterior that has no spread: the latents of the given draws, which follow the pictures' order."""
    posterior, noise = network.vae.posterior(views.image), None
    if draws:
        shape = posterior[:, :, 0].shape
        noise = torch.cat([draw.reshape(-1, *shape[2:]) for draw in draws]).reshape(shape)
    latents = network.vae.draw(posterior, noise)
    return Views(views.image, views.cameras, torch.stack([latents, torch.zeros_like(latents)], dim=2))


# ----------------------------------------------------------------------------------------------- stages

STAGES = (
    "tokenize_input",
    "tokenize_target",
    "norm_in",
    "norm_out",
    "downsample_rays",
    "transformer.encoder.layers",
)


@contextmanager
def _recording(network: ViewSynthesizer) -> Iterator[dict[str, list[Tensor]]]:
    """While it is open, results of the modules of STAGES are kept, in the order of the calls."""
    calls: dict[str, list[Tensor]] = {name: [] for name in STAGES}
    handles = [
        module.register_forward_hook(lambda _, args, result, name=name: calls[name].append(result.detach()))
        for name, module in network.named_modules()
        if name in STAGES
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _stages(network: ViewSynthesizer, calls: dict[str, list[Tensor]], b: int) -> dict:
    """Stored stages: context tokens first, then those of all targets. Our model never needs the context's states in the
    last block, so they are computed here with its blocks.
    """
    blocks, norm = network.transformer.encoder.layers, network.transformer.encoder.norm

    def joined(context: Tensor, targets: Tensor) -> Tensor:
        return torch.cat([context, targets.reshape(b, -1, targets.shape[-1])], dim=1)

    x = calls["norm_in"][0]
    states = []
    for block in blocks:
        x = block(x, None)[0]
        states.append(x)
    last = joined(x, calls["transformer.encoder.layers"][0])
    stages = {
        "input_tokens": calls["tokenize_input"][0],
        "target_tokens": calls["tokenize_target"][0],
        "tokens_after_norm_in": joined(*calls["norm_in"]),
        "last_layer": last,
        "transformer_output": norm(last),
        "target_tokens_after_norm_out": calls["norm_out"][0],
    }
    if calls["downsample_rays"]:
        stages["downsampled_context_rays"] = calls["downsample_rays"][0]
    return {"stages": stages, "context_hidden_states_per_layer": states}
