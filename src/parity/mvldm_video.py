"""Reader of the golden files of system `mvldm` that hold a sampled video: the plan, the poses of each call, the frames."""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry.camera import Cameras, Views, rebase
from ..model.mvldm import MVLDM
from ..video_plan import Call, anchored, autoregressive
from ..video_sampler import VideoSampler
from .mvldm import cameras_of, network_of
from .report import Golden


def video_sampling(golden: Golden) -> dict:
    """Both orders of sampling, on the first so many targets that the file names."""
    network = network_of(golden)
    context, target = golden.inputs["context"], golden.inputs["target"]
    height, width = context["image"].shape[-2:]
    given = Views(context["image"], cameras_of([context], height, width))
    cameras, index = cameras_of([target], height, width), target["index"][0].tolist()
    outputs = {}
    for mode in ("anchored", "autoregressive"):
        if mode not in golden.inputs:
            continue
        frames = index[: golden.inputs[mode]["n_targets"]]
        if mode == "anchored":
            plan = anchored(frames, golden.config["num_anchors_views"], published=True)
        else:
            plan = autoregressive(frames)
        chosen = cameras.views(slice(len(frames)))
        outputs[mode] = _video(
            network, given, context["index"][0].tolist(), chosen, frames, plan, golden.inputs[mode]
        )
    return outputs


def _video(
    network: MVLDM,
    given: Views,
    given_index: list[int],
    cameras: Cameras,
    index: list[int],
    plan: list[Call],
    inputs: dict,
) -> dict:
    """Frames and calls of one plan. The original never makes a last incomplete group: its noise is not in the file."""
    noise = inputs["noise"]

    def draw(number: int, context: tuple[int, ...], target: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        if number >= len(noise):
            return torch.zeros(1, *context), torch.zeros(1, *target)
        return noise[number]["vae_noise"][None], noise[number]["x_T"]

    frames = VideoSampler(network)(given, cameras, plan, draw=draw)[0]
    stored = {place for call in plan[: len(noise)] for place in call.target}
    missing = [frame for place, frame in enumerate(index) if place not in stored]
    kept = sorted(stored, key=index.__getitem__)
    return {
        "frame_index": [index[place] for place in kept],
        "frames": frames[kept],
        "calls": [_call(call, given.cameras, given_index, cameras, index) for call in plan],
        "missing": missing,
    }


def _call(call: Call, given: Cameras, given_index: list[int], cameras: Cameras, index: list[int]) -> dict:
    """Frame numbers of a call, and the poses of which its rays are made."""
    places = [*call.made, *call.target]
    c2w = torch.cat([given.c2w, cameras.c2w[:, places]], dim=1)
    return {
        "context_index": [*given_index, *(index[place] for place in call.made)],
        "target_index": [index[place] for place in call.target],
        "extrinsics": rebase(c2w, c2w[:, call.reference(given.num_views)]),
    }
