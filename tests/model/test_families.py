"""What every model family promises, and what each one must not look at."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from waits import Waits

from src.geometry.camera import Views
from src.geometry.rotation import decode_pose
from src.geometry.trajectory import interpolate
from src.model import MODELS

DECODER_ONLY, ENCODER_DECODER, PT, UP = (
    "model.LVSM_scene_decoder_only.Images2LatentScene",
    "model.LVSM_scene_encoder_decoder.Images2LatentScene",
    "src.model.ptlvsm.posedTargetLVSM",
    "src.model.uplvsm.unposedLVSM",
)
EFFICIENT, KV, PROPE = (
    "src.model.efficient_lvsm.EfficientLVSM",
    "src.model.kvlvsm.KVLVSM",
    "src.model.lvsm_prope.LVSMPRoPE",
)
PYTORCH, LACT = "lvsm_pytorch.LVSM", "src.model.lact.LaCT"
LATENT = "src.model.lvsm_latent.LVSM"
FAMILIES = [DECODER_ONLY, ENCODER_DECODER, PT, UP, EFFICIENT, KV, PROPE, PYTORCH, LACT, LATENT]
every_family = pytest.mark.parametrize("family", FAMILIES)


def test_every_published_family_is_tried_here():
    assert set(FAMILIES) <= set(MODELS)


@every_family
@pytest.mark.parametrize("height,width", [(8, 8), (8, 16)], ids=["square", "wide"])
@pytest.mark.parametrize("num_input", [1, 3])
def test_any_shape_and_number_of_views(family, height, width, num_input, make_model, make_views):
    model = make_model(family)
    result = model(make_views(num_input, height, width), make_views(2, height, width))
    assert result.render.shape == (2, 2, 3, height, width)
    assert ((result.render > 0) & (result.render < 1)).all()
    assert result.cameras.c2w.shape == (2, 2, 4, 4)


@every_family
def test_render_of_encode_equals_forward_whatever_the_chunk(family, make_model, make_views):
    model, input, target = make_model(family).eval(), make_views(2), make_views(5)
    with torch.no_grad():
        expected = model(input, target).render
        scene = model.encode(input)
        cameras = model.target_cameras(scene, target)
        for chunk in (0, 1, 2, 8):
            torch.testing.assert_close(model.render(scene, cameras, chunk), expected, atol=1e-6, rtol=0)


@every_family
def test_renders_any_number_of_frames_along_a_path(family, make_model, make_views):
    model, input, target = make_model(family).eval(), make_views(2), make_views(3)
    with torch.no_grad():
        scene = model.encode(input)
        path = interpolate(model.key_cameras(scene, input, target), 3, loop=True)
        assert model.render(scene, path, chunk=4).shape == (2, path.num_views, 3, 8, 8)


@every_family
def test_samples_of_a_batch_do_not_mix(family, make_model, make_views):
    model, input, target = make_model(family).eval(), make_views(2), make_views(2)

    def first(views: Views) -> Views:
        cameras = replace(views.cameras, c2w=views.cameras.c2w[:1], fxfycxcy=views.cameras.fxfycxcy[:1])
        return Views(views.image[:1], cameras)

    alone = model(first(input), first(target)).render
    torch.testing.assert_close(model(input, target).render[:1], alone, atol=1e-6, rtol=0)


@every_family
def test_every_parameter_gets_a_gradient(family, make_model, make_views):
    """Otherwise DistributedDataParallel would wait for it."""
    model, target = make_model(family), make_views(2)
    model(make_views(1), target).render.square().mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@every_family
@pytest.mark.parametrize("every", [1, 2])
def test_checkpointing_changes_neither_loss_nor_gradients(family, every, make_model, make_views):
    model, input, target = make_model(family).train(), make_views(2), make_views(2)

    def loss_and_gradients() -> tuple[torch.Tensor, list[torch.Tensor]]:
        loss = (model(input, target).render - target.image).square().mean()
        return loss, torch.autograd.grad(loss, list(model.parameters()))

    loss, gradients = loss_and_gradients()
    model.set_checkpointing(every)
    again, gradients_again = loss_and_gradients()
    torch.testing.assert_close(again, loss, atol=0, rtol=0)
    torch.testing.assert_close(gradients_again, gradients)


@pytest.mark.parametrize(
    "family", [DECODER_ONLY, ENCODER_DECODER, PT, EFFICIENT, KV, PROPE, PYTORCH, LACT, LATENT]
)
def test_target_images_do_not_influence_the_render_of_a_posed_target(family, make_model, make_views):
    model, input, target = make_model(family), make_views(2), make_views(2)
    other = Views(torch.rand_like(target.image), target.cameras)
    torch.testing.assert_close(model(input, target).render, model(input, other).render, atol=0, rtol=0)


@pytest.mark.parametrize(
    "family", [DECODER_ONLY, ENCODER_DECODER, PT, EFFICIENT, KV, PROPE, PYTORCH, LACT, LATENT]
)
def test_target_cameras_do_influence_it(family, make_model, make_views):
    model, input, target = make_model(family), make_views(2), make_views(2)
    moved = target.cameras.at(target.cameras.c2w.flip(1))
    difference = model(input, target).render - model(input, Views(target.image, moved)).render
    assert difference.abs().max() > 1e-3


def test_up_lvsm_sees_target_images_through_seven_numbers_only(make_model, make_views):
    model, input, target = make_model(UP), make_views(2), make_views(2)
    scene, codes = model.encode(input), []
    model.estimator.register_forward_hook(lambda module, args, output: codes.append(output))
    estimated = model.target_cameras(scene, target)
    assert codes[0].shape == (4, 7)
    torch.testing.assert_close(estimated.c2w, decode_pose(codes[0]).unflatten(0, (2, 2)))

    other = Views(torch.rand_like(target.image), target.cameras)
    assert (model.target_cameras(scene, other).c2w - estimated.c2w).abs().max() > 1e-4
    model.target_cameras = lambda scene, target: estimated
    torch.testing.assert_close(model(input, target).render, model(input, other).render, atol=0, rtol=0)


def test_up_lvsm_reads_no_camera_poses(make_model, make_views):
    model, input, target = make_model(UP), make_views(2), make_views(2)
    expected = model(input, target).render
    for views in (input, target):
        views.cameras.c2w = decode_pose(torch.randn(2, 2, 7))
    torch.testing.assert_close(model(input, target).render, expected, atol=0, rtol=0)


def test_pt_lvsm_reads_only_the_first_context_pose(make_model, make_views):
    model, input, target = make_model(PT), make_views(3), make_views(2)
    expected = model(input, target).render
    input.cameras.c2w[:, 1:] = decode_pose(torch.randn(2, 2, 7))
    torch.testing.assert_close(model(input, target).render, expected, atol=0, rtol=0)
    input.cameras.c2w[:, 0] = decode_pose(torch.randn(2, 7))
    assert (model(input, target).render - expected).abs().max() > 1e-4


def test_pt_lvsm_with_canonical_camera_does_not_depend_on_the_world_frame(make_model, make_views):
    model, input, target = make_model(PT, unposed={"canonical_camera": True}), make_views(2), make_views(2)
    expected = model(input, target).render
    move = decode_pose(torch.randn(7))
    for views in (input, target):
        views.cameras.c2w = move @ views.cameras.c2w
    torch.testing.assert_close(model(input, target).render, expected, atol=1e-5, rtol=0)


def test_pt_lvsm_disturbs_poses_only_while_training(make_model, make_views):
    model, input, target = make_model(PT, unposed={"noise_scale": 0.1}), make_views(2), make_views(2)
    quiet = make_model(PT).eval()
    quiet.load_state_dict(model.state_dict())
    expected = quiet(input, target).render
    assert (model.train()(input, target).render - expected).abs().max() > 1e-3
    torch.testing.assert_close(model.eval()(input, target).render, expected, atol=0, rtol=0)


@pytest.mark.parametrize("family", [PT, UP])
def test_decoder_as_canonical_is_one_module_under_two_names(family, make_model, make_views):
    model = make_model(family, unposed={"decoder_as_canonical": True})
    assert model.target_pose_tokenizer is model.canonical_pose_tokenizer
    names = {"target_pose_tokenizer.1.weight", "canonical_pose_tokenizer.1.weight"}
    assert names <= set(model.state_dict())
    assert names & {name for name, _ in model.named_parameters()} == {"target_pose_tokenizer.1.weight"}
    model(make_views(2), make_views(2)).render.mean().backward()
    assert model.target_pose_tokenizer[1].weight.grad.abs().sum() > 0


@every_family
def test_autocast_gives_float32_images_near_those_of_float32(family, make_model, make_views):
    model, input, target = make_model(family), make_views(1), make_views(1)
    with torch.no_grad():
        expected = model(input, target)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = model(input, target)
    assert result.render.dtype == result.cameras.c2w.dtype == torch.float32
    torch.testing.assert_close(result.render, expected.render, atol=0.1, rtol=0)


@every_family
def test_under_autocast_attention_gets_what_its_fast_kernels_take(
    family, make_model, make_views, monkeypatch
):
    """Queries, keys and values of the same half type, channels adjacent in memory."""
    seen = []

    def attention(q, k, v, **more):
        seen.append(({x.dtype for x in (q, k, v)}, {x.stride(-1) for x in (q, k, v)}))
        return inner(q, k, v, **more)

    inner = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    model = make_model(family)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(make_views(1), make_views(1))
    assert len(seen) >= 3
    assert all(entry == ({torch.bfloat16}, {1}) for entry in seen)


@every_family
def test_neither_pass_makes_the_host_wait_for_the_device(family, make_model, make_views):
    unposed = {"canonical_camera": True, "noise_scale": 0.01} if family == PT else {}
    model = make_model(family, **({"unposed": unposed} if unposed else {})).train()
    model.set_checkpointing(1)
    input, target = make_views(2), make_views(2)
    with Waits() as waits:
        model(input, target).render.square().mean().backward()
    assert waits.found == []


@every_family
def test_an_image_that_patches_do_not_tile_is_refused_with_a_size_that_fits(family, make_model, make_views):
    with pytest.raises(ValueError, match=r"10 x 15 pixels.*4 x 4 patches; 8 x 16 would fit"):
        make_model(family)(make_views(1, 10, 15), make_views(1, 10, 15))


@pytest.mark.slow
@every_family
def test_compiled_blocks_give_the_same_renders_under_the_same_names(family, make_model, make_views):
    model, input, target = make_model(family), make_views(2), make_views(2)
    expected, names = model(input, target).render, list(model.state_dict())
    model.compile_blocks()
    torch.testing.assert_close(model(input, target).render, expected, atol=1e-6, rtol=0)
    assert list(model.state_dict()) == names
