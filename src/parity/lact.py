"""Readers of the golden files of system `lact`: the model in two precisions, and training steps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry.camera import Cameras, Views, pixel_rays
from ..model.lact import LaCT, posed_channels
from ..model.lact_block import Block
from ..model.lact_ttt import FastWeightLayer, FastWeights, fast_gradient, fast_net, newton_schulz
from ..settings import Training
from .measure import gradient_norms, model_with, train
from .report import Golden, Rows

CLASS = "src.model.lact.LaCT"

PRECISIONS = {"ns_bf16": "bfloat16", "ns_fp32": "float32"}
"""Group of outputs -> type of the Newton-Schulz iteration: as published, and the one that can be compared."""


def model(golden: Golden) -> dict:
    """Forward and backward pass, in each precision."""
    input, target = _views(golden.inputs["input"]), _views(golden.inputs["target"])
    outputs: dict = {"rays": {"input": _rays(input.cameras), "target": _rays(target.cameras)}}
    for name, dtype in PRECISIONS.items():
        network = _model(golden.config, golden.state_dict, str(golden.path), dtype)
        outputs[name] = {**_pass(network, input, target), "stages": _dotted(_stages(network, input, target))}
    return outputs


def train_steps(golden: Golden) -> dict:
    """A short training run by the rules of the original, whose step counter is ahead of the learning rate's."""
    config, start = golden.config["train"], golden.config["train"]["start_iter"]
    network = _model(golden.config["model"], golden.state_dict, str(golden.path), "float32")
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    loss = _LossOfSteps(start, config["extra_l1_weight"])
    unclipped = max(0, 1001 - start)  # clipped where the counter exceeds 1000
    training = Training(
        lr=config["lr"],
        weight_decay=config["weight_decay"],
        warmup=config["warmup"],
        train_steps=config["schedule_steps"],
        grad_clip_norm=1.0,
        allowed_gradnorm_factor=4.0,
        clip_from_step=unclipped,
    )
    batches = [_batch(batch, config) for batch in golden.inputs["batches"]]
    steps = train(network, batches, loss, training)
    after = dict(network.named_parameters())
    return {
        "log": [
            {
                "iter_before": start + number,
                "l2": step.losses["l2_loss"],
                "psnr": step.losses["psnr"],
                "loss": step.losses["loss"],
                "grad_norm": step.grad_norm if number >= unclipped else None,
                "skipped": not step.stepped,
                "lr_used": step.lr,
            }
            for number, step in enumerate(steps)
        ],
        "final_state_dict": {name: p.detach() for name, p in after.items()},
        "param_change": {name: float((p.detach() - before[name]).norm()) for name, p in after.items()},
    }


class _LossOfSteps:
    """Squared error, and in some steps an absolute error beside it, which stands for LPIPS."""

    def __init__(self, start: int, weights: dict) -> None:
        self.step, self.weights = start - 1, {int(step): weight for step, weight in weights.items()}

    def __call__(self, pred: Tensor, target: Tensor) -> dict[str, Tensor]:
        self.step += 1
        l2 = F.mse_loss(pred, target)
        loss = l2 + self.weights.get(self.step, 0.0) * F.l1_loss(pred, target)
        return {"loss": loss, "l2_loss": l2, "psnr": -10 * l2.log10()}


# ----------------------------------------------------------------------------------------------- parts


def _model(config: dict, state: dict[str, Tensor], source: str, dtype: str) -> LaCT:
    sizes = {name: config[name] for name in ("patch_size", "dim", "layers", "block_config")}
    return model_with({**sizes, "class_name": CLASS, "muon_dtype": dtype}, state, source)


def _views(stored: dict) -> Views:
    cameras = Cameras(stored["c2w"], stored["fxfycxcy"], *stored["image"].shape[-2:])
    return Views(stored["image"], cameras)


def _batch(stored: dict, config: dict) -> tuple[Views, Views]:
    """The first views as input, the last as targets; they overlap if the two counts exceed the views."""

    def views(index: slice) -> Views:
        return _views({name: value[:, index] for name, value in stored.items()})

    num_views = stored["c2w"].shape[1]
    return views(slice(config["num_input_views"])), views(slice(num_views - config["num_target_views"], None))


def _rays(cameras: Cameras) -> dict[str, Tensor]:
    """Of the first view."""
    ray_o, ray_d = pixel_rays(cameras.views([0]))
    moment = torch.linalg.cross(ray_o, ray_d, dim=2)
    return {"ray_o": ray_o, "ray_d": ray_d, "o_cross_d": moment}


