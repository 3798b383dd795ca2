"""What a data set declines, how it orders views, mirrored samples, baseline 1, and fewer context views of an index."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from raw_chunks import config, scene, write_chunks

from src.config import ConfigError
from src.data.dataset import SceneDataset
from src.data.eval_index import Entry, evaluation_loader
from src.data.meta import write_meta
from src.data.scene import SceneError
from src.data.transforms import cover_and_crop, mirror
from src.data.view_settings import ViewSettings
from src.geometry.camera import Cameras, pixel_rays


def open_set(folder, **training) -> SceneDataset:
    return SceneDataset(str(folder), ViewSettings.of(config(folder, **training)))


@pytest.fixture
def raw(tmp_path):
    """A usual scene; one whose last frame sees acos(-1.762 / 2.004 / 1.890) = 117.7 degrees; one of other pictures."""
    wide = scene("wide", frames=12, seed=1)
    wide["cameras"][-1, 0] = 0.3
    return write_chunks(tmp_path / "raw", [scene("plain"), wide, scene("large", size=(80, 45), seed=2)])


def test_scenes_with_a_wide_field_of_view_are_declined_as_a_whole(raw):
    scenes = open_set(raw, max_fov=100.0)
    position = list(scenes.scenes.names).index("wide")
    with pytest.raises(SceneError, match=r"field of view 117.7 degrees, above training.max_fov 100"):
        scenes.evaluation_sample(position, (0,), (1,))
    for number in range(20):
        sample = scenes.training_sample(position, 2, 0, random.Random(number))
        assert sample["scene_name"] != "wide" and "wide" in sample["replaced"][0]


def test_scenes_of_another_shape_are_declined(raw):
    with pytest.raises(ConfigError, match="expected_shape"):
        open_set(raw, skip_bad_shape=True)
    write_meta(raw.parent, 36, 64, {})
    scenes = open_set(raw, skip_bad_shape=True)
    names = list(scenes.scenes.names)
    with pytest.raises(SceneError, match="80x45, not 64x36"):
        scenes.evaluation_sample(names.index("large"), (0,), (1,))
    scenes.evaluation_sample(names.index("plain"), (0,), (1,))
    (raw.parent / "meta.json").write_text(json.dumps({"expected_shape": [36, 64]}))
    with pytest.raises(ConfigError, match="expected_shape"):
        open_set(raw, skip_bad_shape=True)


@pytest.mark.parametrize("which", ["context", "target"])
def test_views_are_sorted_if_asked(raw, which):
    options = {"num_views": 6, "num_input_views": 3, "target_has_input": False}
    for seed in range(20):
        rng = [random.Random(seed) for _ in range(2)]
        plain = open_set(raw, **options).training_sample(1, 3, 0, rng[0])["index"][:, 0].tolist()
        ours = open_set(raw, **options, **{f"sort_{which}_index": True}).training_sample(1, 3, 0, rng[1])
        parts = {"context": plain[:3], "target": plain[3:]}
        parts[which] = sorted(parts[which])
        assert ours["index"][:, 0].tolist() == [*parts["context"], *parts["target"]]


def test_a_mirrored_view_shows_the_mirrored_world():
    """The pixel column i from the left has become the i-th from the right, and its ray is reflected in x = 0."""
    generator = np.random.default_rng(0)
    image = generator.integers(0, 255, (6, 10, 3), dtype=np.uint8)
    fxfycxcy = np.array([9.0, 8.0, 4.2, 3.1])
    c2w = np.eye(4)
    c2w[:3, :3], c2w[:3, 3] = np.linalg.qr(generator.normal(size=(3, 3)))[0], [1, 2, 3]
    flipped, intrinsics, pose = mirror(image, fxfycxcy, c2w)
    assert (flipped[:, 0] == image[:, 9]).all() and np.linalg.det(pose[:3, :3]) == pytest.approx(
        np.linalg.det(c2w[:3, :3])
    )

    def rays(numbers, matrix):
        camera = Cameras(torch.tensor(matrix)[None, None], torch.tensor(numbers)[None, None], 6, 10)
        return [rays[0, 0] for rays in pixel_rays(camera)]

    signs = torch.tensor([-1.0, 1.0, 1.0])[:, None, None]
    for before, after in zip(rays(fxfycxcy, c2w), rays(intrinsics, pose)):
        torch.testing.assert_close(after, (before * signs).flip(2))


def test_half_of_the_samples_are_mirrored_as_a_whole(raw):
    mirrored = 0
    for seed in range(60):
        options = {"pose_frame": "none"}
        plain = open_set(raw, **options).training_sample(1, 2, 0, random.Random(seed))
        ours = open_set(raw, **options, augment=True).training_sample(1, 2, 0, random.Random(seed))
        assert ours["index"].tolist() == plain["index"].tolist()
        if torch.equal(ours["image"], plain["image"].flip(3)):
            mirrored += 1
            assert torch.equal(ours["c2w"][:, 0, 3], -plain["c2w"][:, 0, 3])
            torch.testing.assert_close(ours["fxfycxcy"][:, 2], 28 - plain["fxfycxcy"][:, 2])
        else:
            assert torch.equal(ours["image"], plain["image"]) and torch.equal(ours["c2w"], plain["c2w"])
    assert 15 < mirrored < 45


def test_baseline_1_puts_the_outer_context_views_one_apart(raw):
    plain = open_set(raw, pose_frame="none").evaluation_sample(1, (1, 3, 8), (5,))
    scaled = open_set(raw, pose_frame="none", make_baseline_1=True).evaluation_sample(1, (1, 3, 8), (5,))
    centres, before = scaled["c2w"][:, :3, 3], plain["c2w"][:, :3, 3]
    torch.testing.assert_close((centres[2] - centres[0]).norm(), torch.tensor(1.0))
    factor = 1 / (before[2] - before[0]).norm()
    torch.testing.assert_close(centres, before * factor)
    torch.testing.assert_close(scaled["camera_scale"], factor)
    with pytest.raises(SceneError, match="make_baseline_1"):
        open_set(raw, pose_frame="none", make_baseline_1=True).evaluation_sample(1, (2, 2), (5,))


def test_baseline_1_of_a_single_context_view_is_the_way_to_the_farthest_view(raw):
    """As in training, where a second context view stood at that distance: evaluation is of the same scale."""
    plain = open_set(raw, pose_frame="none").evaluation_sample(1, (1,), (3, 8, 5))
    scaled = open_set(raw, pose_frame="none", make_baseline_1=True).evaluation_sample(1, (1,), (3, 8, 5))
    ways = (plain["c2w"][1:, :3, 3] - plain["c2w"][0, :3, 3]).norm(dim=1)
    torch.testing.assert_close(scaled["c2w"][:, :3, 3], plain["c2w"][:, :3, 3] / ways.max())


def test_examples_of_one_scene_do_not_inherit_each_others_scale(raw):
    scenes = open_set(raw, pose_frame="none", make_baseline_1=True)
    first = scenes.evaluation_sample(1, (1, 8), (5,))
    scenes.evaluation_sample(1, (2, 4), (3,))
    again = scenes.evaluation_sample(1, (1, 8), (5,))
    assert torch.equal(again["c2w"], first["c2w"]) and torch.equal(
        again["camera_scale"], first["camera_scale"]
    )


def test_the_published_crop_leaves_the_principal_point_where_it_was():
    """64x36 to 24x24: scaled to 43x24, so that the true centre moves by half a pixel."""
    image, fxfycxcy = np.zeros((36, 64, 3), dtype=np.uint8), np.array([50.0, 50.0, 32.0, 18.0])
    exact = cover_and_crop(image, fxfycxcy, 24, 24)[1]
    published = cover_and_crop(image, fxfycxcy, 24, 24, keep_principal_point=True)[1]
    np.testing.assert_allclose(exact[2:], [21.5 - 9, 12])
    np.testing.assert_allclose(published[2:], [12, 12])
    np.testing.assert_allclose(exact[:2], published[:2])


@pytest.mark.parametrize(
    "count,kept", [(1, (2,)), (2, (2, 30)), (3, (2, 11, 30)), (4, (2, 7, 20, 30)), (5, (2, 7, 11, 20, 30))]
)
def test_fewer_context_views_are_the_outer_ones_first(count, kept):
    entry = Entry((30, 2, 11, 7, 20), (5, 6))
    assert entry.with_context(count) == Entry(kept, (5, 6))


def test_scenes_with_too_few_context_views_are_left_out(raw, tmp_path):
    index = {"plain": {"context": [0, 4, 9], "target": [2]}, "wide": {"context": [0, 4], "target": [2]}}
    (tmp_path / "index.json").write_text(json.dumps(index))
    settings = config(raw, index=tmp_path / "index.json")
    settings.inference.num_context_views = 3
    loader = evaluation_loader(settings, str(raw), rank=0, world=1)
    assert loader.num_scenes == 1 and loader.missing == [
        ("wide", "2 context views in the index, fewer than 3")
    ]
    settings.inference.num_context_views = 2
    batch = next(iter(evaluation_loader(settings, str(raw), rank=0, world=1)))
    assert batch.index[0, :, 0].tolist() == [0, 9, 2] and batch.num_input == 2
