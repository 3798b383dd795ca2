"""`--dry-run`: what a run takes, and everything that is wrong with it at once."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_run import HEIGHT, WIDTH, tiny_config, write_config, write_scenes

from src.activations import PLANS
from src.data.known_sets import expected_scenes
from src.gpus import GPUS
from src.model import family_config
from src.plan import make_plan
from src.preflight import Preflight, check_space, inspect
from src.settings import load_config, load_parts
from src.train import main

ROOT = Path(__file__).resolve().parents[1]
RUNS = sorted((ROOT / "config").glob("*.yaml"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes long enough for every sampler in config/."""
    folder = write_scenes(tmp_path_factory.mktemp("data"), num_scenes=2, num_frames=140)
    (folder / "meta.json").write_text(json.dumps({"expected_shape": [3, HEIGHT, WIDTH]}))
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder in which none of the files of config/ is."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def missing_files(path: Path) -> set[str]:
    """Keys of the files and folders that a fresh checkout lacks, read off the YAML by hand."""
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    training, scoring = tree["training"], tree.get("inference", {})
    keys = {"training.dataset_path"}
    if training.get("eval_dataset_path") and training.get("eval_every", 1):
        keys |= {"training.eval_dataset_path", "inference.view_idx_file_path"}
        if "lpips" in scoring.get("metrics", ["lpips"]):
            keys.add("pretrained.vgg16")
    if training.get("perceptual_loss_weight", 0.5) > 0:
        keys.add("pretrained.vgg19")
    if training.get("lpips_loss_weight", 0) > 0:
        keys.add("pretrained.vgg16")
    if "resume_ckpt" in training:
        return keys | {"training.resume_ckpt"}
    family, pretrained = tree["model"]["class_name"], tree.get("pretrained", {})
    if "uplvsm" in family or "ptlvsm" in family or ("efficient" in family and tree["model"].get("repa")):
        keys.add("pretrained.dinov2")
    if "vae" in pretrained and pretrained["vae"] != "random":
        keys.add("pretrained.vae")
    return keys


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_run_without_its_data_lists_exactly_the_missing_files(path: Path, elsewhere: Path) -> None:
    found = inspect(*load_parts(path, [], family_config))
    keys = [problem.split()[0].rstrip(":") for problem in found.problems]
    assert sorted(keys) == sorted(missing_files(path))
    absent = ("is missing", "no such file", "holds no")
    assert all(any(words in problem.lower() for words in absent) for problem in found.problems)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_run_with_its_files_can_start(path: Path, elsewhere: Path, data: Path) -> None:
    given = {
        "training.dataset_path": data,
        "training.eval_dataset_path": data,
        "training.resume_ckpt": "",
        "training.vae_latents": "",
        "inference.view_idx_file_path": data.parent / "index.json",
        **{f"pretrained.{name}": "random" for name in ("dinov2", "vae", "vgg19", "vgg16")},
    }
    parts, problems = load_parts(path, [f"{key}={value}" for key, value in given.items()], family_config)
    found = inspect(parts, problems)
    assert found.problems == []
    assert len(found.shape) == 2 and "2 scenes" in found.data[0] and "140 to 140 frames" in found.data[0]


@pytest.fixture
def tiny(data: Path, tmp_path: Path) -> Path:
    return write_config(
        tmp_path / "tiny.yaml", data, tmp_path / "run", batch_size_per_gpu=2, grad_accum_steps=3
    )


def test_a_dry_run_prints_what_the_run_takes_and_starts_nothing(tiny: Path, tmp_path: Path, capsys) -> None:
    assert main(["--config", str(tiny), "--dry-run", "--processes", "4", "--utilisation", "0.5"]) == 0
    shown = capsys.readouterr().out
    assert "2 scenes x 3 accumulated x 4 processes = 24 scenes; 2 context views, 2 targets, 16 x 16" in shown
    assert "6 steps at 50% of the peak on 4 GPUs" in shown
    assert all(gpu.name in shown for gpu in GPUS)
    assert "2 scenes, 140 to 140 frames (median 140), 0 too short for the sampler" in shown
    assert not (tmp_path / "run").exists()


def test_problems_of_settings_files_and_sizes_are_told_at_once(tiny: Path, capsys) -> None:
    words = [
        "model.image_tokenizer.image_size=20", "model.transformer.d_head=5", "training.num_views=3",
        "training.num_input_views=4", "training.beta1=2", "training.lr=-1", "training.colour=1",
        "training.dataset_path=nowhere", "inference.metrics=[fid]", "training.resume_ckpt=nothing",
        "training.perceptual_loss_weight=1", "pretrained.vgg19=none.mat", "training.view_sampler=best",
    ]  # fmt: skip
    assert main(["--config", str(tiny), *words, "--dry-run"]) == 2
    told = capsys.readouterr().err
    for part in (
        "image_size is 20: expected a multiple of", "d_head 5 does not divide", "num_input_views 4 exceeds",
        "beta1 is 2", "training.lr is -1", "unknown key training.colour", "nowhere: no such file", "fid is not a metric",
        "nothing is missing", "none.mat is missing", "view_sampler best is unknown",
    ):  # fmt: skip
        assert part in told
    assert all(line.startswith(f"error: {tiny}: ") for line in told.splitlines())


