"""process_data.py as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from raw_chunks import encoded, picture, scene, write_chunks

EYE = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


@pytest.fixture
def base(tmp_path):
    write_chunks(tmp_path / "re10k/train", [scene("a", seed=1), scene("b", seed=2)], [scene("c", seed=3)])
    return tmp_path / "re10k"


def command(repo_root, base, out, *words):
    script = str(repo_root / "process_data.py")
    return [sys.executable, script, "--base_path", str(base), "--output_dir", str(out), *words]


def run(repo_root, cli_env, base, out, *words):
    words = command(repo_root, base, out, *words)
    return subprocess.run(words, env=cli_env, cwd=out.parent, capture_output=True, text=True, timeout=120)


def test_published_flags_convert_and_a_second_run_continues(repo_root, cli_env, base, tmp_path):
    flags = ["--mode", "train", "--num_processes", "3", "--chunk_size", "1"]
    first = run(repo_root, cli_env, base, tmp_path / "out", *flags)
    assert first.returncode == 0, first.stderr
    assert "3 scenes written, 0 were there already" in first.stdout and "converting" in first.stderr
    assert len((tmp_path / "out/train/full_list.txt").read_text().split()) == 3
    assert "0 scenes written, 3 were there already" in run(repo_root, cli_env, base, tmp_path / "out").stdout


def test_failures_are_listed_and_the_exit_status_is_1(repo_root, cli_env, base, tmp_path):
    bad = scene("bad", frames=3)
    bad["images"][1] = encoded(picture(64, 36, 0)[:-150])
    torch.save([bad, scene("../../x", 2)], base / "train/000002.torch")
    (base / "train/000003.torch").write_bytes(b"PK\x03\x04")
    done = run(repo_root, cli_env, base, tmp_path / "out", "--num_processes", "1")
    assert done.returncode == 1
    assert "4 scenes written" in done.stdout
    for line in (
        "1 chunks that cannot be read",
        "1 scenes that were refused",
        "1 frames marked missing",
        "bad frame 1",
    ):
        assert line in done.stdout
    assert len((tmp_path / "out/train/full_list.txt").read_text().split()) == 4
    assert run(repo_root, cli_env, base, tmp_path / "out", "--num_processes", "1").returncode == 1


def test_dl3dv_scenes_are_imported_from_the_folder_itself(repo_root, cli_env, tmp_path):
    """Two scenes, one of them without its pictures: one is written, the other told, the exit status is 1."""
    for name, given in (("good", True), ("bare", False)):
        folder = tmp_path / "in" / name / "nerfstudio"
        (folder / "images_4").mkdir(parents=True)
        frames = [{"file_path": f"images/frame_{n}.jpg", "transform_matrix": EYE} for n in (1, 2)]
        numbers = {"w": 256, "h": 144, "fl_x": 200, "fl_y": 200, "cx": 128, "cy": 72, "k1": 0.05}
        (folder / "transforms.json").write_text(json.dumps({**numbers, "frames": frames}))
        for n in (1, 2) if given else ():
            (folder / f"images_4/frame_{n}.jpg").write_bytes(picture(64, 36, n))
    done = run(
        repo_root, cli_env, tmp_path / "in", tmp_path / "out", "--format", "dl3dv", "--num_processes", "2"
    )
    assert done.returncode == 1 and "1 scenes written" in done.stdout, done.stderr
    assert "bare: none of its 2 frames can be used; first: images_4/frame_1.jpg is not there" in done.stdout
    assert (tmp_path / "out/train/full_list.txt").read_text() == "metadata/good.json\n"


@pytest.mark.parametrize("words", [["--mode", "test"], ["--mode", "validation"], ["--num_processes", "0"]])
def test_wrong_arguments_end_with_status_2_and_no_traceback(repo_root, cli_env, base, tmp_path, words):
    done = run(repo_root, cli_env, base, tmp_path / "out", *words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_conversion_is_continued(repo_root, cli_env, base, tmp_path, sent):
    """Nothing half-written is listed, no worker stays behind, and the next run gives the whole."""
    many = [[scene(f"s{n}_{k}", frames=60, seed=n) for k in range(12)] for n in range(4)]
    write_chunks(base / "train", *many)
    out = tmp_path / "out"
    words = command(repo_root, base, out, "--num_processes", "2", "--image_format", "png")
    started = subprocess.Popen(words, env=cli_env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while len(list(out.glob("train/metadata/*.json"))) < 3:
        assert started.poll() is None
        time.sleep(0.02)
    os.kill(started.pid, sent)
    _, errors = started.communicate(timeout=60)  # returns when the last worker has closed its end
    assert started.returncode == (130 if sent == signal.SIGINT else -signal.SIGKILL)
    assert sent == signal.SIGKILL or "Run again to continue" in errors
    done = run(repo_root, cli_env, base, out, "--num_processes", "2", "--image_format", "png")
    assert done.returncode == 0, done.stderr
    assert len(list(out.glob("train/metadata/*.json"))) == 48
    assert not list(out.rglob("*.partial"))
    assert all(len(list(folder.iterdir())) == 60 for folder in (out / "train/images").iterdir())
