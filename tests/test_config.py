"""Settings: what is accepted, what is refused and in which words, and where each value came from."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from src.cli import read_config
from src.config import ConfigError, key, parse_overrides, read_yaml
from src.model import family_config
from src.settings import RunConfig, config_digest, config_from_tree, describe, load_config, to_plain


@dataclass(kw_only=True)
class Transformer:
    d: int = key("width", 64, least=1)
    n_layer: int = key("blocks", 2)


@dataclass(kw_only=True)
class Unposed:
    dino_qknorm: bool = key("qk-norm in the backbone", True)


@dataclass(kw_only=True)
class Family:
    class_name: str = key("name of the family")
    image_size: int = key("image height, pixels")
    transformer: Transformer = key("sizes", Transformer)
    unposed: Unposed = key("switches", Unposed, section="unposed")
    in_channels: int = key("follows from the ray code", 9, ignored=True)


BASE = """
model: {class_name: toy, image_size: 32}
training:
  lr: 4e-4
"""


def family(name: str) -> type:
    if name != "toy":
        raise ConfigError(f"model.class_name {name} is unknown.")
    return Family


@pytest.fixture
def load(tmp_path: Path):
    def load_text(text: str = BASE, *overrides: str) -> RunConfig:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return load_config(path, list(overrides), family)

    return load_text


def refusal(load, text: str = BASE, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    return str(caught.value)


def test_numbers_that_yaml_takes_for_text_are_numbers(load) -> None:
    config = load(BASE, "training.train_steps=1e5", "training.weight_decay=1e-2")
    assert config.training.lr == 0.0004
    assert config.training.train_steps == 100000
    assert isinstance(config.training.train_steps, int)
    assert config.training.weight_decay == 0.01


def test_large_whole_numbers_are_exact(load) -> None:
    assert load(BASE, f"training.seed={2**60 + 1}").training.seed == 2**60 + 1


@pytest.mark.parametrize(
    "words",
    [
        ["training.lr=1e-3"],
        ["parameters.training.lr=1e-3"],
        ["training.lr", "=", "1e-3"],
        ["training.lr=", "1e-3"],
        ["training.lr", "=1e-3"],
        ["training.lr = 1e-3"],
    ],
)
def test_overrides_are_read_in_every_spelling(load, words: list[str]) -> None:
    config = load(BASE, *words)
    assert config.training.lr == 0.001
    assert config.sources["training.lr"] == "command line"


def test_an_empty_override_does_not_swallow_the_next() -> None:
    assert parse_overrides(["a=", "b=1"]) == [("a", None), ("b", 1)]


def test_the_last_override_wins(load) -> None:
    assert load(BASE, "training.lr=1", "training.lr=2").training.lr == 2.0


@pytest.mark.parametrize("value", ["off", "false", "disabled"])
def test_wandb_off_means_disabled(load, value: str) -> None:
    assert load(BASE, f"training.wandb={value}").training.wandb == "disabled"


def test_everything_may_lie_under_parameters(load) -> None:
    wrapped = yaml.safe_dump({"parameters": yaml.safe_load(BASE)})
    assert to_plain(load(wrapped)) == to_plain(load(BASE))


def test_an_empty_section_means_defaults(load) -> None:
    assert load(BASE + "inference:\nunposed:\n").inference == load(BASE).inference


def test_a_section_of_a_family_may_stand_at_the_top(load) -> None:
    assert load(BASE + "unposed: {dino_qknorm: false}\n").model.unposed.dino_qknorm is False
    assert load(BASE, "unposed.dino_qknorm=false").model.unposed.dino_qknorm is False


def test_keys_that_moved_are_taken_from_their_old_place(load) -> None:
    assert load(BASE + "inference_out_dir: here\n").inference.inference_out_dir == "here"
    both = load(BASE + "inference: {inference_out_dir: file}\n", "inference_out_dir=line")
    assert both.inference.inference_out_dir == "line"
    assert both.sources["inference.inference_out_dir"] == "command line"


def test_a_setting_under_two_names_is_refused(load) -> None:
    text = BASE + "inference_out_dir: a\ninference: {inference_out_dir: b}\n"
    assert "inference_out_dir and inference.inference_out_dir are two names" in refusal(load, text)


def test_dead_keys_are_accepted_with_a_word(load, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        load(BASE, "training.center_crop=true", "training.use_rel_pose=false", "model.in_channels=9")
    assert [record.getMessage().split(" has no effect")[0] for record in caplog.records] == [
        "model.in_channels",
        "training.center_crop",
        "training.use_rel_pose",
    ]


MISTAKES = {
    "misspelt": (
        "training.grad_acum_steps=2",
        "training.grad_acum_steps. Did you mean training.grad_accum_steps?",
    ),
    "wrong section": ("training.n_layer=2", "training.n_layer. Did you mean model.transformer.n_layer?"),
    "no section": ("lr=1", "unknown key lr. Did you mean training.lr?"),
    "misspelt section": ("trainning.lr=1", "unknown key trainning. Did you mean training?"),
    "foreign section": ("optimizer.lr=1", "unknown key optimizer.lr. Did you mean training.lr?"),
    "name of a dead key": ("training.in_channel=1", "Keys of training: dataset_name"),
    "nested": ("model.transformer.n_layers=1", "Did you mean model.transformer.n_layer?"),
    "moved section": ("model.dino_qknorm=true", "Did you mean unposed.dino_qknorm?"),
    "nothing near": ("model.transformer.zzz=1", "Keys of model.transformer: d, n_layer."),
    "type": ("training.lr=fast", "training.lr is 'fast': expected a number."),
    "fraction": ("training.warmup=1.5", "training.warmup is 1.5: expected a whole number."),
    "boolean": ("training.square_crop=1", "training.square_crop is 1: expected true or false."),
    "number for a boolean": ("training.lr=true", "training.lr is True: expected a number."),
    "choice": (
        "training.amp_dtype=bf17",
        "training.amp_dtype is 'bf17': expected bf16 or fp16 or fp32 or tf32.",
    ),
    "not a number": ("training.lr=.nan", "training.lr is nan: expected a number."),
    "infinite": ("training.lr=1e999", "training.lr is '1e999': expected a number."),
    "too small": (
        "training.batch_size_per_gpu=0",
        "training.batch_size_per_gpu is 0: it must be at least 1.",
    ),
    "negative": ("training.lr=-1e-4", "training.lr is '-1e-4': it must be at least 0."),
    "yaml's no": ("training.wandb_exp_name=no", "is False: expected text (in quotes)."),
    "list for a section": ("training.view_selector=[1]", "training.view_selector is [1]: expected a section"),
    "value for a section": ("training=5", "training is 5: expected a section"),
    "section for a value": ("training.lr={a: 1}", "training.lr is {'a': 1}: expected a number."),
    "below a value": ("training.lr.x=1", "training.lr.x: training.lr is a value, not a section."),
    "no value": ("training.lr", "'training.lr' is not of the form key.sub=value."),
    "metric": ("inference.metrics=[psnr, fid]", "fid is not a metric. Choose from psnr, ssim, lpips."),
    "views": ("training.num_target_views=9", "training.num_target_views 9 must lie between 1 and 8"),
    "inputs": ("training.num_input_views=9", "num_input_views 9 exceeds training.num_views 8"),
    "momentum": ("training.beta1=1.5", "training.beta1 is 1.5: it must be below 1."),
    "nesting": ("training.lr=" + 2000 * "[", "is not YAML; quote it."),
    "frames": ("training.view_selector.min_frame_dist=500", "min_frame_dist 500 exceeds max_frame_dist"),
    "family": ("model.class_name=tyo", "model.class_name tyo is unknown."),
}


@pytest.mark.parametrize("override, words", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_in_one_line_with_key_and_remedy(load, override: str, words: str) -> None:
    message = refusal(load, BASE, override)
    assert words in message
    assert "\n" not in message


FILES = {
    "empty": ("", "expected a mapping with sections"),
    "list": ("- 1", "expected a mapping with sections"),
    "not yaml": ("model: [", "not readable as YAML"),
    "python tag": ("model: !!python/object:os.system {}", "not readable as YAML"),
    "twice": ("training: {lr: 1}\ntraining: {lr: 2}", "line 2: the key training is given twice."),
    "twice inside": ("training:\n  lr: 1\n  lr: 2\n", "line 3: the key lr is given twice."),
    "in and outside": (
        BASE + "parameters: {training: {lr: 1}}",
        "training is given twice, inside and outside",
    ),
    "number as key": (BASE + "1: 2", "the key 1 is not text; quote it."),
    "truth as key": (BASE + "on: 2", "the key on is not text; quote it."),
    "list as key": (BASE + "[a]: 2", "is not text; quote it."),
    "tree in itself": ("model: &m {a: *m}", "not readable as YAML"),
    "family missing": ("training: {lr: 1}", "model.class_name is missing"),
    "required missing": ("model: {class_name: toy}", "model.image_size is missing: image height, pixels."),
}


@pytest.mark.parametrize("text, words", FILES.values(), ids=FILES)
def test_a_broken_file_is_named_with_its_fault(load, tmp_path: Path, text: str, words: str) -> None:
    message = refusal(load, text)
    assert message.startswith(str(tmp_path / "run.yaml"))
    assert words in message
    assert "\n" not in message


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "uplvsm_x224.yaml").write_text(BASE)
    with pytest.raises(ConfigError, match=r"no such config file. Did you mean .*uplvsm_x224.yaml"):
        read_yaml(tmp_path / "uplvsm_224.yaml")


def test_all_mistakes_are_told_at_once(load) -> None:
    message = refusal(load, BASE, "training.lr=x", "training.warmup=y", "inference.z=1")
    assert len(message.splitlines()) == 3


def test_anchors_and_merge_keys_are_read(load) -> None:
    text = BASE + "  batch_size_per_gpu: &n 3\n  grad_accum_steps: *n\n"
    assert load(text).training.grad_accum_steps == 3


def test_a_saved_config_reads_back_the_same(load) -> None:
    config = load(BASE + "unposed: {dino_qknorm: false}\n", "training.dataset_path=[{path: a, weight: 2}]")
    again = config_from_tree(yaml.safe_load(yaml.safe_dump(to_plain(config))), family)
    assert again == config
    assert config_digest(again) == config_digest(config)
    assert config_digest(load(BASE, "training.lr=1")) != config_digest(load(BASE))
    assert config_digest(load(BASE, "inference.inference_out_dir=elsewhere")) == config_digest(load(BASE))


def test_building_a_config_leaves_its_tree_alone() -> None:
    tree = {"model": {"class_name": "toy", "image_size": 32}, "unposed": {}, "inference_out_dir": "x"}
    config_from_tree(tree, family)
    assert tree == {"model": {"class_name": "toy", "image_size": 32}, "unposed": {}, "inference_out_dir": "x"}


def test_the_shown_config_is_yaml_and_tells_where_values_came_from(load, tmp_path: Path) -> None:
    config = load(
        BASE + "inference_out_dir: here\n", "training.warmup=7", "inference.render_video_config={fps: 5}"
    )
    shown = describe(config)
    assert config_from_tree(yaml.safe_load(shown), family) == config
    lines = [line.strip() for line in shown.splitlines()]
    assert f"lr: 0.0004  # {tmp_path / 'run.yaml'}" in lines
    assert f"inference_out_dir: here  # {tmp_path / 'run.yaml'}" in lines
    assert "warmup: 7  # command line" in lines
    assert "fps: 5  # command line" in lines
    assert "beta1: 0.9  # default" in lines


def test_a_section_on_the_command_line_replaces_that_of_the_file(load) -> None:
    text = BASE + "  view_selector: {min_frame_dist: 3, max_frame_dist: 9}\n"
    config = load(text, "training.view_selector={min_frame_dist: 4}")
    assert (config.training.view_selector.min_frame_dist, config.training.view_selector.max_frame_dist) == (
        4,
        100,
    )
    assert "max_frame_dist: 100  # default" in describe(config)


def test_defaults_are_not_shared_between_configs(load) -> None:
    load(BASE).inference.metrics.clear()
    assert load(BASE).inference.metrics == ["psnr", "ssim", "lpips"]


def test_print_config_shows_the_settings_and_does_nothing_else(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("src.cli.family_config", family)
    (tmp_path / "run.yaml").write_text(BASE)
    words = ["--config", str(tmp_path / "run.yaml"), "training.warmup", "=", "7", "--print-config"]
    assert read_config(words, "a script") is None
    shown = capsys.readouterr().out
    assert "warmup: 7  # command line" in shown
    assert config_from_tree(yaml.safe_load(shown), family).training.lr == 4e-4


def test_a_mistake_on_the_command_line_is_not_blamed_on_the_file(repo_root, tmp_path) -> None:
    path = repo_root / "config" / "debug.yaml"
    with pytest.raises(
        ConfigError, match=r"^command line: unknown key training\.lrr\. Did you mean training\.lr\?"
    ):
        load_config(path, ["training.lrr=1"], family_config)
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(path.read_text().replace("  lr:", "  lrr:"))
    with pytest.raises(ConfigError, match=r"wrong\.yaml: unknown key training\.lrr"):
        load_config(wrong, ["training.seed=1"], family_config)
