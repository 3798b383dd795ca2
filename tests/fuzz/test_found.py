"""What the damaged input has found, each by itself: the reader that was wrong, and what it does now."""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import raw_chunks
import torch

from src.checkpoint import CheckpointError, damage, load_weights, require_finite
from src.cli import LONGEST_LINE, guarded, printable
from src.config import ConfigError, read_yaml
from src.data.convert import Options, convert
from src.data.latents import LatentStore
from src.data.scene import FrameError, JsonScene, ListedScenes, SceneError, camera_problem
from src.files import parse_json, read_bytes
from src.saving import prune
from src.sizes import sizes_of
from src.torch_files import TorchFileError, is_zip, read_torch_file

POSE = np.eye(4)
LENS = np.array([9.0, 9.0, 4.0, 4.0])


def _changed(array: np.ndarray, place: tuple, value: float) -> np.ndarray:
    array = array.copy()
    array[place] = value
    return array


@pytest.mark.parametrize(
    "lens,pose,why",
    [
        (_changed(LENS, (0,), -9.0), POSE, "not positive"),
        (_changed(LENS, (1,), 0.0), POSE, "not positive"),
        (_changed(LENS, (2,), 1e30), POSE, "beyond"),
        (LENS, _changed(POSE, (0, 3), 1e300), "beyond"),
        (LENS, _changed(POSE, (3, 3), 0.0), "last row"),
        (LENS, _changed(POSE, (0, 0), np.nan), "not finite"),
        (LENS, POSE, ""),
    ],
)
def test_a_camera_that_would_not_be_one_in_float32_is_refused(lens, pose, why) -> None:
    assert why in camera_problem(lens, pose)
    assert bool(camera_problem(lens, pose)) == bool(why)


def test_json_from_others_fails_in_one_way() -> None:
    for content in (b"[" * 10**5, b"\xff", b"9" * 400, b"9" * 5000, b"", b"{"):
        with pytest.raises(ValueError) as caught:
            parse_json(content)
        assert "\n" not in str(caught.value)


def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        for read in (read_bytes, is_zip, read_torch_file):
            with pytest.raises(OSError, match="not a regular file"):
                read(path)


def test_latents_behind_a_pipe_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "scene0.safetensors")
    with pytest.raises(SceneError, match="cannot be read"):
        LatentStore(tmp_path).read("scene0", [0])


