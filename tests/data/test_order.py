"""The global order of samples."""

from __future__ import annotations

from collections import Counter

from src.data.order import Order, context_size, sample_rng


def test_each_scene_comes_once_an_epoch_in_a_new_order():
    order = Order([10], [1.0], seed=1)
    epochs = [[order.draw(10 * epoch + slot).scene for slot in range(10)] for epoch in range(3)]
    assert all(sorted(scenes) == list(range(10)) for scenes in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [order.epoch(n) for n in (0, 9, 10)] == [0, 0, 1]


def test_order_is_a_function_of_seed_and_number():
    forward, backward = Order([7], [1.0], 3), Order([7], [1.0], 3)
    numbers = range(40)
    assert [forward.draw(n) for n in numbers] == [backward.draw(n) for n in reversed(numbers)][::-1]
    assert [forward.draw(n) for n in numbers] != [Order([7], [1.0], 4).draw(n) for n in numbers]


def test_weights_share_out_an_epoch_and_no_scene_repeats_early():
    """3:1 by weight, whatever the sizes; each data set is walked through in whole passes."""
    order = Order([4, 12], [3.0, 1.0], seed=0)
    draws = [order.draw(n) for n in range(16 * 3)]
    for epoch in range(3):
        assert Counter(d.source for d in draws[16 * epoch : 16 * epoch + 16]) == {0: 12, 1: 4}
    for source, size in enumerate([4, 12]):
        own = [d for d in draws if d.source == source]
        for walk in range(len(own) // size):
            scenes = [d.scene for d in own[walk * size : (walk + 1) * size]]
            assert sorted(scenes) == list(range(size))
    assert len(set(draws)) == len(draws)  # so no two samples share their random stream


def test_samples_have_streams_of_their_own():
    order = Order([5], [1.0], 0)
    first = {sample_rng(0, order.draw(n)).random() for n in range(50)}
    assert len(first) == 50
    assert sample_rng(0, order.draw(3)).random() == sample_rng(0, order.draw(3)).random()


def test_context_size_depends_on_seed_and_update():
    sizes = [context_size(0, update, [2, 3, 4]) for update in range(200)]
    assert set(sizes) == {2, 3, 4}
    assert sizes == [context_size(0, update, [2, 3, 4]) for update in range(200)]
