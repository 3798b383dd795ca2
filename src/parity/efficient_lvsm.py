"""Reader of the golden files of system `efficient_lvsm` (Ayakaee/Efficient-LVSM)."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from ..geometry.camera import Cameras, Views, pixel_rays
from ..loss import ImageLoss
from ..model.efficient_lvsm import EfficientLVSM
from .measure import model_with, run_model
from .report import Golden

FAMILY = "src.model.efficient_lvsm.EfficientLVSM"


def model(golden: Golden) -> dict:
    """One forward and backward pass, and the targets again after each input view that is added."""
    network = _model(golden)
    input, target = _views(golden.inputs, "input"), _views(golden.inputs, "target")
    layers = range(golden.config["n_layer"])
    names = ["rgbp_tokenizer", "target_pose_tokenizer"]
    names += [f"{stack}.{i}" for stack in ("input_self_attn_blocks", "self_cross_blocks") for i in layers]
    loss = ImageLoss(golden.config.get("l2_loss_weight", 1.0), {})
    done = run_model(network, input, target, loss, {name: network.get_submodule(name) for name in names})
    posed, tokens = ({name: calls[0][i] for name, calls in done.calls.items()} for i in (0, 1))
    ray_o, ray_d = pixel_rays(_joined(input.cameras, target.cameras))
    outputs = {
        "ray_o": ray_o[..., :2, :2],  # the same in every pixel
        "ray_d": ray_d,
        "posed_input_corner8": posed["rgbp_tokenizer"][..., :8, :8],
        "posed_target_corner8": posed["target_pose_tokenizer"][..., :8, :8],
        "tokens_input": tokens["rgbp_tokenizer"],
        "tokens_target": tokens["target_pose_tokenizer"],
        "render": done.render,
        **{name: done.losses[name] for name in ("loss", "l2_loss", "proj_loss") if name in done.losses},
        "psnr": -10 * done.losses["l2_loss"].detach().log10(),  # of the mean error of all images
        "grad_norms": done.grad_norms,
        **_incremental(network, input, target),
    }
    for i in layers:
        outputs[f"input_stream_after_layer_{i}"] = tokens[f"input_self_attn_blocks.{i}"]
        outputs[f"target_stream_after_layer_{i}"] = tokens[f"self_cross_blocks.{i}"]
    return outputs


def _model(golden: Golden) -> EfficientLVSM:
    """The model; its teacher gives what the file has in the place of the features of the original's."""
    config = golden.config
    patch = config["patch_size"]
    tree = {
        "class_name": FAMILY,
        "image_tokenizer": {"image_size": config["image_h"], "patch_size": patch},
        "target_pose_tokenizer": {"patch_size": patch},
        "transformer": {name: config[name] for name in ("d", "d_head", "n_layer", "use_qk_norm")},
    }
    if config.get("enable_repa"):
        names = map(
            re.compile(r"repa_projector\.input\.(\d+)\.(\d+)\.0\.weight").fullmatch, golden.state_dict
        )
        tree["repa_config"] = " ".join(f"{found[1]}-{found[2]}" for found in names if found)
        tree |= {name: config[name] for name in ("projector_dim", "proj_loss_type", "proj_loss_weight")}
    network = model_with(tree, golden.state_dict, str(golden.path))
    if config.get("enable_repa"):
        labels = [_labels(golden.inputs[f"repa_label_{stream}"], network) for stream in ("input", "target")]
        answers = iter(labels)
        network.teacher = lambda image: next(answers)
    return network


def _labels(given: Tensor | dict, network: EfficientLVSM) -> dict[int, Tensor]:
    """Teacher's block -> tokens, from a file that has one tensor or several by block."""
    if isinstance(given, dict):
        return {int(str(name).split("-")[0]): tensor for name, tensor in given.items()}
    return {teacher: given for teacher, _ in network.config.pairs}


@torch.no_grad()
def _incremental(network: EfficientLVSM, input: Views, target: Views) -> dict:
    """Inputs one after another into a cache that grows; a target by itself."""

    def view(i: int) -> Views:
        return Views(input.image[:, i : i + 1], input.cameras.views(slice(i, i + 1)))

    outputs, scene = {}, None
    for i in range(input.cameras.num_views):
        scene = network.encode(view(i)) if scene is None else network.add_view(scene, view(i))
        outputs[f"incremental_render_after_{i + 1}_views"] = network.decode(scene, target.cameras)
        outputs[f"incremental_cache_len_after_{i + 1}_views"] = sum(scene.tokens)
    outputs["render_first_target_alone"] = network.decode(scene, target.cameras.views(slice(1)))
    outputs["kv_cache_layer0_k_final"] = scene.keys[0].transpose(1, 2)
    outputs["kv_cache_layer0_v_final"] = scene.values[0].transpose(1, 2)
    return outputs


def _views(inputs: dict, side: str) -> Views:
    image = inputs[f"image_{side}"]
    return Views(image, Cameras(inputs[f"c2w_{side}"], inputs[f"fxfycxcy_{side}"], *image.shape[-2:]))


def _joined(one: Cameras, two: Cameras) -> Cameras:
    poses, intrinsics = torch.cat([one.c2w, two.c2w], 1), torch.cat([one.fxfycxcy, two.fxfycxcy], 1)
    return Cameras(poses, intrinsics, one.height, one.width)
