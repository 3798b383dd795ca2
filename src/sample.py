"""Sample the frames of a scene with a multi-view diffusion model.

    python -m src.sample --config config/mvldm.yaml scene_id=25 [key=value ...]
    torchrun --nproc_per_node 8 -m src.sample --config ... scene_id=all

`scene_id` is the name of a scene, or its place in the index file (`inference.view_idx_file_path`; without one, in the data
set); several with commas are shared among the processes. Context and frames are those of the index, or
`inference.sampling.context_frames` and all others. Per scene, `<inference_out_dir>/<scene>/`:

    render/<frame, 6 digits>.png   the sampled frames
    input/ target/<frame>.png      the context, and what the frames look like in truth
    sampled.mp4  sheet.png         the video; context, truth and samples side by side
    plan.json                      which frames were sampled together, conditioned on what; seed and settings

Exit status: 0; 2 after a mistake that a message explains.

Public: main, Request, find_scenes, requests_of.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from .cli import guarded, read_config
from .config import ConfigError
from .data.batch import Batch, collate, split_views, to_device
from .data.dataset import SceneDataset
from .data.eval_index import Entry, read_video_index
from .data.order import scene_seed
from .data.view_settings import ViewSettings
from .files import write_text
from .geometry.camera import Views
from .inference_fast import make_out_dir
from .model.mvldm import MVLDM
from .pretrained import load_model
from .runtime import Runtime, autocast, from_main, peak_memory_gib, set_precision, setup_logging, start, stop
from .settings import RunConfig
from .video import camera_path, check_path
from .video_plan import PLANS, Call
from .video_sampler import VideoSampler, evaluations
from .visualize import save_image, save_video, sheet, to_uint8

log = logging.getLogger(__name__)

SCENE_ID = re.compile(r"(?:inference\.sampling\.)?scene_id\s*=(.*)", re.DOTALL)
SHEET_COLUMNS = 8
"""Frames on the sheet, evenly spread."""

SHORTEST = 1e-3
"""Distance of cameras below which a scene has no scale."""


@dataclass(frozen=True)
class Request:
    """One video. position: of the scene in the data set; context and frames: numbers of its frames."""

    scene: str
    position: int
    context: tuple[int, ...]
    frames: tuple[int, ...]
    folder: str


def main(argv: list[str] | None = None) -> int:
    """Sample; the exit status."""
    return guarded(lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(argv: list[str]) -> None:
    config = read_config(
        quoted_scene_id(argv), "Sample the frames of a scene with a multi-view diffusion model."
    )
    if config is None:
        return
    runtime = start(config.training.seed)
    setup_logging(runtime.is_main)
    set_precision(config.training)
    if config.inference.sampling.along_path:
        check_path(config.inference.render_video_config)
    dataset = _open_dataset(config)
    requests = requests_of(config, dataset)
    model, weights = load_model(config)
    if not isinstance(model, MVLDM):
        raise ConfigError(
            f"{config.model.class_name} does not sample: src.inference renders its views and videos."
        )
    from_main(lambda: make_out_dir(config.inference.inference_out_dir), runtime)
    model = model.eval() if config.inference.sampling.offload else model.to(runtime.device).eval()
    for request in requests[runtime.rank :: runtime.world]:
        _sample_scene(request, dataset, model, config, runtime, weights)
    log.info("Most memory held: %.1f GiB.", peak_memory_gib(runtime.device))
    stop()


def quoted_scene_id(words: Sequence[str]) -> list[str]:
    """Command-line words in which `scene_id=VALUE` is a quoted text under its full name: `1e10` and `007` are names."""
    found = []
    for word in words:
        match = SCENE_ID.fullmatch(word)
        found.append(f"inference.sampling.scene_id={json.dumps(match[1].strip())}" if match else word)
    return found


# ----------------------------------------------------------------------------------------------- which scenes


def _open_dataset(config: RunConfig) -> SceneDataset:
    """The scenes, not scaled yet."""
    path = config.training.eval_dataset_path or config.training.dataset_path
    if not path or not isinstance(path, str):
        raise ConfigError(
            "training.eval_dataset_path is empty: name a full_list.txt, a folder of .torch chunks or a .json list of scenes."
        )
    return SceneDataset(path, replace(ViewSettings.of(config), make_baseline_1=False))


def requests_of(config: RunConfig, dataset: SceneDataset) -> list[Request]:
    """The videos that `inference.sampling` asks for, each with the folder it goes to.

    Raises:
        ConfigError: no such scene (with the nearest names), or it lacks a frame.
    """
    sampling, path = config.inference.sampling, config.inference.view_idx_file_path
    positions = {str(name): position for position, name in enumerate(dataset.scenes.names)}
    index = read_video_index(path) if path else None
    requests = []
    for name in find_scenes(sampling.scene_id, list(index or positions)):
        if name not in positions:
            raise ConfigError(f"{path}: scene {name} is not in the data set {dataset.path}.")
        total = dataset.scenes[positions[name]].num_frames
        if index:
            entries = index[name]
        else:
            rest = (frame for frame in range(total) if frame not in sampling.context_frames)
            entries = [Entry(tuple(sampling.context_frames), tuple(rest))]
        for number, entry in enumerate(entries):
            folder = _folder_name(name) + (f"_{number}" if number else "")
            frames = entry.target[: sampling.limit_frames or None]
            if wrong := [frame for frame in (*entry.context, *frames) if frame >= total]:
                raise ConfigError(f"scene {name} has {total} frames; frame {wrong[0]} was asked for.")
            requests.append(Request(name, positions[name], entry.context, frames, folder))
    return requests


def find_scenes(wanted: str, names: Sequence[str]) -> list[str]:
    """Names that `scene_id` stands for: names first, then places, separated by commas; `all`.

    Raises:
        ConfigError: there is none of that name or at that place.
    """
    if wanted == "all" and "all" not in names:
        return list(names)
    known, found = set(names), []
    for one in (part.strip() for part in wanted.split(",")):
        if one in known:
            found.append(one)
        elif one.isdecimal() and int(one) < len(names):
            found.append(names[int(one)])
        elif one.isdecimal():
            raise ConfigError(
                f"scene_id {one}: there are {len(names)} scenes, numbered from 0, and none of that name."
            )
        else:
            near = difflib.get_close_matches(one, names, 3, 0.3) or list(names[:3])
            raise ConfigError(f"scene_id {one!r} is unknown. Nearest names: {', '.join(near)}.")
    return found


def _folder_name(scene: str) -> str:
    """A folder below the output folder, whatever the scene is called."""
    return re.sub(r"[^\w.-]", "_", scene).lstrip(".") or "_"


# ----------------------------------------------------------------------------------------------- one scene


def _sample_scene(
    request: Request, dataset: SceneDataset, model: MVLDM, config: RunConfig, runtime: Runtime, weights: dict
) -> None:
    sampling = config.inference.sampling
    given, target = _views(request, dataset, config, runtime.device)
    if sampling.along_path:
        cameras = camera_path(given.cameras, config.inference.render_video_config)
        frames: tuple[int, ...] = tuple(range(cameras.num_views))
    else:
        cameras, frames = target.cameras, request.frames
    plan = PLANS[sampling.mode](frames, sampling.num_anchors_views)
    seed = scene_seed(config.inference.sampling_seed, request.scene)
    bar = tqdm(total=evaluations(model, plan), desc=request.scene, unit="step", disable=not runtime.is_main)
    sampler = VideoSampler(model, offload=sampling.offload, on_step=bar.update)
    with bar, autocast(runtime.device, config.training):
        images = sampler(given, cameras, plan, seed=seed)[0]
    truth = None if sampling.along_path else target.image[0].cpu()
    folder = Path(config.inference.inference_out_dir) / request.folder
    _write(folder, request, frames, given, images, truth, sampling.fps)
    described = _described(request, frames, plan) | {
        "seed": config.inference.sampling_seed,
        "weights": weights,
    }
    described |= {"sampling": asdict(sampling), "scheduler": asdict(model.config.scheduler)}
    described |= {"cfg_scale": model.config.cfg_scale if model.config.use_cfg else 1.0}
    write_text(folder / "plan.json", json.dumps(described, indent=1) + "\n")
    log.info("%s: %d frames in %d calls -> %s", request.scene, len(frames), len(plan), folder)


def _views(
    request: Request, dataset: SceneDataset, config: RunConfig, device: torch.device
) -> tuple[Views, Views]:
    """Context and targets, their poses in one frame and, if asked for, at the scale of training."""
    sample = dataset.evaluation_sample(request.position, request.context, request.frames)
    batch = to_device(Batch(collate([sample], len(request.context))), device)
    if config.training.make_baseline_1 and config.inference.sampling.unit_baseline:
        batch.c2w = unit_baseline(batch.c2w, len(request.context))
    return split_views(batch, len(request.context))


def unit_baseline(c2w: Tensor, num_context: int) -> Tensor:
    """Poses scaled until the first and the last context view are 1 apart, or the camera farthest from a single one is 1
    away; cameras in one place stay. [b, v, 4, 4]
    """
    centres = c2w[..., :3, 3]
    others = centres[:, num_context - 1 : num_context] if num_context > 1 else centres
    length = (others - centres[:, :1]).norm(dim=-1).amax(1)  # [b]
    scaled = c2w.clone()
    scaled[..., :3, 3] /= torch.where(length > SHORTEST, length, 1.0)[:, None, None]
    return scaled


def _write(
    folder: Path,
    request: Request,
    frames: Sequence[int],
    given: Views,
    images: Tensor,
    truth: Tensor | None,
    fps: int,
) -> None:
    """Pictures, video and sheet; what an earlier run left in their places is removed first."""
    for name in ("render", "target", "input"):
        for old in (folder / name).glob("*.png"):
            old.unlink()
    context = given.image[0].cpu()
    parts = [("render", frames, images), ("input", request.context, context)]
    parts += [("target", frames, truth)] if truth is not None else []
    for name, numbers, pictures in parts:
        for number, picture in zip(numbers, pictures):
            save_image(folder / name / f"{number:06d}.png", picture)
    order = sorted(range(len(frames)), key=frames.__getitem__)
    save_video(folder / "sampled.mp4", _frames(images, order), fps)
    shown = [order[round(k * (len(order) - 1) / (SHEET_COLUMNS - 1))] for k in range(SHEET_COLUMNS)]
    shown = list(dict.fromkeys(shown))
    rows = [context, *([truth[shown]] if truth is not None else []), images[shown]]
    save_image(folder / "sheet.png", sheet(rows))


def _frames(images: Tensor, order: Sequence[int]) -> Iterator:
    for place in order:
        yield to_uint8(images[place])


def _described(request: Request, frames: Sequence[int], plan: Sequence[Call]) -> dict:
    """What `plan.json` says of the calls, in numbers of frames."""
    context = list(request.context)
    calls = []
    for call in plan:
        views = [*context, *(frames[place] for place in call.made)]
        calls.append(
            {
                "context": context,
                "generated_context": views[len(context) :],
                "target": [frames[place] for place in call.target],
                "reference": views[call.reference(len(context))],
            }
        )
    return {"scene": request.scene, "context": context, "frames": list(frames), "calls": calls}


if __name__ == "__main__":
    sys.exit(main())
