"""Scores of a model on every scene of an evaluation index, each scene once whatever the number of processes.

The forward pass runs in the autocast type of the config, metrics in float32 outside of it. Every rank scores its own
scenes; the values of single images are then gathered, put in the order of the scenes and averaged in float64 on every
rank, so that 1, 2 or 3 processes report the same numbers. The mean over scenes is the headline; the mean over images
stands beside it, and both again without the targets that are context views too. The same pass scores the floors of
`floors.py` and, when asked for, renders made with the wrong cameras.

Public: evaluate, RenderedScene.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .config import ConfigError
from .data.batch import split_views, to_device
from .files import read_json
from .floors import FLOORS, Shown, floor_images
from .frames_at_once import FramesAtOnce
from .geometry.camera import Cameras, Views
from .metrics import build_metrics, compare
from .model.base import ViewSynthesizer
from .runtime import Runtime, agree, all_gather_objects, autocast, exact_float32
from .settings import RunConfig, config_digest
from .stopping import Interrupted, StopRequest

log = logging.getLogger(__name__)

RENDER = "render"
SWAPPED = "swapped_cameras"

Metrics = dict[str, Callable[[Tensor, Tensor], Tensor]]
Scores = dict[str, dict[str, list[float]]]
"""Method (render, swapped_cameras, names of FLOORS) -> metric -> value of each target view."""


@dataclass
class RenderedScene:
    """One scene as `on_scene` gets it; every tensor has batch size 1.

    position: of the scene in the filtered list, the `uid` of its results.
    render: float32 [1, v_t, 3, h, w].
    context: frame numbers of the input views.
    frames, is_context: frame number of each target; whether the model saw that frame as input.
    scores: metric -> value of each target view; empty when metrics are off.
    terms: what else the family reports of held-out scenes.
    """

    name: str
    position: int
    input: Views
    target: Views
    render: Tensor
    context: list[int]
    frames: list[int]
    is_context: list[bool]
    scores: dict[str, list[float]]
    terms: dict[str, float] = field(default_factory=dict)


def evaluate(
    model: ViewSynthesizer,
    loader: Any,
    config: RunConfig,
    runtime: Runtime,
    *,
    metrics: Metrics | None = None,
    on_scene: Callable[[RenderedScene], None] | None = None,
    request: StopRequest | None = None,
) -> dict:
    """Score every scene that `loader` (an EvaluationLoader) hands out on all ranks together.

    Args:
        model: on runtime.device, not wrapped; its train/eval mode is restored.
        metrics: name -> function of ([n, 3, h, w], [n, 3, h, w]) -> [n]; none: those of `config.inference.metrics`.
        on_scene: called on the rank that rendered the scene, right after it was scored.
        request: a request to one of the ranks ends the evaluation on all.

    Returns:
        a report that JSON can hold, the same on all ranks: `headline` (metric -> mean over scenes), `render` and
        `floors` (means over scenes and over images, with and without context targets), `swapped_cameras`, `terms` (what
        else the family reports -> mean over scenes), `counts`, `missing`, `scenes`, `protocol`.

    Raises:
        ValueError: not a single scene could be scored.
        Interrupted: by `request`, on all ranks.
    """
    if metrics is None:
        names = config.inference.metrics if config.inference.compute_metrics else []
        metrics = build_metrics(names, config.pretrained, runtime.device)
    depths = _read_depths(config.inference.median_depth_path)
    at_once = FramesAtOnce(config, runtime.device)
    start, was_training, records = time.perf_counter(), model.training, []
    model.eval()
    try:
        with torch.no_grad():
            for batch in _progress(loader, runtime, request):
                batch = to_device(batch, runtime.device)
                for scene, scores in _score_batch(model, batch, config, runtime, metrics, depths, at_once):
                    records.append(_record(scene, scores))
                    if on_scene:
                        on_scene(scene)
    finally:
        model.train(was_training)

    mine = {"records": records, "missing": list(loader.missing), "seconds": time.perf_counter() - start}
    everyone = all_gather_objects(mine)
    records = sorted((r for rank in everyone for r in rank["records"]), key=lambda r: r["position"])
    positions = [record["position"] for record in records]
    assert len(set(positions)) == len(positions), "a scene was scored twice: the loader must share scenes out"
    missing = sorted({tuple(entry) for rank in everyone for entry in rank["missing"]})
    report = _report(records, missing, loader, list(metrics), max(rank["seconds"] for rank in everyone))
    return {**_identity(model, config, loader), **report}


# ----------------------------------------------------------------------------------------------- one batch


def _score_batch(
    model: ViewSynthesizer,
    batch: Any,
    config: RunConfig,
    runtime: Runtime,
    metrics: Metrics,
    depths: dict[str, float] | None,
    at_once: FramesAtOnce,
) -> Iterable[tuple[RenderedScene, Scores]]:
    """Render the targets of a batch and score them; yields its scenes one by one."""
    input, target = split_views(batch, batch.num_input)
    with autocast(runtime.device, config.training):
        chunk = at_once(input, target.cameras.height, target.cameras.width)
        images = _render(model, input, target, chunk, swapped=config.inference.swap_target_cameras)
        terms = model.held_out_terms(input, target)
    known = torch.ones(len(input.image), dtype=torch.bool)
    shown = {method: Shown.each(image) for method, image in images.items()}
    with exact_float32():
        if metrics and config.inference.floors:
            plane, known = _plane_depth(batch, depths, runtime.device)
            shown |= floor_images(input, target.cameras, plane)
        scored = _score(metrics, shown, target.image)
    frames = batch.index[..., 0].gather(1, batch.target_idx).tolist()
    context = batch.index[:, : batch.num_input, 0].tolist()
    for i, name in enumerate(batch.scene_name):
        methods = {m: s for m, s in scored.items() if m != "plane_warp" or bool(known[i])}
        scores = {m: {metric: values[i] for metric, values in s.items()} for m, s in methods.items()}
        yield (
            RenderedScene(
                name=name,
                position=int(batch.index[i, 0, 1]),
                input=_sample(input, i),
                target=_sample(target, i),
                render=images[RENDER][i : i + 1],
                context=context[i],
                frames=frames[i],
                is_context=[frame in context[i] for frame in frames[i]],
                scores=scores[RENDER],
                terms={name: float(value[i]) for name, value in terms.items()},
            ),
            scores,
        )


def _render(
    model: ViewSynthesizer, input: Views, target: Views, chunk: int, *, swapped: bool
) -> dict[str, Tensor]:
    """Renders of all targets; if asked for, also each with the camera of the next one. float32 [b, v_t, 3, h, w]"""
    state = model.encode(input)
    cameras = _target_cameras(model, state, target, chunk)
    images = {RENDER: model.render(state, cameras, chunk).float()}
    if swapped and cameras.num_views > 1:
        order = torch.arange(1, cameras.num_views + 1, device=cameras.c2w.device) % cameras.num_views
        images[SWAPPED] = model.render(state, cameras.views(order), chunk).float()
    return images


def _target_cameras(model: ViewSynthesizer, state: Any, target: Views, chunk: int) -> Cameras:
    """The cameras to render, `chunk` views at a time: a family that estimates them looks at the target images."""
    step = chunk or target.cameras.num_views
    parts = []
    for i in range(0, target.cameras.num_views, step):
        part = slice(i, i + step)
        parts.append(model.target_cameras(state, Views(target.image[:, part], target.cameras.views(part))))
    c2w, fxfycxcy = (torch.cat([getattr(p, name) for p in parts], dim=1) for name in ("c2w", "fxfycxcy"))
    return Cameras(c2w, fxfycxcy, target.cameras.height, target.cameras.width)


def _sample(views: Views, i: int) -> Views:
    cameras = views.cameras
    one = slice(i, i + 1)
    return Views(
        views.image[one],
        Cameras(cameras.c2w[one], cameras.fxfycxcy[one], cameras.height, cameras.width),
        draws=views.draws and views.draws[one],
    )


def _score(
    metrics: Metrics, shown: dict[str, Shown], truth: Tensor
) -> dict[str, dict[str, list[list[float]]]]:
    """Method -> metric -> value of each view of each sample [b][v], in float32. Samples do not see each other."""
    num_views = truth.shape[1]
    scored = {method: {metric: [] for metric in metrics} for method in shown}
    for i, targets in enumerate(truth):
        images = torch.cat([targets, *(s.images[i] for s in shown.values())]).float()
        first, places = num_views, []
        for images_of, column in shown.values():
            places.append([first + place for place in column[i].tolist()])
            first += images_of.shape[1]
        pairs = [(place[view], view) for view in range(num_views) for place in places]
        for name, metric in metrics.items():
            values = compare(metric, images, pairs).double().reshape(num_views, -1).T.tolist()
            for method, of_views in zip(shown, values):
                scored[method][name].append(of_views)
    return scored


def _plane_depth(
    batch: Any, depths: dict[str, float] | None, device: torch.device
) -> tuple[Tensor | None, Tensor]:
    """Median depth of each scene in the units of the batch's cameras [b] (none: not asked for), and which are known.

    The file counts in the units of the data set's cameras; a sample's cameras are those times `camera_scale`.
    """
    known = torch.tensor([depths is not None and name in depths for name in batch.scene_name])
    if not known.any():
        return None, known
    raw = torch.tensor([depths.get(name, 1.0) for name in batch.scene_name], device=device)
    return raw * batch.camera_scale, known


def _read_depths(path: str) -> dict[str, float] | None:
    if not path:
        return None
    if not Path(path).is_file():
        raise ConfigError(
            f"inference.median_depth_path: {path} does not exist; leave it empty for no plane warp."
        )
    try:
        tree = read_json(path)
        depths = {str(name): float(depth) for name, depth in tree.items()}
        if wrong := [name for name, depth in depths.items() if not 0 < depth < math.inf]:
            raise ValueError(f"the depth of scene {wrong[0][:60]!r} is {depths[wrong[0]]}")
        return depths
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"inference.median_depth_path: {path} is not JSON of scene -> number ({error})."
        ) from None


def _record(scene: RenderedScene, scores: Scores) -> dict:
    """What is gathered of a scene: plain numbers."""
    values = [x for methods in scores.values() for column in methods.values() for x in column]
    values += scene.terms.values()
    return {
        "scene": scene.name,
        "position": scene.position,
        "context": scene.context,
        "frames": scene.frames,
        "is_context": scene.is_context,
        "scores": scores,
        "terms": scene.terms,
        "finite": bool(torch.isfinite(scene.render).all()) and all(map(math.isfinite, values)),
    }


def _progress(loader: Any, runtime: Runtime, request: StopRequest | None) -> Iterable:
    """The loader behind a bar on rank 0; a log file gets a line now and then instead of hundreds."""
    batches = until_asked(loader, runtime, request) if request else loader
    interval = 0.5 if sys.stderr.isatty() else 10.0
    total = len(loader) if hasattr(loader, "__len__") else None
    return tqdm(batches, "score", total, unit="batch", disable=not runtime.is_main, mininterval=interval)


def until_asked(loader: Any, runtime: Runtime, request: StopRequest) -> Iterator[Any]:
    """Batches of this rank until all ranks are through with theirs; ranks may have different numbers of them.

    Raises:
        Interrupted: on all ranks at the same time, when one was asked to stop.
    """
    batches = iter(loader)
    while True:
        batch = None
        try:
            with request.giving_way():
                batch = next(batches, None)
        except Interrupted:
            pass  # the others are told first
        status, more = agree([request.status, batch is not None], runtime)
        if status:
            raise Interrupted(status)
        if not more:
            return
        if batch is not None:
            yield batch


# ----------------------------------------------------------------------------------------------- all scenes


def _report(
    records: list[dict], missing: list[tuple[str, str]], loader: Any, metrics: list[str], seconds: float
) -> dict:
    broken = [record for record in records if not record["finite"]]
    good = [record for record in records if record["finite"]]
    missing = missing + [(record["scene"], "the render holds NaN or inf") for record in broken]
    if not good:
        first = f" The first of {len(missing)}: {missing[0][0]}: {missing[0][1]}." if missing else ""
        raise ValueError(f"no scene of {loader.index_path} was evaluated.{first}")
    render = _means(good, RENDER, metrics)
    floors = {name: _means(good, name, metrics) for name in FLOORS if any(name in r["scores"] for r in good)}
    return {
        "headline": render["mean_over_scenes"],
        "terms": {name: _mean([record["terms"][name] for record in good]) for name in good[0]["terms"]},
        "render": render,
        "floors": floors if metrics else {},
        "swapped_cameras": _swap(good, metrics),
        "counts": _counts(good, broken, missing, loader),
        "missing": [{"scene": scene, "reason": reason} for scene, reason in missing],
        "seconds": round(seconds, 3),
        "scenes_per_second": round(len(records) / seconds, 3),
        "scenes": [_scene_entry(record, metrics) for record in good],
    }


def _means(records: list[dict], method: str, metrics: list[str]) -> dict:
    """Means of one method's scores over scenes and over images, of all targets and of those not among the inputs."""
    records = [record for record in records if method in record["scores"]]
    table = _both_means(records, method, metrics, with_context=True)
    table["without_context_targets"] = _both_means(records, method, metrics, with_context=False)
    return table


