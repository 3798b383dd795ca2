"""LaCT: what its fast weights are, that chunks do not change them, and which faults of the original it has not."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.config import build
from src.geometry.camera import Cameras, Views
from src.geometry.rotation import decode_pose
from src.model import build_model, family_config
from src.model.lact import LaCT
from src.model.lact_block import Block
from src.model.lact_ttt import (
    FastWeightLayer,
    FastWeights,
    Lesson,
    column_norms,
    fast_gradient,
    fast_net,
    newton_schulz,
    stepped,
)

CLASS = "src.model.lact.LaCT"
ATTENTION = {"type": "model.SelfAttention", "length_dim": "l", "params": {"head_dim": 8}}
FAST = {
    "type": "lact_ttt.FastWeightGluMLPMultihead",
    "params": {"head_dim": 8, "inter_multi": 2, "muon_update_steps": 5},
}
MLP = {"type": "model.MLP", "length_dim": "vl", "params": {"inter_multi": 2}}


def section(**changes: object) -> dict:
    tree = {"class_name": CLASS, "patch_size": 4, "dim": 16, "layers": 2}
    return {**tree, "block_config": [ATTENTION, FAST, MLP], "muon_dtype": "float32", **changes}


def lact(**changes: object) -> LaCT:
    """A tiny model with weights that matter."""
    problems: list[str] = []
    config = build(family_config(CLASS), section(**changes), "model", problems)
    assert not problems, problems
    model = build_model(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith(("w0", "w1", "w2")):
                parameter += 0.2 * torch.randn_like(parameter)
    return model


def some(views: Views, index: object) -> Views:
    return Views(views.image[:, index], views.cameras.views(index))


def equal_states(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-5, rtol=1e-4, msg=name)


# ----------------------------------------------------------------------------------------------- Newton-Schulz


@pytest.mark.parametrize("shape", [(6, 6), (5, 9), (9, 5), (2, 3, 4, 7)])
def test_newton_schulz_maps_each_singular_value_by_the_quintic(shape: tuple) -> None:
    matrix = torch.randn(*shape, dtype=torch.float64)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.norm(dim=-1, keepdim=True)
    for _ in range(3):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    expected = u @ torch.diag_embed(s) @ vt
    torch.testing.assert_close(newton_schulz(matrix, 3, "float32"), expected, atol=1e-6, rtol=0)


def test_newton_schulz_forgets_the_scale_and_flattens_the_spectrum() -> None:
    matrix = torch.randn(8, 12)
    result = newton_schulz(matrix, 5, "float32")
    torch.testing.assert_close(newton_schulz(1e4 * matrix, 5, "float32"), result, atol=1e-5, rtol=0)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.6 and values.max() < 1.3


def test_without_iterations_the_gradient_is_divided_by_its_norm() -> None:
    matrix = torch.randn(3, 4, 6)
    for row in range(3):
        expected = matrix[row] / matrix[row].square().sum().sqrt()
        torch.testing.assert_close(newton_schulz(matrix, 0, "float32")[row], expected)


@pytest.mark.parametrize("dtype,given,expected", [
    ("float32", torch.float32, torch.float32),
    ("bfloat16", torch.float32, torch.bfloat16),
    ("auto", torch.float32, torch.float32),
    ("float32", torch.bfloat16, torch.float32),
])  # fmt: skip
def test_the_number_type_is_an_option_that_autocast_does_not_overrule(
    dtype: str, given: torch.dtype, expected: torch.dtype
) -> None:
    matrix = torch.randn(4, 4).to(given)
    with torch.autocast("cpu", torch.bfloat16):
        assert newton_schulz(matrix, 1, dtype).dtype == expected


# ----------------------------------------------------------------------------------------------- the layer


def weights_and_lesson(dtype: torch.dtype = torch.float64, tokens: int = 7) -> tuple[FastWeights, Lesson]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(2, 3, *shape, dtype=dtype)

    rates = tuple(F.softplus(normal(tokens, 1)) for _ in range(3))
    weights = FastWeights(normal(4, 6), normal(6, 4), normal(4, 6))
    return weights, Lesson(normal(tokens, 4), normal(tokens, 4), rates)


def test_the_written_out_gradient_is_that_of_autograd() -> None:
    """-sum_i rate_i <f(k_i), v_i>, for each of the three weights with its own rates."""
    weights, lesson = weights_and_lesson()
    found = fast_gradient(weights, lesson)
    for number in range(3):
        leaves = FastWeights(*(w.clone().requires_grad_() for w in weights))
        loss = -(lesson.rates[number] * fast_net(lesson.k, leaves) * lesson.v).sum()
        descent = -torch.autograd.grad(loss, leaves[number])[0]
        torch.testing.assert_close(found[number], descent)


def test_the_update_lets_gradients_through_orthogonalisation_but_not_through_the_norms() -> None:
    weights, lesson = weights_and_lesson(tokens=3)
    norms = column_norms(weights)

    def learn(k: Tensor, w0: Tensor) -> Tensor:
        known = weights._replace(w0=w0)
        after = stepped(known, fast_gradient(known, lesson._replace(k=k)), norms, 2, "float32")
        return fast_net(lesson.v, after)

    inputs = (lesson.k.requires_grad_(), weights.w0.requires_grad_())
    assert torch.autograd.gradcheck(learn, inputs, atol=1e-6, fast_mode=True)
    assert not any(n.requires_grad for n in column_norms(weights))


def test_columns_keep_their_norms() -> None:
    weights, lesson = weights_and_lesson()
    after = stepped(weights, fast_gradient(weights, lesson), column_norms(weights), 5, "float32")
    for before, now in zip(weights, after):
        torch.testing.assert_close(now.norm(dim=-2), before.norm(dim=-2), rtol=1e-4, atol=0)
        assert (now - before).abs().max() > 1e-2


def layer(dim: int = 12, head_dim: int = 6) -> FastWeightLayer:
    made = FastWeightLayer(dim, head_dim, inter_multi=1.5, base_lr=0.01, steps=5, muon_dtype="float32")
    nn.init.normal_(made.lr_fc.weight)
    return made


def test_a_token_has_the_base_rate_where_the_projection_gives_zero() -> None:
    made = layer()
    nn.init.zeros_(made.lr_fc.weight)
    nn.init.zeros_(made.lr_fc.bias)
    for rate in made.lesson(torch.randn(2, 5, 12)).rates:
        torch.testing.assert_close(rate, torch.full((2, 2, 5, 1), 0.01))


def test_outputs_of_the_rate_projection_are_ordered_by_rate_then_head() -> None:
    made = layer()
    nn.init.zeros_(made.lr_fc.weight)
    made.lr_fc.bias.data = torch.arange(6.0)
    found = [rate[0, head, 0, 0] for rate in made.lesson(torch.randn(1, 1, 12)).rates for head in range(2)]
    shift = 0.01 + math.log(1 - math.exp(-0.01))
    expected = [math.log(1 + math.exp(i + shift)) for i in range(6)]
    torch.testing.assert_close(torch.stack(found), torch.tensor(expected))


def test_rates_stay_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert all(rate.dtype == torch.float32 for rate in layer().lesson(torch.randn(1, 4, 12)).rates)


def test_nothing_learnt_leaves_the_fast_weights() -> None:
    made = layer()
    known = made.initial(2)
    assert made.learn([], known) is known


# ----------------------------------------------------------------------------------------------- chunks and views


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_encoding_in_chunks_gives_the_same_fast_weights(chunk: int, make_views: Callable) -> None:
    model, views = lact(), make_views(5)
    with torch.no_grad():
        whole = model.encode(views)
        model.config = replace(model.config, encode_chunk=chunk)
        equal_states(model.encode(views), whole)


def test_gradients_do_not_depend_on_the_chunks(make_views: Callable) -> None:
    input, target, found = make_views(4), make_views(2), []
    model = lact()
    for chunk in (0, 3):
        model.config = replace(model.config, encode_chunk=chunk)
        model.zero_grad()
        model.decode(model.encode(input), target.cameras).square().mean().backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=2e-3)


def test_the_order_of_the_context_views_does_not_matter(make_views: Callable) -> None:
    model, views = lact(), make_views(5)
    with torch.no_grad():
        equal_states(model.encode(some(views, [3, 0, 4, 2, 1])), model.encode(views))


def test_256_views_are_encoded_while_only_some_are_computed_at_once(
    make_views: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, views = lact(encode_chunk=16), make_views(256)
    largest, plain = [], FastWeightLayer.lesson
    monkeypatch.setattr(
        FastWeightLayer, "lesson", lambda self, x: largest.append(x.shape[1]) or plain(self, x)
    )
    with torch.no_grad():
        state = model.encode(views)
    assert max(largest) == 16 * 4  # tokens of 16 views
    assert len(largest) == 2 * 16  # layers x chunks
    sizes = {name: tuple(tensor.shape) for name, tensor in model.encode(some(views, [0])).items()}
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == sizes


def test_views_can_be_added_by_a_further_step(make_views: Callable) -> None:
    """For one layer, by hand: the second step starts from the weights that the first one left."""
    model, views = lact(layers=1, block_config=[FAST]), make_views(4)
    first, second = some(views, [0, 1]), some(views, [2, 3])
    with torch.no_grad():
        state = model.encode(first)
        kept = copy.deepcopy(state)
        added = model.add_views(state, second)
        equal_states(state, kept)
        fast = model.blocks[0].fast_layers[0]
        x = model.blocks[0].module_list[0].ln(model.tokens(second.cameras, second.image)).flatten(1, 2)
        known = FastWeights(*state.values())
        expected = fast.learn([x], known)
        equal_states(added, dict(zip(state, expected)))
        equal_states(model.add_views(state, second, chunk=1), added)
        assert (
            added["blocks.0.module_list.0.f.w0"] - model.encode(views)["blocks.0.module_list.0.f.w0"]
        ).abs().max() > 1e-3


def test_streaming_is_adding_one_chunk_after_the_other(make_views: Callable) -> None:
    views = make_views(5)
    model = lact(streaming=True, encode_chunk=2)
    with torch.no_grad():
        found = model.encode(views)
        model.config = replace(model.config, streaming=False)
        state = model.encode(some(views, [0, 1]))
        state = model.add_views(state, some(views, [2, 3]))
        equal_states(found, model.add_views(state, some(views, [4])))


def test_many_steps_need_not_shrink_the_weights(make_views: Callable) -> None:
    model, views = lact(layers=1), make_views(1)
    start = model.initial_state(2)
    with torch.no_grad():
        plain = kept = start
        for _ in range(30):
            plain = model.add_views(plain, views)
            kept = model.add_views(kept, views, initial_norms=True)
    for name, before in start.items():
        norms = [state[name].norm(dim=-2) / before.norm(dim=-2) for state in (plain, kept)]
        assert norms[0].mean() < norms[1].mean()
        torch.testing.assert_close(norms[1], torch.ones_like(norms[1]), atol=2e-5, rtol=0)


def test_a_state_can_be_saved_and_read(make_views: Callable, tmp_path) -> None:
    model, input, target = lact(), make_views(3), make_views(2)
    with torch.no_grad():
        state = model.encode(input)
        torch.save(state, tmp_path / "scene.pt")
        read = torch.load(tmp_path / "scene.pt", weights_only=True)
        assert torch.equal(model.decode(read, target.cameras), model.decode(state, target.cameras))


def test_a_state_of_another_model_or_batch_is_refused(make_views: Callable) -> None:
    model, views = lact(), make_views(2)
    state = model.encode(views)
    with pytest.raises(ValueError, match="this model with 2 scenes needs"):
        lact(block_config=[ATTENTION, {**FAST, "params": {"head_dim": 16}}, MLP]).decode(state, views.cameras)
    with pytest.raises(ValueError, match="not at all"):
        lact(layers=3).add_views(state, views)
    one = Cameras(views.cameras.c2w[:1], views.cameras.fxfycxcy[:1], 8, 8)
    with pytest.raises(ValueError, match="this model with 1 scenes needs"):
        model.decode(state, one)


def test_no_context_view_and_sizes_that_patches_do_not_tile_are_refused(make_views: Callable) -> None:
    with pytest.raises(ValueError, match="no context view"):
        lact().encode(some(make_views(1), []))
    with pytest.raises(ValueError, match="cannot be cut into 4 x 4 patches"):
        lact().encode(make_views(1, 8, 10))


# ----------------------------------------------------------------------------------------------- one pass, two stages

LISTS = {
    "published": [ATTENTION, FAST, MLP],
    "another order": [MLP, FAST, ATTENTION],
    "two memories": [FAST, ATTENTION, FAST],
    "one head, no qk norm": [
        {**ATTENTION, "params": {"head_dim": 16, "use_qk_norm": False}},
        {**FAST, "params": {"head_dim": 16, "inter_multi": 3, "muon_update_steps": 2}},
        MLP,
    ],
    "square fast nets": [
        ATTENTION,
        {**FAST, "params": {"head_dim": 4, "inter_multi": 1, "muon_update_steps": 0}},
    ],
}


@pytest.mark.parametrize("name", LISTS)
def test_one_pass_equals_two_stages(name: str, make_views: Callable) -> None:
    model = lact(block_config=LISTS[name])
    input, target = make_views(3, 16, 8), make_views(4, 16, 8)
    with torch.no_grad():
        expected = model(input, target).render
        found = model.render(model.encode(input), target.cameras, chunk=3)
    torch.testing.assert_close(found, expected, atol=5e-6, rtol=0)


def test_targets_may_have_another_size_than_the_context(make_views: Callable) -> None:
    model, input, target = lact(), make_views(2, 8, 8), make_views(3, 12, 20)
    with torch.no_grad():
        render = model(input, target).render
        torch.testing.assert_close(
            model.decode(model.encode(input), target.cameras), render, atol=5e-6, rtol=0
        )
    assert render.shape == (2, 3, 3, 12, 20)


def test_nothing_that_is_handed_in_is_changed(make_views: Callable) -> None:
    model, input, target = lact(), make_views(2), make_views(2)
    before = [x.clone() for x in (input.image, input.cameras.c2w, target.image, target.cameras.c2w)]
    model(input, target)
    after = (input.image, input.cameras.c2w, target.image, target.cameras.c2w)
    assert all(torch.equal(*pair) for pair in zip(before, after))


def test_nothing_is_computed_of_the_context_that_nobody_reads(
    make_views: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last fast weights only targets go on: 4 tokens of each of 2 context views and 3 targets."""
    read: list[int] = []
    plain = FastWeightLayer.read
    monkeypatch.setattr(
        FastWeightLayer, "read", lambda self, x, known: read.append(x.shape[1]) or plain(self, x, known)
    )
    model = lact(layers=3)
    model.encode(make_views(2))
    assert read == [8, 8]
    read.clear()
    model(make_views(2), make_views(3))
    assert read == [8, 12, 8, 12, 12]


