"""From a config or a name to a model that is ready; and a model in one folder, as the Hugging Face hub keeps it:

    config.json         what the model is and how photos are prepared for it; a config file like any other (JSON is YAML)
    model.safetensors   its weights
    README.md           its model card

Of a stranger's folder these sections alone are read, and nothing in it is executed.

Public: from_pretrained, load_model, UNTRAINED, pretrained_config, write_pretrained, HUB_ID, CONFIG.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .checkpoint import (
    WEIGHTS,
    CheckpointError,
    find_checkpoints,
    is_checkpoint,
    load_into,
    load_training_state,
    load_weights,
    newest_checkpoint,
    read_manifest,
    weights_digest,
)
from .config import ConfigError, parse_overrides, set_path
from .ema import fill_with_averages
from .export import Export, export_weights, model_sections
from .files import read_json, write_text
from .floors import FLOORS
from .model import build_model, family_config
from .model.base import ViewSynthesizer
from .settings import RunConfig, config_from_tree

log = logging.getLogger(__name__)

CONFIG, CARD = "config.json", "README.md"
UNTRAINED = "random"
"""`inference.checkpoint` that asks for freshly initialised weights."""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
"""owner/name, and a revision if wanted."""

CARD_TEXT = """---
library_name: parallax-nvs
license: {license}
tags:
- novel-view-synthesis
- {tag}
---

# {title}

{family} with {parameters:.2f} million parameters ({dtype}), for pictures of {height} x {width} pixels, trained with
{inputs} input views{step}.

```python
from src import from_pretrained

model = from_pretrained("{title}")
```

    python -m src.render --checkpoint {title} --scene SCENE --trajectory interpolate --out out.mp4
    python -m src.viewer --checkpoint {title} --scene SCENE

| | |
|---|---|
| training data | to be filled in: data sets, their licences, how many scenes |
| training | to be filled in: steps, batch, losses, hardware, hours |
| intended for | to be filled in |
| limits | to be filled in: what it was never shown |
{scores}"""


def from_pretrained(
    source: str | Path, overrides: Sequence[str] = (), *, device: torch.device | str = "cpu"
) -> ViewSynthesizer:
    """A model with its weights, in evaluation mode.

    Args:
        source: folder in the form of the hub, checkpoint folder, run folder, `NAME.safetensors` or `NAME.pt` with `NAME.json`
            beside it, or an id of the Hugging Face hub: `owner/name`, `owner/name@revision`.
        overrides: `key=value`, as on a command line.

    Raises:
        CheckpointError, ConfigError: no such source, or it does not fit together; the message says what to do.
    """
    model, _ = load_model(pretrained_config(source, overrides))
    return model.to(device).eval()


def load_model(config: RunConfig) -> tuple[ViewSynthesizer, dict[str, str]]:
    """The model with its weights, loaded strictly, and their description for the report."""
    source = config.inference.checkpoint or config.training.checkpoint_dir
    if not source:
        raise ConfigError(
            "no weights: set inference.checkpoint (or training.checkpoint_dir) to a checkpoint file or folder; "
            f"inference.checkpoint={UNTRAINED} asks for an untrained model."
        )
    torch.manual_seed(
        config.training.seed
    )  # not offset by the rank: an untrained model is the same on all ranks
    model = build_model(config.model)
    if source == UNTRAINED:
        log.warning("The weights are random, as inference.checkpoint=%s asks.", UNTRAINED)
        return model, {"path": UNTRAINED, "digest": ""}
    path = Path(source)
    if path.is_dir() and find_checkpoints(path):
        path = newest_checkpoint(
            path
        )  # of a run folder; named in the report, and the same for load and digest
    load_into(model, load_weights(path), path)
    weights = {"path": str(path), "digest": weights_digest(path)}
    if config.inference.use_ema and path.is_dir() and (averages := load_training_state(path).get("ema")):
        fill_with_averages(model, averages)
        log.info("Averaged weights of %s (inference.use_ema).", path)
        weights["averaged"] = "true"
    return model, weights


def pretrained_config(source: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The config that comes with weights; its `inference.checkpoint` is where they lie. Arguments as above."""
    described, weights = _find(str(source))
    tree = model_sections(_mapping(described))
    set_path(tree, "inference.checkpoint", str(weights))
    for dotted, value in parse_overrides(list(overrides)):
        set_path(tree, dotted, value)
    return config_from_tree(
        tree, family_config, origin=str(described if isinstance(described, Path) else weights)
    )