def _both_means(records: list[dict], method: str, metrics: list[str], *, with_context: bool) -> dict:
    kept = [_kept_values(record, method, metrics, with_context) for record in records]
    kept = [(count, values) for count, values in kept if count]
    return {
        "mean_over_scenes": {m: _mean([_mean(values[m]) for _, values in kept]) for m in metrics},
        "mean_over_images": {m: _mean([x for _, values in kept for x in values[m]]) for m in metrics},
        "scenes": len(kept),
        "images": sum(count for count, _ in kept),
    }


def _kept_values(
    record: dict, method: str, metrics: list[str], with_context: bool
) -> tuple[int, dict[str, list[float]]]:
    keep = [with_context or not seen for seen in record["is_context"]]
    scores = record["scores"][method]
    return sum(keep), {m: [x for x, kept in zip(scores[m], keep) if kept] for m in metrics}


def _mean(values: list[float]) -> float | None:
    """Correctly rounded sum in float64, so that the order of the values does not matter; None of nothing."""
    return math.fsum(values) / len(values) if values else None


def _swap(records: list[dict], metrics: list[str]) -> dict | None:
    """How much worse renders with another target's camera score, over the scenes with at least two targets."""
    swapped = [record for record in records if SWAPPED in record["scores"]]
    if not swapped or not metrics:
        return None
    table = _means(swapped, SWAPPED, metrics)
    if "psnr" in metrics:
        right = _means(swapped, RENDER, metrics)["mean_over_scenes"]["psnr"]
        table["psnr_drop"] = right - table["mean_over_scenes"]["psnr"]
    return table


