"""Settings of the view samplers: which frames of a scene make a training sample.

Names are those of the published files where they have one; a key that the chosen sampler does not read is refused.

Public: ViewSelector, ViewChoice, OWN_TARGETS, EVERY_FRAME, view_problems.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .config import key

OWN_TARGETS = ("bounded_gap", "boundedv2", "arbitrary")
"""Samplers that choose context and targets apart: `num_views` is the sum of both, and targets are no context columns."""

EVERY_FRAME = ("all",)
"""Samplers that take every frame of a scene both as context and as target."""


@dataclass(kw_only=True)
class ViewSelector:
    """Distances count frames, warm-ups count optimiser steps. In brackets: the samplers that read a key."""

    min_frame_dist: int = key("smallest distance between the two outer views, frames (bounded*)", 25, least=1)
    max_frame_dist: int = key("largest distance between the two outer views, frames (bounded*)", 100, least=1)
    initial_min_distance_between_context_views: int = key(
        "min_frame_dist at step 0 of its warm-up (bounded_gap, boundedv2)", 25, least=1
    )
    initial_max_distance_between_context_views: int = key(
        "max_frame_dist at step 0 of its warm-up (bounded_gap, boundedv2)", 45, least=1
    )
    context_gap_warm_up_steps: int = key(
        "steps until min_frame_dist and max_frame_dist are reached; 0: at once (bounded_gap, boundedv2)",
        0,
        least=0,
    )
    min_distance_to_context_views: int = key(
        "targets keep this distance from both outer context views; 0: they may be among them, as published (bounded_gap, "
        "boundedv2)",
        0,
        least=0,
    )
    max_distance_to_context_views: int = key(
        "how far targets may lie outside the context views (boundedv2)", 0, least=0
    )
    initial_max_distance_to_context_views: int = key(
        "the same at step 0 of its warm-up (boundedv2)", 0, least=0
    )
    target_gap_warm_up_steps: int = key("steps of that warm-up; 0: none (boundedv2)", 0, least=0)
    random_num_context_views: bool = key(
        "draw the number of context views anew at each step, the same on all ranks (boundedv2)", False
    )
    min_context_views: int = key("smallest number that is drawn (boundedv2)", 2, least=2)
    max_context_views: int = key("largest number that is drawn (boundedv2)", 8, least=2)
    max_context_views_warm_up_steps: int = key(
        "steps until the largest number is reached, from the smallest on; 0: at once (boundedv2)", 0, least=0
    )
    extra_views_sampling_strategy: str = key(
        "context views beyond two (boundedv2)", "farthest_point", choices=("farthest_point", "random")
    )
    keep_window_ends: bool = key(
        "the two outer frames of the window are always context; false: farthest points alone, as published (boundedv2)",
        True,
    )
    target_views_replace_sample: bool = key("draw targets with replacement (boundedv2)", False)
    context_views: list = key("these frames; empty: random ones (arbitrary)", [])
    target_views: list = key("these frames; empty: random ones (arbitrary)", [])
    match_random_num_context_views_per_batch: bool = key(
        "the number of context views is always that of a whole step", True, ignored=True
    )


@dataclass(kw_only=True)
class ViewChoice:
    """The keys of `inference` that say which views of a scene are scored."""

    view_selection: str = key(
        "input and target views: those of the index file, or chosen in every scene of the data set: kmeans (inputs "
        "cover the cameras, targets are every 8th frame), random or uniform",
        "index",
        choices=("index", "random", "kmeans", "uniform"),
    )
    num_input_views: int = key("input views, unless an index file decides", 8, least=1)
    num_target_views: int = key(
        "targets, unless an index file decides; 0: all other frames, with kmeans every 8th", 0, least=0
    )
    view_seed: int = key("seed of the choice, unless an index file decides", 0, least=0)


_GAP = {
    "min_frame_dist",
    "max_frame_dist",
    "initial_min_distance_between_context_views",
    "initial_max_distance_between_context_views",
    "context_gap_warm_up_steps",
}
READ_BY: dict[str, set[str]] = {
    "bounded": {"min_frame_dist", "max_frame_dist"},
    "bounded_gap": _GAP | {"min_distance_to_context_views"},
    "boundedv2": _GAP
    | {
        "min_distance_to_context_views",
        "max_distance_to_context_views",
        "initial_max_distance_to_context_views",
        "target_gap_warm_up_steps",
        "random_num_context_views",
        "min_context_views",
        "max_context_views",
        "max_context_views_warm_up_steps",
        "extra_views_sampling_strategy",
        "keep_window_ends",
        "target_views_replace_sample",
    },
    "arbitrary": {"context_views", "target_views"},
    "all": set(),
    "random": set(),
    "kmeans": set(),
}
"""Sampler -> keys of `ViewSelector` that it reads; samplers that are not listed are not checked."""


def view_problems(training: Any) -> Iterator[str]:
    """Where `training` asks for numbers of views that its sampler cannot give, or for keys that it does not read."""
    name, selector = training.view_sampler, training.view_selector
    yield from _limit_problems(selector)
    yield from _unread(name, selector)
    if name in EVERY_FRAME and training.batch_size_per_gpu != 1:
        yield (
            f"training.view_sampler {name} takes as many views as a scene has frames: set "
            "training.batch_size_per_gpu: 1."
        )
    yield from _choice_problems(training)
    if name not in OWN_TARGETS:
        return
    for key_name in ("dynamic_input_view_num", "input_view_choices"):
        if getattr(training, key_name):
            yield (
                f"training.{key_name} does not go with training.view_sampler {name}: use "
                "training.view_selector.random_num_context_views of boundedv2."
            )
    if name.startswith("bounded") and training.num_input_views < 2:
        yield f"training.view_sampler {name} needs training.num_input_views of at least 2."
    if name == "bounded_gap" and training.num_input_views != 2:
        yield "training.view_sampler bounded_gap has 2 context views: use boundedv2 for more."
    contexts = selector.max_context_views if selector.random_num_context_views else training.num_input_views
    if training.num_views != contexts + training.num_target_views:
        yield (
            f"training.num_views is {training.num_views}: with training.view_sampler {name} it is the sum of (at most) "
            f"{contexts} context views and training.num_target_views {training.num_target_views}: set it to "
            f"{contexts + training.num_target_views}."
        )
    for name, views in (("context_views", contexts), ("target_views", training.num_target_views)):
        if getattr(selector, name) and len(getattr(selector, name)) != views:
            yield (
                f"training.view_selector.{name} lists {len(getattr(selector, name))} frames, but the run has {views}."
            )


def _choice_problems(training: Any) -> Iterator[str]:
    """Shares and numbers of context views that no sample can have."""
    if training.target_has_input_share > 1:
        yield f"training.target_has_input_share is {training.target_has_input_share:g}: expected a part, 0 to 1."
    choices = training.input_view_choices
    if choices and training.dynamic_input_view_num:
        yield (
            "training.input_view_choices and training.dynamic_input_view_num both choose the number of context views: "
            "drop the second."
        )
    room = training.num_views - (0 if training.targets_may_be_inputs else training.num_target_views)
    if any(type(number) is not int or not 1 <= number <= room for number in choices):
        yield (
            f"training.input_view_choices is {choices}: expected numbers from 1 to {room}, which is what "
            f"training.num_views {training.num_views} leaves for the context."
        )


def _limit_problems(selector: ViewSelector) -> Iterator[str]:
    for low, high in (
        ("min_frame_dist", "max_frame_dist"),
        ("initial_min_distance_between_context_views", "initial_max_distance_between_context_views"),
        ("min_context_views", "max_context_views"),
    ):
        if getattr(selector, low) > getattr(selector, high):
            yield (
                f"training.view_selector: {low} {getattr(selector, low)} exceeds {high} {getattr(selector, high)}."
            )
    for name in ("context_views", "target_views"):
        if any(type(frame) is not int or frame < 0 for frame in getattr(selector, name)):
            yield (
                f"training.view_selector.{name} is {getattr(selector, name)}: expected frame numbers from 0."
            )


def _unread(sampler: str, selector: ViewSelector) -> Iterator[str]:
    if sampler not in READ_BY:
        return
    plain = ViewSelector()
    for field in dataclasses.fields(selector):
        given = getattr(selector, field.name)
        if field.name not in READ_BY[sampler] and given != getattr(plain, field.name):
            readers = [name for name, keys in READ_BY.items() if field.name in keys]
            yield (
                f"training.view_selector.{field.name} is {given}, but training.view_sampler {sampler} does not read it: "
                f"remove it, or choose {' or '.join(readers)}."
            )
