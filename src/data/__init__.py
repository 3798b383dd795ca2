"""Table of data sets: how scenes become samples.

Where scenes come from (converted folders, raw chunks) is told by the path, not by the data set.
"""

from __future__ import annotations

import difflib
import importlib

from ..config import ConfigError

DATASETS: dict[str, tuple[str, str]] = {
    "scene": ("dataset", "SceneDataset"),
    "data.dataset_scene.Dataset": ("dataset", "SceneDataset"),
    "src.data.dataset_scene.Dataset": ("dataset", "SceneDataset"),
}
"""`training.dataset_name`, ours or as published -> (module of this package, class)."""


def dataset_class(name: str) -> type:
    """The class of a data set; raises ConfigError for an unknown name."""
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, 1, 0.3)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"training.dataset_name {name} is unknown.{hint} Known: {', '.join(DATASETS)}.")
    module, cls = DATASETS[name]
    return getattr(importlib.import_module("." + module, __name__), cls)
