"""KV-LVSM: the cache is exact, the mask is one-way, cameras count only relative to one another, and work is as counted.

Weights lie far from their initial values (noise of 0.08 on matrices, 0.1 on gains): at the start of training attention is
nearly uniform, and most of these tests would pass on broken code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from scripts.check_parity import main as check_parity
from src.config import ConfigError, build
from src.geometry.camera import Cameras, Views
from src.geometry.frames import context_frame, normalize_cameras
from src.model import build_model, family_config
from src.model.kv_cache import KVCache
from src.model.kvlvsm import KVLVSM

FAMILY = "src.model.kvlvsm.KVLVSM"
B, V_IN, V_T, HEIGHT, WIDTH, PATCH = 2, 4, 3, 32, 40, 8
N = (HEIGHT // PATCH) * (WIDTH // PATCH)
SIZES = {"d": 64, "d_head": 16, "n_layer": 4}
SCOPES = ("global", "causal", "view")
every_scope = pytest.mark.parametrize("context_scope", SCOPES)


def section(**changes: object) -> dict:
    sizes = {**SIZES, **changes.pop("transformer", {})}
    return {
        "class_name": FAMILY,
        "image_tokenizer": {"image_size": 32, "patch_size": PATCH},
        "target_pose_tokenizer": {"patch_size": PATCH},
        "transformer": sizes,
        **changes,
    }


def fresh_model(**changes: object) -> KVLVSM:
    problems: list[str] = []
    config = build(family_config(FAMILY), section(**changes), "model", problems)
    assert not problems, problems
    return build_model(config)


def make(**changes: object) -> KVLVSM:
    """A model with weights as after training, in evaluation mode."""
    model = fresh_model(**changes)
    with torch.no_grad():
        for p in model.parameters():
            p += (0.08 if p.ndim > 1 else 0.1) * torch.randn_like(p)
    return model.eval()


def rotation(vector: Tensor) -> Tensor:
    """Rotation by |vector| radians about it. [..., 3] -> [..., 3, 3]"""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    return torch.linalg.matrix_exp(cross)


def poses(num_views: int, *, batch: int = B) -> Tensor:
    c2w = torch.eye(4).repeat(batch, num_views, 1, 1)
    c2w[..., :3, :3] = rotation(0.5 * torch.randn(batch, num_views, 3))
    c2w[..., :3, 3] = torch.randn(batch, num_views, 3)
    return c2w


def views(num_views: int, *, size: tuple[int, int] = (HEIGHT, WIDTH), batch: int = B) -> Views:
    height, width = size
    intrinsics = torch.tensor([0.9 * width, 0.9 * width, width / 2, height / 2])
    intrinsics = intrinsics * (1 + 0.1 * torch.rand(batch, num_views, 4))
    cameras = Cameras(poses(num_views, batch=batch), intrinsics, height, width)
    return Views(torch.rand(batch, num_views, 3, height, width), cameras)


def chosen(views: Views, index: slice | list[int]) -> Views:
    return Views(views.image[:, index], views.cameras.views(index))


def at(views: Views, c2w: Tensor) -> Views:
    return Views(views.image, views.cameras.at(c2w))


def double(views: Views) -> Views:
    cameras = replace(views.cameras, c2w=views.cameras.c2w.double(), fxfycxcy=views.cameras.fxfycxcy.double())
    return Views(views.image.double(), cameras)


def close(found: Tensor, expected: Tensor, bound: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, atol=bound, rtol=0)


def farthest(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


@pytest.fixture(autouse=True)
def without_gradients():
    """Unless a test is decorated otherwise."""
    with torch.no_grad():
        yield


# ----------------------------------------------------------------------------------------------- the cache is exact


@every_scope
@pytest.mark.parametrize("camera,ray", [("prope", "camray"), ("gta", "camray"), ("none", "plucker")])
def test_a_forward_pass_equals_rendering_from_the_cache_one_target_at_a_time(context_scope, camera, ray):
    model = make(context_scope=context_scope, camera=camera, ray=ray)
    input, target = views(V_IN), views(V_T)
    scene = model.encode(input)
    alone = [model.decode(scene, target.cameras.views(slice(i, i + 1))) for i in range(V_T)]
    close(torch.cat(alone, dim=1), model(input, target).render)


@every_scope
def test_number_and_order_of_targets_and_the_chunk_do_not_matter(context_scope):
    model, input, target = make(context_scope=context_scope), views(V_IN), views(5)
    scene, order = model.encode(input), [3, 0, 4, 2, 1]
    expected = model.render(scene, target.cameras)
    close(model.render(scene, target.cameras.views(order)), expected[:, order])
    for count in range(1, 6):
        for chunk in (0, 1, 2, 7):
            close(model.render(scene, target.cameras.views(slice(count)), chunk), expected[:, :count])


def dense(model: KVLVSM, input: Views, target: Views) -> Tensor:
    """All tokens of context and targets in one sequence, and who sees whom as an explicit mask."""
    v_in, v_t = input.cameras.num_views, target.cameras.num_views
    context = model.image_tokenizer(torch.cat([2 * input.image - 1, model._rays(input.cameras)], dim=2))
    targets = model.target_pose_tokenizer(model._rays(target.cameras))
    parts = [rearrange(x, "(b v) n d -> b (v n) d", b=B) for x in (context, targets)]
    x = model.transformer_input_layernorm(torch.cat(parts, dim=1))
    view = torch.arange(v_in + v_t).repeat_interleave(N)
    query, seen = view[:, None], view[None, :]
    among_context = {"global": seen < v_in, "causal": seen <= query, "view": seen == query}
    mask = torch.where(
        query < v_in,
        among_context[model.config.context_scope] & (seen < v_in),
        (seen < v_in) | (seen == query),
    )
    encoding = model._camera_encoding(input.cameras)
    encoding = encoding and encoding.joined(model._camera_encoding(target.cameras))
    for block in model.transformer_blocks:
        heads = rearrange(
            block.attn.to_qkv(block.norm1(x)),
            "b n (three h c) -> three b h n c",
            three=3,
            c=block.attn.d_head,
        )
        q, k, v = block.attn.q_norm(heads[0]), block.attn.k_norm(heads[1]), heads[2]
        if encoding:
            q, k, v = encoding.turn(q, k, v)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out = encoding.back(out) if encoding else out
        x = x + block.branch_scale * block.attn.fc(rearrange(out, "b h n c -> b n (h c)"))
        x = x + block.branch_scale * block.mlp(block.norm2(x))
    tokens = rearrange(x[:, v_in * N :], "b (v n) d -> (b v) n d", v=v_t)
    return model.image_token_decoder(tokens, v_t, HEIGHT, WIDTH)


@every_scope
@pytest.mark.parametrize("camera,init", [("prope", "depth"), ("none", "sqrt_depth")])
@torch.enable_grad()
def test_images_and_gradients_equal_those_of_one_dense_masked_attention(context_scope, camera, init):
    model, input, target = (
        make(context_scope=context_scope, camera=camera, init=init),
        views(V_IN),
        views(V_T),
    )
    gradients = []
    renders = [model(input, target).render, dense(model, input, target)]
    for render in renders:
        weights = torch.linspace(-1, 1, render.numel()).view_as(render)
        gradients.append(torch.autograd.grad((render * weights).sum(), list(model.parameters())))
    close(*renders)
    for (name, _), ours, theirs in zip(model.named_parameters(), *gradients):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm(), name


# ----------------------------------------------------------------------------------------------- views come and go


@pytest.mark.parametrize("context_scope", ["causal", "view"])
@pytest.mark.parametrize(
    "precision,bound", [(torch.float32, 1e-5), (torch.float64, 1e-13)], ids=["fp32", "fp64"]
)
def test_adding_views_one_by_one_equals_encoding_them_together(context_scope, precision, bound):
    model, input, target = make(context_scope=context_scope).to(precision), views(V_IN), views(V_T)
    if precision == torch.float64:
        input, target = double(input), double(target)
    scene = model.encode(chosen(input, slice(1)))
    for i in range(1, V_IN):
        scene = model.add_view(scene, chosen(input, slice(i, i + 1)))
    close(model.render(scene, target.cameras), model.render(model.encode(input), target.cameras), bound)
    two = model.add_view(model.encode(chosen(input, slice(2))), chosen(input, slice(2, None)))
    close(model.render(two, target.cameras), model.render(scene, target.cameras), bound)


def test_a_global_scene_grows_only_by_being_encoded_again():
    model, input = make(context_scope="global"), views(3)
    first, rest, cameras = chosen(input, slice(2)), chosen(input, slice(2, None)), views(2).cameras
    with pytest.raises(ValueError, match="keep_images"):
        model.add_view(model.encode(first), rest)
    grown = model.add_view(model.encode(first, keep_images=True), rest)
    assert torch.equal(model.render(grown, cameras), model.render(model.encode(input), cameras))


@pytest.mark.parametrize("context_scope", ["causal", "view"])
def test_a_prefix_equals_encoding_only_the_first_views(context_scope):
    model, input, cameras = make(context_scope=context_scope), views(V_IN), views(V_T).cameras
    scene = model.encode(input)
    for n in range(1, V_IN + 1):
        expected = model.render(model.encode(chosen(input, slice(n))), cameras)
        close(model.render(scene.prefix(n), cameras), expected)


def test_a_global_cache_has_no_prefix():
    scene = make(context_scope="global").encode(views(3))
    with pytest.raises(ValueError, match="seen one another"):
        scene.prefix(2)
    with pytest.raises(ValueError, match="encode the remaining views afresh"):
        scene.drop_view(2)


def test_a_dropped_view_leaves_no_trace():
    input, cameras = views(V_IN), views(V_T).cameras
    view, causal = make(context_scope="view"), make(context_scope="causal")
    for i in range(V_IN):
        rest = [j for j in range(V_IN) if j != i]
        shorter = view.encode(input).drop_view(i)
        close(view.render(shorter, cameras), view.render(view.encode(chosen(input, rest)), cameras))
    scene = causal.encode(input, keep_images=True)
    shorter = scene.drop_view(-1)
    assert shorter.num_views == shorter.context.cameras.num_views == V_IN - 1
    assert shorter.keys[0].data_ptr() == scene.keys[0].data_ptr()  # nothing was copied
    close(causal.render(shorter, cameras), causal.render(causal.encode(chosen(input, slice(3))), cameras))
    with pytest.raises(ValueError, match="cannot be taken out"):
        scene.drop_view(0)
    with pytest.raises(IndexError, match="no view 4"):
        scene.drop_view(4)


def test_scenes_do_not_share_state():
    """Two scenes in turn, as two threads would."""
    model, cameras = make(context_scope="causal"), views(V_T).cameras
    inputs = [views(2), views(3)]
    expected = [model.render(model.encode(input), cameras) for input in inputs]
    scenes = [model.encode(input) for input in inputs]
    for i in (1, 0, 1):
        assert torch.equal(model.render(scenes[i], cameras), expected[i])


# ----------------------------------------------------------------------------------------------- who sees whom


def test_the_order_of_inputs_matters_to_a_causal_model_alone():
    input, cameras, order = views(V_IN), views(V_T).cameras, [2, 0, 3, 1]
    for scope in SCOPES:
        model = make(context_scope=scope)
        one, other = (model.render(model.encode(x), cameras) for x in (input, chosen(input, order)))
        if scope == "causal":
            assert farthest(one, other) > 1e-3
        else:
            close(one, other)


@every_scope
def test_a_target_camera_changes_its_own_image_alone_and_an_input_changes_all(context_scope):
    model, input, target = make(context_scope=context_scope), views(V_IN), views(V_T)
    before = model(input, target).render
    moved = target.cameras.c2w.clone()
    moved[:, 1] = poses(1)[:, 0]
    after = model(input, at(target, moved)).render
    assert torch.equal(after[:, [0, 2]], before[:, [0, 2]])
    assert farthest(after[:, 1], before[:, 1]) > 1e-3
    image = input.image.clone()
    image[:, 2] = 1 - image[:, 2]
    after = model(Views(image, input.cameras), target).render
    assert ((after - before).abs().amax((2, 3, 4)) > 1e-3).all()


@every_scope
def test_what_is_kept_of_a_scene_does_not_depend_on_targets(context_scope, monkeypatch):
    model, input, kept = make(context_scope=context_scope), views(V_IN), []
    encode = KVLVSM._encode
    monkeypatch.setattr(KVLVSM, "_encode", lambda *a: kept.append(encode(*a)) or kept[-1])
    model(input, views(1))
    model(input, views(3))
    for one, other in zip(kept[0].keys + kept[0].values, kept[1].keys + kept[1].values):
        assert torch.equal(one, other)


# ----------------------------------------------------------------------------------------------- cameras


def moved_world(c2w: Tensor) -> Tensor:
    world = torch.eye(4)
    world[:3, :3], world[:3, 3] = rotation(torch.tensor([0.7, -1.1, 0.4])), torch.tensor([0.5, -0.8, 1.2])
    return world @ c2w


@every_scope
def test_moving_the_world_changes_nothing_with_camray_and_much_with_plucker(context_scope):
    """The second half guards against a path of the cameras that is dead."""
    input, target = views(V_IN), views(V_T)
    others = [at(x, moved_world(x.cameras.c2w)) for x in (input, target)]
    for camera in ("prope", "gta"):
        model = make(context_scope=context_scope, camera=camera)
        close(model(*others).render, model(input, target).render)
    model = make(context_scope=context_scope, ray="plucker")
    assert farthest(model(*others).render, model(input, target).render) > 1e-2


def test_the_scale_of_the_world_matters_unless_the_context_sets_it():
    model, input, target = make(), views(V_IN), views(V_T)
    c2w = torch.cat([input.cameras.c2w, target.cameras.c2w], dim=1)
    larger = c2w.clone()
    larger[..., :3, 3] *= 3

    def render(c2w: Tensor) -> Tensor:
        return model(at(input, c2w[:, :V_IN]), at(target, c2w[:, V_IN:])).render

    def normalised(c2w: Tensor) -> Tensor:
        return torch.stack([normalize_cameras(x, 1.35, slice(V_IN)) for x in c2w])

    assert farthest(render(larger), render(c2w)) > 1e-2
    close(render(normalised(larger)), render(normalised(c2w)), 1e-4)


@every_scope
@pytest.mark.parametrize("ray", ["camray", "plucker"])
def test_a_scene_keeps_the_frame_of_its_first_views(context_scope, ray, tmp_path):
    """Cameras as they come, in any world and scale, also those of views that are added later."""
    model, input, target = make(context_scope=context_scope, ray=ray), views(V_IN), views(V_T)
    first, rest = chosen(input, slice(2)), chosen(input, slice(2, None))
    renders = []
    for change in (lambda c2w: c2w, lambda c2w: moved_world(c2w) * torch.tensor([1, 1, 1, 3.0])):
        early, late, cameras = (
            at(x, torch.cat([change(x.cameras.c2w)[..., :3, :], x.cameras.c2w[..., 3:, :]], dim=-2))
            for x in (first, rest, target)
        )
        frame = context_frame(early.cameras.c2w)
        scene = model.add_view(model.encode(early, frame=frame, keep_images=True), late)
        scene.save(tmp_path / "scene.pt")
        renders.append(model.render(KVCache.load(tmp_path / "scene.pt"), cameras.cameras))
        assert torch.equal(renders[-1], model.render(scene, cameras.cameras))
    close(*renders, 1e-4)
    c2w = torch.cat([x.cameras.c2w for x in (first, rest, target)], dim=1)
    c2w = torch.stack([normalize_cameras(x, 1.35, slice(2)) for x in c2w])  # as the data set does it
    scene = model.encode(at(input, c2w[:, :V_IN]))
    close(model.render(scene, target.cameras.at(c2w[:, V_IN:])), renders[0], 1e-4)


def test_intrinsics_reach_prope_and_not_gta():
    """At equal rays: the whole of the difference is in the attention."""
    input, target = views(V_IN), views(V_T)
    for camera, differs in (("prope", True), ("gta", False)):
        model = make(camera=camera)
        rays = model._rays(target.cameras)
        model._rays = lambda cameras, rays=rays, model=model: (
            rays if cameras.num_views == V_T else KVLVSM._rays(model, cameras)
        )
        zoomed = replace(target.cameras, fxfycxcy=target.cameras.fxfycxcy * torch.tensor([1.5, 1.5, 1, 1]))
        scene = model.encode(input)
        assert (farthest(model.decode(scene, zoomed), model.decode(scene, target.cameras)) > 1e-3) == differs


@every_scope
def test_targets_of_another_size_and_shape_than_the_context(context_scope):
    model, input, target = make(context_scope=context_scope), views(V_IN), views(V_T, size=(64, 48))
    scene = model.encode(input)
    together = model.render(scene, target.cameras)
    assert together.shape == (B, V_T, 3, 64, 48)
    close(model.render(scene, target.cameras, chunk=1), together)
    for b in range(B):  # one scene at a time
        cameras = replace(
            target.cameras, c2w=target.cameras.c2w[b : b + 1], fxfycxcy=target.cameras.fxfycxcy[b : b + 1]
        )
        close(model.render(replace(scene.samples([b])), cameras), together[b : b + 1])


def test_context_views_of_different_sizes_in_one_cache():
    model, cameras = make(context_scope="view"), views(V_T).cameras
    large, small = views(1, size=(48, 64)), views(2)
    scene = model.add_view(model.encode(small), large)
    assert scene.tokens == (20, 20, 48)
    reordered = model.add_view(model.encode(large), small)
    close(model.render(scene, cameras), model.render(reordered, cameras))
    close(model.render(scene.drop_view(-1), cameras), model.render(model.encode(small), cameras))
    with pytest.raises(ValueError, match="kept images must be of one size"):
        model.add_view(model.encode(small, keep_images=True), large)


# ----------------------------------------------------------------------------------------------- LVSM


@torch.enable_grad()
@pytest.mark.parametrize("case", ["decoder_only_base", "decoder_only_nonsquare_noqknorm", "training_steps"])
def test_with_the_full_mask_it_is_lvsm_decoder_only(case: str, shared: Path, capsys: pytest.CaptureFixture):
    status = check_parity([str(shared / "parity" / "lvsm" / f"{case}.pt"), "--as-class", FAMILY])
    assert status == 0, capsys.readouterr().out[-3000:]


@torch.enable_grad()
def test_it_cannot_stand_for_the_encoder_decoder(shared: Path, capsys: pytest.CaptureFixture):
    assert check_parity([str(shared / "parity/lvsm/encoder_decoder_base.pt"), "--as-class", FAMILY]) == 1
    assert "cannot stand for" in capsys.readouterr().out


def test_the_full_mask_takes_camera_encodings_too():
    model, input, target = make(mask="full"), views(2), views(V_T)
    expected = model(input, target).render
    close(model.render(model.encode(input), target.cameras, chunk=1), expected)
    others = [at(x, moved_world(x.cameras.c2w)) for x in (input, target)]
    close(model(*others).render, expected)
    assert farthest(expected, make(mask="full", camera="none")(input, target).render) > 1e-2
    with pytest.raises(ValueError, match="keeps no cache"):
        model.add_view(model.encode(input), input)


# ----------------------------------------------------------------------------------------------- work


def linear(d: int, tokens: int) -> int:
    return 24 * d * d * tokens


def seen_pairs(scope: str, v: int, p: int) -> int:
    return {"global": (v * p) ** 2, "causal": v * (v + 1) // 2 * p * p, "view": v * p * p}[scope]


def counted(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return counter.get_total_flops()


@every_scope
def test_counted_work_is_that_of_the_formulas(context_scope):
    """Multiply-adds count two; beside the layers there are only the tokenizers and the head."""
    d, layers, p2 = SIZES["d"], SIZES["n_layer"], PATCH**2
    model = make(context_scope=context_scope, camera="none", ray="plucker")
    input, target = views(V_IN, batch=1), views(V_T, batch=1)
    scene = model.encode(input)
    encode = (layers - 1) * (
        linear(d, V_IN * N) + 4 * d * seen_pairs(context_scope, V_IN, N)
    ) + 4 * d * d * V_IN * N
    assert counted(lambda: model.encode(input)) == encode + 2 * 9 * p2 * d * V_IN * N
    frame = layers * (linear(d, N) + 4 * d * N * (V_IN + 1) * N)
    ends = 2 * (6 + 3) * p2 * d * N
    assert counted(lambda: model.render(scene, target.cameras)) == V_T * (frame + ends)
    if context_scope == "causal":
        one = chosen(input, slice(0, 1))
        grown = (layers - 1) * (linear(d, N) + 4 * d * N * (V_IN + 1) * N) + 4 * d * d * N
        assert counted(lambda: model.add_view(scene, one)) == grown + 2 * 9 * p2 * d * N


@pytest.mark.parametrize("num_input", [1, 2, 4, 8])
def test_a_frame_costs_one_part_in_the_number_of_views_of_lvsm(num_input):
    """Exactly, in the layers: query tokens of one view against those of all."""
    one_way, full = (make(mask=mask, camera="none", ray="plucker") for mask in ("one_way", "full"))
    scenes = [model.encode(views(num_input, batch=1)) for model in (one_way, full)]
    target = views(1, batch=1).cameras
    ends = 2 * (6 + 3) * PATCH**2 * SIZES["d"] * N
    work = [counted(lambda m=m, s=s: m.render(s, target)) - ends for m, s in zip((one_way, full), scenes)]
    assert work[1] == (num_input + 1) * work[0]


def test_a_camera_encoding_adds_little_work():
    input, target = views(V_IN, batch=1), views(V_T, batch=1)
    with_it, without = (counted(lambda c=c: make(camera=c)(input, target)) for c in ("prope", "none"))
    assert 1 < with_it / without < 1.05


def test_size_of_a_cache_is_that_of_the_formula():
    scene = make().encode(views(V_IN))
    assert scene.nbytes == 2 * SIZES["n_layer"] * V_IN * N * SIZES["d"] * 4 * B
    assert scene.to(dtype=torch.bfloat16).nbytes == scene.nbytes // 2


# ----------------------------------------------------------------------------------------------- files and precision


@pytest.mark.parametrize("keep_images", [False, True])
def test_a_saved_cache_renders_the_same_images(keep_images, tmp_path):
    model, cameras = make(), views(V_T).cameras
    scene = model.encode(views(V_IN), keep_images=keep_images)
    scene.save(tmp_path / "scene.pt")
    loaded = KVCache.load(tmp_path / "scene.pt")
    assert torch.equal(model.render(loaded, cameras), model.render(scene, cameras))
    assert (loaded.context is not None) == keep_images
    assert torch.load(tmp_path / "scene.pt", weights_only=True)["tokens"] == [N] * V_IN


def test_a_file_holds_no_more_than_the_views_it_is_of(tmp_path):
    scene = make(context_scope="causal").encode(views(V_IN))
    scene.save(tmp_path / "four.pt")
    scene.prefix(1).save(tmp_path / "one.pt")
    assert (tmp_path / "one.pt").stat().st_size < 0.4 * (tmp_path / "four.pt").stat().st_size


def test_what_is_no_cache_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        KVCache.load(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("no cache", encoding="utf-8")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"keys": []}, tmp_path / "dict.pt")
    for name in ("text", "list", "dict"):
        with pytest.raises(ConfigError, match="not the cache of a scene"):
            KVCache.load(tmp_path / f"{name}.pt")


def test_a_cache_of_other_weights_or_settings_is_refused():
    model, cameras = make(), views(V_T).cameras
    scene = model.encode(views(2))
    with torch.no_grad():
        model.transformer_blocks[1].attn.fc.weight[3, 5] += 1e-3
    with pytest.raises(ValueError, match="belongs to another model"):
        model.render(scene, cameras)
    other = fresh_model(context_scope="view").eval()
    other.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="belongs to another model"):
        other.render(model.encode(views(2)), cameras)


def test_half_precision_stays_near_and_the_cache_path_is_the_forward_pass():
    model, input, target = make(), views(2), views(2)
    full = model(input, target).render
    with torch.autocast("cpu", torch.bfloat16):
        forward = model(input, target).render
        scene = model.encode(input)
        cached = model.render(scene, target.cameras, chunk=1)
    assert scene.keys[0].dtype == torch.bfloat16
    close(cached, forward, 1e-3)
    close(forward, full, 2e-2)
    close(model.render(model.encode(input).to(dtype=torch.bfloat16), target.cameras), full, 2e-2)


# ----------------------------------------------------------------------------------------------- training


@torch.enable_grad()
@pytest.mark.parametrize("changes", [{"context_scope": s} for s in SCOPES] + [{"mask": "full"}], ids=str)
def test_every_parameter_gets_a_gradient_and_recomputation_changes_none(changes):
    model, input, target = make(**changes).train(), views(2), views(2)
    found = []
    for every in (0, 1):
        model.set_checkpointing(every)
        loss = (model(input, target).render - target.image).square().mean()
        found.append(torch.autograd.grad(loss, list(model.parameters())))
    assert all(g.abs().sum() > 0 for g in found[0])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other)


@torch.enable_grad()
@pytest.mark.parametrize("context_scope", ["causal", "view"])
def test_in_prefix_training_each_sample_reads_its_own_number_of_views(context_scope, monkeypatch):
    model = make(context_scope=context_scope, prefix_training=True)
    input, target = views(V_IN, batch=3), views(V_T, batch=3)
    lengths = [3, 1, 3]
    monkeypatch.setattr(torch, "randint", lambda low, high, size: torch.tensor(lengths))
    rendered = model.train()(input, target).render
    model.eval()
    for i, length in enumerate(lengths):
        alone = model(chosen(input, slice(length)), target).render
        close(rendered[i], alone[i])
    close(
        model(input, target).render, model.render(model.encode(input), target.cameras)
    )  # none in evaluation


def test_lengths_of_prefixes_are_all_drawn():
    model = make(context_scope="causal", prefix_training=True).train()
    seen, decode = set(), model._decode
    model._decode = lambda scene, cameras: seen.add(scene.num_views) or decode(scene, cameras)
    for _ in range(12):
        model(views(3), views(1))
    assert seen == {1, 2, 3}


@pytest.mark.parametrize("init", ["depth", "sqrt_depth"])
def test_initial_weights_have_the_deviation_of_their_width(init):
    sizes = {"d": 192, "d_head": 16, "n_layer": 4}
    model = fresh_model(init=init, transformer=sizes)
    std = 0.02 * 2  # (768 / 192)^0.5
    assert model.image_tokenizer[1].weight.std().item() == pytest.approx(std, rel=0.05)
    for i, block in enumerate(model.transformer_blocks):
        expected = std / (2 * (i + 1)) ** 0.5 if init == "depth" else std
        assert block.mlp.mlp[2].weight.std().item() == pytest.approx(expected, rel=0.05)
        assert block.branch_scale == (1.0 if init == "depth" else 0.5)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"transformer": {"d": 24, "d_head": 12}}, "d_head is 12: model.camera prope needs a multiple of 8"),
        ({"prefix_training": True}, "model.context_scope: causal or view"),
        ({"prefix_training": True, "context_scope": "view", "mask": "full"}, "model.mask: one_way"),
        ({"context_scope": "local"}, "expected global or causal or view"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(changes, message):
    problems: list[str] = []
    assert build(family_config(FAMILY), section(**changes), "model", problems) is None
    assert message in problems[0]
