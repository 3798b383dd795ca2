"""The settings of a run, and the loader that turns a YAML file and `key=value` overrides into a checked `RunConfig`.

Published YAML files load unchanged: everything may lie under one top key `parameters`, keys that never had an effect
are accepted with a warning, and keys that moved are listed in `settings_names.MOVED`.

Public: Training, Inference, Pretrained, RunConfig, load_config, config_from_tree, to_plain, config_digest, describe.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import hashlib
import json
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
    read_yaml,
    set_path,
    unknown_key,
)
from .settings_names import MOVED, move_published
from .settings_video import RenderVideo
from .settings_views import ViewChoice, ViewSelector, check_views


@dataclass(kw_only=True)
class Training:
    """What a run learns from, how, and what it writes. Periods (`*_every`) count optimiser steps."""

    # data
    dataset_name: str = key("entry of DATASETS", "scene")
    dataset_path: str | list = key(
        "full_list.txt, a folder of .torch chunks, a .json list of scenes, or a list of {path, weight} of these",
        "",
    )
    eval_dataset_path: str = key("the same for evaluation; empty: no evaluation while training", "")
    vae_latents: str = key(
        "folder of latents made by scripts.encode_latents, inside each data set's folder (vae_latents); empty: the "
        "model encodes the pictures itself",
        "",
    )
    num_views: int = key("views per training sample, inputs and targets together (at most)", 8, least=2)
    num_input_views: int = key("context views", 2, least=1)
    num_target_views: int = key("target views per sample", 6, least=1)
    target_has_input: bool = key("draw training targets from all views, context included", True)
    dynamic_input_view_num: bool = key(
        "draw the number of context views (2, 3 or 4) anew at each step", False
    )
    view_selector: ViewSelector = key("which frames make a sample", ViewSelector)
    view_sampler: str = key("entry of VIEW_SAMPLERS", "bounded")
    square_crop: bool = key("crop the resized image to its centre square", False)
    image_shape: list = key(
        "[height, width] of the pictures, scaled to cover it and cropped at the centre; empty: the shorter side "
        "becomes the model's image size",
        [],
    )
    pose_frame: str = key(
        "the world frame of a sample's cameras: mean_axes (LVSM), mean_rotation (principal quaternion, centres in a "
        "box) or none (as given)",
        "mean_axes",
        choices=("mean_axes", "mean_rotation", "none"),
    )
    scene_scale_factor: float = key("camera centres are divided by this times their largest coordinate", 1.35)
    pose_norm: str = key(
        "cameras that define the normalised frame: all views of a sample (as published) or the context only",
        "all",
        choices=("all", "context"),
    )
    sort_context_index: bool = key("context views in the order of their frames", False)
    sort_target_index: bool = key("the other views in the order of their frames", False)
    max_fov: float = key("skip scenes with a wider field of view, degrees; 0: none are skipped", 0.0, least=0)
    skip_bad_shape: bool = key("skip scenes whose pictures differ from expected_shape in meta.json", False)
    augment: bool = key("mirror half of the training samples: pictures and cameras", False)
    make_baseline_1: bool = key(
        "scale scenes until the first and the last context view are 1 apart; needs pose_frame: none", False
    )
    keep_principal_point: bool = key(
        "image_shape crops leave the principal point at its fraction of the picture (as published by lvsm_latent)",
        False,
    )
    batch_size_per_gpu: int = key("samples per process and forward pass", 8, least=1)
    num_workers: int = key("loader processes per rank; 0 loads in the main process", 4, least=0)
    prefetch_factor: int = key(
        "batches each worker may hold ready; lowered to stay under prefetch_bytes", 32, least=1
    )
    prefetch_bytes: int = key("most bytes of ready batches that the loaders of one rank hold", 2**30, least=1)

    # optimisation
    lr: float = key("peak learning rate of AdamW", 4e-4, least=0)
    beta1: float = key("AdamW beta1", 0.9, least=0)
    beta2: float = key("AdamW beta2", 0.95, least=0)
    adam_eps: float = key("AdamW epsilon", 1e-8)
    weight_decay: float = key("AdamW decay, on parameters with two or more dimensions", 0.05, least=0)
    warmup: int = key("steps of linear warm-up", 3000, least=0)
    train_steps: int = key("optimiser steps of the whole run", 100000, least=1)
    scheduler_type: str = key(
        "learning rate after warm-up; cosine_min: from initial_lr to lr in the warm-up, then down to min_lr",
        "cosine",
        choices=("cosine", "linear", "constant", "cosine_min"),
    )
    initial_lr: float = key("rate of the first step with cosine_min", 1e-6, least=0)
    min_lr: float = key("rate at the end with cosine_min", 1e-6, least=0)
    grad_accum_steps: int = key("forward passes per optimiser step", 1, least=1)
    grad_clip_norm: float = key("largest joint gradient norm", 1.0)
    allowed_gradnorm_factor: float = key(
        "a step whose norm exceeds grad_clip_norm times this is skipped", 5.0
    )
    clip_from_step: int = key(
        "before this step gradients are not clipped and no step is skipped for its norm", 0, least=0
    )
    max_bad_steps: int = key("stop after this many non-finite steps in a row", 10, least=1)
    l2_loss_weight: float = key("weight of the mean squared error", 1.0, least=0)
    lpips_loss_weight: float = key("weight of LPIPS (VGG)", 0.0, least=0)
    lpips_start_step: int = key("LPIPS counts from this step on", 0, least=0)
    perceptual_loss_weight: float = key("weight of the VGG19 perceptual loss", 0.5, least=0)
    seed: int = key("seed of weights and data order", 777, least=0)

    # precision and memory
    use_amp: bool = key("autocast to amp_dtype", True)
    amp_dtype: str = key("type of autocast", "bf16", choices=("bf16", "fp16", "fp32", "tf32"))
    use_tf32: bool = key("allow TF32 in float32 matrix products", True)
    grad_checkpoint_every: int = key(
        "recompute activations in groups of this many blocks; 0: keep all", 1, least=0
    )
    compile: bool = key("torch.compile each transformer block", False)

    # checkpoints and fine-tuning
    checkpoint_dir: str = key("where the run writes; at inference the weights to load (file or folder)", "")
    checkpoint_every: int = key("steps between checkpoints", 2000, least=1)
    keep_checkpoints: int = key("newest checkpoints to keep; 0: all", 3, least=0)
    resume_ckpt: str = key("start from this checkpoint if checkpoint_dir holds none of its own", "")
    reset_training_state: bool = key(
        "take weights alone from resume_ckpt: fresh optimiser and schedule", False
    )
    init_from: str = key(
        "a fresh run starts from those tensors of these weights whose names and shapes fit, of any family; with "
        "resume_ckpt it has no effect",
        "",
    )
    reset_lr_scheduler: bool = key("take weights and optimiser from resume_ckpt, restart the schedule", False)

    # what is reported, and when
    print_every: int = key("steps between console lines (each of the first 20 is shown)", 20, least=1)
    eval_every: int = key("steps between evaluations; 0: never", 4000, least=0)
    vis_every: int = key("steps between pictures of a training batch; 0: never", 1000, least=0)
    wandb: str = key(
        "Weights & Biases; its key comes from your environment",
        "disabled",
        choices=("disabled", "offline", "online"),
    )
    wandb_project: str = key("project name", "parallax")
    wandb_exp_name: str = key("run name; empty: the folder name of checkpoint_dir", "")
    wandb_log_every: int = key("steps between records in wandb and TensorBoard", 50, least=1)
    log_grad_norm_details: bool = key("log the gradient norm of each parameter", False)

    # accepted from published files
    center_crop: bool = key("the crop is always centred", True, ignored=True)
    use_rel_pose: bool = key("never had an effect", False, ignored=True)
    num_threads: int = key("set OMP_NUM_THREADS in the environment instead", 1, ignored=True)
    api_key_path: str = key("the wandb key comes from the environment", "", ignored=True)

    def __post_init__(self) -> None:
        if self.num_input_views > self.num_views:
            raise ConfigError(
                f"training.num_input_views {self.num_input_views} exceeds training.num_views {self.num_views}, "
                "which counts inputs and targets together: raise num_views."
            )
        if self.num_input_views >= self.num_views and not self.target_has_input:
            raise ConfigError(
                f"training.num_views {self.num_views} leaves no target beside training.num_input_views "
                f"{self.num_input_views}: raise num_views or set training.target_has_input: true."
            )
        most = self.num_views if self.target_has_input else self.num_views - self.num_input_views
        if not 1 <= self.num_target_views <= most:
            raise ConfigError(
                f"training.num_target_views {self.num_target_views} must lie between 1 and {most} with "
                f"training.num_views {self.num_views}, num_input_views {self.num_input_views}, "
                f"target_has_input {self.target_has_input}."
            )
        if self.dynamic_input_view_num and self.num_views < 4 + (not self.target_has_input):
            raise ConfigError(
                "training.dynamic_input_view_num draws up to 4 context views, too many for training.num_views "
                f"{self.num_views}: raise it to 5, or to 4 with training.target_has_input: true."
            )
        for name in ("scene_scale_factor", "grad_clip_norm", "allowed_gradnorm_factor", "adam_eps"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"training.{name} is {getattr(self, name)}: it must be positive.")
        if self.image_shape and not _is_shape(self.image_shape):
            raise ConfigError(
                f"training.image_shape is {self.image_shape}: expected [height, width] in pixels, such as [256, 256]."
            )
        for name in ("beta1", "beta2"):
            if getattr(self, name) >= 1:
                raise ConfigError(f"training.{name} is {getattr(self, name)}: it must be below 1.")
        if self.make_baseline_1 and self.pose_frame != "none":
            raise ConfigError(
                f"training.make_baseline_1 has no effect with training.pose_frame {self.pose_frame}, which scales the "
                "cameras itself: set training.pose_frame: none."
            )
        if self.augment and self.vae_latents:
            raise ConfigError(
                "training.augment mirrors pictures, but training.vae_latents are those of unmirrored ones: drop one."
            )
        check_views(self)


def _is_shape(value: list) -> bool:
    return len(value) == 2 and all(type(side) is int and side > 0 for side in value)


@dataclass(kw_only=True)
class Inference(ViewChoice):
    """What is scored and written by `src.inference` and `src.inference_fast`."""

    view_idx_file_path: str = key("evaluation index: scene -> {context, target} or null", "")
    inference_out_dir: str = key("where results go", "outputs/inference")
    checkpoint: str = key("weights to load; empty: training.checkpoint_dir", "")
    metrics: list = key("scores to compute: psnr, ssim, lpips", ["psnr", "ssim", "lpips"])
    compute_metrics: bool = key("score the renders", True)
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
    chunk: int = key("target views rendered at once; 0: all", 4, least=0)
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
    tree = read_yaml(Path(path))
    sources = dict.fromkeys(leaves(tree), str(path))
    move_published(tree, sources, str(path))
    for dotted, value in parse_overrides(overrides):
        dotted = MOVED.get(dotted, dotted)
        set_path(tree, dotted, value)
        sources = {name: place for name, place in sources.items() if not name.startswith(f"{dotted}.")}
        named = leaves(value, f"{dotted}.") if isinstance(value, dict) else [dotted]
        sources |= dict.fromkeys(named, "command line")
    return config_from_tree(tree, family_config, sources=sources, origin=str(path))


def config_from_tree(
    tree: dict, family_config: Callable[[str], type], *, sources: dict | None = None, origin: str = "config"
) -> RunConfig:
    """The checked config of a plain nested dict, as in a YAML file or beside a checkpoint."""
    tree, sources = copy.deepcopy(tree), dict(sources or {})
    move_published(tree, sources, origin)
    model = tree.get("model") or {}
    if not isinstance(model, dict) or not isinstance(model.get("class_name"), str):
        raise ConfigError(f"{origin}: model.class_name is missing: it names the model family.")
    try:
        schema = family_config(model["class_name"])
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None

    tree["model"] = model
    sections = {f.metadata["section"]: f.name for f in dataclasses.fields(schema) if f.metadata["section"]}
    for section, name in sections.items():
        if section in tree:
            model[name] = tree.pop(section)

    schemas = {"model": schema, "training": Training, "inference": Inference, "pretrained": Pretrained}
    known = [*schemas, *(path for name, part in schemas.items() for path in keys_of(part, name))]
    problems = [
        unknown_key(dotted, known)
        for name, value in tree.items()
        if name not in schemas
        for dotted in _unknown(name, value, [*schemas, *sections])
    ]
    parts = {name: build(part, tree.get(name), name, problems, known) for name, part in schemas.items()}
    if problems:
        raise ConfigError("\n".join(f"{origin}: {problem}" for problem in problems))
    return RunConfig(**parts, sources=sources)


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
