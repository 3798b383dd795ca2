"""Every file in `config/` loads and builds, and so do files in the published form, dead keys included."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from scripts import list_configs
from src.data import dataset_class
from src.model import build_model, family_config
from src.settings import RunConfig, config_from_tree, load_config, to_plain

ROOT = Path(__file__).resolve().parents[1]
RUNS = sorted((ROOT / "config").glob("*.yaml"))
EVALS = sorted((ROOT / "config" / "eval").glob("*.yaml"))
PUBLISHED = [
    "uplvsm_x224",
    "uplvsm_x518",
    "ptlvsm_x224",
    "lvsm_decoder_only_256",
    "lvsm_encoder_decoder_256",
    "lvsm_decoder_only_512",
    "lvsm_encoder_decoder_512",
]
PARAMETERS = {  # measured on the original modules, without the loss network that they hold
    "uplvsm_x224": 260_132_743,
    "uplvsm_x518": 260_132_743,
    "ptlvsm_x224": 258_753_024,
    "lvsm_decoder_only_256": 170_795_520,
    "lvsm_encoder_decoder_256": 173_154_816,
    "lvsm_decoder_only_1gpu": 85_840_896,
    "lact_l24_d768_ttt2x": 312_298_056,
    "lact_l24_d768_ttt4x": 397_232_712,
    "lact_l14_d768_ttt2x": 182_481_706,
}


def load(path: Path, *overrides: str) -> RunConfig:
    return load_config(path, list(overrides), family_config)


@pytest.mark.parametrize("path", RUNS + EVALS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_config_loads_without_dead_keys_and_survives_being_saved(path: Path, caplog) -> None:
    config = load(path)
    assert not caplog.records
    assert config_from_tree(yaml.safe_load(yaml.safe_dump(to_plain(config))), family_config) == config


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_run_has_a_training_and_an_evaluation_config(name: str) -> None:
    train, score = load(ROOT / "config" / f"{name}.yaml"), load(ROOT / "config" / "eval" / f"{name}.yaml")
    assert score.model == train.model
    assert score.inference.checkpoint
    assert score.inference.view_idx_file_path == train.inference.view_idx_file_path
    views = score.training
    assert (views.num_views, views.num_input_views, views.num_target_views) == (5, 2, 3)
    assert not views.target_has_input
    assert views.eval_dataset_path.endswith("test/full_list.txt")


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_config_makes_a_model_of_the_published_size(name: str) -> None:
    with torch.device("meta"):
        model = build_model(load(ROOT / "config" / f"{name}.yaml").model)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*_1gpu.yaml")), ids=lambda p: p.stem)
def test_a_one_gpu_recipe_has_twelve_layers_and_total_batch_64(path: Path) -> None:
    config = load(path)
    if not path.stem.startswith("mvldm"):  # a UNet counts its blocks in another way
        sizes = vars(config.model if path.stem.startswith("lact") else config.model.transformer)
        assert sum(value for name, value in sizes.items() if name.endswith(("n_layer", "layers"))) == 12
    # One-way models do better with fewer scenes and more targets of each; a UNet of 0.3 billion weights takes more time.
    total = 32 if path.stem.startswith(("kvlvsm", "mvldm")) else 64
    assert config.training.batch_size_per_gpu * config.training.grad_accum_steps == total


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_a_run_writes_to_a_folder_of_its_own_name(path: Path) -> None:
    folder = Path(load(path).training.checkpoint_dir)
    assert folder == Path("checkpoints") / path.stem or path.stem.startswith(("quickstart", "demo"))


LISTED = [path for path in RUNS if not path.stem.startswith(("quickstart", "debug"))]
QUICK = ("demo", "kvlvsm_1gpu", "lact_small", "lvsm_latent_tiny", "mvldm_tiny", "uplvsm_1gpu")
"""Rows whose costs are counted in a second."""


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[] if p.stem in QUICK else pytest.mark.slow, id=p.stem) for p in LISTED],
)
def test_the_row_of_a_config_in_the_docs_is_what_it_costs(path: Path) -> None:
    assert list_configs.row(path) in (ROOT / "docs" / "configs.md").read_text(encoding="utf-8")


def test_every_config_has_a_row_in_the_docs() -> None:
    page = (ROOT / "docs" / "configs.md").read_text(encoding="utf-8")
    assert [path.stem for path in LISTED if f"| `{path.stem}` |" not in page] == []


MODEL_TAIL = "special_init: true, depth_init: true, use_qk_norm: true}"
TRAINING = """
  amp_dtype: bf16
  use_amp: true
  use_tf32: true
  lr: 4e-4
  beta1: 0.9
  beta2: 0.95
  weight_decay: 0.05
  warmup: 4000
  train_steps: 100000
  grad_accum_steps: 1
  grad_clip_norm: 1.0
  allowed_gradnorm_factor: 4
  grad_checkpoint_every: 1
  l2_loss_weight: 1.0
  lpips_loss_weight: 0.0
  perceptual_loss_weight: 0.5
  scene_scale_factor: 1.35
  center_crop: true
  square_crop: true
  use_rel_pose: true
  target_has_input: true
  num_views: 8
  num_input_views: 2
  num_target_views: 6
  view_selector: {min_frame_dist: 25, max_frame_dist: 192}
  dataset_path: ./data/train/full_list.txt
  num_workers: 4
  num_threads: 8
  prefetch_factor: 32
  print_every: 20
  wandb_log_every: 50
  vis_every: 1000
  checkpoint_every: 2000
  checkpoint_dir: ./experiments/checkpoints/run
  wandb_project: LVSM
  wandb_exp_name: run
