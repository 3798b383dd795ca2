"""Weights from one form of file to another: a file of tensors, and beside it a small config of the model.

Read is whatever `checkpoint.load_weights` reads: our checkpoint and run folders, safetensors, published `.pt`, Lightning
`.ckpt`. Written are `.safetensors` or, in the form of the published trainers, `.pt` ({"model": tensors}). Beside it lies
`<name>.json`, a config file (JSON is YAML) that says what the model is and how photos are prepared for it:

    python -m src.inference_fast --config out.json inference.checkpoint=out.safetensors ...

Tensors keep their names; what wrappers put into them is taken out, and they must be exactly those of the model, if its
config is known.

Public: Export, export_weights, model_sections, DTYPES, FORMS, PREPARATION.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from .checkpoint import (
    STATE,
    WEIGHTS,
    CheckpointError,
    LoadReport,
    clean_names,
    fitting,
    is_checkpoint,
    load_training_state,
    load_weights,
    newest_checkpoint,
    read_manifest,
    require_finite,
    weights_digest,
)
from .files import replacing, write_text
from .model import build_model, family_config
from .settings import RunConfig, config_from_tree, to_plain

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORMS = (".safetensors", ".pt")

PREPARATION = (
    "image_shape", "square_crop", "keep_principal_point", "num_views", "num_input_views", "num_target_views", "pose_frame",
    "pose_norm", "scene_scale_factor", "make_baseline_1", "use_amp", "amp_dtype",
)  # fmt: skip
"""Settings of `training` that the weights rely on: they say what pictures and cameras look like to the model."""


@dataclass(frozen=True)
class Export:
    """What was written. report: what became of the names. checked: the tensors were compared with the model's.

    dtype: of most numbers. step: of the checkpoint; None: the source does not say.
    """

    output: Path
    num_tensors: int
    num_parameters: int
    num_bytes: int
    dtype: str
    step: int | None
    report: LoadReport
    checked: bool


def export_weights(
    source: Path,
    output: Path,
    *,
    dtype: str = "",
    averaged: bool = False,
    config: RunConfig | None = None,
    beside: Path | None = None,
) -> Export:
    """Write the weights of `source` to `output`, whose suffix chooses the form, and the model's config beside it.

    Args:
        dtype: entry of DTYPES, which all floating numbers become; empty: they stay as they are.
        averaged: take the running averages of a checkpoint that holds them (`training.ema_decay`).
        config: of files that carry none; a checkpoint folder has its own. Without any, names are not compared.
        beside: file for the config; None: the output's name with `.json`.

    Raises:
        CheckpointError: the source cannot be used, does not fit the config, or its numbers do not fit the type.
    """
    if output.suffix not in FORMS:
        raise CheckpointError(f"{output}: the name must end in {' or '.join(FORMS)}.")
    if output.resolve() == source.resolve():
        raise CheckpointError(f"{output} is the file to be read: name another one.")
    folder = _checkpoint_folder(source)
    if folder:
        manifest = read_manifest(folder)
        config = config or config_from_tree(model_sections(manifest["config"]), family_config)
    state, report = clean_names(load_weights(folder or source), str(source))
    if averaged:
        state |= _averages(folder or source)
    if config:
        with torch.device("meta"):
            model = build_model(config.model)
        state = fitting(model, state, source)
    require_finite(state, source)
    state = _separate(_converted(state, dtype))
    require_finite(state, f"{source} in {dtype}")
    about = {
        "source": source.name,
        "sha256": weights_digest(folder or source),
        "dtype": dtype or "as they were",
    }
    step = manifest["step"] if folder else None
    _write(state, output, about | ({} if step is None else {"step": str(step)}))
    if config:
        sections = model_sections(to_plain(config))
        write_text(beside or output.with_suffix(".json"), json.dumps(sections, indent=2) + "\n")
    types: Counter[str] = Counter()
    for tensor in state.values():
        types[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    return Export(
        output,
        num_tensors=len(state),
        num_parameters=sum(tensor.numel() for tensor in state.values()),
        num_bytes=sum(tensor.nbytes for tensor in state.values()),
        dtype=types.most_common(1)[0][0],
        step=step,
        report=report,
        checked=config is not None,
    )


def _checkpoint_folder(source: Path) -> Path | None:
    """The checkpoint that a folder stands for; None: it is a file, or no checkpoint."""
    if not source.is_dir():
        return None
    return source if is_checkpoint(source) else newest_checkpoint(source, (WEIGHTS,))


def model_sections(tree: dict[str, Any]) -> dict[str, Any]:
    """Of a whole config, what describes the model, and how pictures and cameras are prepared for it (PREPARATION)."""
    others = ("training", "inference", "pretrained")
    sections = {name: section for name, section in tree.items() if name not in others}
    training = tree.get("training")
    if isinstance(training, dict):
        sections["training"] = {name: training[name] for name in PREPARATION if name in training}
    return sections


def _averages(path: Path) -> dict[str, Tensor]:
    ema = load_training_state(path).get("ema") if (path / STATE).is_file() else None
    if not ema:
        raise CheckpointError(f"{path} holds no averaged weights: its run had training.ema_decay: 0.")
    return ema["averages"]


def _converted(state: dict[str, Tensor], dtype: str) -> dict[str, Tensor]:
    if not dtype:
        return state
    return {name: t.to(DTYPES[dtype]) if t.is_floating_point() else t for name, t in state.items()}


def _separate(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors, no two in the same memory, as safetensors wants them."""
    seen: set[int] = set()
    result = {}
    for name, tensor in state.items():
        tensor = tensor.contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        result[name] = tensor
    return result


def _write(state: dict[str, Tensor], output: Path, about: dict[str, str]) -> None:
    with replacing(output) as temporary:
        if output.suffix == ".safetensors":
            safetensors.torch.save_file(state, temporary, metadata={"format": "pt", **about})
        else:
            torch.save({"model": state, "about": about}, temporary)
