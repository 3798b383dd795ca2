"""Readers of the golden files of system `lvsm_pytorch`: the module API (lucidrains/lvsm-pytorch)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ..checkpoint import load_into
from ..model.lvsm_pytorch.cameras import CameraWrapper, MAECameraWrapper, to_plucker_rays
from ..model.lvsm_pytorch.encoder import ImageAndPluckerRayEncoder
from ..model.lvsm_pytorch.lvsm import LVSM
from ..model.lvsm_pytorch.mae import MAE, get_mask_subset_prob
from ..model.lvsm_pytorch.perceptual import Vgg16Features
from .measure import gradient_norms
from .report import Golden

TOP_LEVEL_SWITCHES = {"add_axial_pos_emb": False, "learned_value_residual_mix": True}
"""Switches that stand beside the constructor's arguments in a golden file -> their value where absent."""


def model(golden: Golden) -> dict:
    """One forward and backward pass of any of the four classes."""
    network = _network(golden)
    with _recording(network) as seen:
        outputs = _mae_pass(network, golden) if "mae" in golden.config else _lvsm_pass(network, golden)
    outputs["loss"].backward()
    return outputs | _stages(network, seen) | _gradients(network)


def perceptual(golden: Golden) -> dict:
    """The loss with VGG-16 features, the features themselves, and the gradient of their error."""
    vgg = Vgg16Features(_vgg16_by_formula(golden.config["vgg_seed"]))
    network = _network(golden, vgg)
    outputs = _lvsm_pass(network, golden)
    outputs["loss"].backward()
    render = outputs["render"].detach().requires_grad_()
    with torch.no_grad():
        wanted = vgg(golden.inputs["call"]["target_images"])
    features = vgg(render)
    nn.functional.mse_loss(features, wanted).backward()
    return outputs | {
        "features_target": wanted,
        "features_render": features.detach(),
        "perceptual_grad_wrt_render": render.grad,
        **_gradients(network),
    }


def rays_and_masks(golden: Golden) -> dict:
    """The published ray code, and the rule that draws masks."""
    inputs, outputs = golden.inputs, {}
    names = ("intrinsic", "extrinsic", "translation", "uniform_points")
    outputs["rays"] = to_plucker_rays(*(inputs[name] for name in names))
    direction, moment = outputs["rays"].chunk(2, dim=-3)
    outputs["camera_centre"] = _common_point(direction, moment)
    if "intrinsic_1" in inputs:
        outputs["rays_no_view_axis"] = to_plucker_rays(*(inputs[f"{name}_1"] for name in names))
    outputs["subsets"] = [
        get_mask_subset_prob(
            case["mask"], case["prob"], case["min_mask"], case["min_keep_mask"], noise=case["noise"]
        )
        for case in inputs["subsets"]
    ]
    return outputs


# ----------------------------------------------------------------------------------------------- the classes


REPLACED_DEFAULTS = {"use_rmsnorm": False, "add_value_residual": False, "ff_glu": False}
"""A dictionary given to the original replaces its defaults, where ours is merged into them."""


def _network(golden: Golden, vgg: nn.Module | None = None) -> nn.Module:
    """The class that the file names, with its published behaviour and its weights."""
    config = golden.config
    switches = TOP_LEVEL_SWITCHES | {name: config[name] for name in TOP_LEVEL_SWITCHES if name in config}
    arguments = dict(config["lvsm"])
    given = arguments.pop("decoder_kwargs", None)
    if given is not None:
        given = REPLACED_DEFAULTS | given
    arguments |= {
        "decoder_kwargs": {"learned_value_residual_mix": switches["learned_value_residual_mix"]}
        | (given or {}),
        "add_axial_pos_emb": arguments.get("add_axial_pos_emb", switches["add_axial_pos_emb"]),
        "vgg16": vgg,
    }
    network: nn.Module = LVSM(**arguments)
    if "mae" in config:
        network = MAE(network, **config["mae"], rounding="floor")
    wrapper = config.get("wrapper", "none")
    if wrapper in ("CameraWrapper", "MAECameraWrapper"):
        cls = CameraWrapper if wrapper == "CameraWrapper" else MAECameraWrapper
        network = cls(network, rays="published")
    load_into(network, golden.state_dict, str(golden.path))
    return network.train(config.get("train_mode", True))


def _draws(golden: Golden) -> dict[str, Tensor]:
    """Rows of the image embeddings, if the file has drawn ones."""
    if "image_embed_index" in golden.inputs:
        return {"image_index": golden.inputs["image_embed_index"]}
    return {}


def _lvsm_pass(network: nn.Module, golden: Golden) -> dict:
    call, draws = dict(golden.inputs["call"]), _draws(golden)
    draws["input_ray_mask"] = golden.inputs.get("ray_dropout_mask")
    target_images = call.pop("target_images", None)
    loss, (l2, perceptual_loss) = network(
        **call, **draws, target_images=target_images, return_loss_breakdown=True
    )
    with torch.no_grad():
        render = network(**call, **draws)
        target_embed, input_embed = network(**call, **draws, return_embed=True)
    return {
        "loss": loss,
        "l2_loss": l2,
        "perceptual_loss": perceptual_loss,
        "render": render,
        "target_embed": target_embed,
        "input_embed": input_embed,
    }


