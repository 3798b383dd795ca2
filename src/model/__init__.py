"""Table of model families, and how one is built from its config."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Any

from ..config import ConfigError

if TYPE_CHECKING:
    from .base import ViewSynthesizer

MODELS: dict[str, tuple[str, str]] = {
    "src.model.uplvsm.unposedLVSM": (".uplvsm", "UPLVSM"),
    "src.model.ptlvsm.posedTargetLVSM": (".ptlvsm", "PTLVSM"),
    "model.LVSM_scene_decoder_only.Images2LatentScene": (".lvsm_decoder_only", "LVSMDecoderOnly"),
    "model.LVSM_scene_encoder_decoder.Images2LatentScene": (".lvsm_encoder_decoder", "LVSMEncoderDecoder"),
    "lvsm_pytorch.LVSM": (".lvsm_pytorch.family", "LVSMFamily"),
    "lvsm_pytorch.MAE": (".lvsm_pytorch.pretraining", "MAEFamily"),
    "src.model.lact.LaCT": (".lact", "LaCT"),
    "src.model.lvsm_latent.LVSM": (".lvsm_latent", "LVSM"),
    "src.model.efficient_lvsm.EfficientLVSM": (".efficient_lvsm", "EfficientLVSM"),
    "src.model.kvlvsm.KVLVSM": (".kvlvsm", "KVLVSM"),
    "src.model.lvsm_prope.LVSMPRoPE": (".lvsm_prope", "LVSMPRoPE"),
    "src.model.mvldm.MVLDM": (".mvldm", "MVLDM"),
}
"""`model.class_name` as published -> (module, class); a leading dot means this package. Imported when asked for."""


def register_family(class_name: str, module: str, cls: str) -> None:
    """Add a family that lives outside this package: `module` is its absolute import path."""
    MODELS[class_name] = (module, cls)


def _load(class_name: str) -> tuple[Any, str]:
    if class_name not in MODELS:
        near = difflib.get_close_matches(class_name, MODELS, 1, 0.3)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"model.class_name {class_name} is unknown.{hint} Known: {', '.join(MODELS)}.")
    module, cls = MODELS[class_name]
    return importlib.import_module(module, __name__), cls


def family_config(class_name: str) -> type:
    """The `Config` dataclass of a family; raises ConfigError for an unknown name."""
    return _load(class_name)[0].Config


def build_model(config: Any) -> ViewSynthesizer:
    """The model of a checked `model` section, freshly initialised from torch's global generator."""
    module, cls = _load(config.class_name)
    return getattr(module, cls)(config)