# ----------------------------------------------------------------------------------------------- initial weights


def test_initial_weights_have_the_published_deviations() -> None:
    config = build(family_config(CLASS), section(dim=64, layers=3), "model", [])
    model = build_model(config)
    for name, parameter in model.named_parameters():
        if (
            name.endswith(("ln.weight", "norm.weight"))
            or "layernorm" in name
            or name.endswith("decoder.0.weight")
        ):
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            expected = 0.02
            if name.endswith("c_proj.weight"):
                expected = 0.02 / 3  # sqrt(3 sub-layers x 3 blocks)
            elif name.endswith(("w0", "w2")):
                expected = math.sqrt(2 / 8)
            elif name.endswith("w1"):
                expected = math.sqrt(2 / 16)
            assert float(parameter.detach().std()) == pytest.approx(expected, rel=0.1), name


# ----------------------------------------------------------------------------------------------- memory and compile


@pytest.mark.parametrize("every", [1, 2, 5])
def test_checkpointing_changes_no_gradient(every: int, make_views: Callable) -> None:
    model, input, target = lact(layers=3).train(), make_views(2), make_views(2)
    found = []
    for setting in (0, every):
        model.set_checkpointing(setting)
        model.zero_grad()
        model(input, target).render.square().mean().backward()
        found.append([p.grad.clone() for p in model.parameters()])
    for ours, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-7, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_with_checkpointing_equal_eager_ones(make_views: Callable) -> None:
    model, input, target = lact(layers=2).train(), make_views(2), make_views(2)
    compiled = copy.deepcopy(model)
    compiled.set_checkpointing(1)
    compiled.compile_blocks()
    results = []
    for network in (model, compiled):
        render = network(input, target).render
        render.square().mean().backward()
        results.append((render.detach(), [p.grad for p in network.parameters()]))
    torch.testing.assert_close(results[1][0], results[0][0], atol=1e-5, rtol=0)
    for ours, expected in zip(results[1][1], results[0][1], strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-2)
    with torch.no_grad():
        found = compiled.decode(compiled.encode(make_views(5)), target.cameras)  # another number of views
    assert found.isfinite().all()