def _mapping(described: Path | dict[str, Any]) -> dict[str, Any]:
    if isinstance(described, dict):
        return described
    try:
        tree = read_json(described)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{described} is no JSON ({error}). Copy or download it again.") from error
    if not isinstance(tree, dict) or not isinstance(tree.get("model"), dict):
        raise ConfigError(
            f"{described} has no section `model`: it does not come from scripts.export_weights."
        )
    return tree


def _find(source: str) -> tuple[Path | dict[str, Any], Path]:
    """The file, or the tree, that describes a model, and its weights."""
    path = Path(source)
    if path.is_file():
        if not path.with_suffix(".json").is_file():
            raise CheckpointError(
                f"{path} comes without its config ({path.with_suffix('.json').name} beside it): name one with --config, or "
                "make both with scripts.export_weights."
            )
        return path.with_suffix(".json"), path
    if (path / CONFIG).is_file():
        return path / CONFIG, path / WEIGHTS
    if path.is_dir():
        folder = path if is_checkpoint(path) else newest_checkpoint(path, (WEIGHTS,))
        if folder is None:
            raise CheckpointError(
                f"{path} holds neither {CONFIG} and {WEIGHTS} nor a checkpoint (ckpt_<step>)."
            )
        return read_manifest(folder)["config"], path
    if not HUB_ID.fullmatch(source) or source.startswith("."):
        raise CheckpointError(f"{source} is neither there nor an id of the Hugging Face hub (owner/name).")
    folder = _from_hub(source)
    return folder / CONFIG, folder / WEIGHTS


def _from_hub(source: str) -> Path:
    """The files of a repository, in the hub's own cache."""
    # Imported here: it opens connections, and local files need none.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    repository, _, revision = source.partition("@")
    try:
        folder = snapshot_download(repository, revision=revision or None, allow_patterns=[CONFIG, WEIGHTS])
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise CheckpointError(
            f"huggingface.co/{repository} could not be fetched ({reason}). Download {CONFIG} and {WEIGHTS} by hand into one "
            "folder and name that."
        ) from error
    missing = [name for name in (CONFIG, WEIGHTS) if not (Path(folder) / name).is_file()]
    if missing:
        raise CheckpointError(
            f"huggingface.co/{repository} has no {' and no '.join(missing)}: another program's?"
        )
    return Path(folder)


def write_pretrained(
    source: Path,
    folder: Path,
    *,
    license_name: str = "other",
    scores: Path | None = None,
    dtype: str = "",
    averaged: bool = False,
    config: RunConfig | None = None,
) -> Export:
    """Write weights in the form of the hub. A model card that is already there stays.

    Args:
        source, dtype, averaged, config: as for `export.export_weights`; here the config must be known.
        license_name: name of the licence, as the hub spells it (`apache-2.0`).
        scores: a `scores.json` of this model, for the card.

    Raises:
        CheckpointError, ConfigError: the source cannot be used, or no config is known.
    """
    if config is None and source.is_file():
        raise ConfigError(f"{source} does not say what model it is: name its config with --config.")
    done = export_weights(
        source, folder / WEIGHTS, dtype=dtype, averaged=averaged, config=config, beside=folder / CONFIG
    )
    if not (folder / CARD).exists():
        write_text(folder / CARD, _card(folder, done, license_name, scores))
    return done


def _card(folder: Path, done: Export, license_name: str, scores: Path | None) -> str:
    config = pretrained_config(folder)
    family = config.model.class_name.rpartition(".")[2]
    size = config.model.image_tokenizer.image_size
    height, width = config.training.image_shape or (size, size)
    return CARD_TEXT.format(
        license=license_name,
        tag=family.lower(),
        title=folder.name,
        family=family,
        parameters=done.num_parameters / 1e6,
        dtype=done.dtype,
        height=height,
        width=width,
        inputs=config.training.num_input_views,
        step=f", after {done.step} steps" if done.step is not None else "",
        scores=_score_rows(scores) if scores else "",
    )


def _score_rows(scores: Path) -> str:
    """The card's table: the model and what needs no model, on one index."""
    try:
        report = read_json(scores)
        metrics = list(report["headline"])
        rows = {"this model": report["headline"]}
        rows |= {FLOORS[name]: floor["mean_over_scenes"] for name, floor in report["floors"].items()}
        counts, index = report["counts"]["evaluated"], report["protocol"]["index_file"]
        cells = [
            f"| {name} | " + " | ".join(f"{values[m]:.3f}" for m in metrics) + " |"
            for name, values in rows.items()
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{scores} is no scores.json of src.inference_fast ({type(error).__name__}: {error})."
        ) from error
    head = f"\nScores on {counts} scenes of `{Path(index).name}`:\n\n| | {' | '.join(map(str.upper, metrics))} |\n"
    return head + "|---" * (len(metrics) + 1) + "|\n" + "\n".join(cells) + "\n"
