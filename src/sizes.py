"""What a set of tensors says about the model it belongs to, in the words of the config.

Nothing in a file of weights depends on the image size, so patch, width, depth and the rest can be read off the shapes;
published files without a config are opened this way, and a file that does not fit is refused with the sizes that would.

Public: sizes_of, explain_misfit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

Shapes = Mapping[str, tuple[int, ...]]

TRUNK, BACKBONE = "model.transformer", "model.image_tokenizer.backbone"
DINO = "image_tokenizer.1.dino_vit."
PYTORCH = "image_and_ray_encoder."

STACKS = {
    "transformer_blocks": f"{TRUNK}.n_layer",
    "self_cross_blocks": f"{TRUNK}.n_layer",
    "transformer_encoder": f"{TRUNK}.encoder_n_layer",
    "estimator.transformer_estimator": f"{TRUNK}.estimator_n_layer",
    "transformer_decoder": f"{TRUNK}.decoder_n_layer",
    f"{DINO}blocks": f"{BACKBONE}.depth",
}
"""Name of a stack of blocks -> the setting that counts them."""


def sizes_of(shapes: Shapes) -> dict[str, int | float | bool]:
    """Settings that these tensors determine: dotted key -> value; none where their shapes are those of no model.

    Args:
        shapes: tensor name, without wrapper prefixes -> shape.
    """
    try:
        return _sizes_of(shapes)
    except (IndexError, ValueError, ZeroDivisionError):  # other numbers of dimensions, widths of zero
        return {}


def _sizes_of(shapes: Shapes) -> dict[str, int | float | bool]:
    sizes: dict[str, int | float | bool] = {
        setting: len(blocks) for stack, setting in STACKS.items() if (blocks := _blocks(shapes, stack))
    }
    if "image_token_decoder.0.weight" in shapes:
        sizes[f"{TRUNK}.d"] = shapes["image_token_decoder.0.weight"][0]
    if "n_light_field_latent" in shapes:
        sizes[f"{TRUNK}.n_latent_vectors"] = shapes["n_light_field_latent"][0]
    if "target_pose_tokenizer.1.weight" in shapes:
        patch = math.isqrt(shapes["target_pose_tokenizer.1.weight"][1] // 6)  # 6 ray channels
        sizes["model.image_tokenizer.patch_size"] = sizes["model.target_pose_tokenizer.patch_size"] = patch
    gains = [
        shape for name, shape in shapes.items() if re.match(r"transformer_.*\.attn\.q_norm\.weight$", name)
    ]
    if any(name.startswith("transformer_") for name in shapes):
        sizes[f"{TRUNK}.use_qk_norm"] = bool(gains)
    if gains:
        sizes[f"{TRUNK}.d_head"] = gains[0][0]
    if "input_linear.weight" in shapes:
        return _lact_sizes(shapes)
    if "rgbp_tokenizer.1.weight" in shapes:
        sizes |= _efficient_lvsm_sizes(shapes)
    sizes |= _lvsm_pytorch_sizes(shapes)
    return sizes | _backbone_sizes({n.removeprefix(DINO): s for n, s in shapes.items() if n.startswith(DINO)})


def _efficient_lvsm_sizes(shapes: Shapes) -> dict[str, int | float | bool]:
    """What only Efficient-LVSM tells elsewhere: its norms have no weights."""
    gain = shapes.get("self_cross_blocks.0.cross_attn.q_norm.weight")
    sizes = {f"{TRUNK}.d": shapes["rgbp_tokenizer.1.weight"][0], f"{TRUNK}.use_qk_norm": gain is not None}
    return sizes | ({f"{TRUNK}.d_head": gain[0]} if gain else {})


def _lact_sizes(shapes: Shapes) -> dict[str, int | float | bool]:
    """Sizes of LaCT; the sub-layers of its blocks stand in a list, which has no key for each."""
    width, inputs = shapes["input_linear.weight"]
    return {
        "model.dim": width,
        "model.patch_size": math.isqrt(inputs // 12),  # 9 ray channels and 3 colours
        "model.layers": len(_blocks(shapes, "blocks")),
    }


def _lvsm_pytorch_sizes(shapes: Shapes) -> dict[str, int | float | bool]:
    """Sizes of a family of the module API; heads can be told only where the value residual is learned."""
    root = next((name[: name.index(PYTORCH)] + PYTORCH for name in shapes if PYTORCH in name), None)
    inner = {n.removeprefix(root): s for n, s in shapes.items() if root and n.startswith(root)}
    telling = ("input_image_embed", "plucker_rays_to_patch_tokens.1.weight", "decoder.layers.0.1.to_q.weight")
    if any(name not in inner for name in telling):
        return {}
    (rows, width), (_, ray_numbers), (heads_width, _) = (inner[name] for name in telling)
    sizes: dict[str, int | float | bool] = {
        "model.dim": width,
        "model.max_input_images": rows,
        "model.patch_size": math.isqrt(ray_numbers // 6),
        "model.depth": len(_blocks(inner, "decoder.layers")) // 2,
        "model.add_axial_pos_emb": "height_embed" in inner,
        "model.decoder_kwargs.use_rmsnorm": "decoder.layers.0.0.0.g" in inner,
        "model.decoder_kwargs.ff_glu": "decoder.layers.1.1.ff.0.proj.weight" in inner,
        "model.heads * model.dim_head": heads_width,
    }
    if "decoder.layers.2.1.to_value_residual_mix.0.bias" in inner:
        sizes["model.heads"] = inner["decoder.layers.2.1.to_value_residual_mix.0.bias"][0]
    return sizes


def _backbone_sizes(shapes: Shapes) -> dict[str, int | float | bool]:
    """Sizes of a DINOv2 branch; empty unless all the tensors that tell them are there."""
    telling = (
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "blocks.0.mlp.fc1.weight",
    )
    if any(name not in shapes for name in telling):
        return {}
    width = shapes["cls_token"][-1]
    grid = math.isqrt(shapes["pos_embed"][1] - 1)  # one entry is the class token's
    sizes: dict[str, int | float | bool] = {
        f"{BACKBONE}.embed_dim": width,
        f"{BACKBONE}.img_size": grid * shapes["patch_embed.proj.weight"][2],
        f"{BACKBONE}.num_register_tokens": shapes.get("register_tokens", (1, 0))[1],
        f"{BACKBONE}.mlp_ratio": shapes["blocks.0.mlp.fc1.weight"][0] / width,
        "unposed.dino_qknorm": "blocks.0.attn.q_norm.weight" in shapes,
    }
    if "blocks.0.attn.q_norm.weight" in shapes:
        sizes[f"{BACKBONE}.num_heads"] = width // shapes["blocks.0.attn.q_norm.weight"][0]
    return sizes


def explain_misfit(found: Shapes, expected: Shapes, source: str) -> str:
    """One line that says why the tensors of a file do not fit a model; empty if they do.

    Args:
        found: shapes in the file.
        expected: shapes in the model.
        source: name of the file, for the message.
    """
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    misshaped = sorted(n for n in found.keys() & expected.keys() if tuple(found[n]) != tuple(expected[n]))
    if not (missing or unexpected or misshaped):
        return ""
    sentences = _stack_sentences(found, expected, source) + _size_sentences(found, expected, source)
    for count, what in ((missing, "missing"), (unexpected, "unexpected")):
        if count:
            sentences.append(f"{len(count)} tensors are {what}: {_some(count)}.")
    if misshaped:
        shown = [f"{n} {list(found[n])} instead of {list(expected[n])}" for n in misshaped]
        sentences.append(f"{len(misshaped)} tensors have another shape: {_some(shown)}.")
    return f"{source} does not fit the model of the config. " + " ".join(sentences)


def _stack_sentences(found: Shapes, expected: Shapes, source: str) -> list[str]:
    sentences = []
    for stack, setting in STACKS.items():
        here, there = _blocks(found, stack), _blocks(expected, stack)
        if here and there and here != there:
            sentences.append(
                f"{source} has {stack} {_range(here)}, the config makes {_range(there)}: set {setting}: {len(here)}."
            )
        elif here and not there:
            sentences.append(
                f"{source} has {stack}, which this family has not: set another model.class_name."
            )
    return sentences


def _size_sentences(found: Shapes, expected: Shapes, source: str) -> list[str]:
    here, there = sizes_of(found), sizes_of(expected)
    changed = [
        f"{setting}: {_plain(here[setting])} (not {_plain(there[setting])})"
        for setting in here.keys() & there.keys() - set(STACKS.values())
        if here[setting] != there[setting]
    ]
    return [f"From the shapes in {source}: set {', '.join(sorted(changed))}."] if changed else []


def _blocks(shapes: Shapes, stack: str) -> list[int]:
    """Indices of the blocks of a stack, ascending."""
    found = (re.match(re.escape(stack) + r"\.(\d+)\.", name) for name in shapes)
    return sorted({int(match[1]) for match in found if match})


def _range(indices: list[int]) -> str:
    return f"{indices[0]}-{indices[-1]}"


def _plain(value: int | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
