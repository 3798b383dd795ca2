"""Readers of the golden files of system `lvsm`: LVSM decoder-only and encoder-decoder (Haian-Jin/LVSM)."""

from __future__ import annotations

from torch import Tensor, nn

from ..geometry.camera import Cameras
from ..geometry.trajectory import interpolate
from ..loss import ImageLoss
from ..model.base import ViewSynthesizer
from ..settings import Training
from .losses import perceptual_network
from .measure import follow_path, image_loss, model_with, run_model, split_columns, train
from .report import Golden

DECODER_ONLY = "model.LVSM_scene_decoder_only.Images2LatentScene"
ENCODER_DECODER = "model.LVSM_scene_encoder_decoder.Images2LatentScene"

AS_DECODER_ONLY = {
    "src.model.kvlvsm.KVLVSM": {"mask": "full", "camera": "none", "ray": "plucker"},
}
"""Other families that can be LVSM decoder-only -> settings with which they are."""

STACKS = {"block": "transformer_blocks", "enc": "transformer_encoder", "dec": "transformer_decoder"}
"""Name of a stored block output, without its number -> stack of our model."""


def model(golden: Golden) -> dict:
    """One forward and backward pass, and the video if there is one."""
    network = _model(golden, golden.config["model"])
    training, columns = golden.config["training"], golden.inputs["target_view_index"]
    input, target = split_columns(golden.inputs, training["num_input_views"], columns)
    done = run_model(network, input, target, _loss(golden, training), _modules(network))
    arguments = {name: calls[0][0] for name, calls in done.calls.items()}
    results = {name: calls[0][1] for name, calls in done.calls.items()}
    outputs = {
        "input_plucker": arguments["image_tokenizer"][:, :, 3:],  # behind the three channels of the image
        "target_plucker": arguments["target_pose_tokenizer"],
        "image_tokens": results["image_tokenizer"],
        "target_tokens": results["target_pose_tokenizer"],
        "tokens_after_input_norm": results["input_norm"],
        "block_outputs": {name: result for name, result in results.items() if name.startswith(tuple(STACKS))},
        "target_view_index": columns,
        "render": done.render,
        "losses": done.losses,
        "grad_norms": done.grad_norms,
        "total_grad_norm": done.total_grad_norm,
    }
    if golden.inputs.get("video"):
        outputs["video_rendering"] = follow_path(network, input, target, golden.inputs["video"])
    return outputs


def train_steps(golden: Golden) -> dict:
    """A short training run, and statistics of the weights after it."""
    config = golden.config["model"]
    network = _model(golden, config["model"])
    num_input = config["training"]["num_input_views"]
    batches = [split_columns(b, num_input, b["target_view_index"]) for b in golden.inputs["batches"]]
    steps = train(network, batches, _loss(golden, config["training"]), _training(golden.config))
    return {
        "steps": [
            {
                **step.losses,
                "l2": step.losses["l2_loss"],
                "perceptual": step.losses["perceptual_loss"],
                "lr": step.lr,
                "lr_after": step.lr_after,
                "grad_norm": step.grad_norm,
                "skipped": not step.stepped,
            }
            for step in steps
        ],
        "final_parameters": {name: _statistics(p.detach()) for name, p in network.named_parameters()},
    }


def trajectory(golden: Golden) -> dict:
    """Camera paths, one for each entry of `inputs.paths`."""
    cameras = Cameras(golden.inputs["c2w"], golden.inputs["fxfycxcy"], 1, 1)  # a path does not ask for pixels
    outputs = {}
    for name, path in golden.inputs["paths"].items():
        found = interpolate(
            cameras,
            path["frames_per_transition"],
            loop=path.get("loop", False),
            order=path.get("order", False),
        )
        outputs[name] = {"c2w_3x4": found.c2w[:, :, :3], "fxfycxcy": found.fxfycxcy}
    return outputs


# ----------------------------------------------------------------------------------------------- parts


def _model(golden: Golden, tree: dict) -> ViewSynthesizer:
    """The original's files name no class: only the encoder-decoder has encoder layers."""
    class_name = ENCODER_DECODER if "encoder_n_layer" in tree["transformer"] else DECODER_ONLY
    if golden.as_class:
        if class_name != DECODER_ONLY or golden.as_class not in AS_DECODER_ONLY:
            raise ValueError(f"{golden.as_class} cannot stand for {class_name}.")
        tree, class_name = {**tree, **AS_DECODER_ONLY[golden.as_class]}, golden.as_class
    return model_with({**tree, "class_name": class_name}, golden.state_dict, str(golden.path))


def _modules(network: ViewSynthesizer) -> dict[str, nn.Module]:
    """What the stored stages are read from: our names, and block outputs under their stored names."""
    modules = {name: network.get_submodule(name) for name in ("image_tokenizer", "target_pose_tokenizer")}
    for name, module in network.named_children():
        if name.startswith("transformer_input_layernorm"):
            modules["input_norm"] = module
    for stored, stack in STACKS.items():
        for number, block in enumerate(getattr(network, stack, ())):
            modules[f"{stored}{number}"] = block
    return modules


def _loss(golden: Golden, training: dict) -> ImageLoss:
    state = golden.extra.get("perceptual_state_dict")
    return image_loss(training, perceptual_network(state, str(golden.path)) if state else None)


def _training(run: dict) -> Training:
    """The settings of our training section that a golden run gives in its own layout."""
    optimizer, schedule, training = run["optimizer"], run["schedule"], run["model"]["training"]
    return Training(
        lr=optimizer["lr"],
        beta1=optimizer["betas"][0],
        beta2=optimizer["betas"][1],
        adam_eps=optimizer.get("eps", 1e-8),
        weight_decay=optimizer["weight_decay"],
        scheduler_type=schedule["kind"],
        warmup=schedule["warmup"],
        train_steps=schedule["total"],
        grad_accum_steps=run.get("grad_accum_steps", training.get("grad_accum_steps", 1)),
        grad_clip_norm=run["grad_clip_norm"],
        allowed_gradnorm_factor=run["allowed_gradnorm_factor"],
    )


def _statistics(parameter: Tensor) -> dict:
    values = parameter.double().flatten()
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        "norm": float(values.norm()),
        "first": parameter.flatten()[:4],
    }
