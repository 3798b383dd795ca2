"""Checkpoints, checked when they are read, and weights from files of other programs. `saving.py` writes them.

A checkpoint is a folder `ckpt_<16-digit step>/`:

    model.safetensors     the model's tensors by name (tied ones under each of their names)
    training_state.pt     step, samples seen, optimiser, generators; loads with weights_only
    checkpoint.json       config, step, torch version, sha256 of the other two and of these; written last

Nothing here runs code from a file: pickles are opened with `weights_only=True` and refused if they hold more than
tensors and plain values.

Public: CheckpointError, LoadReport, checkpoint_folders, find_checkpoints, newest_checkpoint, damage, is_checkpoint, step_of,
sha256, load_training_state, read_manifest, manifest_digest, load_weights, load_into, fitting,
load_pretrained_part, require_finite, clean_names, weights_digest.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from .sizes import explain_misfit
from .torch_files import TorchFileError, read_torch_file

log = logging.getLogger(__name__)

WEIGHTS, STATE, MANIFEST = "model.safetensors", "training_state.pt", "checkpoint.json"
FOLDER = re.compile(r"ckpt_(\d{16})")
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt")

WRAPPERS = ("module", "_orig_mod", "_checkpoint_wrapped_module")
"""Parts of a name that DistributedDataParallel, torch.compile and activation checkpointing put in; taken out."""

IGNORED = {"loss_computer.": "the frozen loss network that published trainers kept inside the model"}
"""Prefix of tensors in published files that are not the model's -> what they are."""

PART_IGNORED = {"mask_token": "only used by DINOv2's own training"}
PART_OPTIONAL = ("q_norm.weight", "k_norm.weight")
"""Gains that a pretrained backbone without QK norm does not have; they keep their initial value 1."""


class CheckpointError(ValueError):
    """A checkpoint or file of weights that cannot be used: the message names it and the remedy."""


