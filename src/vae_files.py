"""Files of image codecs: weights in diffusers' folder form, from a disk or the Hugging Face hub, and adapters.

`pretrained.vae` is a folder (`config.json` and `diffusion_pytorch_model.safetensors`), a file of weights, a hub id
`owner/name` (its sub-folder `vae`, if it has one), or empty for the published source of `model.vae.name`. Published
weights are looked for in `checkpoints/pretrained/vae_<name>/` first; the hub keeps its own cache and login.

An adapter is `<name>.safetensors` (`<layer>.lora_A`, `.lora_B`) with `<name>.json` beside it.

Public: SOURCES, OnHub, find_vae, locate_vae, load_vae, save_vae, save_adapter, read_adapter.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from .checkpoint import CheckpointError, load_weights, require_finite
from .config import ConfigError
from .files import read_json, replacing, write_text
from .model.lora import with_adapter_names
from .model.vae import ImageCodec
from .sizes import explain_misfit

log = logging.getLogger(__name__)

SOURCES: dict[str, tuple[str, str]] = {
    "sd15": ("stable-diffusion-v1-5/stable-diffusion-v1-5", "vae"),
    "sd21": ("stabilityai/stable-diffusion-2-1", "vae"),
    "sd35": ("stabilityai/stable-diffusion-3.5-large", "vae"),
    "sdxl": ("madebyollin/sdxl-vae-fp16-fix", ""),
}
"""`model.vae.name` -> (hub id, sub-folder). sd35 needs a login: `hf auth login`, after accepting its licence."""

PLACE = Path("checkpoints/pretrained")
WEIGHTS, CONFIG = "diffusion_pytorch_model.safetensors", "config.json"

OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of the attention's layers in files written before diffusers 0.13 -> present names."""

COMPARED = (
    "block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups", "scaling_factor", "shift_factor",
    "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention", "down_block_types", "up_block_types", "act_fn",
)  # fmt: skip


@dataclass(frozen=True)
class OnHub:
    """Weights in a sub-folder of a repository of the Hugging Face hub; `place` is where they may be put by hand."""

    repository: str
    subfolder: str
    place: Path


def find_vae(source: str, name: str) -> Path:
    """The file of weights that `pretrained.vae` stands for; a hub id is fetched, or taken from the hub's cache.

    Args:
        source: value of `pretrained.vae`.
        name: value of `model.vae.name`.

    Raises:
        ConfigError: there is no such file, and how to get it.
    """
    found = locate_vae(source, name)
    return found if isinstance(found, Path) else _from_hub(found)


def locate_vae(source: str, name: str) -> Path | OnHub:
    """The same without fetching anything."""
    place = PLACE / f"vae_{name}" / WEIGHTS
    if not source:
        if name not in SOURCES:
            raise ConfigError(
                f"pretrained.vae is empty and model.vae.name {name} is not published: name a folder with {CONFIG} and "
                f"{WEIGHTS}, or pretrained.vae=random. `python -m scripts.train_tiny_vae` makes a small one."
            )
        return place if place.is_file() else OnHub(*SOURCES[name], place)
    path = Path(source)
    if path.is_file():
        return path
    for folder in (path, path / "vae"):
        if (folder / WEIGHTS).is_file():
            return folder / WEIGHTS
    if path.exists() or path.parts[0] == PLACE.parts[0] or not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise ConfigError(f"pretrained.vae: {source} holds no {WEIGHTS}.")
    subfolder = next((sub for repository, sub in SOURCES.values() if repository == source), "")
    return OnHub(source, subfolder, place)


def _from_hub(weights: OnHub) -> Path:
    # Imported here: it comes with diffusers, and no other family needs it.
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    repository, place = weights.repository, weights.place
    inside = f"{weights.subfolder}/" if weights.subfolder else ""
    try:
        hf_hub_download(repository, f"{inside}{CONFIG}")
        return Path(hf_hub_download(repository, f"{inside}{WEIGHTS}"))
    except (OSError, ValueError, EntryNotFoundError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ConfigError(
            f"pretrained.vae: {inside}{WEIGHTS} of huggingface.co/{repository} could not be fetched ({reason}). Put this "
            f"file at {place} with its {CONFIG} beside it, or name its folder in pretrained.vae."
        ) from error


def load_vae(codec: ImageCodec, source: str) -> Path:
    """Fill the autoencoder of a codec, adapted or not, from the file that `source` (`pretrained.vae`) stands for.

    Raises:
        ConfigError: no such file, or its `config.json` describes another autoencoder.
        CheckpointError: its tensors do not fit.
    """
    path = find_vae(source, codec.settings.name)
    _check_description(codec, path.with_name(CONFIG))
    state = with_adapter_names(codec.vae, _modern_names(load_weights(path)))
    shapes = (
        {name: tuple(t.shape) for name, t in tensors.items()} for tensors in (state, codec.vae.state_dict())
    )
    if misfit := explain_misfit(*shapes, str(path)):
        raise CheckpointError(
            f"{misfit} Is it the autoencoder that model.vae.name {codec.settings.name} describes?"
        )
    require_finite(state, path)
    codec.vae.load_state_dict(state)
    log.info("loaded %d tensors of the autoencoder from %s", len(state), path)
    return path


def _check_description(codec: ImageCodec, path: Path) -> None:
    """Scaling factors leave no trace in the shapes: compare what the folder says with what the codec was built from."""
    if not path.is_file():
        return
    try:
        given = read_json(path)
        theirs = {name: given[name] for name in COMPARED if name in given}
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is not readable as JSON ({error}).") from error
    ours = codec.vae.config
    for name, value in theirs.items():
        own = list(ours[name]) if isinstance(ours[name], tuple) else ours[name]
        if value != own:
            raise ConfigError(
                f"{path}: {name} is {value}, the autoencoder of the config has {own}: set model.vae.architecture.{name}."
            )


def _modern_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names and shapes of files that older versions of diffusers wrote, as they are today."""
    found = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if "attentions" in parts and parts[-2] in OLD_ATTENTION:
            parts[-2] = OLD_ATTENTION[parts[-2]]
            tensor = tensor.flatten(1) if tensor.ndim == 4 else tensor  # 1 x 1 convolutions once
        found[".".join(parts)] = tensor
    return found


def save_vae(codec: ImageCodec, folder: Path) -> None:
    """Write a codec's autoencoder, which must carry no adapters, in diffusers' folder form."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in codec.vae.state_dict().items()}
    described = {"_class_name": "AutoencoderKL", **{n: codec.vae.config[n] for n in COMPARED}}
    described |= {"in_channels": 3, "out_channels": 3, "sample_size": codec.vae.config["sample_size"]}
    with replacing(folder / WEIGHTS) as temporary:
        safetensors.torch.save_file(tensors, temporary)
    write_text(folder / CONFIG, json.dumps(described, indent=2) + "\n")


def save_adapter(tensors: dict[str, Tensor], description: dict[str, Any], path: Path) -> None:
    """Write one set of adapters and, beside it, what it belongs to."""
    with replacing(path) as temporary:
        safetensors.torch.save_file({n: t.cpu().contiguous() for n, t in tensors.items()}, temporary)
    write_text(path.with_suffix(".json"), json.dumps(description, indent=2) + "\n")


def read_adapter(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of an adapter; raises CheckpointError."""
    described = path.with_suffix(".json")
    if not described.is_file():
        raise CheckpointError(
            f"{described}: no such file; an adapter is a .safetensors with a .json beside it."
        )
    try:
        return load_weights(path), dict(read_json(described))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{described} is not readable as JSON ({error}).") from error
