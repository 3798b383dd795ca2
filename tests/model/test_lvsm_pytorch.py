"""The module API: published arguments and results, and none of the faults of the original.

The usage examples are run by tests/test_module_api_page.py.
"""

from __future__ import annotations

import inspect
import json
import logging
import math

import pytest
import torch
from torch import Tensor, nn

from src.geometry.camera import Cameras, plucker
from src.geometry.rotation import decode_pose
from src.lvsm_pytorch import (
    LVSM,
    MAE,
    CameraWrapper,
    ImageAndPluckerRayEncoder,
    MAECameraWrapper,
    camera_arguments,
    get_mask_subset_prob,
    to_plucker_rays,
)
from src.model.lvsm_pytorch.perceptual import Vgg16Features

SIZES = {"dim": 16, "max_image_size": 16, "patch_size": 8, "depth": 2, "heads": 2, "dim_head": 8}


def lvsm(**changes: object) -> LVSM:
    """A tiny LVSM with all weights away from their initial values and without a perceptual loss."""
    model = LVSM(**{"max_input_images": 6, "perceptual_loss_weight": 0.0, **SIZES, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def views(num_inputs: int = 3, height: int = 16, width: int = 16, channels: int = 3) -> dict[str, Tensor]:
    """Random arguments of LVSM.forward for two samples, target image included."""
    return {
        "input_images": torch.rand(2, num_inputs, channels, height, width),
        "input_rays": torch.randn(2, num_inputs, 6, height, width),
        "target_rays": torch.randn(2, 6, height, width),
        "target_images": torch.rand(2, channels, height, width),
    }


def without_target(call: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in call.items() if name != "target_images"}


# ----------------------------------------------------------------------------------------------- signatures


@pytest.mark.parametrize(
    "function,published",
    [
        (
            LVSM.__init__,
            "dim max_image_size patch_size depth heads max_input_images dim_head channels rand_input_image_embed "
            "dropout_input_ray_prob decoder_kwargs perceptual_loss_weight",
        ),
        (
            LVSM.forward,
            "input_images input_rays target_rays target_images num_input_images return_loss_breakdown return_embed",
        ),
        (MAE.__init__, "lvsm frac_masked frac_images_to_ray_masked image_to_ray_loss_weight"),
        (MAE.forward, "images rays num_images return_image_and_ray_recon return_loss_breakdown"),
        (
            CameraWrapper.forward,
            "input_intrinsic_rotation input_extrinsic_rotation input_translation input_uniform_points "
            "target_intrinsic_rotation target_extrinsic_rotation target_translation target_uniform_points "
            "input_images target_images num_input_images return_loss_breakdown",
        ),
        (
            MAECameraWrapper.forward,
            "intrinsic_rotation extrinsic_rotation translation uniform_points images num_images kwargs",
        ),
        (
            ImageAndPluckerRayEncoder.__init__,
            "dim max_image_size patch_size depth heads max_input_images dim_head channels rand_input_image_embed "
            "dropout_input_ray_prob decoder_kwargs add_axial_pos_emb",
        ),
        (ImageAndPluckerRayEncoder.forward, "images rays image_mask ray_mask num_images"),
        (get_mask_subset_prob, "mask prob min_mask min_keep_mask"),
    ],
)
def test_published_arguments_come_first_and_in_their_order(function, published):
    names = [name for name in inspect.signature(function).parameters if name != "self"]
    assert names[: len(published.split())] == published.split()


def test_results_are_the_published_ones():
    model, call = lvsm().eval(), views()
    render = model(**without_target(call))
    assert render.shape == (2, 3, 16, 16)
    assert ((render > 0) & (render < 1)).all()
    loss = model(**call)
    again, (l2, perceptual) = model(**call, return_loss_breakdown=True)
    assert loss == again == l2 and perceptual == 0
    torch.testing.assert_close(l2, ((render - call["target_images"]) ** 2).mean())
    target, inputs = model(**call, return_embed=True)
    assert (target.shape, inputs.shape) == ((2, 2, 2, 16), (2, 3, 2, 2, 16))


def test_only_dim_may_be_positional():
    with pytest.raises(TypeError):
        LVSM(16, 16, 8)


def test_initial_weights_follow_the_published_distributions():
    model = LVSM(
        dim=64, max_image_size=64, patch_size=8, depth=1, max_input_images=200, add_axial_pos_emb=True
    )
    for name, parameter in model.named_parameters():
        if name.endswith((".g", ".gamma")):
            assert (parameter == 0).all(), name
        elif name.endswith("_embed") and parameter.numel() > 300:
            assert 0.015 < parameter.std() < 0.025, name
    bound = 1 / math.sqrt(3 * 8 * 8)
    weight = model.image_and_ray_encoder.images_to_patch_tokens[1].weight
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


# name of the manifest, wrapper, arguments
MANIFESTS = [
    ("readme_lvsm_rgb", [], {"patch_size": 32, "depth": 2}),
    ("readme_camera_wrapper_rgba", [CameraWrapper], {"patch_size": 32, "depth": 2, "channels": 4}),
    ("readme_mae_rgba", [MAE], {"patch_size": 32, "depth": 2, "channels": 4}),
    (
        "readme_mae_camera_wrapper_rgba",
        [MAE, MAECameraWrapper],
        {"patch_size": 32, "depth": 2, "channels": 4},
    ),
    ("defaults_dim512_patch8", [], {"patch_size": 8}),
    ("paper_size_dim768_patch8_depth24", [], {"dim": 768, "patch_size": 8, "depth": 24, "heads": 12}),
]


@pytest.mark.parametrize("manifest,wrappers,arguments", MANIFESTS, ids=[row[0] for row in MANIFESTS])
def test_names_and_shapes_are_the_published_ones(manifest, wrappers, arguments, shared):
    path = shared / "parity" / "lvsm_pytorch" / f"manifest_{manifest}.json"
    with torch.device("meta"):
        model: nn.Module = LVSM(**{"dim": 512, "max_image_size": 256, **arguments})
        for wrapper in wrappers:
            model = wrapper(model)
    found = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert found == json.loads(path.read_text())


# ----------------------------------------------------------------------------------------------- views that come and go


def test_a_padded_batch_row_equals_the_row_alone_and_padding_has_no_influence():
    model, call = lvsm().eval(), without_target(views(4))
    counts = torch.tensor([2, 4])
    render = model(**call, num_input_images=counts)
    alone = model(call["input_images"][:1, :2], call["input_rays"][:1, :2], call["target_rays"][:1])
    torch.testing.assert_close(render[:1], alone, atol=1e-6, rtol=0)
    call["input_images"][0, 2:] = 7.0
    call["input_rays"][0, 2:] = -7.0
    torch.testing.assert_close(model(**call, num_input_images=counts), render, atol=0, rtol=0)


@pytest.mark.parametrize("counts", [[0, 3], [2, 4]])
def test_counts_beyond_the_views_are_refused(counts):
    with pytest.raises(ValueError, match="expected 1 to 3, the number of views"):
        lvsm()(**views(3), num_input_images=torch.tensor(counts))


def test_more_inputs_than_rows_are_refused_with_the_target_counted():
    assert lvsm(max_input_images=4)(**views(3)).isfinite()
    with pytest.raises(ValueError, match="5 views, a target included, but max_input_images is 4"):
        lvsm(max_input_images=4)(**views(4))


@pytest.mark.parametrize(
    "name,shape,message",
    [
        ("target_images", (2, 1, 16, 16), r"target_images is \[2, 1, 16, 16\]: expected \[2, 3, 16, 16\]"),
        ("input_images", (2, 3, 4, 16, 16), r"input_images is .* expected \[any, any, 3, any, any\]"),
        ("input_rays", (2, 3, 5, 16, 16), r"input_rays .* \[2, 3, 6, 16, 16\]"),
        ("target_rays", (1, 6, 16, 16), r"target_rays .* \[2, 6, 16, 16\]"),
    ],
)
def test_shapes_are_checked_and_shown(name, shape, message):
    with pytest.raises(ValueError, match=message):
        lvsm()(**{**views(3), name: torch.zeros(shape)})


def test_images_that_patches_do_not_tile_are_refused():
    with pytest.raises(ValueError, match="16 x 20 pixels"):
        lvsm()(**views(2, 16, 20))


# ----------------------------------------------------------------------------------------------- randomness


def test_evaluation_is_the_same_each_time_and_training_draws_image_embeddings():
    model, call = lvsm(), without_target(views())
    assert (model(**call) - model(**call)).abs().max() > 1e-4
    model.eval()
    torch.testing.assert_close(model(**call), model(**call), atol=0, rtol=0)
    ascending = torch.arange(4).expand(2, -1)
    torch.testing.assert_close(model(**call), model(**call, image_index=ascending), atol=0, rtol=0)


def test_as_published_evaluation_draws_too_if_asked():
    model, call = lvsm(rand_embed_in_eval=True).eval(), without_target(views())
    assert (model(**call) - model(**call)).abs().max() > 1e-4


def test_a_generator_repeats_ray_dropout_and_embeddings():
    model, call = lvsm(dropout_input_ray_prob=0.5), views()
    losses = [model(**call, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert losses[0] == losses[1] != model(**call, generator=torch.Generator().manual_seed(4))


def test_rows_of_the_image_embeddings_are_never_taken_twice():
    encoder = lvsm().image_and_ray_encoder
    for _ in range(20):
        index = encoder._image_index(5, 6, None)
        assert (index.sort(dim=1).values == torch.arange(6)).all()


def test_ray_dropout_happens_in_training_only_at_its_rate():
    model = lvsm(dropout_input_ray_prob=0.3)
    assert model._dropped_rays(1000, 4, None, None).float().mean() == pytest.approx(0.3, abs=0.03)
    assert not model.eval()._dropped_rays(1000, 4, None, None).any()


def test_ray_dropout_can_spare_one_view_that_exists():
    model = lvsm(dropout_input_ray_prob=1.0, keep_one_input_ray=True)
    existing = torch.arange(4) < torch.tensor([[1], [4]]).repeat(50, 1)
    dropped = model._dropped_rays(100, 4, existing, None)
    assert ((~dropped & existing).sum(dim=1) == 1).all()
    assert lvsm(dropout_input_ray_prob=1.0)._dropped_rays(100, 4, None, None).all()


def test_hidden_rays_are_not_read():
    model, call = lvsm().eval(), without_target(views())
    mask = torch.tensor([[True, False, False], [False, True, True]])
    render = model(**call, input_ray_mask=mask)
    call["input_rays"][mask] = 5.0
    torch.testing.assert_close(model(**call, input_ray_mask=mask), render, atol=0, rtol=0)


# ----------------------------------------------------------------------------------------------- switches


def test_decoder_kwargs_are_merged_into_the_defaults():
    names = set(lvsm().state_dict())
    assert set(lvsm(decoder_kwargs={"attn_flash": True}).state_dict()) == names
    plain = set(lvsm(decoder_kwargs={"ff_glu": False}).state_dict())
    assert any("to_value_residual_mix" in name for name in plain)
    assert not any("proj" in name for name in plain)


def test_an_unknown_switch_is_refused_with_those_that_exist():
    with pytest.raises(ValueError, match=r"no 'rotary_pos_emb'.*use_rmsnorm, add_value_residual, ff_glu"):
        lvsm(decoder_kwargs={"rotary_pos_emb": True})


def test_one_head_as_wide_as_the_tokens_is_not_projected():
    assert not any("to_out" in name for name in lvsm(heads=1, dim_head=16).state_dict())
    assert any("to_out" in name for name in lvsm(heads=1, dim_head=24).state_dict())


def test_max_image_size_bounds_images_only_with_axial_embeddings():
    call = views(2, 24, 16)
    assert lvsm()(**call).isfinite()
    with pytest.raises(ValueError, match="24 x 16 pixels are larger than max_image_size 16"):
        lvsm(add_axial_pos_emb=True)(**call)


def test_without_rays_and_axial_embeddings_a_view_is_a_bag_of_patches():
    call, hidden = views(1, 8, 16), torch.tensor([[True], [True]])
    swapped = {**call, "input_images": call["input_images"].roll(8, dims=-1)}
    for axial, same in ((False, True), (True, False)):
        model = lvsm(add_axial_pos_emb=axial).eval()
        tokens = model(**call, input_ray_mask=hidden, return_embed=True)[1]
        moved = model(**swapped, input_ray_mask=hidden, return_embed=True)[1].flip(3)
        assert torch.allclose(tokens, moved, atol=1e-5) is same


def test_checkpointing_changes_neither_loss_nor_gradients():
    model, call = lvsm(rand_input_image_embed=False), views()

    def gradients() -> list[Tensor | None]:
        model.zero_grad()
        model(**call).backward()
        return [p.grad.clone() for p in model.parameters()]

    expected = gradients()
    model.image_and_ray_encoder.decoder.layers.checkpoint_every = 1
    torch.testing.assert_close(gradients(), expected)


def test_pure_bfloat16_and_autocast_run():
    call = {name: tensor.bfloat16() for name, tensor in views().items()}
    assert lvsm().bfloat16()(**call).isfinite()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert lvsm()(**without_target(views())).dtype == torch.float32


# ----------------------------------------------------------------------------------------------- perceptual loss


def narrow_vgg() -> Vgg16Features:
    """VGG-16 with two channels everywhere and 5 outputs: the layout, in a thousandth of the time."""
    state, before = {}, 3
    for index in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28):
        state[f"features.{index}.weight"] = 0.3 * torch.randn(2, before, 3, 3)
        state[f"features.{index}.bias"] = torch.rand(2)
        before = 2
    for index, inner in ((0, 2 * 49), (3, 5)):
        state[f"classifier.{index}.weight"] = 0.3 * torch.randn(5, inner)
        state[f"classifier.{index}.bias"] = torch.rand(5)
    return Vgg16Features(state)


def test_the_perceptual_network_is_neither_trained_nor_saved_but_moves_along():
    model = lvsm(perceptual_loss_weight=0.5, vgg16=narrow_vgg())
    assert set(model.state_dict()) == set(lvsm().state_dict())
    assert not any("vgg" in name for name, _ in model.named_parameters())
    model.load_state_dict(lvsm().state_dict())
    assert next(model.double().vgg.buffers()).dtype == torch.float64
    call = {name: tensor.bfloat16() for name, tensor in views(1, 32, 32).items()}
    loss, (l2, perceptual) = model.bfloat16()(**call, return_loss_breakdown=True)
    torch.testing.assert_close(loss, l2 + 0.5 * perceptual, atol=1e-2, rtol=0)


def test_the_perceptual_loss_reaches_the_render():
    model, call = lvsm(perceptual_loss_weight=1.0, vgg16=narrow_vgg()).eval(), views(1, 32, 32)
    render = model(**without_target(call)).detach().requires_grad_()
    _, (_, perceptual) = model.loss(render, call["target_images"])
    perceptual.backward()
    assert perceptual > 0 and render.grad.abs().sum() > 0


def test_without_weights_the_perceptual_loss_is_left_out_and_the_first_loss_says_so(caplog):
    model = lvsm(perceptual_loss_weight=0.5)
    with caplog.at_level(logging.WARNING):
        losses = [model(**views(), return_loss_breakdown=True) for _ in range(2)]
    assert all(perceptual == 0 and loss == l2 for loss, (l2, perceptual) in losses)
    assert caplog.text.count("The perceptual loss is left out: it needs weights: pass vgg16=FILE") == 1


def test_small_images_are_refused_by_the_perceptual_loss():
    with pytest.raises(ValueError, match="at least 32 x 32 pixels, not 16 x 16"):
        lvsm(perceptual_loss_weight=1.0, vgg16=narrow_vgg())(**views())


def test_four_channels_switch_the_perceptual_loss_off_and_say_so_once(caplog):
    model = lvsm(perceptual_loss_weight=0.5, channels=4, vgg16=narrow_vgg())
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            _, (_, perceptual) = model(**views(channels=4), return_loss_breakdown=True)
    assert perceptual == 0
    assert caplog.text.count("needs 3 channels and there are 4") == 1


def test_a_missing_or_foreign_file_of_vgg_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match="download_weights vgg16"):
        lvsm(vgg16=tmp_path / "vgg16.pth")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "vgg16.pth")
    with pytest.raises(ValueError, match=r"does not hold.*features\.0\.weight is missing"):
        lvsm(vgg16=tmp_path / "vgg16.pth")


# ----------------------------------------------------------------------------------------------- cameras


def cameras(num_views: int = 3, height: int = 16, width: int = 24) -> Cameras:
    fxfycxcy = torch.tensor([20.0, 22.0, 11.0, 9.0]).expand(2, num_views, 4)
    return Cameras(decode_pose(torch.randn(2, num_views, 7)), fxfycxcy.contiguous(), height, width)


def test_standard_rays_of_a_wrapper_are_those_of_the_shared_camera_module():
    posed = cameras()
    rays = CameraWrapper(lvsm()).to_rays(*camera_arguments(posed))
    torch.testing.assert_close(rays, plucker(posed), atol=1e-5, rtol=0)


def test_published_rays_are_the_standard_ones_reordered_and_not_of_unit_length():
    posed = cameras()
    direction, moment = to_plucker_rays(*camera_arguments(posed)).chunk(2, dim=2)
    length = direction.norm(dim=2, keepdim=True)
    assert (length >= 1 - 1e-5).all() and length.max() > 1.05
    expected = plucker(posed)
    torch.testing.assert_close(torch.cat([moment, direction], dim=2) / length, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rays", ["plucker", "published"])
def test_the_wrapper_passes_rays_and_options_on(rays):
    model, posed, call = lvsm(), cameras(4), views(3, 16, 24)
    wrapper = CameraWrapper(model, rays=rays).eval()
    k, r, t, points = camera_arguments(posed)
    given = [x[:, :3] for x in (k, r, t, points)] + [x[:, 3] for x in (k, r, t, points)]
    all_rays = wrapper.to_rays(k, r, t, points)
    expected = model(call["input_images"], all_rays[:, :3], all_rays[:, 3])
    torch.testing.assert_close(wrapper(*given, call["input_images"]), expected)
    assert wrapper(*given, call["input_images"], return_embed=True)[0].shape == (2, 2, 3, 16)


def test_rays_are_float32_under_autocast_and_from_half_precision():
    arguments = camera_arguments(cameras())
    expected = to_plucker_rays(*arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(to_plucker_rays(*arguments), expected, atol=0, rtol=0)
    halves = [x.bfloat16() for x in arguments]
    exact = to_plucker_rays(*(x.double() for x in halves))
    torch.testing.assert_close(to_plucker_rays(*halves).double(), exact, atol=1e-3, rtol=1e-4)


def test_an_unknown_ray_code_is_refused():
    with pytest.raises(ValueError, match="rays is 'unit': expected plucker or published"):
        CameraWrapper(lvsm(), rays="unit")


# ----------------------------------------------------------------------------------------------- masked autoencoder


def test_masks_hide_one_side_of_whole_views_that_exist():
    mae, images = MAE(lvsm()), torch.rand(200, 6, 3, 16, 16)
    counts = torch.tensor([2, 3, 5, 6]).repeat(50)
    image_mask, ray_mask = mae.draw_masks(images, counts)
    eligible = torch.arange(6) < counts[:, None]
    assert not (image_mask & ray_mask).any()
    assert not ((image_mask | ray_mask) & ~eligible).any()
    masked = (image_mask | ray_mask).sum(1)
    assert (masked >= 1).all()
    assert masked.float().mean().item() == pytest.approx(2.0, rel=0.1)  # half of 2, 3, 5 and 6


@pytest.mark.parametrize("num_views", [2, 3])
def test_few_views_teach_images_too_unless_as_published(num_views):
    images = torch.rand(400, num_views, 3, 8, 8)
    hidden = MAE(lvsm()).draw_masks(images)[0].sum().item()
    assert hidden / 400 == pytest.approx(0.5 * max(1.0, 0.5 * num_views), rel=0.2)
    assert MAE(lvsm(), rounding="floor").draw_masks(images)[0].sum() == 0


@pytest.mark.parametrize("part,images,rays", [(0.0, 0, 4), (1.0, 4, 0)])
def test_fractions_of_0_and_1_are_allowed(part, images, rays):
    mae = MAE(lvsm(), frac_masked=1.0, frac_images_to_ray_masked=part)
    image_mask, ray_mask = mae.draw_masks(torch.rand(3, 4, 3, 8, 8))
    assert image_mask.sum(1).tolist() == [images] * 3 and ray_mask.sum(1).tolist() == [rays] * 3
    assert mae(torch.rand(3, 4, 3, 16, 16), torch.rand(3, 4, 6, 16, 16)).isfinite()
    with pytest.raises(ValueError, match=r"frac_masked is 1.5: expected 0 to 1"):
        MAE(lvsm(), frac_masked=1.5)


def test_results_of_the_mae_and_its_balance():
    images, rays = torch.rand(2, 5, 3, 16, 16), torch.randn(2, 5, 6, 16, 16)
    image_mask = torch.tensor([[1, 0, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
    ray_mask = torch.tensor([[0, 1, 0, 0, 0], [0, 0, 1, 0, 0]], dtype=torch.bool)
    model = lvsm().eval()
    asked = {"return_loss_breakdown": True, "return_image_and_ray_recon": True}
    mae = MAE(model, image_to_ray_loss_weight=0.7)
    call = {"image_mask": image_mask, "ray_mask": ray_mask}
    loss, ((image_errors, ray_errors), (image_recon, ray_recon)) = mae(images, rays, **call, **asked)
    assert (image_errors.shape, ray_errors.shape) == ((2, 3, 16, 16), (2, 6, 16, 16))
    torch.testing.assert_close(image_errors, (image_recon[1] - images[image_mask]) ** 2)
    torch.testing.assert_close(ray_errors, (ray_recon[1] - rays[ray_mask]) ** 2)
    total = 0.7 * image_errors.sum() + ray_errors.sum()
    torch.testing.assert_close(loss, total / (image_errors.numel() + ray_errors.numel()))
    mae.balance = "kinds"
    torch.testing.assert_close(mae(images, rays, **call), 0.7 * image_errors.mean() + ray_errors.mean())
    assert len(mae(images, rays, **call, return_loss_breakdown=True)[1]) == 2


def test_a_masked_image_is_not_read_and_a_masked_target_is_what_lvsm_renders():
    mae = MAE(lvsm()).eval()
    call = without_target(views(3))
    images = torch.cat([torch.rand(2, 1, 3, 16, 16), call["input_images"]], dim=1)
    rays = torch.cat([call["target_rays"][:, None], call["input_rays"]], dim=1)
    first = torch.tensor([[True, False, False, False]]).expand(2, -1)
    done = mae.restore(images, rays, first, torch.zeros_like(first))
    torch.testing.assert_close(done.images[:, 0], mae.lvsm(**call), atol=1e-6, rtol=0)


def test_one_view_cannot_be_restored_from_nothing():
    with pytest.raises(ValueError, match="a sample has 1 view: masking needs at least 2"):
        MAE(lvsm())(torch.rand(2, 3, 3, 16, 16), torch.rand(2, 3, 6, 16, 16), torch.tensor([1, 3]))


def test_every_weight_of_the_mae_learns():
    mae = MAE(lvsm())
    for _ in range(6):  # a draw may hide images only
        mae(torch.rand(4, 4, 3, 16, 16), torch.rand(4, 4, 6, 16, 16)).backward()
    silent = [name for name, p in mae.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_a_pretrained_mae_hands_its_weights_to_an_lvsm_unchanged():
    mae, fresh = MAE(lvsm()), lvsm()
    state = mae.state_dict()
    own = {name.removeprefix("lvsm."): x for name, x in state.items() if name.startswith("lvsm.")}
    fresh.load_state_dict(own)
    call = without_target(views())
    torch.testing.assert_close(fresh.eval()(**call), mae.lvsm.eval()(**call), atol=0, rtol=0)
