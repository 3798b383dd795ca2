"""The command that makes evaluation indices: its rules, seeds, restarts."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from raw_chunks import encoded, scene, write_chunks

from scripts.generate_index import main
from src.data.dataset import open_scenes
from src.data.eval_index import read_index
from src.data.index_generators import PairRules, around_one_frame, between_two_frames
from src.data.make_index import IndexOptions, scene_entry
from src.data.overlap import Pinholes

LIMITS = ("--min_distance", "5", "--max_distance", "9", "--min_overlap", "0.4", "--grid", "8", "8")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    scenes = [scene(f"s{n}", frames=16, seed=n) for n in range(5)]
    scenes[3]["images"][7] = encoded(b"not a picture")
    wide = scene("wide", frames=16)
    wide["cameras"][:, 0] = 0.3  # 2 atan(0.5 / 0.3) = 118 degrees
    return write_chunks(folder, scenes[:2], scenes[2:], [scene("short", frames=4), wide])


def make(raw, tmp_path, *arguments, name="index.json", processes=1):
    output = tmp_path / name
    status = main(
        ["--data", str(raw), "--output", str(output), "--num_processes", str(processes), *LIMITS, *arguments]
    )
    return status, output


def straight(num_frames: int, turn_deg: float) -> Pinholes:
    """Cameras in one place, each turned by some degrees against the one before; fields of view of 90 degrees."""
    w2c = np.tile(np.eye(4), (num_frames, 1, 1))
    for frame, angle in enumerate(np.radians(turn_deg) * np.arange(num_frames)):
        w2c[frame, :3, :3] = [
            [np.cos(angle), 0, -np.sin(angle)],
            [0, 1, 0],
            [np.sin(angle), 0, np.cos(angle)],
        ]
    return Pinholes(np.full((num_frames, 4), 0.5), w2c)


def rules(**changes) -> PairRules:
    base = {"min_distance": 4, "max_distance": 30, "min_overlap": 0.0, "max_overlap": 1.0, "grid": (1, 200)}
    return PairRules(**{**base, **changes})


@pytest.mark.parametrize("method", [around_one_frame, between_two_frames])
def test_distances_and_overlaps_stay_in_bounds(method):
    """Turned by 2 degrees a frame: tan(45 - 2 k) is the edge of what is seen, in an image from -1 to 1."""
    found = set()
    for seed in range(150):
        chosen = method(
            straight(60, 2), [True] * 60, rules(min_overlap=0.55, max_overlap=0.8), random.Random(seed)
        )
        left, right = sorted(chosen.context)[0], sorted(chosen.context)[-1]
        overlap = (1 + np.tan(np.radians(45 - 2 * (right - left)))) / 2
        assert 0.54 < overlap < 0.81
        assert len(set(chosen.target)) == 3 and all(left < frame < right for frame in chosen.target)
        found.add(right - left)
    inside = [k for k in range(4, 31) if 0.555 <= (1 + np.tan(np.radians(45 - 2 * k))) / 2 <= 0.795]
    assert found >= set(inside)


def test_published_indices_may_have_targets_that_are_context():
    kinds = set()
    for seed in range(60):
        chosen = around_one_frame(straight(9, 1), [True] * 9, rules(as_published=True), random.Random(seed))
        kinds.add(bool(set(chosen.context) & set(chosen.target)))
    assert kinds == {True, False}


def test_targets_keep_away_from_every_context_view():
    asked = rules(num_context=4, min_target_distance=3, min_distance=14)
    for seed in range(60):
        chosen = between_two_frames(straight(40, 0.1), [True] * 40, asked, random.Random(seed))
        assert min(abs(t - c) for t in chosen.target for c in chosen.context) >= 3


def test_what_cannot_be_met_ends():
    """The original draws for ever where the window has fewer frames than targets."""
    tight = rules(num_target=9, max_distance=5)
    assert around_one_frame(straight(20, 0.1), [True] * 20, tight, random.Random(0)) is None
    assert between_two_frames(straight(20, 0.1), [True] * 20, tight, random.Random(0)) is None
    assert (
        around_one_frame(
            straight(20, 90), [True] * 20, rules(min_overlap=0.5, min_distance=1), random.Random(0)
        )
        is None
    )


def test_an_index_names_usable_frames_only(raw, tmp_path, capsys):
    status, output = make(raw, tmp_path, "--method", "v1", "--max_fov", "100")
    index = json.loads(output.read_text())
    assert status == 0 and sorted(index) == ["s0", "s1", "s2", "s3", "s4", "short", "wide"]
    assert index["short"] is None and index["wide"] is None
    assert "1 without: a field of view above 100 degrees" in capsys.readouterr().out
    for name in ("s0", "s1", "s2", "s3", "s4"):
        left, right = index[name]["context"]
        assert 5 <= right - left <= 9 and len(index[name]["target"]) == 3
    assert read_index(str(output)).num_null == 2


def test_a_damaged_frame_is_neither_context_nor_target(raw):
    position = list(open_scenes(str(raw)).names).index("s3")
    for seed in range(30):
        for method in ("v1", "v2"):
            options = IndexOptions(
                dataset=str(raw), method=method, rules=rules(max_distance=9), seed=seed, image_shape=(36, 64)
            )
            chosen, _ = scene_entry(options, position)
            assert 7 not in [*chosen.context, *chosen.target]


@pytest.mark.parametrize("method", ["v1", "v2"])
def test_the_result_depends_on_seed_and_names_alone(raw, tmp_path, method):
    once = make(raw, tmp_path, "--method", method)[1].read_text()
    assert make(raw, tmp_path, "--method", method, processes=2, name="b.json")[1].read_text() == once
    assert make(raw, tmp_path, "--method", method, "--seed", "5", name="c.json")[1].read_text() != once
    assert not list(tmp_path.glob(".*"))


def test_an_interrupted_run_goes_on(raw, tmp_path, monkeypatch, capsys):
    whole = make(raw, tmp_path, "--method", "v1", name="whole.json")[1].read_text()
    calls = []

    def fails_at_the_fourth(options, position):
        calls.append(position)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return scene_entry(options, position)

    monkeypatch.setattr("src.data.make_index.scene_entry", fails_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        make(raw, tmp_path, "--method", "v1")
    journal = tmp_path / ".index.json.journal"
    journal.write_text(journal.read_text() + '{"scene": "s4", "con')  # killed while writing
    status, output = make(raw, tmp_path, "--method", "v1")
    assert status == 0 and output.read_text() == whole and len(calls) == 4 + 4
    assert "3 from before" in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt):
        calls.clear()
        make(raw, tmp_path, "--method", "v1", name="other.json")
    assert make(raw, tmp_path, "--method", "v1", "--seed", "9", name="other.json")[0] == 0
    assert "from before" not in capsys.readouterr().out


def test_sets_of_context_views_are_nested_and_targets_equal(raw, tmp_path):
    output = make(raw, tmp_path, "--method", "v2", "--num_context_views", "4", "--min_distance", "8")[1]
    sets = [json.loads((tmp_path / f"index_num_src_{k}.json").read_text()) for k in (2, 3, 4)]
    assert sets[-1] == json.loads(output.read_text())
    for name in ("s0", "s1", "s2"):
        two, three, four = (set(index[name]["context"]) for index in sets)
        assert two < three < four and {min(four), max(four)} == two
        assert sets[0][name]["target"] == sets[2][name]["target"]


def test_a_video_shows_every_frame_between(raw, tmp_path):
    base = tmp_path / "base.json"
    base.write_text(
        json.dumps({"s0": {"context": [3, 9], "target": [5]}, "s3": {"context": [9, 5], "target": [6]}})
    )
    output = tmp_path / "video.json"
    assert main(["--data", str(raw), "--method", "video", "--index", str(base), "--output", str(output)]) == 0
    video = json.loads(output.read_text())
    assert video["s0"]["target"] == list(range(3, 10)) and video["s3"]["target"] == [5, 6, 8, 9]


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--method", "v1", "--num_context_views", "3"], "belong to method v2"),
        (["--method", "v2", "--as_published"], "belongs to method v1"),
        (["--method", "v1", "--min_distance", "99"], "max_distance 9"),
        (["--method", "v1", "--min_overlap", "1.5"], "min_overlap 1.5"),
        (["--method", "video"], "needs --index"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_together_is_refused(raw, tmp_path, arguments, message, capsys):
    assert make(raw, tmp_path, *arguments)[0] == 2
    assert message in capsys.readouterr().err
