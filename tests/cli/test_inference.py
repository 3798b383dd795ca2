"""`src.inference_fast` and `src.inference` from the command line, alone and on several processes."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image

from src import inference, inference_fast
from src.config import build
from src.model import build_model, family_config

DECODER_ONLY = "model.LVSM_scene_decoder_only.Images2LatentScene"
UPLVSM = "src.model.uplvsm.unposedLVSM"
SIZE = 28
FRAMES = 6

INDEX = {
    "s0": {"context": [0, 5], "target": [2, 3, 4]},
    "s1": {"context": [0, 5], "target": [1]},
    "s2": {"context": [0, 5], "target": [0, 2, 3]},
    "s3": {"context": [1, 4], "target": [2, 3]},
    "s4": None,
    "s5": {"context": [0, 4, 5], "target": [1, 2]},
    "s6": {"context": [0, 5], "target": [1, 4]},
}


@pytest.fixture(autouse=True)
def quiet_logging() -> Iterator[None]:
    """The scripts set up the root logger; other tests should not meet it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted data set of small smooth pictures, with an index whose scenes differ in their view counts."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lines = []
    for name in INDEX:
        frames = []
        for i in range(FRAMES):
            coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
            path = folder / "images" / name / f"{i:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(path)
            w2c = np.eye(4)
            w2c[:3, 3] = rng.normal(0, 0.3, 3)
            intrinsics = [30.0, 30.0, SIZE / 2, SIZE / 2]
            frames.append({"image_path": str(path), "fxfycxcy": intrinsics, "w2c": w2c.tolist()})
        metadata = folder / "metadata" / f"{name}.json"
        metadata.parent.mkdir(exist_ok=True)
        metadata.write_text(json.dumps({"scene_name": name, "frames": frames}))
        lines.append(str(metadata))
    (folder / "full_list.txt").write_text("\n".join(lines) + "\n")
    (folder / "index.json").write_text(json.dumps(INDEX))
    return folder


def model_section(class_name: str) -> dict:
    section = {
        "class_name": class_name,
        "image_tokenizer": {"image_size": SIZE, "patch_size": 14},
        "target_pose_tokenizer": {"patch_size": 14},
        "transformer": {"d": 16, "d_head": 8, "special_init": True, "depth_init": True, "use_qk_norm": True},
    }
    if class_name == UPLVSM:
        backbone = {"embed_dim": 16, "depth": 1, "num_heads": 2, "img_size": SIZE, "num_register_tokens": 1}
        section["image_tokenizer"]["backbone"] = backbone
        sizes = {"encoder_n_layer": 1, "estimator_n_layer": 1, "decoder_n_layer": 1, "n_latent_vectors": 4}
        section["transformer"] |= sizes
    else:
        section["transformer"]["n_layer"] = 1
    return section


def write_config(folder: Path, data: Path, class_name: str = DECODER_ONLY) -> Path:
    path = folder / "config.yaml"
    tree = {
        "model": model_section(class_name),
        "training": {
            "eval_dataset_path": str(data / "full_list.txt"),
            "num_views": 5,
            "num_target_views": 3,
            "target_has_input": False,
            "batch_size_per_gpu": 2,
            "num_workers": 0,
            "use_amp": False,
        },
        "inference": {
            "view_idx_file_path": str(data / "index.json"),
            "inference_out_dir": str(folder / "out"),
            "metrics": ["psnr", "ssim"],
            "checkpoint": str(write_weights(folder, class_name)),
        },
    }
    path.write_text(yaml.safe_dump(tree))
    return path


def write_weights(folder: Path, class_name: str) -> Path:
    """Weights far from their initial values, so that renders depend on pictures and cameras."""
    problems: list[str] = []
    model = build_model(build(family_config(class_name), model_section(class_name), "model", problems))
    assert not problems
    state = {name: (t + 0.3 * torch.randn_like(t)).contiguous() for name, t in model.state_dict().items()}
    path = folder / "weights.safetensors"
    safetensors.torch.save_file(state, path)
    return path


def read_scores(folder: Path) -> dict:
    return json.loads((folder / "scores.json").read_text())


# ----------------------------------------------------------------------------------------------- scores