# ----------------------------------------------------------------------------------------------- folders


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is one checkpoint, whole or not, rather than a run folder that holds several."""
    return FOLDER.fullmatch(folder.name) is not None or (folder / MANIFEST).is_file()


def find_checkpoints(folder: str | Path) -> list[Path]:
    """Complete checkpoints of a run folder, oldest first. Their content is not checked: see `damage`."""
    return [path for path in checkpoint_folders(folder) if (path / MANIFEST).is_file()]


def newest_checkpoint(folder: str | Path, files: Collection[str] = (WEIGHTS, STATE)) -> Path | None:
    """The newest checkpoint that is whole, as far as `files` go; None if the run has not written any yet.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged: starting over would hide that.
    """
    folders = checkpoint_folders(folder)
    for path in reversed(folders):
        reason = damage(path, files)
        if reason is None:
            return path
        log.error("%s is damaged (%s). Falling back to the one before it.", path, reason)
    if folders:
        raise CheckpointError(
            f"{folder}: all {len(folders)} checkpoints are damaged. Delete them to start afresh, or name another folder."
        )
    return None


def damage(path: Path, files: Collection[str] = (WEIGHTS, STATE)) -> str | None:
    """What is wrong with a checkpoint folder; None: `files` of it are whole. Reads every byte of them."""
    try:
        manifest = read_manifest(path)
        digests = manifest["sha256"]
        if FOLDER.fullmatch(path.name) and manifest["step"] != step_of(path):
            return f"it is that of step {manifest['step']!r} under another name"
        for name in files:
            if not (path / name).is_file():
                return f"{name} is missing"
            if sha256(path / name) != digests[name]:
                return f"{name} is not what was written"
    except (CheckpointError, OSError) as error:
        return str(error)
    return None


def read_manifest(path: Path) -> dict[str, Any]:
    """`checkpoint.json`: step, config, sha256, torch."""
    if not (path / MANIFEST).is_file():
        raise CheckpointError(f"{path / MANIFEST} is missing: the checkpoint was not completed")
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        manifest = {key: manifest[key] for key in ("step", "sha256", "torch", "config")}
        digests = manifest["sha256"]
        if not isinstance(digests, dict) or digests.keys() - {MANIFEST} != {WEIGHTS, STATE}:
            raise ValueError(f"sha256 must give the digests of {WEIGHTS} and {STATE}")
        if digests.get(MANIFEST, manifest_digest(manifest)) != manifest_digest(manifest):
            raise ValueError("it is not what was written")
        return manifest
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path / MANIFEST} is not readable ({error})") from error


def manifest_digest(manifest: dict[str, Any]) -> str:
    """Of step, torch version and config, which stand in the manifest itself."""
    content = json.dumps([manifest[key] for key in ("step", "torch", "config")])
    return hashlib.sha256(content.encode()).hexdigest()


def load_training_state(path: Path) -> dict[str, Any]:
    """`training_state.pt` of a checkpoint folder."""
    return _torch_load(path / STATE)


def checkpoint_folders(folder: str | Path) -> list[Path]:
    """All checkpoint folders of a run folder, complete or not, oldest first."""
    if not Path(folder).is_dir():
        return []
    return sorted(path for path in Path(folder).iterdir() if path.is_dir() and FOLDER.fullmatch(path.name))


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint folder."""
    return int(FOLDER.fullmatch(path.name)[1])


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ----------------------------------------------------------------------------------------------- reading weights


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, from any of: checkpoint folder, run folder (its newest whole checkpoint),
    `.safetensors`, published `.pt` (under `model`), Lightning `.ckpt` (under `state_dict`), plain state_dict.

    Raises:
        CheckpointError: no such file, damaged, or it holds more than tensors.
    """
    file = _weights_file(Path(path))
    if file.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(file)
        except (safetensors.SafetensorError, OSError) as error:
            reason = " ".join(str(error).split())  # names in the file stand in it
            raise CheckpointError(f"{file} is damaged ({reason}). Copy or download it again.") from error
    content, size = _torch_load(file), file.stat().st_size
    if isinstance(content, dict):
        for candidate in (content.get("model"), content.get("state_dict"), content):
            if (
                isinstance(candidate, dict)
                and candidate
                and all(_is_plain(x, size) for x in candidate.values())
            ):
                return dict(candidate)
    raise CheckpointError(
        f"{file} holds no tensors by name, neither under `model` or `state_dict` nor at the top "
        f"({', '.join(map(str, content)) if isinstance(content, dict) else type(content).__name__})."
    )


def _is_plain(value: object, most_bytes: int) -> bool:
    """Whether it is a tensor of numbers; `weights_only` also lets sparse, quantised and empty (meta) ones pass, and some
    that claim by their strides to be larger than the file.
    """
    if not isinstance(value, Tensor):
        return False
    plain = value.layout == torch.strided and not value.is_quantized and value.device.type == "cpu"
    return plain and value.nbytes <= most_bytes


def weights_digest(path: str | Path) -> str:
    """Digest of the file that `load_weights` reads."""
    return sha256(_weights_file(Path(path)))


def _weights_file(path: Path) -> Path:
    """The file of weights that a path stands for; in a checkpoint folder it must be what was written, and the training
    state may be missing.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: no such checkpoint. `python -m scripts.download_weights` fetches published weights."
        )
    if is_checkpoint(path):
        reason = damage(path, (WEIGHTS,))
        if reason:
            raise CheckpointError(f"{path} is damaged ({reason}). Use another checkpoint.")
        return path / WEIGHTS
    newest = newest_checkpoint(path, (WEIGHTS,))
    if newest is None:
        files = sorted(p.name for p in path.iterdir() if p.suffix in WEIGHT_SUFFIXES)
        hint = f" Name one of its files: {', '.join(files)}." if files else ""
        raise CheckpointError(f"{path} holds no checkpoint (a folder ckpt_<step>).{hint}")
    return newest / WEIGHTS


def _torch_load(file: Path) -> Any:
    """Content of a torch file without ever running code from it."""
    try:
        return read_torch_file(file)
    except (TorchFileError, OSError) as error:
        raise CheckpointError(
            f"{file} {error}. Copy or download it again; where you trust it, save its tensors as .safetensors."
        ) from error


# ----------------------------------------------------------------------------------------------- filling a model


@dataclass
class LoadReport:
    """What `load_into` did. `ignored` and `renamed` count tensors by prefix."""

    source: str
    loaded: int = 0
    ignored: Counter[str] = field(default_factory=Counter)
    renamed: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        parts = [f"loaded {self.loaded} tensors from {self.source}"]
        parts += [f"ignored {n} under {prefix} ({IGNORED[prefix]})" for prefix, n in self.ignored.items()]
        parts += [f"took {name}. out of {n} names" for name, n in self.renamed.items()]
        return "; ".join(parts)


