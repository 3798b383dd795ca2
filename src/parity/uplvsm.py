"""Readers of the golden files of system `uplvsm`: UP-LVSM, PT-LVSM and their parts (ou524u/Less3Depend)."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn

from ..checkpoint import load_into
from ..geometry.camera import Cameras, Views, pixel_rays, plucker, rebase
from ..geometry.frames import normalize_cameras
from ..geometry.rotation import decode_pose, encode_pose
from ..geometry.trajectory import interpolate
from ..loss import ImageLoss
from ..model.base import ViewSynthesizer
from ..model.dinov2 import Backbone, DinoV2
from ..model.ptlvsm import NORM_FLOOR
from ..optim import build_optimizer, clip_or_skip, learning_rate
from ..settings import Training
from .losses import perceptual_network
from .measure import (
    CPU,
    Pass,
    checked_settings,
    follow_path,
    image_loss,
    model_with,
    recording,
    run_model,
    split_columns,
    train,
)
from .report import Golden, Rows

CLASS_NAMES = {"uplvsm": "src.model.uplvsm.unposedLVSM", "ptlvsm": "src.model.ptlvsm.posedTargetLVSM"}
"""`config.model_kind` -> our family."""

VGG = "loss_computer.perceptual_loss_module.vgg."
"""Prefix of the loss network inside the weights of a model."""

STACKS = {
    "dino": "image_tokenizer.1.dino_vit.blocks",
    "encoder": "transformer_encoder",
    "estimator": "estimator.transformer_estimator",
    "decoder": "transformer_decoder",
    "trunk": "transformer_blocks",
}
"""Begin of the names of stored stages -> stack of blocks of our model."""

# ----------------------------------------------------------------------------------------------- model


def model(golden: Golden) -> dict:
    """One forward and backward pass, and the video if there is one."""
    network = _model(golden)
    training, columns = golden.config["peer_config"]["training"], golden.inputs["target_view_index"]
    input, target = split_columns(golden.inputs, training["num_input_views"], columns)
    done = run_model(network, input, target, _loss(golden), _modules(network))
    batch = torch.arange(len(columns))[:, None]
    outputs = {
        "stages": _stages(done, input),
        "render": done.render,
        "losses": done.losses,
        "target_index_column": golden.inputs["index"][batch, columns],
        "target_image_sum": target.image.double().sum(dim=(2, 3, 4)),
        "grad_norms": done.grad_norms,
        "total_grad_norm": done.total_grad_norm,
        "params_without_grad": [name for name, p in network.named_parameters() if p.grad is None],
        **_cameras(golden, input, target),
    }
    if golden.inputs.get("video"):
        outputs["video_rendering"] = follow_path(network, input, target, golden.inputs["video"])
    return outputs


def _model(golden: Golden) -> ViewSynthesizer:
    config = golden.config["peer_config"]
    tree = {**config["model"], "class_name": CLASS_NAMES[golden.config["model_kind"]]}
    tree["unposed"] = config.get("unposed", {})
    tree["image_tokenizer"] = {**tree["image_tokenizer"], "backbone": _backbone_sizes(golden.config["dino"])}
    return model_with(tree, golden.state_dict, str(golden.path))


def _backbone_sizes(dino: dict) -> dict:
    """The keys of our `Backbone`; the others (patch, norms) are given elsewhere or fixed by the design."""
    return {name: value for name, value in dino.items() if name in Backbone.__dataclass_fields__}


def _loss(golden: Golden) -> ImageLoss:
    state = {name: value for name, value in golden.state_dict.items() if name.startswith(VGG)}
    network = perceptual_network(state, str(golden.path)) if state else None
    return image_loss(golden.config["peer_config"]["training"], network)


def _modules(network: ViewSynthesizer) -> dict[str, nn.Module]:
    """What the stored stages are read from, under our names: tokenizers, stacks with their blocks, pose estimator."""
    wanted = rf"\w+_tokenizer|estimator|({'|'.join(map(re.escape, STACKS.values()))})(\.\d+)?"
    modules = network.named_modules(remove_duplicate=False)  # two names of a shared tokenizer
    return {name: module for name, module in modules if re.fullmatch(wanted, name)}


def _stages(done: Pass, input: Views) -> dict:
    """Stored stage -> our tensor. Where a module runs twice, context images come first and target images last."""
    arguments, results = (
        {name: [call[i] for call in calls] for name, calls in done.calls.items()} for i in (0, 1)
    )
    b, v = input.image.shape[:2]
    marker = results["canonical_pose_tokenizer"][0]  # [b, n, d]
    stages = {
        "image_tokens": results["image_tokenizer"][0],
        # Only the first view's are ever used, so only those are computed; stored are those of all context views.
        "canonical_plucker": Rows(arguments["canonical_pose_tokenizer"][0][:1], lambda x: x[:, :1]),
        "canonical_pose_tokens": Rows(marker, lambda x: x.reshape(b, v, *marker.shape[1:])[:, 0]),
        "target_plucker": arguments["target_pose_tokenizer"][-1][:1],  # stored for the first sample
        "target_pose_tokens": results["target_pose_tokenizer"][-1],
    }
    if "estimator" in results:
        stages["target_image_tokens"] = results["image_tokenizer"][1]
        stages["pose_enc"] = results["estimator"][0]
    for prefix, tokens in zip(("", "target_"), arguments[STACKS["dino"]]):
        stages[f"{prefix}dino_tokens_in"] = tokens
    for stored, stack in STACKS.items():
        for prefix, call in zip(("", "target_"), range(len(results.get(stack, ())))):
            stages[f"{prefix}{stored}_in"] = arguments[stack][call]
            blocks = [name for name in results if name.startswith(f"{stack}.")]
            for number, name in enumerate(blocks):
                stages[f"{prefix}{stored}_block{number}_out"] = results[name][call]
            # The stack itself gives the used tokens alone.
            stages[f"{prefix}{stored}_out"] = results[blocks[-1]][call]
    return stages


def _cameras(golden: Golden, input: Views, target: Views) -> dict:
    """Given poses and rays, seen from the first context camera where the config asks for it."""
    c2w = {"input": input.cameras.c2w, "target": target.cameras.c2w}
    if golden.config["peer_config"].get("unposed", {}).get("canonical_camera", False):
        c2w = {name: rebase(poses, input.cameras.c2w[:, 0]) for name, poses in c2w.items()}
    first = {
        name: pixel_rays(views.cameras.at(c2w[name]).views(slice(1)), norm_floor=NORM_FLOOR)
        for name, views in (("input", input), ("target", target))
    }
    return {
        "input_c2w": c2w["input"],
        "target_c2w": c2w["target"],
        "input_ray_o_d_first_view": torch.cat(first["input"], dim=1),  # [b, 2, 3, h, w]
        "target_ray_d_first_view": first["target"][1][:, 0],
    }


# ----------------------------------------------------------------------------------------------- training


def train_steps(golden: Golden) -> dict:
    """A short training run on single samples, and the weights after it."""
    network = _model(golden)
    views = golden.config["peer_config"]["training"]
    batches = []
    for step in golden.inputs["steps"]:
        sample = {name: golden.inputs[name][step["sample"]][None] for name in ("image", "c2w", "fxfycxcy")}
        columns = torch.tensor(step["target_view_index"])[None]
        batches.append(split_columns(sample, views["num_input_views"], columns))
    steps = train(network, batches, _loss(golden), _training(golden.config["train"]))
    frames = [
        golden.inputs["index"][step["sample"], step["target_view_index"], 0].tolist()
        for step in golden.inputs["steps"]
    ]
    # Under all their names: a shared tokenizer has two.
    parameters = {name: p.detach() for name, p in network.named_parameters(remove_duplicate=False)}
    return {
        "log": [
            {
                **step.losses,
                "l2": step.losses["l2_loss"],
                "perceptual": step.losses["perceptual_loss"],
                "lr": step.lr,
                "lr_after": step.lr_after,
                "target_frames": seen,
                "stepped": step.stepped,
                "total_grad_norm": step.grad_norm,
            }
            for step, seen in zip(steps, frames)
        ],
        "param_updates": sum(step.stepped for step in steps),
        "final": parameters,
        "final_norms": {name: float(p.double().norm()) for name, p in parameters.items()},
    }


def _training(given: dict) -> Training:
    """Our training section with those of its keys that a golden file gives."""
    return Training(**{name: value for name, value in given.items() if name in Training.__dataclass_fields__})


def optimizer(golden: Golden) -> dict:
    """AdamW with given gradients: learning rates, and the parameters after the last step."""
    config, inputs = golden.config, golden.inputs
    parameters = {name: nn.Parameter(inputs[name].clone()) for name in inputs if f"grad_{name}" in inputs}
    module = nn.ParameterList(parameters.values())
    beta1, beta2 = config["betas"]
    # Without a factor in the file no step is skipped.
    training = _training({"allowed_gradnorm_factor": math.inf, **config, "beta1": beta1, "beta2": beta2})
    adamw = build_optimizer(module, training, CPU)
    norm = 0.0
    for step in range(config["steps"]):
        for name, parameter in parameters.items():
            parameter.grad = inputs[f"grad_{name}"][step].clone()
        for group in adamw.param_groups:
            group["lr"] = learning_rate(step, training)
        norm = clip_or_skip(module.parameters(), adamw, torch.tensor(True), training).grad_norm
    num_rates = len(golden.outputs.get("lr_at_step", ()))
    return {
        "lr_used_at_step": [learning_rate(step, training) for step in range(config["steps"])],
        "lr_at_step": [learning_rate(step, training) for step in range(num_rates)],
        **{name: parameter.detach() for name, parameter in parameters.items()},
        "param_groups": [
            {"n": len(group["params"]), "weight_decay": group["weight_decay"]} for group in adamw.param_groups
        ],
        "eps": adamw.defaults["eps"],
        "last_total_norm": norm,
    }


# ----------------------------------------------------------------------------------------------- parts


@torch.no_grad()
def backbone(golden: Golden) -> dict:
    """The image backbone alone, on each of the input images."""
    config = golden.config
    sizes = checked_settings(Backbone, _backbone_sizes(config), "backbone")
    network = DinoV2(sizes, config["patch_size"], qk_norm=config["qk_norm"]).eval()
    load_into(network, golden.state_dict, str(golden.path))
    outputs = {}
    for name, image in golden.inputs.items():
        if not isinstance(image, Tensor):
            continue
        with recording({"blocks": network.blocks, "norm": network.norm}) as calls:
            patches = network(image)
        rows, columns = (side // config["patch_size"] for side in image.shape[-2:])
        normed, registers = calls["norm"][0][1], sizes.num_register_tokens
        outputs[name] = {
            "pos_embed": network.position_table(rows, columns),
            "tokens_in": calls["blocks"][0][0],
            "patch_tokens": patches,
            "cls_token": normed[:, 0],
            "register_tokens": normed[:, 1 : 1 + registers],
        }
    return outputs


def poses(golden: Golden) -> dict:
    """Pose code, rays, the data set's camera frame, and a camera path."""
    config, inputs = golden.config, golden.inputs
    height, width = config["h"], config["w"]
    cameras = Cameras(inputs["c2w"][None], inputs["fxfycxcy"][None], height, width)
    path = interpolate(cameras, config["steps"], loop=config["loop"], order=config["order_poses"])
    decoded = decode_pose(inputs["pose_enc"])
    seen = Cameras(decoded[None], inputs["fxfycxcy"][None], height, width)  # the stored rays are of these
    ray_o, ray_d = pixel_rays(seen, norm_floor=NORM_FLOOR)
    return {
        "traj": path.c2w[0, :, :3],
        "traj_fxfycxcy": path.fxfycxcy[0],
        "encoding_of_c2w": encode_pose(inputs["c2w_any"]),
        "decoded_c2w": decoded,
        "ray_o": ray_o,
        "ray_d": ray_d,
        "plucker": plucker(seen, norm_floor=NORM_FLOOR),
        "normalised_c2w": normalize_cameras(inputs["c2w"], _training(config).scene_scale_factor),
    }