def test_one_two_and_three_processes_give_the_same_numbers(tmp_path: Path, data: Path, cli_env: dict) -> None:
    config = write_config(tmp_path, data)
    reports = []
    for processes in (1, 2, 3):
        out = tmp_path / f"out{processes}"
        arguments = ["--config", str(config), f"inference.inference_out_dir={out}"]
        launcher = (
            []
            if processes == 1
            else ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
        )
        command = [sys.executable, "-m", *launcher, "src.inference_fast", *arguments]
        done = subprocess.run(command, env=cli_env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("mean over scenes") == 1, "only rank 0 speaks"
        reports.append(read_scores(out))
    alone, *others = reports
    assert [scene["scene"] for scene in alone["scenes"]] == [name for name, entry in INDEX.items() if entry]
    for other in others:
        assert other["counts"] == alone["counts"]
        for name in ("headline", "render", "floors", "scenes"):
            assert numbers(other[name]) == pytest.approx(numbers(alone[name]), abs=1e-6)


def numbers(tree: object) -> list[float]:
    """All numbers of a nest of lists and dicts, in order."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        return [number for part in tree for number in numbers(part)]
    return [float(tree)] if isinstance(tree, int | float) else []


def test_the_report_names_what_the_numbers_depend_on(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture
) -> None:
    assert inference_fast.main(["--config", str(write_config(tmp_path, data))]) == 0
    report = read_scores(tmp_path / "out")
    assert (
        report["protocol"]["index_sha256"] == hashlib.sha256((data / "index.json").read_bytes()).hexdigest()
    )
    weights = tmp_path / "weights.safetensors"
    assert report["weights"] == {
        "path": str(weights),
        "digest": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    assert (report["family"], report["target_aware"]) == (DECODER_ONLY, False)
    counts = report["counts"]
    assert (counts["scenes_in_index"], counts["null"], counts["evaluated"], counts["missing"]) == (7, 1, 6, 0)
    assert (counts["images"], counts["context_targets"]) == (13, 1)
    assert set(report["floors"]) == {"nearest_input", "mean_of_inputs", "mean_colour"}
    shown = capsys.readouterr().out
    assert f"{report['headline']['psnr']:.3f}" in shown and "nearest input, copied" in shown


def test_scenes_that_cannot_be_scored_are_counted_and_listed(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture
) -> None:
    entries = {**INDEX, "lost": {"context": [0, 1], "target": [2]}, "s0": {"context": [0, 5], "target": [17]}}
    (tmp_path / "index.json").write_text(json.dumps(entries))
    config = write_config(tmp_path, data)
    assert (
        inference_fast.main(["-c", str(config), f"inference.view_idx_file_path={tmp_path}/index.json"]) == 0
    )
    listed = dict(
        line.split("\t") for line in (tmp_path / "out" / "missing_scenes.txt").read_text().splitlines()
    )
    assert set(listed) == {"lost", "s0"} and "17" in listed["s0"]
    assert read_scores(tmp_path / "out")["counts"]["missing"] == 2
    assert "evaluated 5 of 7 scenes; 2 are missing" in capsys.readouterr().err

    assert inference_fast.main(["-c", str(config)]) == 0
    assert not (tmp_path / "out" / "missing_scenes.txt").exists(), "the list of an older run"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["inference.checkpoint="], "no weights: set inference.checkpoint"),
        (["inference.checkpoint=nowhere.pt"], "nowhere.pt"),
        (["model.transformer.n_layer=2"], "n_layer"),
        (
            ["inference.metrics=[psnr,lpips]", "pretrained.vgg16=nowhere.pth"],
            "inference.metrics: [psnr, ssim]",
        ),
        (["inference.view_idx_file_path=nowhere.json"], "nowhere.json"),
        (["inference.metrics=[psnr,vmaf]"], "vmaf is not a metric"),
        (["inference.inference_out_dir="], "inference.inference_out_dir is empty"),
        ([f"inference.inference_out_dir={__file__}"], "test_inference.py is a file: name a folder"),
        ([f"inference.median_depth_path={__file__}"], "is not JSON of scene -> number"),
        (["inference.metrix=[psnr]"], "Did you mean inference.metrics?"),
    ],
)
def test_mistakes_end_with_status_2_and_say_what_to_do(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture, overrides: list[str], message: str
) -> None:
    assert inference_fast.main(["-c", str(write_config(tmp_path, data)), *overrides]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not list((tmp_path / "out").glob("*"))


def test_an_untrained_model_must_be_asked_for(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture
) -> None:
    assert inference_fast.main(["-c", str(write_config(tmp_path, data)), "inference.checkpoint=random"]) == 0
    assert "weights are random" in capsys.readouterr().err
    assert read_scores(tmp_path / "out")["weights"]["path"] == "random"


def test_print_config_shows_the_settings_and_scores_nothing(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture
) -> None:
    assert (
        inference_fast.main(["-c", str(write_config(tmp_path, data)), "--print-config", "training.seed=5"])
        == 0
    )
    assert "seed: 5  # command line" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_no_network_of_the_losses_is_loaded_for_scoring(cli_env: dict) -> None:
    code = "import sys, src.inference; assert not {'src.loss', 'lpips', 'torchvision'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=cli_env, check=True, timeout=120)


# ----------------------------------------------------------------------------------------------- files


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """Output of one run of `src.inference` with everything on, for UP-LVSM."""
    folder = tmp_path_factory.mktemp("rendered")
    torch.manual_seed(0)
    config = write_config(folder, data, UPLVSM)
    video = [
        "inference.render_video=true",
        "inference.save_frames=true",
        "inference.render_video_config.num_frames=4",
    ]
    assert inference.main(["-c", str(config), *video]) == 0
    return folder / "out"


def test_each_scene_has_its_folder_with_pictures_of_the_right_size(rendered: Path) -> None:
    entries = [entry for entry in INDEX.values() if entry]
    assert sorted(path.name for path in rendered.iterdir() if path.is_dir()) == [f"{i:06d}" for i in range(6)]
    for i, entry in enumerate(entries):
        with Image.open(rendered / f"{i:06d}" / "input.png") as picture:
            assert picture.size == (SIZE * len(entry["context"]), SIZE)
        with Image.open(rendered / f"{i:06d}" / "gt_vs_pred.png") as picture:
            assert picture.size == (SIZE * len(entry["target"]), 2 * SIZE)


def test_the_upper_row_of_a_sheet_is_the_truth(rendered: Path, data: Path) -> None:
    truth = np.asarray(Image.open(data / "images" / "s0" / "00003.png"))
    sheet = np.asarray(Image.open(rendered / "000000" / "gt_vs_pred.png"))
    assert np.array_equal(sheet[:SIZE, SIZE : 2 * SIZE], truth)


def test_metrics_of_a_scene_say_which_frame_each_value_belongs_to(rendered: Path) -> None:
    metrics = json.loads((rendered / "000000" / "metrics.json").read_text())
    assert metrics["summary"]["scene_name"] == "s0"
    assert [row["view"] for row in metrics["per_view"]] == INDEX["s0"]["target"]
    mean = sum(row["psnr"] for row in metrics["per_view"]) / 3
    assert metrics["summary"]["psnr"] == pytest.approx(mean, abs=1e-9)


def test_the_tables_hold_every_scene_and_the_average(rendered: Path) -> None:
    headline = read_scores(rendered)["headline"]
    with (rendered / "summary.csv").open() as file:
        head, *rows, blank, average = csv.reader(file)
    assert head == ["Index", "psnr", "ssim"]
    assert [row[0] for row in rows] == [f"{i:06d}" for i in range(6)]
    assert blank == [] and average[0] == "average"
    assert float(average[1]) == pytest.approx(headline["psnr"], abs=1e-5)
    assert np.mean([float(row[1]) for row in rows]) == pytest.approx(headline["psnr"], abs=1e-5)
    assert f"psnr: {headline['psnr']:.6f}" in (rendered / "average_metrics.txt").read_text()


def test_a_video_goes_through_the_target_views_of_a_target_aware_model(rendered: Path) -> None:
    expected = {0: 2 * 4, 1: 4, 3: 4}  # scene -> transitions times frames; a single view stands still
    for scene, count in expected.items():
        with imageio.get_reader(rendered / f"{scene:06d}" / "rendered_video.mp4") as reader:
            assert reader.count_frames() == count
            assert reader.get_meta_data()["fps"] == 30
        assert len(list((rendered / f"{scene:06d}" / "frames").glob("frame_??.png"))) == count


def test_results_of_a_target_aware_model_are_labelled(rendered: Path) -> None:
    assert read_scores(rendered)["target_aware"] is True
    assert '"target_aware":true' in (rendered / "index.html").read_text(encoding="utf-8")


def test_files_of_an_older_run_are_not_taken_for_this_one(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    for old in ("000000/rendered_video.mp4", "000000/frames/frame_00.png", "000042/metrics.json"):
        (out / old).parent.mkdir(parents=True, exist_ok=True)
        (out / old).write_bytes(b"old")
    config = write_config(tmp_path, data)
    assert inference.main(["-c", str(config), "inference.max_scenes=2"]) == 0
    assert not (out / "000000" / "rendered_video.mp4").exists()
    assert not list((out / "000000" / "frames").iterdir())
    assert "scene folders of another run (1, first 000042)" in capsys.readouterr().err
    assert (out / "summary.csv").read_text().count("\n") == 1 + 2 + 1 + 1
    assert "rendered_video" not in json.dumps(page_scenes(out))


def page_scenes(out: Path) -> list[dict]:
    text = (out / "index.html").read_text(encoding="utf-8")
    block = text.split('<script id="data" type="application/json">')[1].split("</script>")[0]
    return json.loads(block)["scenes"]


def test_an_unknown_camera_path_is_refused_before_anything_is_rendered(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture
) -> None:
    overrides = ["inference.render_video=true", "inference.render_video_config.traj_type=corkscrew"]
    assert inference.main(["-c", str(write_config(tmp_path, data)), *overrides]) == 2
    assert "Known: interpolate" in capsys.readouterr().err
