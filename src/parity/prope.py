"""Readers of the golden files of system `prope`: the attention operator, and the original's LVSM with it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..geometry.camera import Cameras, Views
from ..loss import ImageLoss
from ..model.prope import camera_encoding
from .measure import model_with, run_model
from .report import Golden


def attention_operator(golden: Golden) -> dict:
    """Attention with turned queries, keys, values and results, and its gradients."""
    config, inputs = golden.config, golden.inputs
    kind = "prope" if config.get("use_intrinsics", True) else "gta"
    size = (config["image_h"], config["image_w"])
    query, key = (
        camera_encoding(
            Cameras(inputs[f"c2w_{side}"], _fxfycxcy(inputs, side), *size),
            config["patch_size"],
            config["d_head"],
            kind,
        )
        for side in ("query", "key")
    )
    q, k, v = (inputs[name].clone().requires_grad_() for name in "qkv")
    if config.get("self_attention"):
        turned = query.turn(q, k, v)
    else:
        turned = (query.turn_queries(q), *key.turn_keys(k, v))
    attended = F.scaled_dot_product_attention(*turned)
    output = query.back(attended)
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    gradients = torch.autograd.grad((output * weights).sum(), (q, k, v))
    return {
        **{f"{name}_transformed": tensor for name, tensor in zip("qkv", turned)},
        **{f"grad_{name}": tensor for name, tensor in zip("qkv", gradients)},
        "attention_before_output_transform": attended,
        "output": output,
        "output_one_call": output,
    }


def _fxfycxcy(inputs: dict, side: str) -> Tensor:
    """Intrinsics in pixels; where a file has none they are not used."""
    c2w, matrix = inputs[f"c2w_{side}"], inputs.get(f"K_{side}")
    if matrix is None:
        return torch.ones(*c2w.shape[:2], 4)
    return torch.stack([matrix[..., 0, 0], matrix[..., 1, 1], matrix[..., 0, 2], matrix[..., 1, 2]], dim=-1)


def model(golden: Golden) -> dict:
    """One forward and backward pass of the original's LVSM; its images have channels last."""
    config, inputs = golden.config, golden.inputs
    tree = {
        "class_name": "src.model.lvsm_prope.LVSMPRoPE",
        "image_tokenizer": {"image_size": config["image_h"], "patch_size": config["patch_size"]},
        "transformer": {
            "d": config["d"],
            "d_head": config["d"] // config["heads"],
            "d_ff": config["d_ff"],
            "n_layer": config["n_layer"],
            "use_qk_norm": config["qk_norm"],
        },
        "camera": config["pos_enc"] or "none",
        "ray": config["ray_encoding"],
    }
    network = model_with(tree, golden.state_dict, str(golden.path))
    views = {}
    for side in ("ref", "target"):
        image = inputs[f"{side}_images"].permute(0, 1, 4, 2, 3)
        views[side] = Views(image, Cameras(inputs[f"c2w_{side}"], _fxfycxcy(inputs, side), *image.shape[-2:]))
    recorded = {"patches": network.patches, "output": network.output_layer}
    done = run_model(network, views["ref"], views["target"], ImageLoss(1.0, {}), recorded)
    rays = [call[0].permute(0, 1, 3, 4, 2) for call in done.calls["patches"]]
    (_, logits), (*_, height, width) = done.calls["output"][0], views["target"].image.shape
    return {
        "ref_rays": rays[1][:, :1],  # patches are made of the images, their rays, and the targets' rays
        "target_rays": rays[2][:, :1],
        "logits": _unpatchified(logits, done.render.shape[1], height, width, config["patch_size"]),
        "render": done.render.permute(0, 1, 3, 4, 2),
        "mse": done.losses["l2_loss"],
        "grad_norms": done.grad_norms,
    }


def _unpatchified(patches: Tensor, num_views: int, height: int, width: int, p: int) -> Tensor:
    """[b * v, n, p * p * 3] -> [b, v, h, w, 3]"""
    return rearrange(
        patches,
        "(b v) (hh ww) (ph pw c) -> b v (hh ph) (ww pw) c",
        **{"v": num_views, "hh": height // p, "ww": width // p, "ph": p, "pw": p},
    )