def test_a_family_that_does_not_exist_hides_no_other_problem(tiny: Path) -> None:
    _, problems = load_parts(
        tiny, ["model.class_name=LVMS", "training.warmup=x", "nonsense.a=1"], family_config
    )
    assert [problem.split()[0] for problem in problems] == ["model.class_name", "training.warmup"]


def test_a_mistake_is_not_told_again_by_what_follows_from_it(tiny: Path) -> None:
    """num_views is taken for its default where it is no number, and nothing is said about sums with it."""
    _, problems = load_parts(tiny, ["training.num_views=many", "training.num_target_views=30"], family_config)
    assert problems == ["training.num_views is 'many': expected a whole number."]


def test_listed_scenes_whose_files_are_gone_are_counted(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "full_list.txt").write_text("metadata/a.json\nmetadata/b.json\n")
    parts, problems = load_parts(tiny, [f"training.dataset_path={tmp_path / 'full_list.txt'}"], family_config)
    found = inspect(parts, problems)
    assert "lists 2 scenes, and the files of 2 are missing; first" in found.problems[0]


def test_scenes_that_are_too_short_are_counted_and_stop_the_run_if_all_are(
    tiny: Path, tmp_path: Path
) -> None:
    short = write_scenes(tmp_path / "short", num_scenes=3, num_frames=4)
    found = inspect(*load_parts(tiny, [f"training.dataset_path={short}"], family_config))
    assert "3 too short for the sampler" in found.data[0]
    assert any("none of its 3 scenes gives a sample" in problem for problem in found.problems)


def test_the_disk_must_hold_one_checkpoint(tiny: Path) -> None:
    found, training = Preflight(), tiny_config(tiny).training
    assert "free" in check_space(found, training, 1) and not found.problems
    check_space(found, training, 2**60)
    assert "a checkpoint takes" in found.problems[0]


def test_published_numbers_of_scenes_are_known_by_the_folders() -> None:
    assert expected_scenes("datasets/re10k-full_processed/train/full_list.txt") == 66_033
    assert expected_scenes("/data/RealEstate10K/test") == 7_194
    assert expected_scenes("datasets/my_re10k/train") == expected_scenes("train") == 0


def test_time_is_work_over_speed(tiny: Path) -> None:
    """The table's figures from the plan's, and those from one sample's."""
    plan = make_plan(tiny_config(tiny), Preflight(), processes=4)
    gpu = next(gpu for gpu in GPUS if gpu.name == "A100 SXM")
    assert plan.seconds(gpu, 0.5, 0) == pytest.approx(
        plan.work / (0.5 * 156e12)
    )  # float32 products with TF32
    row = next(line for line in plan.lines(0.5) if "A100" in line).split()
    peak, seconds, hours = (float(number) for number in row[2:5])
    assert peak == 156 and seconds == pytest.approx(plan.seconds(gpu, 0.5, 0), rel=0.01)
    assert hours == pytest.approx(6 * seconds / 3600, rel=0.02)
    assert float(row[5].replace(",", "")) == pytest.approx(2 * 3 * 4 / seconds, rel=0.02)
    one = dataclasses.replace(plan.config.training, batch_size_per_gpu=1, grad_accum_steps=1)
    single = make_plan(dataclasses.replace(plan.config, training=one), Preflight())
    assert plan.work == 6 * single.work


SLOW = ("lact_small", "debug_efficient_lvsm", "debug_lvsm_pytorch_mae", "mvldm_tiny")


@pytest.mark.parametrize(
    "name",
    ["kvlvsm_tiny", "lvsm_latent_tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)],
)
def test_every_family_is_counted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(ROOT / "config" / f"{name}.yaml", [], family_config)
    monkeypatch.chdir(tmp_path)
    plan: Any = make_plan(config, Preflight())
    assert plan.work > 1e8 and plan.trained > 1e5
    memory, _ = plan.ways["blocks"]
    assert memory.activations > 1e6
    assert len(plan.lines(0.4)) == 7 + len(GPUS)


def test_recomputed_work_is_at_most_a_forward_pass(tiny: Path) -> None:
    config = tiny_config(tiny)
    config.training.grad_checkpoint_every = 1
    plan = make_plan(config, Preflight())
    _, recomputed = plan.ways["blocks"]
    assert 0.4 * plan.work / 3 < recomputed < plan.work / 3


def test_with_activations_auto_each_card_gets_the_fastest_plan_that_fits(tiny: Path) -> None:
    config = tiny_config(tiny)
    config.training.activations = "auto"
    plan = make_plan(config, Preflight())
    assert list(plan.ways) == list(PLANS)
    assert all(line.endswith("GiB), activations speed") for line in plan.lines(0.4) if "fits" in line)
    plan.ways["speed"] = (dataclasses.replace(plan.ways["speed"][0], weights=10**15), 0)
    assert all(line.endswith("GiB), activations products") for line in plan.lines(0.4) if "fits" in line)
