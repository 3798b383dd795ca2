"""Weights of the lvsm_pytorch family under the names of LVSM's own blocks, as far as there is a counterpart.

A start for another family, not the same function: biases and the value residual have no counterpart, gated feed-forward
layers do not fit, RMS norms become layer norms. Used by `training.init_from`.

Public: as_shared_blocks.
"""

from __future__ import annotations

import math
import re

import torch
from einops import rearrange
from torch import Tensor

from .encoder import RAY_CHANNELS

ROOT = "image_and_ray_encoder."


def as_shared_blocks(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of an LVSM, an MAE or a wrapper of either, renamed; empty if `state` is none of these.

    | here                                   | there                                              |
    |----------------------------------------|----------------------------------------------------|
    | norm gains g, gamma                    | norm1, norm2, image_token_decoder.0: 1 + g         |
    | to_q, to_k, to_v                       | attn.to_qkv, one below the other                   |
    | to_out                                 | attn.fc                                            |
    | feed-forward without gate              | mlp.mlp.0, mlp.mlp.2, without biases               |
    | image and ray tokens                   | image_tokenizer.1, for images in [-1, 1] and rays  |
    | ray tokens                             | target_pose_tokenizer.1                            |
    | unpatchify_to_image                    | image_token_decoder.1                              |
    """
    anchor = next((name for name in state if ROOT in name), None)
    if anchor is None:
        return {}
    prefix = anchor[: anchor.index(ROOT)]
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    inner = {name.removeprefix(ROOT): tensor for name, tensor in own.items() if name.startswith(ROOT)}
    blocks = sorted({int(m[1]) for name in inner if (m := re.match(r"decoder\.layers\.(\d+)\.", name))})
    renamed: dict[str, Tensor] = {}
    for s in blocks:
        body = f"decoder.layers.{s}.1."
        here = {name.removeprefix(body): tensor for name, tensor in inner.items() if name.startswith(body)}
        there = f"transformer_blocks.{s // 2}."
        renamed |= {f"{there}norm{1 + s % 2}.weight": _gain(inner, f"decoder.layers.{s}.0.0.")}
        renamed |= {f"{there}{name}": tensor for name, tensor in _body(here).items()}
    renamed["image_token_decoder.0.weight"] = _gain(inner, "decoder.final_norm.")
    return renamed | _maps(inner, own["unpatchify_to_image.0.weight"])


def _gain(state: dict[str, Tensor], name: str) -> Tensor:
    return 1 + (state[f"{name}g"] if f"{name}g" in state else state[f"{name}gamma"])


def _body(here: dict[str, Tensor]) -> dict[str, Tensor]:
    """One attention or feed-forward layer."""
    if "to_q.weight" in here:
        found = {"attn.to_qkv.weight": torch.cat([here[f"to_{x}.weight"] for x in "qkv"])}
        return found | ({"attn.fc.weight": here["to_out.weight"]} if "to_out.weight" in here else {})
    if "ff.0.0.weight" in here:
        return {"mlp.mlp.0.weight": here["ff.0.0.weight"], "mlp.mlp.2.weight": here["ff.2.weight"]}
    return {}


def _maps(inner: dict[str, Tensor], head: Tensor) -> dict[str, Tensor]:
    """Patch maps and the head; here a patch runs over (channel, row, column), there the channel is fastest."""
    images, rays = (inner[f"{name}_to_patch_tokens.1.weight"] for name in ("images", "plucker_rays"))
    p = math.isqrt(rays.shape[1] // RAY_CHANNELS)
    images, rays = (rearrange(w, "d (c ph pw) -> d ph pw c", ph=p, pw=p) for w in (images, rays))
    posed = torch.cat([0.5 * images, rays], dim=-1)  # half: images there are in [-1, 1]
    return {
        "image_tokenizer.1.weight": rearrange(posed, "d ph pw c -> d (ph pw c)"),
        "target_pose_tokenizer.1.weight": rearrange(rays, "d ph pw c -> d (ph pw c)"),
        "image_token_decoder.1.weight": rearrange(head, "(c ph pw) d -> (ph pw c) d", ph=p, pw=p),
    }