def test_autocast_does_not_reach_rays_and_rates(make_views: Callable) -> None:
    model, views = lact(), make_views(2)
    with torch.no_grad():
        plain = model.encode(views)
        with torch.autocast("cpu", torch.bfloat16):
            state = model.encode(views)
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
    for name, tensor in plain.items():
        assert (state[name] - tensor).norm() < 0.3 * tensor.norm(), name


# ----------------------------------------------------------------------------------------------- config


@pytest.mark.parametrize("change,message", [
    ({"block_config": [ATTENTION, MLP]}, "the context would not reach the targets"),
    ({"block_config": [{"type": "os.system", "params": {}}]}, "os.system is unknown. Known: model.SelfAttention"),
    ({"block_config": [{**ATTENTION, "length_dim": "vl"}, FAST]}, "model.SelfAttention works with l"),
    ({"block_config": [{**FAST, "length_dim": "l"}]}, "works with vl"),
    ({"block_config": [{**FAST, "params": {"head_dim": 5}}]}, "head_dim is 5: it does not divide model.dim 16"),
    ({"block_config": [{**FAST, "params": {"heads": 5}}]}, "unknown key model.block_config.0.params.heads"),
    ({"block_config": [{**FAST, "params": {"head_dim": 8, "base_lr": -1}}]}, "base_lr is -1.0: it must be positive"),
    ({"block_config": ["MLP"]}, "expected a section with type, length_dim, params"),
    ({"image_size": 10}, "image_size is 10: expected a multiple of model.patch_size 4"),
    ({"streaming": True}, "set model.encode_chunk"),
])  # fmt: skip
def test_a_section_that_cannot_be_is_refused_by_key(change: dict, message: str) -> None:
    problems: list[str] = []
    assert build(family_config(CLASS), section(**change), "model", problems) is None
    assert message in problems[0]


def test_the_height_that_data_sets_ask_for() -> None:
    assert build(family_config(CLASS), section(image_size=24), "model", []).image_tokenizer.image_size == 24
    assert build(family_config(CLASS), section(), "model", []).image_tokenizer.image_size == 128


def test_blocks_take_any_number_of_chunks_of_any_shape() -> None:
    block = lact().blocks[0]
    assert isinstance(block, Block)
    known = [fast.initial(2) for fast in block.fast_layers.values()]
    chunks = [torch.randn(2, 3, 4, 16), torch.randn(2, 1, 9, 16)]
    out, _ = block(chunks, known, None, 0, False)
    assert [x.shape for x in out] == [x.shape for x in chunks]
    torch.testing.assert_close(out[1], block(chunks[1:], known, None, 0, False)[0][0])


def test_cameras_far_from_any_other_give_finite_renders(make_views: Callable) -> None:
    model, input = lact(), make_views(2)
    c2w = decode_pose(torch.randn(2, 1, 7))
    c2w[..., :3, 3] *= 1e4
    cameras = Cameras(c2w, input.cameras.fxfycxcy[:, :1], 8, 8)
    assert model.decode(model.encode(input), cameras).isfinite().all()