def _mae_pass(network: nn.Module, golden: Golden) -> dict:
    loss, (breakdown, recon) = network(
        **golden.inputs["call"],
        **_draws(golden),
        noise=golden.inputs["mae_noise"],
        return_image_and_ray_recon=True,
        return_loss_breakdown=True,
    )
    (image_mask, images), (ray_mask, rays) = recon
    image_errors, ray_errors = (errors.detach().double() for errors in breakdown)
    return {
        "loss": loss,
        "image_loss_mean": image_errors.mean() if image_errors.numel() else image_errors.sum(),
        "ray_loss_mean": ray_errors.mean() if ray_errors.numel() else ray_errors.sum(),
        "mae_image_mask": image_mask,
        "mae_ray_mask": ray_mask,
        "pred_images": images.detach(),
        "pred_rays": rays.detach(),
    }


# ----------------------------------------------------------------------------------------------- what is stored


def _gradients(network: nn.Module) -> dict:
    return {
        "grad_norms": gradient_norms(network),
        "grads": {name: p.grad for name, p in network.named_parameters()},
    }


@contextmanager
def _recording(network: nn.Module) -> Iterator[dict[str, tuple[dict, Any]]]:
    """While it is open: name of a module of the encoder -> arguments and result of its first call."""
    encoder = _encoder(network)
    seen: dict[str, tuple[dict, Any]] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict, result: Any) -> None:
            seen.setdefault(name, ({**dict(enumerate(args)), **kwargs}, result))

        return hook

    handles = [
        module.register_forward_hook(keep(name), with_kwargs=True) for name, module in encoder.named_modules()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _encoder(network: nn.Module) -> ImageAndPluckerRayEncoder:
    return next(m for m in network.modules() if isinstance(m, ImageAndPluckerRayEncoder))


def _stages(network: nn.Module, seen: dict[str, tuple[dict, Any]]) -> dict:
    """Intermediate tensors of the pass that made the loss, under their stored names."""
    encoder = _encoder(network)
    arguments, decoder_input = seen[""][0], seen["decoder"][0]
    first = encoder.decoder.layers[0][1]
    stages = {
        "ray_map": arguments[1],
        "image_mask": arguments["image_mask"],
        "ray_mask": arguments["ray_mask"],
        "key_mask": decoder_input[1],
        "image_tokens": seen["images_to_patch_tokens"][1],
        "ray_tokens": seen["plucker_rays_to_patch_tokens"][1],
        "decoder_input": decoder_input[0],
        "decoder_output": seen["decoder"][1],
        "values_0": rearrange(seen["decoder.layers.0.1.to_v"][1], "b n (h c) -> b h n c", h=first.heads),
    }
    for s in range(len(encoder.decoder.layers)):
        after = "decoder.final_norm" if s + 1 == len(encoder.decoder.layers) else _norm(s + 1)
        kind = "feedforward" if s % 2 else "attention"
        stages[f"norm_{s}"] = seen[_norm(s)][1]
        stages[f"{kind}_{s}"] = seen[f"decoder.layers.{s}.1"][1]
        stages[f"residual_stream_after_sublayer_{s}"] = seen[after][0][0]
        mix = f"decoder.layers.{s}.1.to_value_residual_mix"
        if mix in seen:
            stages[f"value_residual_mix_{s}"] = rearrange(seen[mix][1], "b n h -> b h n 1")
    return stages


def _norm(s: int) -> str:
    return f"decoder.layers.{s}.0.0"


def _common_point(direction: Tensor, moment: Tensor) -> Tensor:
    """The point through which all rays of each map go, by least squares from d x o = -m. [..., 3]"""
    d = rearrange(direction.double(), "... c h w -> ... (h w) c")
    m = rearrange(moment.double(), "... c h w -> ... (h w) c")
    zero = torch.zeros_like(d[..., 0])
    x, y, z = d.unbind(-1)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))  # d x .
    normal_matrix = (cross.mT @ cross).sum(-3)
    return torch.linalg.solve(normal_matrix, (cross.mT @ -m[..., None]).sum(-3))[..., 0].float()


def _vgg16_by_formula(seed: int) -> dict[str, Tensor]:
    """The weights that the notes of the file describe, entry by entry of torchvision's state_dict."""
    # Imported here: it is slow, and only this kind of file needs the order of its entries.
    from torchvision.models import vgg16

    with torch.device("meta"):
        entries = vgg16(weights=None).state_dict()
    state = {}
    for number, (name, like) in enumerate(entries.items()):
        if name.startswith("classifier.6"):  # behind the features
            continue
        noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed + number))
        state[name] = noise.mul_(0.05 if like.ndim == 1 else math.sqrt(2 / like[0].numel()))
    return state
