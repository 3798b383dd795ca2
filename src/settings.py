"""The settings of a run, and the loader that turns a YAML file and `key=value` overrides into a checked `RunConfig`.

Published YAML files load unchanged: everything may lie under one top key `parameters`, keys that never had an effect
are accepted with a warning, and keys that moved are listed in `settings_names.MOVED`.

Public: Training (of settings_training), Inference, Pretrained, RunConfig, load_config, load_parts, config_from_tree, to_plain, config_digest,
describe.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .config import (
    ConfigError,
    build,
    key,
    keys_of,
    leaves,
    parse_overrides,
    pop_path,
    raise_all,
    read_yaml,
    remainder,
    set_path,
    unknown_key,
)
from .settings_names import MOVED, move_published
from .settings_sampling import Sampling
from .settings_training import Training
from .settings_video import RenderVideo
from .settings_views import ViewChoice


@dataclass(kw_only=True)
class Inference(ViewChoice):
    """What is scored and written by `src.inference` and `src.inference_fast`."""

    view_idx_file_path: str = key("evaluation index: scene -> {context, target} or null", "")
    inference_out_dir: str = key("where results go", "outputs/inference")
    checkpoint: str = key("weights to load; empty: training.checkpoint_dir", "")
    metrics: list = key("scores to compute: psnr, ssim, lpips", ["psnr", "ssim", "lpips"])
    compute_metrics: bool = key("score the renders", True)
    floors: bool = key("score too what anybody gets from the inputs without a model", True)
    render_images: bool = key("write input and truth-beside-render pictures", True)
    save_targets: bool = key("write every input, target and render as a PNG of its own", False)
    render_scene_view: bool = key("write a picture of the cameras and the video's path", False)
    render_rays: bool = key("write a picture of the inputs' rays as colours", False)
    render_video: bool = key("write a video of each scene", False)
    render_video_config: RenderVideo = key("the camera path of the video", RenderVideo)
    save_frames: bool = key("write the video's frames as PNG too", False)
    generate_website: bool = key("write one HTML page of all results", True)
    num_context_views: int = key(
        "use so many of the index's context views, the outer ones first; scenes with fewer are left out; 0: all",
        0,
        least=0,
    )
    max_scenes: int = key("score only the first so many scenes of the index; 0: all", 0, least=0)
    swap_target_cameras: bool = key(
        "also score renders made with another target's camera (does the model look at its cameras?)", False
    )
    median_depth_path: str = key(
        "JSON scene -> median depth in the units of its cameras; adds the plane-warp floor", ""
    )
    chunk: int = key(
        "target views rendered at once; 0: all; -1: as many as fit the GPU on paper (4 on a CPU)", 4, least=-1
    )
    use_ema: bool = key("score and render with averaged weights, of runs with training.ema_decay", True)
    sampling: Sampling = key("videos that src.sample makes", Sampling)
    sampling_seed: int = key("seed of what generative families draw at random", 0, least=0)
    if_inference: bool = key("the script that runs decides", True, ignored=True)

    def __post_init__(self) -> None:
        unknown = [name for name in self.metrics if name not in ("psnr", "ssim", "lpips")]
        if unknown:
            raise ConfigError(
                f"inference.metrics: {unknown[0]} is not a metric. Choose from psnr, ssim, lpips."
            )


@dataclass(kw_only=True)
class Pretrained:
    """Files of pretrained parts; `python -m scripts.download_weights NAME` puts each in its place."""

    dinov2: str = key(
        "DINOv2 ViT-B/14 reg4 weights, or `random`", "checkpoints/pretrained/dinov2_vitb14_reg4_pretrain.pth"
    )
    dinov2_teacher: str = key(
        "DINOv2 ViT-B/14 weights without registers that Efficient-LVSM may be aligned with, or `random`",
        "checkpoints/pretrained/dinov2_vitb14_pretrain.pth",
    )
    vae: str = key(
        "autoencoder of latent families: folder or file of diffusers, hub id, or `random`; empty: the published one",
        "",
    )
    vgg19: str = key(
        "MatConvNet VGG19 of the perceptual loss, or `random`",
        "checkpoints/pretrained/imagenet-vgg-verydeep-19.mat",
    )
    vgg16: str = key(
        "torchvision VGG16 under LPIPS, or `random`", "checkpoints/pretrained/vgg16-397923af.pth"
    )


@dataclass(kw_only=True)
class RunConfig:
    """One run. `model` is the `Config` of the family that model.class_name names."""

    model: Any
    training: Training = key("training", Training)
    inference: Inference = key("scoring and rendering", Inference)
    pretrained: Pretrained = key("files of pretrained parts", Pretrained)
    sources: dict = field(default_factory=dict, repr=False, compare=False)


# ----------------------------------------------------------------------------------------------- loading


def load_config(path: str | Path, overrides: list[str], family_config: Callable[[str], type]) -> RunConfig:
    """Read a YAML file, apply `key=value` overrides and check everything against the schema.

    Args:
        path: YAML file, with or without the top key `parameters`.
        overrides: command-line words, `a.b=value`; spaces around `=` and a leading `parameters.` are allowed.
        family_config: `model.class_name` -> dataclass that describes the `model` section.

    Raises:
        ConfigError: all problems found, one a line, each naming file, key and remedy.
    """
    parts, problems = load_parts(path, overrides, family_config)
    given = [dotted for dotted, _ in parse_overrides(overrides)]
    raise_all(f"{_culprit(problem, given, path)}: {problem}" for problem in problems)
    return RunConfig(**parts)


def _culprit(problem: str, given: list[str], path: str | Path) -> str:
    """Where a problem stands: on the command line if it names a setting that was given there, else in the file."""
    named = any(re.search(rf"(?<![\w.]){re.escape(dotted)}(?![\w])", problem) for dotted in given)
    return "command line" if named else str(path)


def load_parts(
    path: str | Path, overrides: list[str], family_config: Callable[[str], type]
) -> tuple[dict[str, Any], list[str]]:
    """The same, for whoever wants to know more than the first kind of problem.

    Returns:
        the fields of `RunConfig`: with problems, what can be used of each section, and None for a model that cannot be
        built; and the problems.

    Raises:
        ConfigError: the file is absent or no YAML, or an override is not of the form `key=value`.
    """
    tree = read_yaml(Path(path))
    sources = dict.fromkeys(leaves(tree), str(path))
    move_published(tree, sources, str(path))
    for dotted, value in parse_overrides(overrides):
        dotted = MOVED.get(dotted, dotted)
        set_path(tree, dotted, value)
        sources = {name: place for name, place in sources.items() if not name.startswith(f"{dotted}.")}
        named = leaves(value, f"{dotted}.") if isinstance(value, dict) else [dotted]
        sources |= dict.fromkeys(named, "command line")
    return _parts(tree, family_config, sources, str(path))


def config_from_tree(
    tree: dict, family_config: Callable[[str], type], *, sources: dict | None = None, origin: str = "config"
) -> RunConfig:
    """The checked config of a plain nested dict, as in a YAML file or beside a checkpoint."""
    parts, problems = _parts(tree, family_config, dict(sources or {}), origin)
    raise_all(f"{origin}: {problem}" for problem in problems)
    return RunConfig(**parts)


def _parts(
    tree: dict, family_config: Callable[[str], type], sources: dict, origin: str
) -> tuple[dict[str, Any], list[str]]:
    """Fields of `RunConfig` from a nested dict, as `load_parts` returns them; and what is wrong."""
    tree = copy.deepcopy(tree)
    move_published(tree, sources, origin)
    schemas = {"model": None, "training": Training, "inference": Inference, "pretrained": Pretrained}
    problems: list[str] = []
    sections: dict[str, str] = {}
    try:
        schemas["model"] = schema = _family(tree, family_config)
        sections = {
            f.metadata["section"]: f.name for f in dataclasses.fields(schema) if f.metadata["section"]
        }
    except ConfigError as error:
        problems.append(str(error))
    for section, name in sections.items():
        if section in tree:
            tree["model"][name] = tree.pop(section)
    usable = {name: part for name, part in schemas.items() if part}
    known = [*schemas, *(path for name, part in usable.items() for path in keys_of(part, name))]
    problems += [
        unknown_key(dotted, known)
        for name, value in tree.items()
        if name not in schemas and schemas["model"]  # else it may be a section of the family
        for dotted in _unknown(name, value, [*schemas, *sections])
    ]
    parts = {name: build(part, tree.get(name), name, problems, known) for name, part in usable.items()}
    for name in ("training", "inference", "pretrained"):
        if parts[name] is None:
            parts[name] = remainder(schemas[name], tree.get(name), name)
    return {"model": None, **parts, "sources": sources}, problems


def _family(tree: dict, family_config: Callable[[str], type]) -> type:
    """The schema of the `model` section; raises ConfigError where it names no family."""
    model = tree.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("class_name"), str):
        raise ConfigError("model.class_name is missing: it names the model family.")
    return family_config(model["class_name"])


def _unknown(name: str, value: Any, sections: list[str]) -> list[str]:
    """What to call unknown: a misspelt section by its name, a foreign one (`optimizer.lr`) by its keys."""
    if isinstance(value, dict) and not difflib.get_close_matches(name, sections, 1, 0.6):
        return leaves(value, f"{name}.") or [name]
    return [name]


# ----------------------------------------------------------------------------------------------- output


def to_plain(config: RunConfig) -> dict:
    """Nested dict of plain values, in the layout of the YAML files; `config_from_tree` reads it back."""
    tree = {}
    for f in dataclasses.fields(config):
        if f.name != "sources":
            tree[f.name] = _plain(getattr(config, f.name))
    for f in dataclasses.fields(config.model):
        if f.metadata.get("section"):
            tree[f.metadata["section"]] = tree["model"].pop(f.name)
    return tree


def _plain(value: Any) -> Any:
    if not dataclasses.is_dataclass(value):
        return value
    kept = [f for f in dataclasses.fields(value) if not f.metadata.get("ignored")]
    return {f.name: _plain(getattr(value, f.name)) for f in kept}


PLACES = ("training.checkpoint_dir", "inference.inference_out_dir", "inference.checkpoint")
"""Where a run's own files lie: no part of what it does."""


def config_digest(config: RunConfig) -> str:
    """First 16 hex digits of the sha256 of the resolved config, `PLACES` left out: equal settings, equal digests."""
    tree = to_plain(config)
    for dotted in PLACES:
        pop_path(tree, dotted)
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def describe(config: RunConfig) -> str:
    """The resolved config as YAML; behind each value stands where it came from."""
    lines: list[str] = []

    def walk(tree: dict, prefix: str, indent: str) -> None:
        for name, value in tree.items():
            dotted = f"{prefix}{name}"
            if isinstance(value, dict) and value:
                lines.append(f"{indent}{name}:")
                walk(value, f"{dotted}.", indent + "  ")
            else:
                text = (
                    yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
                )
                lines.append(f"{indent}{name}: {text}  # {config.sources.get(dotted, 'default')}")

    walk(to_plain(config), "", "")
    return "\n".join(lines)
