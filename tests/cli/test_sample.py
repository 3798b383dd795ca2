"""`python -m src.sample`: which scenes it takes, what it writes, and that a seed gives the same files again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_run import write_scenes

from src.config import ConfigError
from src.sample import find_scenes, main, quoted_scene_id, unit_baseline

MODEL = {
    "class_name": "src.model.mvldm.MVLDM",
    "image_size": 16,
    "vae": {"name": "tiny", "architecture": {"block_out_channels": [4, 4, 4], "norm_num_groups": 2}},
    "denoiser": {
        "block_out_channels": [8, 16],
        "down_block_types": ["DownBlock2D"] * 2,
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": ["UpBlock2D"] * 2,
        "layers_per_block": 1,
        "num_heads": 2,
        "norm_num_groups": 4,
        "multi_view_attention": {"num_heads": 2, "norm_num_groups": 4},
    },
    "scheduler": {"num_inference_steps": 2},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of an untrained model, its scenes of 8 frames, and an index as mv-ldm's: a list of entries."""
    root = tmp_path_factory.mktemp("sample")
    data = write_scenes(root, num_scenes=3, num_frames=8)
    index = {f"scene{i}": [{"context": [0], "target": [*range(1, 8)]}] for i in range(3)}
    (root / "index.json").write_text(json.dumps(index))
    tree = {
        "model": MODEL,
        "training": {
            "eval_dataset_path": str(data),
            "image_shape": [16, 16],
            "pose_frame": "none",
            "make_baseline_1": True,
            "use_amp": False,
            "num_workers": 0,
        },
        "inference": {"view_idx_file_path": str(root / "index.json"), "checkpoint": "random"},
    }
    (root / "run.yaml").write_text(yaml.safe_dump(tree))
    return root


def sample(run: Path, out: str, *words: str) -> Path:
    folder = run / out
    assert main(["-c", str(run / "run.yaml"), f"inference.inference_out_dir={folder}", *words]) == 0
    return folder


def pictures(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))}


def test_every_frame_of_the_index_is_written_with_video_sheet_and_plan(run: Path) -> None:
    folder = sample(run, "all", "scene_id=1") / "scene1"
    assert list(pictures(folder / "render")) == [f"{frame:06d}.png" for frame in range(1, 8)]
    assert list(pictures(folder / "input")) == ["000000.png"] and len(pictures(folder / "target")) == 7
    assert (folder / "sampled.mp4").stat().st_size and (folder / "sheet.png").is_file()
    plan = json.loads((folder / "plan.json").read_text())
    assert sorted(frame for call in plan["calls"] for frame in call["target"]) == list(range(1, 8))
    first, *others = plan["calls"]
    assert first == {"context": [0], "generated_context": [], "target": [2, 4, 6, 7], "reference": 0}
    assert all(call["reference"] == call["generated_context"][-1] for call in others)


def test_the_same_seed_gives_the_same_pictures_and_another_does_not(run: Path) -> None:
    first = pictures(sample(run, "one", "scene_id=scene2") / "scene2" / "render")
    again = pictures(sample(run, "two", "scene_id=2") / "scene2" / "render")
    other = pictures(sample(run, "three", "scene_id=2", "inference.sampling_seed=5") / "scene2" / "render")
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)


def test_several_scenes_limits_and_modes(run: Path) -> None:
    words = (
        "scene_id=0,scene2",
        "inference.sampling.mode=autoregressive",
        "inference.sampling.limit_frames=5",
    )
    folder = sample(run, "some", *words)
    assert sorted(path.name for path in folder.iterdir()) == ["scene0", "scene2"]
    assert len(pictures(folder / "scene0" / "render")) == 5
    other = {path: path.stat().st_mtime_ns for path in (folder / "scene2").rglob("*")}
    sample(run, "some", "scene_id=0", *words[1:])
    assert other == {path: path.stat().st_mtime_ns for path in (folder / "scene2").rglob("*")}


def test_several_context_views_without_an_index_and_a_path_between_them(run: Path) -> None:
    words = ("inference.view_idx_file_path=", "inference.sampling.context_frames=[0,7]")
    folder = sample(run, "free", *words) / "scene0"
    assert list(pictures(folder / "render")) == [f"{frame:06d}.png" for frame in range(1, 7)]
    words += ("inference.sampling.along_path=true", "inference.render_video_config.num_frames=5")
    folder = sample(run, "path", *words) / "scene0"
    assert len(pictures(folder / "render")) == 5 and not pictures(folder / "target")


@pytest.mark.parametrize(
    "wrong", ["scene_id=scene7", "scene_id=99", "scene_id=1e10", "inference.checkpoint=nowhere"]
)
def test_what_cannot_be_sampled_ends_with_status_2_and_one_line(
    run: Path, wrong: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(["-c", str(run / "run.yaml"), f"inference.inference_out_dir={run / 'no'}", wrong]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    if wrong == "scene_id=scene7":
        assert "scene0" in errors[0]


def test_a_family_that_does_not_sample_is_told_so(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = Path(__file__).parents[2] / "config" / "quickstart.yaml"
    data = yaml.safe_load((run / "run.yaml").read_text())["training"]["eval_dataset_path"]
    words = [
        f"training.eval_dataset_path={data}",
        "inference.view_idx_file_path=",
        "inference.checkpoint=random",
    ]
    words += [f"inference.inference_out_dir={tmp_path}", "training.square_crop=true"]
    assert main(["-c", str(config), *words]) == 2
    assert "does not sample" in capsys.readouterr().err


def test_names_go_before_places_whatever_they_look_like() -> None:
    names = ["1e10", "007", "2", "abc"]
    assert find_scenes("1e10", names) == ["1e10"] and find_scenes("007", names) == ["007"]
    assert find_scenes("2", names) == ["2"] and find_scenes("3,0", names) == ["abc", "1e10"]
    assert find_scenes("all", names) == names
    with pytest.raises(ConfigError, match="abc"):
        find_scenes("abd", names)


def test_a_scene_id_on_the_command_line_stays_text() -> None:
    assert quoted_scene_id(["scene_id=1e10", "a.b=2"]) == ['inference.sampling.scene_id="1e10"', "a.b=2"]
    assert quoted_scene_id(["inference.sampling.scene_id=007"]) == ['inference.sampling.scene_id="007"']


def test_scenes_come_to_the_scale_of_training_from_one_context_view_or_two() -> None:
    c2w = torch.eye(4).repeat(1, 4, 1, 1)
    c2w[0, :, 0, 3] = torch.tensor([1.0, 3.0, 5.0, 2.0])
    assert unit_baseline(c2w, 1)[0, :, 0, 3].tolist() == [0.25, 0.75, 1.25, 0.5]  # the farthest is 4 away
    assert unit_baseline(c2w, 2)[0, :, 0, 3].tolist() == [0.5, 1.5, 2.5, 1.0]  # the two are 2 apart
    still = torch.eye(4).repeat(1, 3, 1, 1)
    assert torch.equal(unit_baseline(still, 1), still)
