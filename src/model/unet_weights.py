"""Weights of other files under the names of our denoiser, as far as it has a use for them.

Public: from_stable_diffusion, without_unused.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from torch import Tensor


def from_stable_diffusion(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A file of Stable Diffusion's UNet as diffusers writes it, under the names of a denoiser's UNet; any other file as it is.

    The first and the last layer are left out, as in the original: they see other channels, and another target.

    Args:
        prefix: of the UNet's names in the model, such as `denoiser.unet.`.
    """
    if not {"conv_in.weight", "time_embedding.linear_1.weight"} <= state.keys():
        return state
    return {
        f"{prefix}{name}": tensor
        for name, tensor in state.items()
        if not name.startswith(("conv_in.", "conv_out."))
    }


_UNUSED = re.compile(r"unet\.(.*\.transformer_blocks\.\d+\.(attn2|norm2)|up_blocks\.\d+\.attentions)\.")


def without_unused(state: dict[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """Weights of a published checkpoint for a network that computes the same without parameters that nothing uses.

    Args:
        state: tensors by name, under any prefix.
        own: names that the network has, under the same prefix; with all of them nothing changes.

    Returns:
        the tensors that are used. The bias of the attention to the empty text is added to that of the attention before it.
    """
    kept = {name: tensor for name, tensor in state.items() if name in own or not _UNUSED.search(name)}
    for name, bias in state.items():
        before = name.replace(".attn2.", ".attn1.")
        if name not in kept and name.endswith(".attn2.to_out.0.bias") and before in kept:
            kept[before] = kept[before] + bias
    return kept
