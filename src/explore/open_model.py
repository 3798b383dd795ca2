"""A model with its weights, ready to look at places with.

Public: OpenedModel, open_model, open_place, MAPPER_FILE.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from ..config import ConfigError
from ..data.view_settings import ViewSettings
from ..model import family_config
from ..model.base import ViewSynthesizer
from ..pretrained import load_model, pretrained_config
from ..runtime import Runtime, set_precision, setup_logging, start
from ..settings import RunConfig, load_config
from .capture import Capture
from .place import Place
from .pose_mapper import PoseMapper

log = logging.getLogger(__name__)

MAPPER_FILE = "pose_mapper.pt"


@dataclass(frozen=True)
class OpenedModel:
    """What every place is read with. mapper: for families that estimate poses, if one was fitted."""

    config: RunConfig
    runtime: Runtime
    model: ViewSynthesizer
    settings: ViewSettings
    mapper: PoseMapper | None


def open_model(config_path: str, checkpoint: str, overrides: list[str], mapper: str = "") -> OpenedModel:
    """Build a model and load its weights.

    Args:
        config_path: "": the config that comes with the checkpoint, which may then also be an id of the hub.
        checkpoint: replaces the config's; "": `inference.checkpoint`, else `training.checkpoint_dir`.
        mapper: file of a pose mapper; "": MAPPER_FILE beside the weights, if there is one.

    Raises:
        ConfigError, CheckpointError: a setting or a file that cannot be used.
    """
    if config_path:
        chosen = [f"inference.checkpoint={checkpoint}"] if checkpoint else []
        config = load_config(config_path, [*overrides, *chosen], family_config)
    elif checkpoint:
        config = pretrained_config(checkpoint, overrides)
    else:
        raise ConfigError("no model: name its --config, or a --checkpoint that comes with one.")
    runtime = start(config.training.seed)
    setup_logging(runtime.is_main)
    set_precision(config.training)
    if runtime.world > 1:
        raise ConfigError("one process looks at one place: start without torchrun.")
    model, weights = load_model(config)
    model = model.to(runtime.device).eval()
    return OpenedModel(
        config, runtime, model, ViewSettings.of(config), _mapper(model, mapper, weights["path"])
    )


def _mapper(model: ViewSynthesizer, path: str, weights: str) -> PoseMapper | None:
    if path and not model.target_aware:
        raise ConfigError(
            f"--pose_mapper is for families that estimate poses; {type(model).__name__} is given them."
        )
    if not model.target_aware:
        return None
    place = Path(path) if path else mapper_beside(weights)
    if not path and not place.is_file():
        log.warning(
            "%s has no pose mapper (%s): paths are in the model's own pose space, whose lengths and angles are not the "
            "world's. python -m src.fit_pose_mapper makes one.",
            type(model).__name__, place,
        )  # fmt: skip
        return None
    return PoseMapper.load(place)


def mapper_beside(weights: str) -> Path:
    """Where the pose mapper of some weights lies: in the run's folder, or beside the file."""
    path = Path(weights)
    return path.parent / MAPPER_FILE


def open_place(opened: OpenedModel, capture: Capture) -> Place:
    """Read the photos."""
    return Place(opened.model, capture, opened.config, opened.runtime, opened.mapper)
