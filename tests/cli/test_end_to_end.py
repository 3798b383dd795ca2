"""The README's commands on a tiny configuration, as a user types them: data, training, scores, pictures.

Everything runs in processes of its own, alone and under torchrun, in a folder whose name has a space in it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ALONE = [sys.executable]
UNDER_TORCHRUN = {
    num: [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num)]
    for num in (1, 2)
}
STEPS = 6


class Workplace:
    """A folder with a converted data set, where commands of the checkout run."""

    def __init__(self, folder: Path, repo_root: Path, env: dict[str, str]) -> None:
        self.folder, self.repo_root, self.env = folder, repo_root, env

    def run(self, launcher: list[str], *words: str, status: int = 0) -> str:
        """Output of a command; its exit status must be `status`."""
        done = subprocess.run(
            [*launcher, *words], cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == status, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def settings(self, name: str) -> list[str]:
        """The quickstart's config, made tiny; results under `name`."""
        return [
            *("--config", str(self.repo_root / "config" / "quickstart.yaml")),
            *("model.image_tokenizer.image_size=32", "model.target_pose_tokenizer.patch_size=16"),
            *("model.image_tokenizer.patch_size=16", "model.transformer.d=32", "model.transformer.d_head=16"),
            *("model.transformer.n_layer=1", "training.batch_size_per_gpu=1", "training.warmup=1"),
            *(
                f"training.train_steps={STEPS}",
                "training.print_every=1",
                f"training.checkpoint_every={STEPS}",
            ),
            *("training.dataset_path=processed set/train/full_list.txt", "training.lr = 1e-3"),
            *("training.eval_dataset_path=processed set/test/full_list.txt",),
            *("inference.view_idx_file_path=raw set/evaluation_index.json",),
            *("inference.median_depth_path=raw set/test/median_depth.json",),
            *(f"training.checkpoint_dir={name}/run", f"inference.inference_out_dir={name}/results"),
        ]

    def losses(self, name: str) -> list[float]:
        """Loss of each step, from the run's log."""
        lines = (self.folder / name / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
        return [record["loss"] for record in map(json.loads, lines) if "loss" in record]

    def scores(self, name: str) -> dict:
        return json.loads((self.folder / name / "results" / "scores.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def workplace(
    tmp_path_factory: pytest.TempPathFactory, repo_root: Path, cli_env: dict[str, str]
) -> Workplace:
    place = Workplace(tmp_path_factory.mktemp("work place"), repo_root, cli_env)
    place.run(
        ALONE,
        *("-m", "scripts.make_synthetic", "--output", "raw set", "--size", "32x32", "--num_processes", "1"),
        *("--train_scenes", "4", "--test_scenes", "3"),
    )
    for mode in ("train", "test"):
        convert = ["--base_path", "raw set", "--output_dir", "processed set", "--mode", mode]
        place.run(ALONE, str(repo_root / "process_data.py"), *convert, "--num_processes", "1")
    return place


@pytest.fixture(scope="module")
def trained(workplace: Workplace) -> Workplace:
    """After training without a process group; the weights that the other tests score."""
    workplace.run(ALONE, "-m", "src.train", *workplace.settings("alone"))
    return workplace


def test_training_alone_leaves_a_checkpoint_and_a_log(trained):
    names = {path.name for path in (trained.folder / "alone" / "run").glob(f"ckpt_*{STEPS}/*")}
    assert {"model.safetensors", "training_state.pt", "checkpoint.json"} <= names
    assert len(trained.losses("alone")) == STEPS


def test_a_finished_training_is_not_repeated(trained):
    before = trained.losses("alone")
    trained.run(ALONE, "-m", "src.train", *trained.settings("alone"))
    assert trained.losses("alone") == before


def test_one_process_under_torchrun_trains_as_without(trained):
    trained.run(UNDER_TORCHRUN[1], "-m", "src.train", *trained.settings("one"))
    assert trained.losses("one") == pytest.approx(trained.losses("alone"), rel=1e-5)


def test_chunks_train_exactly_as_their_converted_form(trained):
    words = [*trained.settings("chunks"), "training.dataset_path=raw set/train"]
    trained.run(ALONE, "-m", "src.train", *words)
    assert trained.losses("chunks") == trained.losses("alone")


def test_two_processes_train_as_one_with_the_double_batch(trained):
    trained.run(UNDER_TORCHRUN[2], "-m", "src.train", *trained.settings("two"))
    trained.run(ALONE, "-m", "src.train", *trained.settings("double"), "training.batch_size_per_gpu=2")
    assert trained.losses("two") == pytest.approx(trained.losses("double"), rel=1e-4)


def test_scores_do_not_depend_on_the_number_of_processes(trained):
    trained.run(ALONE, "-m", "src.inference_fast", *trained.settings("alone"))
    alone = trained.scores("alone")
    weights = f"inference.checkpoint={trained.folder / 'alone' / 'run'}"
    trained.run(UNDER_TORCHRUN[2], "-m", "src.inference_fast", *trained.settings("pair"), weights)
    pair = trained.scores("pair")
    assert alone["counts"]["evaluated"] == pair["counts"]["evaluated"] == 3
    assert pair["headline"] == pytest.approx(alone["headline"], abs=1e-6)
    for name, floor in alone["floors"].items():
        other = pair["floors"][name]["mean_over_scenes"]
        assert other == pytest.approx(floor["mean_over_scenes"], abs=1e-6)
    assert set(alone["floors"]) == {"nearest_input", "mean_of_inputs", "mean_colour", "plane_warp"}


@pytest.mark.parametrize("num", [1, 2], ids=["one process", "two processes"])
def test_inference_writes_pictures_videos_tables_and_the_page(trained, num):
    name = f"pictures{num}"
    trained.run(
        UNDER_TORCHRUN[num] if num > 1 else ALONE,
        *(
            "-m",
            "src.inference",
            *trained.settings(name),
            f"inference.checkpoint={trained.folder / 'alone/run'}",
        ),
        *("inference.render_video=true", "inference.render_video_config.num_frames=4"),
    )
    results = trained.folder / name / "results"
    for scene in ("000000", "000001", "000002"):
        names = {path.name for path in (results / scene).iterdir()}
        assert {"input.png", "gt_vs_pred.png", "metrics.json", "rendered_video.mp4"} <= names
    assert (results / "summary.csv").read_text(encoding="utf-8").count("\n") == 6
    assert "<html" in (results / "index.html").read_text(encoding="utf-8").lower()


def test_a_misspelt_setting_is_one_line_and_status_2(workplace):
    said = workplace.run(ALONE, "-m", "src.train", *workplace.settings("typo"), "training.warmpu=1", status=2)
    assert "training.warmup" in said and "Traceback" not in said
