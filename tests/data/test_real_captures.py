"""Real photos: both routes agree, the off-centre principal point survives, short scenes are counted."""

from __future__ import annotations

import pytest
import torch
from raw_chunks import config

from src.data.convert import Options, convert
from src.data.eval_index import evaluation_loader
from src.data.loader import training_loader


@pytest.fixture(scope="module")
def captures(shared, tmp_path_factory):
    """Chunk folder of the test captures, its index in a cache of the tests, and the converted form."""
    folder = tmp_path_factory.mktemp("captures")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PARALLAX_CACHE", str(folder / "cache"))
        raw = {mode: shared / "data/re10k_format" / mode for mode in ("train", "test")}
        for mode in raw:
            report = convert(Options(raw[mode], folder / mode, verify="header"), 1, 1)
            assert not report.failed
        yield raw, folder


def large(path, index="", **training):
    settings = config(path, index, num_views=5, num_target_views=3, **training)
    settings.model.image_tokenizer.image_size = 224
    return settings


def test_both_routes_give_equal_samples_and_count_short_scenes(captures):
    raw, folder = captures
    direct = training_loader(large(raw["train"]), rank=0, world=1)
    converted = training_loader(large(folder / "train/full_list.txt"), rank=0, world=1)
    for _ in range(3):
        ours, theirs = next(direct), next(converted)
        for name in ("image", "c2w", "fxfycxcy", "index", "target_idx"):
            assert torch.equal(ours[name], theirs[name]), name
    assert direct.report() == converted.report()
    assert direct.report()["first_replaced"] == [
        "fox_short: 4 frames are too few for 5 views with training.view_sampler bounded and its training.view_selector"
    ]


def test_principal_point_of_fox_stays_off_centre(captures, shared):
    """0.675 of the height; horizontally 0.5136 of 392 pixels, less 84 for the crop."""
    raw, _ = captures
    index = shared / "data/evaluation/re10k_train_2view.json"
    loader = evaluation_loader(large("", index), str(raw["train"]), rank=0, world=1)
    assert (loader.num_scenes, loader.num_null, loader.missing) == (3, 1, [])
    (fox,) = [
        batch.fxfycxcy[row, 0]
        for batch in loader
        for row, name in enumerate(batch.scene_name)
        if name == "fox"
    ]
    expected = torch.tensor([1.2895 * 392, 2.2908 * 224, 0.5136 * 392 - 84, 0.6754 * 224])
    torch.testing.assert_close(fox, expected, atol=0.03, rtol=0)


def test_test_scenes_can_all_be_scored(captures, shared):
    _, folder = captures
    index = shared / "data/evaluation/re10k_test_4view.json"
    loader = evaluation_loader(large("", index), str(folder / "test/full_list.txt"), rank=0, world=1)
    (batch,) = loader
    assert batch.scene_name == ["mydesk_a2", "mydesk_a3"] and batch.num_input == 4
    assert batch.image.shape == (2, 10, 3, 224, 224)
