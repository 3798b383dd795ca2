"""Names in published config files: where a key stands there and here, and which family a file without a name means.

Public: MOVED, CLASS_BY_KEY, move_published.
"""

from __future__ import annotations

from .config import ConfigError, pop_path, set_path

MOVED = {
    "inference_out_dir": "inference.inference_out_dir",
    "inference.checkpoint_dir": "inference.checkpoint",
    "training.view_selector.name": "training.view_sampler",
    "training.view_selector.num_context_views": "training.num_input_views",
    "training.view_selector.num_target_views": "training.num_target_views",
    "training.view_selector.min_distance_between_context_views": "training.view_selector.min_frame_dist",
    "training.view_selector.max_distance_between_context_views": "training.view_selector.max_frame_dist",
    "training.view_selector.warm_up_steps": "training.view_selector.context_gap_warm_up_steps",
    "patch_size": "model.patch_size",
    "dim": "model.dim",
    "layers": "model.layers",
    "block_config": "model.block_config",
}
"""Published place of a key -> its place here."""

CLASS_BY_KEY = {"block_config": "src.model.lact.LaCT"}
"""Key of `model` that one family alone has -> its model.class_name, for published files that name no class."""

_ABSENT = object()


def move_published(tree: dict, sources: dict, origin: str) -> None:
    """Carry keys from their published place to ours and name the family, in place.

    Args:
        tree: the content of a file.
        sources: dotted key -> where its value came from.
        origin: name of the file, for messages.
    """
    for old, new in MOVED.items():
        value = pop_path(tree, old, _ABSENT)
        if value is _ABSENT:
            continue
        if pop_path(tree, new, _ABSENT) is not _ABSENT:
            raise ConfigError(f"{origin}: {old} and {new} are two names of one setting: keep the latter.")
        set_path(tree, new, value)
        if old in sources:
            sources[new] = sources.pop(old)
    model = tree.get("model")
    if isinstance(model, dict) and "class_name" not in model:
        for name in model.keys() & CLASS_BY_KEY.keys():
            model["class_name"] = CLASS_BY_KEY[name]
            sources["model.class_name"] = f"from model.{name}"