def _pass(network: LaCT, input: Views, target: Views) -> dict:
    """One pass with its gradients; the same in two stages, as inference does it; how far the two differ."""
    render = network(input, target).render
    loss = F.mse_loss(render, target.image)
    loss.backward()
    norms = gradient_norms(network)
    with torch.no_grad():
        two_stage = network.render(network.encode(input), target.cameras, chunk=1)
    return {
        "render": render,
        "render_two_stage": two_stage,
        "render_two_stage_vs_one_pass_max_abs": float((two_stage - render.detach()).abs().max()),
        "mse": loss,
        "psnr": -10 * loss.log10(),
        "grad_norms": norms,
        "grad_total_norm": sum(norm**2 for norm in norms.values() if norm is not None) ** 0.5,
        "grads": {name: p.grad for name, p in network.named_parameters()},
    }


@torch.no_grad()
def _stages(network: LaCT, input: Views, target: Views) -> dict:
    """Intermediate tensors of the one pass over the tokens of inputs and targets together."""
    chunks = [network.tokens(input.cameras, input.image), network.tokens(target.cameras)]
    maps = posed_channels(input.cameras, input.image)
    patches = network.patchify(maps).unflatten(0, maps.shape[:2])  # [b, v, n, 12 p * p]
    stages: dict = {"patches_first4": patches[:, 0, :4], "tokens_in": _joined(chunks)}
    for number, block in enumerate(network.blocks):
        known = [layer.initial(len(maps)) for layer in block.fast_layers.values()]
        if number == 0:
            stages["block0"] = _sub_layers(block, chunks, known)
        chunks, learned = block(chunks, known, None, 1, False)
        stages.setdefault(f"block{number}", {})["out"] = _joined(chunks)
        stages[f"layer{number}"] = {"state": _merged(learned[0])}
    return stages


def _sub_layers(block: Block, chunks: list[Tensor], known: list[FastWeights]) -> dict:
    """What each sub-layer of a block adds to the stream, and what happens inside its first fast-weight layer."""
    stages, before, knowing = {}, chunks, iter(known)
    for number, layer in enumerate(block.module_list):
        fast = isinstance(layer.f, FastWeightLayer)
        normed = [layer.ln(x) for x in before]
        weights = next(knowing) if fast else None
        if fast and "ttt" not in stages:
            stages["ttt"] = _inside(layer.f, normed, weights)
        before, learned = layer(before, weights, None, 1)
        if fast:
            out = layer.f.read(_joined(normed), learned)
        else:
            out = layer.f(torch.cat(normed, dim=1)).flatten(0, 1)
        stages[f"sub{number}"] = {"f_out": out}
    return stages


def _inside(layer: FastWeightLayer, normed: list[Tensor], known: FastWeights) -> dict:
    """Queries, keys, values, rates, gradients and results of a fast-weight layer; batch and heads merged.

    We ask the inputs alone for keys, values and rates.
    """
    context, x = normed[0].flatten(1, 2), _joined(normed)
    count = context.shape[1]
    lesson = layer.lesson(context)
    gradients = fast_gradient(known, lesson)
    learned = layer.learn([context], known)
    of_inputs = {"k": lesson.k, "v": lesson.v, **{f"lr{i}": rate for i, rate in enumerate(lesson.rates)}}
    orthogonal = FastWeights(*(newton_schulz(g, layer.steps, layer.muon_dtype) for g in gradients))
    return {
        **{
            name: Rows(tensor.flatten(0, 1), lambda stored: stored[:, :count])
            for name, tensor in of_inputs.items()
        },
        "q": layer.queries(x).flatten(0, 1),
        "ns_in": _merged(gradients),
        "ns_out": _merged(orthogonal),
        "apply_out": fast_net(layer.queries(x), learned).flatten(0, 1),
    }


def _joined(chunks: list[Tensor]) -> Tensor:
    """Tokens of inputs and targets in one sequence. [b, n, d]"""
    return torch.cat(chunks, dim=1).flatten(1, 2)


def _dotted(tree: dict, prefix: str = "") -> dict[str, Tensor]:
    """The stored names of stages have dots in them."""
    flat: dict[str, Tensor] = {}
    for name, value in tree.items():
        flat |= _dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _merged(weights: FastWeights) -> dict[str, Tensor]:
    return {name: w.flatten(0, 1) for name, w in weights._asdict().items()}