def _counts(good: list[dict], broken: list[dict], missing: list, loader: Any) -> dict:
    return {
        "scenes_in_index": loader.num_in_index,
        "null": loader.num_null,
        "usable": loader.num_scenes,
        "evaluated": len(good),
        "broken_renders": len(broken),
        "missing": len(missing),
        "images": sum(len(record["frames"]) for record in good),
        "context_targets": sum(sum(record["is_context"]) for record in good),
        "scenes_with_context_targets": sum(any(record["is_context"]) for record in good),
    }


def _scene_entry(record: dict, metrics: list[str]) -> dict:
    scores = record["scores"]
    return {
        "scene": record["scene"],
        "position": record["position"],
        "context": record["context"],
        "frames": record["frames"],
        "context_targets": [f for f, seen in zip(record["frames"], record["is_context"]) if seen],
        "mean": {m: _mean(scores[RENDER][m]) for m in metrics},
        "floors": {f: {m: _mean(scores[f][m]) for m in metrics} for f in FLOORS if f in scores and metrics},
        "per_view": scores[RENDER],
    }


def _identity(model: ViewSynthesizer, config: RunConfig, loader: Any) -> dict:
    """What the numbers depend on: model, index, settings, software."""
    training = config.training
    return {
        "model": type(model).__name__,
        "family": config.model.class_name,
        "target_aware": model.target_aware,
        "protocol": {
            "index_file": str(loader.index_path),
            "index_sha256": loader.index_sha256,
            "config_digest": config_digest(config),
            "precision": training.amp_dtype if training.use_amp else "fp32",
            "torch_version": torch.__version__,
        },
    }