"""
INFERENCE = """
  if_inference: true
  compute_metrics: true
  view_idx_file_path: ./assets/evaluation_index_re10k.json
  render_images: true
  render_video: true
  render_video_config: {traj_type: interpolate, num_frames: 60, loop_video: true, order_poses: false}
  save_frames: false
  generate_website: true
"""
OPTIONAL = """
  resume_ckpt: ./weights.pt
  reset_training_state: true
  reset_lr_scheduler: false
  scheduler_type: cosine
  dynamic_input_view_num: false
  log_grad_norm_details: false
"""


def less3depend(class_name: str, layers: str, training: str = "", inference: str = INFERENCE) -> str:
    text = f"""
model:
  class_name: {class_name}
  image_tokenizer: {{image_size: 224, patch_size: 14, in_channels: 3}}
  target_pose_tokenizer: {{image_size: 224, patch_size: 14, in_channels: 6}}
  transformer: {{d: 768, d_head: 64, {layers}, {MODEL_TAIL}
unposed:
  pose_enc_type: absT_quaR
  dino_qknorm: true
  decoder_as_canonical: false
  canonical_camera: false
  noise_scale: -1
  stage_switch_step: 200000
training:{TRAINING}  dataset_name: src.data.dataset_scene.Dataset
  eval_dataset_path: ./data/test/full_list.txt
  batch_size_per_gpu: 16
  eval_every: 4000
{training}
"""
    text += f"inference:{inference}" if inference else ""
    return "parameters:\n" + "".join(f"  {line}\n" for line in text.splitlines())


def lvsm(kind: str, layers: str, *, training: str = "", inference: str = INFERENCE) -> str:
    return f"""
model:
  class_name: model.LVSM_scene_{kind}.Images2LatentScene
  image_tokenizer: {{image_size: 256, patch_size: 8, in_channels: 9}}
  target_pose_tokenizer: {{image_size: 256, patch_size: 8, in_channels: 6}}
  transformer: {{d: 768, d_head: 64, {layers}, {MODEL_TAIL}
training:{TRAINING}  dataset_name: data.dataset_scene.Dataset
  api_key_path: ./configs/api_keys.yaml
  batch_size_per_gpu: 8
{training}
inference:{inference}
inference_out_dir: ./experiments/evaluation/run
"""


UP = "encoder_n_layer: 6, estimator_n_layer: 4, decoder_n_layer: 14, n_latent_vectors: 1024"
ENCDEC = "encoder_n_layer: 12, decoder_n_layer: 12, n_latent_vectors: 3072"
FORMS = {
    "uplvsm": (less3depend("src.model.uplvsm.unposedLVSM", UP, OPTIONAL), "uplvsm_x224"),
    "uplvsm with output folder": (
        less3depend("src.model.uplvsm.unposedLVSM", UP, "", INFERENCE + "  inference_out_dir: ./out\n"),
        "uplvsm_x224",
    ),
    "ptlvsm without inference": (
        less3depend("src.model.ptlvsm.posedTargetLVSM", "n_layer: 24", inference=""),
        "ptlvsm_x224",
    ),
    "lvsm decoder-only": (lvsm("decoder_only", "n_layer: 24"), "lvsm_decoder_only_256"),
    "lvsm encoder-decoder": (lvsm("encoder_decoder", ENCDEC, training=OPTIONAL), "lvsm_encoder_decoder_256"),
}


@pytest.mark.parametrize("text, ours", FORMS.values(), ids=FORMS)
def test_a_file_in_the_published_form_loads_unchanged(tmp_path: Path, text: str, ours: str) -> None:
    path = tmp_path / "published.yaml"
    path.write_text(text)
    config = load(path)
    assert config.model == load(ROOT / "config" / f"{ours}.yaml").model
    assert config.training.lr == 4e-4
    assert config.training.view_selector.max_frame_dist == 192
    assert config.training.num_target_views == 6
    assert config.training.wandb == "disabled"
    assert dataset_class(config.training.dataset_name) is dataset_class("scene")


def test_overrides_of_the_original_readme_make_an_evaluation_config(tmp_path: Path) -> None:
    path = tmp_path / "published.yaml"
    path.write_text(lvsm("decoder_only", "n_layer: 24"))
    words = [
        *("training.dataset_path", "=", "./test/full_list.txt", "training.batch_size_per_gpu", "=", "4"),
        *("training.target_has_input = false", "training.num_views = 5", "training.square_crop = true"),
        *("training.num_input_views = 2", "training.num_target_views = 3", "inference.if_inference = true"),
        *("inference.compute_metrics = true", "inference.render_video = true", "inference_out_dir = ./out"),
    ]
    config = load(path, *words)
    assert config.inference.inference_out_dir == "./out"
    assert config.training.num_views == 5
    assert config.training.dataset_path == "./test/full_list.txt"