def test_metadata_that_names_no_file_costs_a_frame_or_a_scene(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    frame = {"fxfycxcy": LENS.tolist(), "w2c": POSE.tolist()}
    frames = [
        {**frame, "image_path": 3},
        {**frame, "image_path": "/dev/zero"},
        {"missing": True, "reason": [1]},
    ]
    path.write_text(json.dumps({"frames": frames}))
    scene = JsonScene(path, "a")
    assert scene.missing(0) == "image_path is not text" and scene.missing(2) == "[1]"
    with pytest.raises(FrameError, match="not a regular file"):
        scene.encoded(1)
    path.write_text("[[]]")
    with pytest.raises(SceneError, match=r"a\.json is not scene metadata"):
        JsonScene(path, "a")


def test_a_list_has_names_that_can_be_shown(tmp_path: Path) -> None:
    (tmp_path / "full_list.txt").write_bytes(b"\xef\xbb\xbfmetadata/a.json\n")  # with a byte-order mark
    assert list(ListedScenes(tmp_path / "full_list.txt").names) == ["a"]
    (tmp_path / "full_list.txt").write_text("metadata/\x1b[31m.json\n")
    with pytest.raises(ConfigError, match=r"full_list.txt is no full_list.txt"):
        ListedScenes(tmp_path / "full_list.txt")


def test_a_finished_scene_outlives_a_chunk_that_was_damaged_since(tmp_path: Path) -> None:
    scenes = [raw_chunks.scene("a", frames=3)]
    raw_chunks.write_chunks(tmp_path / "raw", scenes)
    options = Options(tmp_path / "raw", tmp_path / "out")
    convert(options, 1, 1)
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    scenes[0]["images"] = [torch.zeros(5, dtype=torch.uint8)] * 3
    raw_chunks.write_chunks(tmp_path / "raw", scenes)
    report = convert(options, 1, 1)
    assert "none of its 3 frames" in report.bad_scenes[0][1]
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before


def test_a_packed_file_cannot_claim_a_disk_full(tmp_path: Path) -> None:
    blosc2 = pytest.importorskip("blosc2")
    from src.data.packed import Packed

    frame = blosc2.SChunk(chunksize=2**30, contiguous=True, urlpath=str(tmp_path / "a.bl2"), mode="w")
    frame.fill_special(2**36, blosc2.SpecialValue.ZERO)
    (tmp_path / "b.bl2").write_bytes(blosc2.compress2(bytes(10**7)))
    for name in ("a.bl2", "b.bl2"):
        with pytest.raises(ValueError, match="claims more"):
            Packed(tmp_path / name)


def test_a_torch_file_cannot_claim_the_memory_full(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, buffer)
    source = zipfile.ZipFile(buffer)
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in source.namelist():
            packed.writestr(name, source.read(name))
    with pytest.raises(TorchFileError, match="compressed"):
        read_torch_file(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "strange",
    [torch.zeros(2).to_sparse(), torch.zeros(2, device="meta"), torch.zeros(1).expand(10**12)],
    ids=["sparse", "meta", "four terabytes in four bytes"],
)
def test_weights_are_plain_tensors(strange: torch.Tensor, tmp_path: Path) -> None:
    torch.save({"a": strange}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="holds no tensors"):
        load_weights(tmp_path / "a.pt")


def test_weights_must_be_finite_in_the_type_of_the_model() -> None:
    with pytest.raises(CheckpointError, match="a holds NaN or infinity"):
        require_finite({"a": torch.tensor([1e300], dtype=torch.float64)}, "file")
    require_finite({"a": torch.tensor([1e30]), "b": torch.tensor([3])}, "file")


def test_shapes_of_no_model_tell_no_sizes() -> None:
    assert sizes_of({"target_pose_tokenizer.1.weight": (3,)}) == {}


def test_pruning_leaves_alone_what_a_link_leads_to(tmp_path: Path) -> None:
    elsewhere, run = tmp_path / "elsewhere", tmp_path / "run"
    for folder in (elsewhere, run):
        folder.mkdir()
    (elsewhere / "checkpoint.json").write_text("{}")
    (run / "ckpt_0000000000000001").symlink_to(elsewhere)
    (run / ".ckpt_0000000000000003.tmp").symlink_to(elsewhere)
    (run / ".ckpt_0000000000000004.tmp").write_text("a file")
    newest = run / "ckpt_0000000000000002"
    newest.mkdir()
    (newest / "checkpoint.json").write_text("{}")
    prune(run, step=2, keep=1)
    assert list(run.iterdir()) == [newest] and (elsewhere / "checkpoint.json").is_file()


def test_a_checkpoint_under_the_name_of_another_step_is_none(tmp_path: Path) -> None:
    from src.saving import save_checkpoint

    path = save_checkpoint(tmp_path, 4, {"a": torch.zeros(2)}, {"x": 1}, {})
    assert damage(path) is None
    copy = shutil.copytree(path, tmp_path / "ckpt_0000000000000008")
    assert "step 4 under another name" in damage(Path(copy))


def test_a_message_is_shown_without_control_characters_and_bounded(capsys: pytest.CaptureFixture) -> None:
    assert printable("a\x1b[31m\x00\nb\u202e") == "a\\x1b[31m\\x00\nb\\u202e"
    assert len(printable("x" * 10**6)) < LONGEST_LINE + 10

    def work() -> None:
        raise ValueError("\x1b[31m")

    assert guarded(work) == 2 and capsys.readouterr().err == "error: \\x1b[31m\n"


def test_aliases_cannot_stand_for_more_than_a_memory_holds(tmp_path: Path) -> None:
    for form in ("[{}]", "{{{}}}"):
        lines = ["a0: &a0 [x]"]
        for n in range(1, 12):
            parts = ", ".join(f"k{i}: *a{n - 1}" if form == "{{{}}}" else f"*a{n - 1}" for i in range(10))
            lines.append(f"a{n}: &a{n} {form.format(parts)}")
        (tmp_path / "a.yaml").write_text("\n".join(lines))
        with pytest.raises(ConfigError, match=r"a\.yaml: its anchors"):
            read_yaml(tmp_path / "a.yaml")
