"""Make a model without poses steerable: fit a pose mapper on posed scenes.

    python -m src.fit_pose_mapper --config C [--checkpoint W] [--out FILE] [key=value ...]

Reads training samples of `training.dataset_path`, lets the model (UP-LVSM) estimate where each of their pictures was taken, and
fits the small network of `src/explore/pose_mapper.py` to take true cameras there, and back. It is written beside the
checkpoint, where `src.render` and `src.viewer` find it. Its errors are reported on the scenes of
`training.eval_dataset_path` that the index names, and with them what the pictures are worth: `camera_controlled`, rendered
from mapped true cameras, apart from `target_aware`, rendered from cameras that the model estimated from the very
target.

Public: main, fit, Examples.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from easydict import EasyDict
from torch import Tensor
from tqdm import tqdm

from .cli import guarded
from .config import ConfigError
from .data.batch import collate, split_views, to_device
from .data.dataset import SceneDataset
from .data.eval_index import evaluation_loader
from .data.view_settings import ViewSettings
from .explore.open_model import OpenedModel, mapper_beside, open_model
from .explore.pose_mapper import PoseMapper, relative_poses
from .files import write_text
from .frames_at_once import FramesAtOnce
from .geometry.camera import Cameras, Views
from .geometry.rotation import encode_pose
from .metrics import psnr
from .runtime import autocast, stop

log = logging.getLogger(__name__)


@dataclass
class Examples:
    """Cameras of many scenes: relative to the scene's first photo, and where the model puts them.

    true, estimated: camera to world. [n, 4, 4]; first, far: codes of the scene's first and farthest photo. [n, 7]
    """

    true: Tensor
    estimated: Tensor
    first: Tensor
    far: Tensor

    @classmethod
    def join(cls, parts: list[Examples]) -> Examples:
        """All of them, one after another."""
        return cls(
            *(torch.cat([getattr(p, name) for p in parts]) for name in ("true", "estimated", "first", "far"))
        )


def main(argv: list[str] | None = None) -> int:
    """Fit and report; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", required=True, help="YAML file of the model")
    parser.add_argument("--checkpoint", default="", help="weights (default: the config's)")
    parser.add_argument("--out", default="", help="file (default: pose_mapper.pt beside the checkpoint)")
    parser.add_argument(
        "--samples", type=int, default=2000, help="training samples to learn from (default: 2000)"
    )
    parser.add_argument("--steps", type=int, default=2000, help="steps of the fit (default: 2000)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
    return guarded(lambda: _run(parser.parse_intermixed_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    if min(arguments.samples, arguments.steps) < 1:
        raise ConfigError("--samples and --steps must be at least 1.")
    opened = open_model(arguments.config, arguments.checkpoint, arguments.overrides)
    if not opened.model.target_aware:
        raise ConfigError(f"{type(opened.model).__name__} is given its poses: it needs no pose mapper.")
    training, inference = opened.config.training, opened.config.inference
    out = (
        Path(arguments.out)
        if arguments.out
        else mapper_beside(inference.checkpoint or training.checkpoint_dir)
    )
    examples = _training_examples(opened, arguments.samples)
    mapper = fit(examples, arguments.steps, training.seed)
    report = {"samples": arguments.samples, "steps": arguments.steps, "training": errors(mapper, examples)}
    if training.eval_dataset_path and inference.view_idx_file_path:
        report["held_out"] = _held_out(opened, mapper)
    out.parent.mkdir(parents=True, exist_ok=True)
    mapper.save(out, report)
    write_text(out.with_suffix(".json"), json.dumps(report, indent=1, allow_nan=False))
    _print(report, out)
    stop()
    return 0


# ----------------------------------------------------------------------------------------------- examples


def _training_examples(opened: OpenedModel, count: int) -> Examples:
    training = opened.config.training
    if not training.dataset_path:
        raise ConfigError("training.dataset_path is empty: name posed scenes to fit on.")
    dataset = SceneDataset(training.dataset_path, ViewSettings.of(opened.config))
    rng = random.Random(training.seed)
    parts = []
    for number in tqdm(range(count), unit="sample", desc="estimating poses"):
        sample = dataset.training_sample(number % len(dataset), training.num_input_views, 0, rng)
        batch = EasyDict(collate([sample], sample["num_input"]))
        parts.append(_examples(opened, batch)[0])
    return Examples.join(parts)


@torch.inference_mode()
def _examples(opened: OpenedModel, batch: EasyDict) -> tuple[Examples, Tensor, Views, Cameras]:
    """Examples of a batch of one sample, the scene's state, its targets and where the model puts these."""
    batch = to_device(batch, opened.runtime.device)
    input, target = split_views(batch, batch.num_input)
    with autocast(opened.runtime.device, opened.config.training):
        scene = opened.model.encode(input)
        photos = opened.model.target_cameras(scene, input)
        estimated = opened.model.target_cameras(scene, target)
    frame, far = relative_poses(input.cameras.c2w.cpu())
    true = torch.cat([input.cameras.c2w, target.cameras.c2w], dim=1).cpu()
    all_cameras = Cameras(true, torch.ones(*true.shape[:2], 4), 1, 1)
    relative = frame.apply(all_cameras).c2w[0].float()
    found = torch.cat([photos.c2w, estimated.c2w], dim=1)[0].float().cpu()
    codes = encode_pose(photos.c2w[0].float().cpu())
    n = len(relative)
    return (
        Examples(relative, found, codes[:1].expand(n, -1), codes[far : far + 1].expand(n, -1)),
        scene,
        target,
        estimated,
    )


# ----------------------------------------------------------------------------------------------- the fit


def fit(examples: Examples, steps: int, seed: int, *, batch: int = 256, lr: float = 5e-3) -> PoseMapper:
    """The mapper that takes true cameras to the estimated ones, and back, with the least squared error.

    Translations count in units of the scene's size in either space, rotations by their matrices.
    """
    torch.manual_seed(seed)
    mapper = PoseMapper()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(mapper.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in tqdm(range(steps), unit="step", desc="fitting"):
        rows = torch.randint(len(examples.true), (batch,), generator=generator)
        true, estimated = examples.true[rows], examples.estimated[rows]
        first, far = examples.first[rows], examples.far[rows]
        size = (far[:, :3] - first[:, :3]).norm(dim=-1).clamp_min(1e-3)
        loss = _distance(mapper(true, first, far), estimated, size)
        loss = loss + _distance(mapper.back(estimated, first, far), true, torch.ones_like(size))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return mapper.eval()


def _distance(a: Tensor, b: Tensor, size: Tensor) -> Tensor:
    shift = ((a[:, :3, 3] - b[:, :3, 3]) / size[:, None]).square().sum(dim=-1)
    return (shift + (a[:, :3, :3] - b[:, :3, :3]).square().sum(dim=(-2, -1))).mean()


@torch.no_grad()
def errors(mapper: PoseMapper, examples: Examples) -> dict[str, float]:
    """Median errors of both directions: rotation in degrees, translation as a part of the scene's size (the distance of the
    photo farthest from the first), each also of the guess that the network corrects.
    """
    size = (examples.far[:, :3] - examples.first[:, :3]).norm(dim=-1).clamp_min(1e-3)
    plain = PoseMapper(mapper.width)  # a fresh one changes nothing: the similarity alone
    report = {}
    for name, network in (("", mapper), ("similarity_", plain)):
        forth = network(examples.true, examples.first, examples.far)
        back = network.back(examples.estimated, examples.first, examples.far)
        for way, a, b, unit in (
            ("to_model", forth, examples.estimated, size),
            ("to_world", back, examples.true, 1.0),
        ):
            cosine = ((a[:, :3, :3] * b[:, :3, :3]).sum(dim=(-2, -1)) - 1) / 2
            report[f"{name}{way}_rotation_deg"] = float(cosine.clamp(-1, 1).acos().rad2deg().median())
            shift = (a[:, :3, 3] - b[:, :3, 3]).norm(dim=-1) / unit
            report[f"{name}{way}_translation"] = float(shift.median())
    return report


# ----------------------------------------------------------------------------------------------- held-out scenes


def _held_out(opened: OpenedModel, mapper: PoseMapper) -> dict[str, float]:
    """Errors on scenes that the fit has not seen, and PSNR of what is rendered from mapped and from estimated cameras."""
    loader = evaluation_loader(opened.config, opened.config.training.eval_dataset_path, rank=0, world=1)
    parts, scores = [], {"camera_controlled": [], "target_aware": []}
    at_once = FramesAtOnce(opened.config, opened.runtime.device)
    for batch in tqdm(_single(loader), unit="scene", desc="held-out scenes"):
        examples, scene, target, estimated = _examples(opened, batch)
        parts.append(examples)
        targets = slice(len(examples.true) - target.cameras.num_views, None)
        with torch.no_grad():
            mapped = mapper(examples.true[targets], examples.first[targets], examples.far[targets])[None]
        for name, cameras in (
            ("camera_controlled", target.cameras.at(mapped.to(opened.runtime.device))),
            ("target_aware", estimated),
        ):
            with torch.inference_mode(), autocast(opened.runtime.device, opened.config.training):
                images = opened.model.render(scene, cameras, at_once(target, cameras.height, cameras.width))
            scores[name].append(float(psnr(images.float()[0], target.image[0]).mean()))
    if not parts:
        raise ConfigError("no scene of the index could be read: see inference.view_idx_file_path.")
    means = {f"{name}_psnr": sum(values) / len(values) for name, values in scores.items()}
    return {"scenes": len(parts), **errors(mapper, Examples.join(parts)), **means}


def _single(loader: Iterable[EasyDict]) -> Iterable[EasyDict]:
    """Batches of one sample."""
    for batch in loader:
        for i in range(len(batch.image)):
            yield EasyDict(
                {k: v[i : i + 1] if isinstance(v, (Tensor, list)) else v for k, v in batch.items()}
            )


def _print(report: dict, out: Path) -> None:
    for name in ("training", "held_out"):
        for key, value in report.get(name, {}).items():
            sys.stdout.write(f"{name:9s} {key:36s} {value:.4g}\n")
    sys.stdout.write(f"{out}\n")


if __name__ == "__main__":
    sys.exit(main())