def clean_names(state: dict[str, Tensor], source: str) -> tuple[dict[str, Tensor], LoadReport]:
    """Tensors under the names of the bare model: `WRAPPERS` taken out, `IGNORED` dropped, both reported."""
    report, clean = LoadReport(source), {}
    for name, tensor in state.items():
        parts = name.split(".")
        report.renamed.update(set(parts) & set(WRAPPERS))
        name = ".".join(part for part in parts if part not in WRAPPERS)
        prefix = next((p for p in IGNORED if name.startswith(p)), None)
        if prefix is None:
            clean[name] = tensor
        else:
            report.ignored[prefix] += 1
    return clean, report


def load_into(model: nn.Module, state: dict[str, Tensor], source: str | Path) -> LoadReport:
    """Fill every tensor of `model` from `state`, strictly, and log what was ignored or renamed.

    Args:
        model: the bare model, not wrapped.
        state: as `load_weights` returns it.
        source: name for messages.

    Raises:
        CheckpointError: a tensor is missing, unexpected, of another shape (with the sizes that would fit) or not finite.
    """
    clean, report = clean_names(state, str(source))
    clean = fitting(model, clean, source)
    require_finite(clean, source)
    model.load_state_dict(clean)
    report.loaded = len(clean)
    log.info("%s", report)
    return report


def fitting(model: nn.Module, state: dict[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """Exactly the tensors of `model`, which may be on the meta device, from `state`, whose names are clean.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape, with the sizes that would fit.
    """
    if hasattr(model, "with_own_names"):  # a family, not a part of one
        state = model.with_own_names(state)
    own = model.state_dict(keep_vars=True)
    _complete_tied(state, own, source)
    misfit = explain_misfit(_shapes(state), _shapes(own), str(source))
    if misfit:
        raise CheckpointError(misfit)
    return state


def load_pretrained_part(model: nn.Module, prefix: str, path: str | Path, name: str) -> None:
    """Fill the parameters under `prefix` from the file of a pretrained backbone.

    Args:
        prefix: where the part sits, e.g. `image_tokenizer.1.dino_vit.`.
        path: file with the part's own names.
        name: field of `pretrained` in the config, for messages.

    Raises:
        CheckpointError: no such file (with the command that fetches it), or it does not fit.
    """
    if not Path(path).is_file():
        raise CheckpointError(
            f"pretrained.{name}: no file {path}. `python -m scripts.download_weights {name}` fetches it; "
            f"pretrained.{name}=random starts without it."
        )
    part = model.get_submodule(prefix.rstrip("."))
    own = part.state_dict()
    given = {key: tensor for key, tensor in load_weights(path).items() if key not in PART_IGNORED}
    optional = {key for key in own.keys() - given.keys() if key.endswith(PART_OPTIONAL)}
    shapes = {key: shape for key, shape in _shapes(own).items() if key not in optional}
    misfit = explain_misfit(
        {prefix + key: shape for key, shape in _shapes(given).items()},
        {prefix + key: shape for key, shape in shapes.items()},
        str(path),
    )
    if misfit:
        raise CheckpointError(f"{misfit} pretrained.{name}=random starts without it.")
    require_finite(given, path)
    part.load_state_dict(own | given)
    log.info(
        "loaded %d tensors of %s from %s; %d gains stay 1", len(given), prefix or name, path, len(optional)
    )


def _complete_tied(state: dict[str, Tensor], own: dict[str, Tensor], source: str | Path) -> None:
    """Give a tied tensor under all its names; a file may hold it under one, or must hold the same under both."""
    groups: dict[int, list[str]] = {}
    for name, tensor in own.items():
        groups.setdefault(id(tensor), []).append(name)
    for names in groups.values():
        given = [name for name in names if name in state]
        for name in given[1:]:
            if not torch.equal(state[name], state[given[0]]):
                raise CheckpointError(
                    f"{source}: {given[0]} and {name} differ, but the config makes them one tensor: "
                    "set unposed.decoder_as_canonical: false."
                )
        for name in names if given else []:
            state.setdefault(name, state[given[0]])


def require_finite(state: dict[str, Tensor], source: str | Path) -> None:
    """Raises CheckpointError for a tensor that is not finite, or would not be in float32."""
    for name, tensor in state.items():
        if not torch.isfinite(tensor.float()).all():
            raise CheckpointError(
                f"{source}: {name} holds NaN or infinity; the training that wrote it had failed."
            )


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
