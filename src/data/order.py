"""Which scene is sample number n, and the random stream of that sample: functions of the seed alone.

Numbers count samples over all ranks and for ever, so order and content do not depend on the number of ranks, workers
or restarts.

Public: Order, Draw, sample_rng, model_seed, scene_seed, context_size.
"""

from __future__ import annotations

import hashlib
import random
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

_WALK, _MIX, _SAMPLE, _CONTEXT, _MODEL = range(5)
"""First key of each family of random streams, so that they never coincide."""


def _stream(seed: int, *keys: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed % 2**64, *keys])


@dataclass(frozen=True)
class Draw:
    """Sample `scene` of data set `source`, in the `walk`-th pass over that data set."""

    source: int
    walk: int
    scene: int


class Order:
    """The endless order of samples from one or several weighted data sets.

    An epoch has as many samples as all data sets have scenes together. Each data set gets a share of them in
    proportion to its weight (largest remainders), in places that are shuffled anew each epoch. Its own scenes come in
    passes, each in a new random order: none repeats before all have been drawn, also across epochs. With a single
    data set an epoch is one pass.
    """

    def __init__(self, sizes: list[int], weights: list[float], seed: int) -> None:
        """sizes: scenes per data set, all positive. weights: relative share of the samples, all positive."""
        self.sizes, self.seed = sizes, seed
        self.epoch_length = sum(sizes)
        exact = np.array(weights, dtype=np.float64) / sum(weights) * self.epoch_length
        self.shares = np.floor(exact).astype(np.int64)
        rest = np.argsort(-(exact - self.shares), kind="stable")[: self.epoch_length - self.shares.sum()]
        self.shares[rest] += 1
        self.cache: OrderedDict[tuple, tuple[np.ndarray, ...]] = OrderedDict()

    def epoch(self, number: int) -> int:
        """The epoch of sample `number`."""
        return number // self.epoch_length

    def draw(self, number: int) -> Draw:
        """What sample `number` is made of."""
        epoch, slot = divmod(number, self.epoch_length)
        labels, ordinals = self._cached((_MIX, epoch), self._mix)
        source = int(labels[slot])
        drawn = epoch * int(self.shares[source]) + int(ordinals[slot])
        walk, place = divmod(drawn, self.sizes[source])
        (scenes,) = self._cached((_WALK, source, walk), self._walk)
        return Draw(source, walk, int(scenes[place]))

    def _cached(self, key: tuple, make) -> tuple[np.ndarray, ...]:
        """Prefetching workers move on through epochs: the latest few tables are enough."""
        if key not in self.cache:
            self.cache[key] = make(*key[1:])
            while len(self.cache) > 4 * len(self.sizes) + 2:
                self.cache.popitem(last=False)
        self.cache.move_to_end(key)
        return self.cache[key]

    def _mix(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Data set of each place in an epoch, and which of the data set's samples in this epoch stands there."""
        labels = np.repeat(np.arange(len(self.sizes)), self.shares)
        if len(self.sizes) > 1:
            labels = np.random.default_rng(_stream(self.seed, _MIX, epoch)).permutation(labels)
        ordinals = np.zeros(len(labels), dtype=np.int64)
        for source, share in enumerate(self.shares):
            ordinals[labels == source] = np.arange(share)
        return labels, ordinals

    def _walk(self, source: int, walk: int) -> tuple[np.ndarray]:
        rng = np.random.default_rng(_stream(self.seed, _WALK, source, walk))
        return (rng.permutation(self.sizes[source]),)


def sample_rng(seed: int, draw: Draw) -> random.Random:
    """Generator of every random choice inside one sample."""
    state = _stream(seed, _SAMPLE, draw.source, draw.walk, draw.scene).generate_state(8)
    return random.Random(int.from_bytes(state.tobytes(), "little"))


def model_seed(seed: int, draw: Draw) -> int:
    """Seed of whatever a model draws at random for one sample: on any number of processes the same."""
    return int(_stream(seed, _MODEL, draw.source, draw.walk, draw.scene).generate_state(1, np.uint64)[0] >> 1)


def scene_seed(seed: int, scene: str) -> int:
    """The same for a scene that is scored or sampled: it depends on no other scene."""
    digest = hashlib.sha256(f"{seed} {scene}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def context_size(seed: int, update: int, choices: list[int]) -> int:
    """Number of context views of optimiser step `update`: the same on all ranks and in all its micro-steps."""
    return choices[int(np.random.default_rng(_stream(seed, _CONTEXT, update)).integers(len(choices)))]
