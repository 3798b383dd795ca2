"""How many targets are rendered at once: given, or counted on paper against the memory there is."""

from __future__ import annotations

import pytest
import torch
from test_memory import load, most_allocated, random_views

from src import frames_at_once
from src.frames_at_once import FramesAtOnce, fitting_frames, render_bytes
from src.memory import MARGIN
from src.model import build_model

CPU = torch.device("cpu")


@pytest.mark.parametrize("chunk", [0, 3])
def test_a_given_number_stands(chunk: int) -> None:
    at_once = FramesAtOnce(load("debug", f"inference.chunk={chunk}"), CPU)
    assert at_once(random_views(1, 2, 16), 16, 16) == chunk


def test_without_a_gpu_it_is_four() -> None:
    assert FramesAtOnce(load("debug", "inference.chunk=-1"), CPU)(random_views(1, 2, 16), 16, 16) == 4


def test_as_many_as_fit_and_at_least_one() -> None:
    config = load("debug")
    one, two = (render_bytes(config, 2, 3, (16, 16), number) for number in (1, 2))
    each = two - one
    room = one - each + 5.5 * each
    assert fitting_frames(config, 2, 3, 16, 16, free=int(room / MARGIN)) == 5
    assert fitting_frames(config, 2, 3, 16, 16, free=1000) == 1


def test_each_size_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []

    def remember(_: object, *sizes: int, free: int) -> int:
        counted.append((*sizes, free))
        return 7

    monkeypatch.setattr(frames_at_once, "device_memory", lambda device: (5, 10**6))
    monkeypatch.setattr(frames_at_once, "fitting_frames", remember)
    at_once = FramesAtOnce(load("debug", "inference.chunk=-1"), CPU)
    assert [at_once(random_views(1, number, 16), 16, 32) for number in (2, 3, 2)] == [7, 7, 7]
    assert counted == [(1, 2, 16, 32, 10**6), (1, 3, 16, 32, 10**6)]


@pytest.mark.parametrize("name", ["debug", "kvlvsm_tiny", "lact_small", "debug_efficient_lvsm"])
def test_memory_on_paper_is_that_of_the_allocator(name: str) -> None:
    config = load(name, "training.use_amp=false")
    model, side = build_model(config.model).eval(), config.model.image_tokenizer.image_size
    input, target = random_views(1, 2, side), random_views(1, 6, side)
    with torch.no_grad():
        scene = model.encode(input)
        model.decode(scene, target.cameras)  # what is only made once is not counted
        most = most_allocated(lambda: model.decode(scene, target.cameras))
    assert 0.95 * most < render_bytes(config, 1, 2, (side, side), 6) < 1.2 * most  # some kernels do with less
