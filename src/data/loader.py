"""Batches for training: endless, in one global order, from bounded memory.

Optimiser step u, micro-step a, rank r, sample j takes the global sample number ((u * accum + a) * world + r) * batch
+ j (`order.py`), so one process with batch 8, two with 4, or two accumulated batches of 4 see the same samples, and a
run resumed after n samples goes on with number n, whatever the number of workers.

Public: training_loader, TrainingLoader, BatchNumbers, ContextCounts, plan_prefetch, sources.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

from torch.utils.data import Dataset

from ..config import ConfigError
from ..settings import RunConfig, Training
from . import dataset_class
from .batch import Batch, collate
from .bounded_views import context_counts
from .order import Order, context_size, model_seed, sample_rng
from .remote.source import SourceLost
from .scene import SceneError
from .view_settings import ViewSettings
from .workers import ReadAhead

log = logging.getLogger(__name__)

DYNAMIC_CONTEXT = (2, 3, 4)
"""Numbers of context views with `training.dynamic_input_view_num`, as published."""

TRAINING_SHARE, EVALUATION_SHARE = 0.75, 0.25
"""Parts of `training.prefetch_bytes` for the two loaders of a rank, which may be alive at the same time."""


def training_loader(
    config: RunConfig, *, rank: int, world: int, samples_seen: int = 0, pin: bool = False
) -> TrainingLoader:
    """The endless loader of one rank.

    Args:
        config: its training section names data, batch size, workers and seed.
        samples_seen: samples that all ranks together have used before.
        pin: hand out page-locked tensors, for faster copies to an accelerator.

    Raises:
        ConfigError: the data set cannot be opened.
        SceneError: no scene of it gives a sample.
    """
    return TrainingLoader(config, rank, world, samples_seen, pin)


class TrainingLoader:
    """Endless iterator of batches; see `training_loader`.

    shape: height and width of the pictures.
    """

    def __init__(self, config: RunConfig, rank: int, world: int, samples_seen: int, pin: bool) -> None:
        self.training = config.training
        self.samples = _Samples(config)
        self.contexts = ContextCounts(config.training)
        self.counts = {"samples": 0, "replaced_scenes": 0, "enlarged_pictures": 0}
        self.first_replaced: list[str] = []
        probe = self.samples[[(samples_seen, self.contexts.most, 0)]]
        picture = _take(probe)["image"]
        self.shape = tuple(picture.shape[-2:])
        self.batch_bytes = picture.nbytes * config.training.batch_size_per_gpu
        _check_memory(self.batch_bytes, config.training)
        self.num_workers, self.prefetch_factor = plan_prefetch(
            self.batch_bytes,
            config.training.num_workers,
            config.training.prefetch_factor,
            int(config.training.prefetch_bytes * TRAINING_SHARE),
        )
        self.batches = ReadAhead(
            self.samples,
            BatchNumbers(config.training, self.contexts, rank, world, samples_seen),
            num_workers=self.num_workers,
            prefetch_factor=self.prefetch_factor,
            pin=pin,
            describe=self.samples.scene_names,
        )

    @property
    def num_scenes(self) -> int:
        """Scenes of all data sets together: the samples of an epoch."""
        return self.samples.order.epoch_length

    def epoch_of(self, samples_seen: int) -> int:
        """The epoch in which sample number `samples_seen` lies."""
        return self.samples.order.epoch(samples_seen)

    def report(self) -> dict[str, Any]:
        """Counts over the batches this rank has handed out, and the first scenes that had to be replaced."""
        problems = sum(len(source.scenes.problems) for source in self.samples.sources)
        return {**self.counts, "unusable_files_or_scenes": problems, "first_replaced": self.first_replaced}

    def __iter__(self) -> TrainingLoader:
        return self

    def __next__(self) -> Batch:
        batch = _take(next(self.batches))
        self._count(batch.pop("replaced"), batch.pop("enlarged"), len(batch["scene_name"]))
        return Batch(batch)

    def close(self) -> None:
        """Stop the worker processes; also done when the program ends or the loader is no longer used."""
        self.batches.close()

    def _count(self, replaced: list[str], enlarged: int, samples: int) -> None:
        if replaced and not self.counts["replaced_scenes"]:
            log.warning("a scene was replaced by another: %s. Further ones are counted.", replaced[0])
        if enlarged and not self.counts["enlarged_pictures"]:
            log.warning(
                "pictures smaller than model.image_tokenizer.image_size are enlarged; they are counted."
            )
        self.counts["samples"] += samples
        self.counts["replaced_scenes"] += len(replaced)
        self.counts["enlarged_pictures"] += enlarged
        new = [line for line in dict.fromkeys(replaced) if line not in self.first_replaced]
        self.first_replaced += new[: 10 - len(self.first_replaced)]


class BatchNumbers:
    """The batches of one rank, for ever: for each a list of (global sample number, context views, step)."""

    def __init__(
        self, training: Training, contexts: ContextCounts, rank: int, world: int, samples_seen: int
    ) -> None:
        self.batch, self.accum = training.batch_size_per_gpu, training.grad_accum_steps
        self.contexts, self.rank, self.world, self.samples_seen = contexts, rank, world, samples_seen

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        per_update = self.accum * self.world * self.batch
        first = self.samples_seen
        while True:
            step = first // per_update
            num_input = self.contexts.at(step)
            for micro_step in range(self.accum):
                start = first + (micro_step * self.world + self.rank) * self.batch
                yield [(number, num_input, step) for number in range(start, start + self.batch)]
            first += per_update


def plan_prefetch(batch_bytes: int, num_workers: int, prefetch_factor: int, limit: int) -> tuple[int, int]:
    """Workers and batches per worker such that ready batches take at most `limit` bytes.

    First the batches per worker are lowered, then the workers; 0 workers load in the main process, which holds one
    batch at a time.
    """
    if num_workers == 0:
        return 0, prefetch_factor
    ready = limit // max(1, batch_bytes)
    workers = min(num_workers, ready)
    factor = min(prefetch_factor, ready // workers) if workers else 1
    if (workers, factor) != (num_workers, prefetch_factor):
        log.info(
            "a batch takes %.1f MiB: %d loader processes with %d batches each stay under %.0f MiB "
            "(num_workers %d, prefetch_factor %d; training.prefetch_bytes is the limit)",
            batch_bytes / 2**20, workers, factor, limit / 2**20, num_workers, prefetch_factor,
        )  # fmt: skip
    if not workers:
        log.warning(
            "one batch is larger than training.prefetch_bytes allows: loading in the main process, slowly."
        )
    return workers, factor


class ContextCounts:
    """How many context views the samples of an optimiser step have: the same on all ranks, in all micro-steps.

    most: the largest number there can be.
    """

    def __init__(self, training: Training) -> None:
        """Raises ConfigError if there is no number to draw from."""
        self.training, self.selector = training, training.view_selector
        self.drawn_in_warm_up = (
            training.view_sampler == "boundedv2" and self.selector.random_num_context_views
        )
        self.fixed = _context_choices(training)
        self.most = self.selector.max_context_views if self.drawn_in_warm_up else max(self.fixed)

    def at(self, step: int) -> int:
        """The number of context views of a step."""
        choices = list(context_counts(self.selector, step)) if self.drawn_in_warm_up else self.fixed
        return context_size(self.training.seed, step, choices)


def _context_choices(training: Training) -> list[int]:
    if training.input_view_choices:
        return list(training.input_view_choices)
    if not training.dynamic_input_view_num:
        return [training.num_input_views]
    free = 0 if training.targets_may_be_inputs else training.num_target_views
    choices = [number for number in DYNAMIC_CONTEXT if number <= training.num_views - free]
    if not choices:
        raise ConfigError(
            f"training.dynamic_input_view_num needs room for {DYNAMIC_CONTEXT[0]} context views beside the targets: "
            f"raise training.num_views ({training.num_views})."
        )
    return choices


class _Samples(Dataset):
    """Batches by the numbers of their samples. Lives in the worker processes."""

    def __init__(self, config: RunConfig) -> None:
        training = config.training
        paths, weights = sources(training.dataset_path)
        build = dataset_class(training.dataset_name)
        self.sources = [build(path, ViewSettings.of(config, training=True)) for path in paths]
        sizes = [len(source) for source in self.sources]
        self.offsets = [sum(sizes[:number]) for number in range(len(sizes))]
        self.order = Order(sizes, weights, training.seed)
        self.seed = training.seed

    def __getitem__(self, numbers: list[tuple[int, int, int]]) -> dict[str, Any]:
        """Fields of a batch; {"error": message} where there is none, as exceptions of a worker lose their form."""
        try:
            samples = [self._sample(*key) for key in numbers]
            batch = collate(samples, samples[0]["num_input"])
        except (SceneError, ValueError, SourceLost) as error:
            return {"error": str(error)}
        batch["replaced"] = [line for sample in samples for line in sample["replaced"]]
        batch["enlarged"] = sum(sample["enlarged"] for sample in samples)
        return batch

    def scene_names(self, numbers: list[tuple[int, int, int]]) -> str:
        """The scenes of a batch, for messages."""
        draws = (self.order.draw(number) for number, _, _ in numbers)
        return ", ".join(str(self.sources[draw.source].scenes.names[draw.scene]) for draw in draws)

    def _sample(self, number: int, num_input: int, step: int) -> dict[str, Any]:
        draw = self.order.draw(number)
        rng = sample_rng(self.seed, draw)
        sample = self.sources[draw.source].training_sample(draw.scene, num_input, step, rng)
        sample["index"][:, 1] += self.offsets[draw.source]
        sample["draw"] = model_seed(self.seed, draw)
        return sample


def sources(dataset_path: str | list) -> tuple[list[str], list[float]]:
    """Paths and weights of `training.dataset_path`."""
    if isinstance(dataset_path, str):
        return [dataset_path], [1.0]
    if not dataset_path:
        raise ConfigError("training.dataset_path is an empty list.")
    paths, weights = [], []
    for number, entry in enumerate(dataset_path):
        where = f"training.dataset_path[{number}]"
        if not isinstance(entry, dict) or set(entry) != {"path", "weight"}:
            raise ConfigError(f"{where} is {entry!r}: expected {{path: ..., weight: ...}}.")
        try:
            weight = float(entry["weight"])
        except (TypeError, ValueError):
            weight = 0.0
        if not 0 < weight < float("inf"):
            raise ConfigError(f"{where}.weight is {entry['weight']!r}: expected a number above 0.")
        paths.append(str(entry["path"]))
        weights.append(weight)
    return paths, weights


def _check_memory(batch_bytes: int, training: Training) -> None:
    """Without this, a batch that never becomes complete looks like a run that hangs."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if batch_bytes > memory:
        raise ConfigError(
            f"training.batch_size_per_gpu is {training.batch_size_per_gpu}: the pictures of one batch take "
            f"{batch_bytes / 2**30:,.0f} GiB, and this machine has {memory / 2**30:,.0f} GiB. Lower it."
        )


def _take(batch: dict[str, Any]) -> dict[str, Any]:
    if "error" in batch:
        raise SceneError(batch["error"])
    return batch
