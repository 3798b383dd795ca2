"""The section `training`: what a run learns from, how, and what it writes.

Public: Training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .config import key, raise_all
from .settings_remote import Remote
from .settings_views import ViewSelector, view_problems
from .stopping import seconds_in


@dataclass(kw_only=True)
class Training:
    """What a run learns from, how, and what it writes. Periods (`*_every`) count optimiser steps."""

    # data
    dataset_name: str = key("entry of DATASETS", "scene")
    dataset_path: str | list = key(
        "full_list.txt, a folder of .torch chunks (also the URL of one), a .json list of scenes, or a list of "
        "{path, weight} of these",
        "",
    )
    eval_dataset_path: str = key("the same for evaluation; empty: no evaluation while training", "")
    remote: Remote = key("how data sets behind URLs are read", Remote)
    vae_latents: str = key(
        "folder of latents made by scripts.encode_latents, inside each data set's folder (vae_latents); empty: the "
        "model encodes the pictures itself",
        "",
    )
    num_views: int = key("views per training sample, inputs and targets together (at most)", 8, least=2)
    num_input_views: int = key("context views", 2, least=1)
    num_target_views: int = key("target views per sample", 6, least=1)
    target_has_input: bool = key("draw training targets from all views, context included", True)
    target_has_input_share: float = key(
        "with target_has_input: part of the samples that do so; the others render no context view",
        1.0,
        least=0,
    )
    dynamic_input_view_num: bool = key(
        "draw the number of context views (2, 3 or 4) anew at each step", False
    )
    input_view_choices: list = key(
        "draw the number of context views from these anew at each step; empty: num_input_views", []
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
    zoom_max: float = key(
        "cut the middle out of all pictures of a training sample and enlarge it, up to so many times; 1: never",
        1.0,
        least=1,
    )
    make_baseline_1: bool = key(
        "scale scenes until the first and the last context view are 1 apart; needs pose_frame: none", False
    )
    keep_principal_point: bool = key(
        "image_shape crops leave the principal point at its fraction of the picture (as published by lvsm_latent)",
        False,
    )
    fast_decode: bool = key(
        "training pictures by a faster decoder and filter, above 45 dB against the exact ones on photos; evaluation is "
        "always exact",
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
    warmup_start_factor: float = key(
        "share of lr at which the warm-up begins; initial_lr of cosine_min is another way to say it",
        0.0,
        least=0,
    )
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
    ema_decay: float = key(
        "keep running averages of the weights, with this share of the old average at each update; 0: none; 0.9999 suits "
        "long runs",
        0.0,
        least=0,
    )
    max_bad_steps: int = key("stop after this many failed or non-finite steps in a row", 10, least=1)
    l2_loss_weight: float = key("weight of the mean squared error", 1.0, least=0)
    lpips_loss_weight: float = key("weight of LPIPS (VGG)", 0.0, least=0)
    lpips_start_step: int = key("LPIPS counts from this step on", 0, least=0)
    perceptual_loss_weight: float = key("weight of the VGG19 perceptual loss", 0.5, least=0)
    seed: int = key("seed of weights and data order", 777, least=0)

    # precision and memory
    use_amp: bool = key("autocast to amp_dtype", True)
    amp_dtype: str = key("type of autocast", "bf16", choices=("bf16", "fp16", "fp32", "tf32"))
    use_tf32: bool = key("allow TF32 in float32 matrix products", True)
    activations: str = key(
        "what is kept of the forward pass: speed (everything), products (results of matrix products and attention; the "
        "rest is recomputed), blocks (as grad_checkpoint_every says), memory (least), auto (the first of these that fits "
        "the GPU on paper; blocks on a CPU)",
        "blocks",
        choices=("speed", "products", "blocks", "memory", "auto"),
    )
    grad_checkpoint_every: int = key(
        "with activations blocks: recompute activations in groups of this many blocks; 0: keep all",
        1,
        least=0,
    )
    compile: bool = key("torch.compile each transformer block", False)
    parallel: str = key(
        "with several processes: ddp (whole weights on each GPU) or fsdp (a share of weights, gradients and moments)",
        "ddp",
        choices=("ddp", "fsdp"),
    )

    # checkpoints and fine-tuning
    checkpoint_dir: str = key("where the run writes; at inference the weights to load (file or folder)", "")
    checkpoint_every: int = key("steps between checkpoints", 2000, least=1)
    keep_checkpoints: int = key("newest checkpoints to keep; 0: all", 3, least=0)
    keep_checkpoint_every: int = key("also keep one in every so many steps, for ever; 0: none", 0, least=0)
    async_save: bool = key("write checkpoints while training goes on", True)
    time_limit: str = key(
        "write a checkpoint and end with status 124 after this time, as SLURM writes it: 90 (minutes), 23:50:00 or "
        "1-12 (days-hours); empty: no limit",
        "",
    )
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
        raise_all([*self._problems(), *view_problems(self)])

    def _problems(self) -> Iterator[str]:
        """What is wrong with settings that are fine each by itself."""
        if self.activations == "products" and self.compile:
            yield (
                "training.activations products does not see into compiled blocks (training.compile), which choose themselves "
                "what they keep: set activations: speed, or compile: false."
            )
        if self.num_input_views > self.num_views:
            yield (
                f"training.num_input_views {self.num_input_views} exceeds training.num_views {self.num_views}, "
                "which counts inputs and targets together: raise num_views."
            )
        if self.num_input_views >= self.num_views and not self.targets_may_be_inputs:
            yield (
                f"training.num_views {self.num_views} leaves no target beside training.num_input_views "
                f"{self.num_input_views}: raise num_views or set training.target_has_input: true."
            )
        most = self.num_views if self.targets_may_be_inputs else self.num_views - self.num_input_views
        if not 1 <= self.num_target_views <= most:
            yield (
                f"training.num_target_views {self.num_target_views} must lie between 1 and {most} with "
                f"training.num_views {self.num_views}, num_input_views {self.num_input_views}, "
                f"target_has_input {self.target_has_input} (target_has_input_share {self.target_has_input_share:g})."
            )
        if self.dynamic_input_view_num and self.num_views < 4 + (not self.targets_may_be_inputs):
            yield (
                "training.dynamic_input_view_num draws up to 4 context views, too many for training.num_views "
                f"{self.num_views}: raise it to 5, or to 4 with training.target_has_input: true."
            )
        for name in ("scene_scale_factor", "grad_clip_norm", "allowed_gradnorm_factor", "adam_eps"):
            if getattr(self, name) <= 0:
                yield f"training.{name} is {getattr(self, name)}: it must be positive."
        if self.image_shape and not _is_shape(self.image_shape):
            yield (
                f"training.image_shape is {self.image_shape}: expected [height, width] in pixels, such as [256, 256]."
            )
        for name in ("beta1", "beta2", "ema_decay"):
            if getattr(self, name) >= 1:
                yield f"training.{name} is {getattr(self, name)}: it must be below 1."
        if self.make_baseline_1 and self.pose_frame != "none":
            yield (
                f"training.make_baseline_1 has no effect with training.pose_frame {self.pose_frame}, which scales the "
                "cameras itself: set training.pose_frame: none."
            )
        if self.zoom_max > 1 and not (self.square_crop or self.image_shape):
            yield (
                "training.zoom_max would give the samples of a batch pictures of different sizes: set "
                "training.square_crop: true or training.image_shape."
            )
        if (self.augment or self.zoom_max > 1) and self.vae_latents:
            yield (
                "training.augment and training.zoom_max change pictures, but training.vae_latents are those of unchanged "
                "ones: drop one."
            )
        if self.time_limit and not seconds_in(self.time_limit):
            yield (
                f"training.time_limit is {self.time_limit!r}: expected a time as SLURM writes it: 90 (minutes), 23:50:00 "
                "(hours:minutes:seconds) or 1-12 (days-hours)."
            )
        if self.parallel == "fsdp" and self.use_amp and self.amp_dtype == "fp16":
            yield (
                "training.parallel fsdp does not scale the loss of fp16: set training.amp_dtype: bf16, or parallel: ddp."
            )

    @property
    def targets_may_be_inputs(self) -> bool:
        """All targets of a sample may lie anywhere among its views; else as many views must be apart from the context."""
        return self.target_has_input and self.target_has_input_share >= 1


def _is_shape(value: list) -> bool:
    return len(value) == 2 and all(type(side) is int and side > 0 for side in value)
