"""Checkpoints: written whole or not at all, checked when read; and weights from files of other programs.

A checkpoint is a folder `ckpt_<16-digit step>/`:

    model.safetensors     the model's tensors by name (tied ones under each of their names)
    training_state.pt     step, samples seen, optimiser, generators; loads with weights_only
    checkpoint.json       config, step, torch version, sha256 of the other two; written last

Nothing here runs code from a file: pickles are opened with `weights_only=True` and refused if they hold more than
tensors and plain values.

Public: CheckpointError, LoadReport, save_checkpoint, find_checkpoints, newest_checkpoint, damage, prune,
is_checkpoint, load_training_state, read_manifest, load_weights, load_into, load_pretrained_part, clean_names, weights_digest.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from .sizes import explain_misfit

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


def save_checkpoint(
    folder: str | Path, step: int, model: nn.Module, state: dict[str, Any], config: dict, keep: int = 0
) -> Path:
    """Write `folder/ckpt_<step>/` so that it is either whole or absent, then prune. Call on one rank only.

    Args:
        state: what resuming needs, of types that weights_only loading allows.
        config: the resolved config as plain values.
        keep: newest checkpoints to keep; 0: all.

    Raises:
        CheckpointError: it cannot be written; nothing of it is left behind.
    """
    folder = Path(folder)
    final = folder / f"ckpt_{step:016d}"
    temporary = folder / f".{final.name}.tmp"
    try:
        _write_all(temporary, step, model, state, config)
    except (
        OSError,
        RuntimeError,
        safetensors.SafetensorError,
    ) as error:  # each library has its own for a full disk
        shutil.rmtree(temporary, ignore_errors=True)
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{final} cannot be written ({reason}): is the disk full? Checkpoints before it are kept."
        ) from error
    if final.exists():
        _remove(final)
    os.replace(temporary, final)
    _sync_to_disk(folder)
    prune(folder, keep)
    return final


def _write_all(folder: Path, step: int, model: nn.Module, state: dict[str, Any], config: dict) -> None:
    """The files of a checkpoint, the manifest last, each on the disk when this returns."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    safetensors.torch.save_file(_unaliased(model.state_dict()), folder / WEIGHTS)
    torch.save(state, folder / STATE)
    manifest = {
        "step": step,
        "sha256": {name: _sha256(folder / name) for name in (WEIGHTS, STATE)},
        "torch": torch.__version__,
        "config": config,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for name in (WEIGHTS, STATE, MANIFEST, "."):
        _sync_to_disk(folder / name)


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is one checkpoint, whole or not, rather than a run folder that holds several."""
    return FOLDER.fullmatch(folder.name) is not None or (folder / MANIFEST).is_file()


def find_checkpoints(folder: str | Path) -> list[Path]:
    """Complete checkpoints of a run folder, oldest first. Their content is not checked: see `damage`."""
    return [path for path in _folders(folder) if (path / MANIFEST).is_file()]


def newest_checkpoint(folder: str | Path) -> Path | None:
    """The newest checkpoint that is whole; None if the run has not written any yet.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged: starting over would hide that.
    """
    folders = _folders(folder)
    for path in reversed(folders):
        reason = damage(path)
        if reason is None:
            return path
        log.error("%s is damaged (%s). Falling back to the one before it.", path, reason)
    if folders:
        raise CheckpointError(
            f"{folder}: all {len(folders)} checkpoints are damaged. Delete them to start afresh, or name another folder."
        )
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint folder; None: it is whole. Reads every byte."""
    try:
        manifest = read_manifest(path)
    except CheckpointError as error:
        return str(error)
    for name, digest in manifest["sha256"].items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if _sha256(path / name) != digest:
            return f"{name} is not what was written"
    return None


def prune(folder: str | Path, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints (0: none), and what an interrupted save left behind."""
    for path in Path(folder).glob(".ckpt_*.tmp"):
        shutil.rmtree(path)
    for path in find_checkpoints(folder)[:-keep] if keep else []:
        _remove(path)


def read_manifest(path: Path) -> dict[str, Any]:
    """`checkpoint.json`: step, config, sha256, torch."""
    if not (path / MANIFEST).is_file():
        raise CheckpointError(f"{path / MANIFEST} is missing: the checkpoint was not completed")
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        manifest = {key: manifest[key] for key in ("step", "sha256", "torch", "config")}
        if not isinstance(manifest["sha256"], dict) or {WEIGHTS, STATE} != manifest["sha256"].keys():
            raise ValueError(f"sha256 must give the digests of {WEIGHTS} and {STATE}")
        return manifest
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path / MANIFEST} is not readable ({error})") from error


def load_training_state(path: Path) -> dict[str, Any]:
    """`training_state.pt` of a checkpoint folder."""
    return _torch_load(path / STATE)


def _folders(folder: str | Path) -> list[Path]:
    if not Path(folder).is_dir():
        return []
    return sorted(path for path in Path(folder).iterdir() if path.is_dir() and FOLDER.fullmatch(path.name))


def _remove(path: Path) -> None:
    """The manifest goes first: a deletion that is interrupted leaves an incomplete checkpoint, not a damaged one."""
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path)


def _unaliased(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """CPU copies; tensors that share memory are written once per name, which safetensors wants to be distinct."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
        except safetensors.SafetensorError as error:
            raise CheckpointError(f"{file} is damaged ({error}). Copy or download it again.") from error
    content = _torch_load(file)
    if isinstance(content, dict):
        for candidate in (content.get("model"), content.get("state_dict"), content):
            if isinstance(candidate, dict) and candidate and all(map(torch.is_tensor, candidate.values())):
                return dict(candidate)
    raise CheckpointError(
        f"{file} holds no tensors by name, neither under `model` or `state_dict` nor at the top "
        f"({', '.join(map(str, content)) if isinstance(content, dict) else type(content).__name__})."
    )


def weights_digest(path: str | Path) -> str:
    """sha256 of the file that `load_weights` reads."""
    return _sha256(_weights_file(Path(path)))


def _weights_file(path: Path) -> Path:
    """The file of weights that a path stands for; a checkpoint folder is checked against its digests."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: no such checkpoint. `python -m scripts.download_weights` fetches published weights."
        )
    if is_checkpoint(path):
        reason = damage(path)
        if reason:
            raise CheckpointError(f"{path} is damaged ({reason}). Use another checkpoint.")
        return path / WEIGHTS
    newest = newest_checkpoint(path)
    if newest is None:
        files = sorted(p.name for p in path.iterdir() if p.suffix in WEIGHT_SUFFIXES)
        hint = f" Name one of its files: {', '.join(files)}." if files else ""
        raise CheckpointError(f"{path} holds no checkpoint (a folder ckpt_<step>).{hint}")
    return newest / WEIGHTS


def _torch_load(file: Path) -> Any:
    """Content of a torch file without ever running code from it."""
    try:
        # Mapping the file leaves on disk what is not used: optimiser states of published files are 2 GB.
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except UnpicklingError as error:
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        if foreign:
            raise CheckpointError(
                f"{file} is refused: it holds {foreign[1]}, and opening such a pickle can run code. Where you trust it, "
                "save its tensors as .safetensors and use that file."
            ) from None
        raise CheckpointError(f"{file} is damaged or no torch file. Copy or download it again.") from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{file} is damaged ({detail}). Copy or download it again.") from error


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
    if hasattr(model, "with_own_names"):  # a family, not a part of one
        clean = model.with_own_names(clean)
    own = model.state_dict(keep_vars=True)
    _complete_tied(clean, own, source)
    misfit = explain_misfit(_shapes(clean), _shapes(own), str(source))
    if misfit:
        raise CheckpointError(misfit)
    _require_finite(clean, source)
    model.load_state_dict(clean)
    report.loaded = len(clean)
    log.info("%s", report)
    return report


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
    _require_finite(given, path)
    part.load_state_dict(own | given)
    log.info("loaded %d tensors of %s from %s; %d gains stay 1", len(given), prefix, path, len(optional))


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


def _require_finite(state: dict[str, Tensor], source: str | Path) -> None:
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{source}: {name} holds NaN or infinity; the training that wrote it had failed."
            )


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
