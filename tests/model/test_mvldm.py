"""MV-LDM: what its random draws depend on, which frame its poses are in, what it is given and what it makes."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from easydict import EasyDict

from src.config import ConfigError
from src.geometry.camera import Cameras, Views, rebase
from src.model.diffusion import Scheduler
from src.model.multi_view_block import MultiViewAttention
from src.model.mvldm import MVLDM, Config
from src.model.mvldm_choice import Choice, Sizes, choose, sample_generator
from src.model.ray_encoding import RayEncoding
from src.model.unet import Denoiser
from src.model.vae import Vae
from src.video_plan import PLANS, Call
from src.video_sampler import VideoSampler

PUBLISHED = Sizes(2, 3, True, 0.5, 0.1)


def config(**changes: object) -> Config:
    denoiser = Denoiser(
        block_out_channels=[8, 16],
        down_block_types=["DownBlock2D"] * 2,
        mid_block_type="UNetMidBlock2D",
        up_block_types=["UpBlock2D"] * 2,
        layers_per_block=1,
        num_heads=2,
        norm_num_groups=4,
        multi_view_attention=MultiViewAttention(num_heads=2, norm_num_groups=4),
    )
    settings = {
        "image_size": 16,
        "vae": Vae(name="tiny", architecture={"block_out_channels": [4, 4, 4], "norm_num_groups": 2}),
        "denoiser": denoiser,
        "ray_encodings": RayEncoding(use_plucker=True),
        "scheduler": Scheduler(num_inference_steps=3),
    }
    return Config(**(settings | changes))


@pytest.fixture(scope="module")
def model() -> MVLDM:
    torch.manual_seed(0)
    built = MVLDM(config())
    with torch.no_grad():  # multi-view blocks start at zero: views would not see each other
        for parameter in built.denoiser.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2)
    return built.eval()


def cameras(b: int, v: int, seed: int = 0) -> Cameras:
    generator = torch.Generator().manual_seed(seed)
    c2w = torch.eye(4).repeat(b, v, 1, 1)
    c2w[..., :3, :3] = torch.linalg.qr(torch.randn(b, v, 3, 3, generator=generator))[0]
    c2w[..., :3, :3] *= c2w[..., :3, :3].det().sign()[..., None, None]
    c2w[..., :3, 3] = torch.randn(b, v, 3, generator=generator)
    return Cameras(c2w, torch.tensor([15.0, 14.0, 8.0, 8.5]).repeat(b, v, 1), 16, 16)


def views(b: int, v: int, seed: int = 0, draws: list[int] | None = None) -> Views:
    image = torch.rand(b, v, 3, 16, 16, generator=torch.Generator().manual_seed(seed + 100))
    return Views(image, cameras(b, v, seed), draws=draws)


def rows(part: Views, places: list[int]) -> Views:
    own = part.cameras
    return Views(
        part.image[places],
        Cameras(own.c2w[places], own.fxfycxcy[places], own.height, own.width),
        draws=[part.draws[place] for place in places],
    )


def loss_of(model: MVLDM, context: Views, target: Views) -> torch.Tensor:
    return model.objective(model(context, target), target, None)["loss"]


# ----------------------------------------------------------------------------------------------- random draws


def test_a_single_context_view_is_always_its_own_reference_and_the_others_become_targets() -> None:
    seen = set()
    for seed in range(300):
        choice = choose(sample_generator(seed), PUBLISHED, Scheduler())
        assert sorted((*choice.context, *choice.target)) == list(range(5)) or len(choice.context) == 2
        if choice.reference is not None:
            assert choice.reference < len(choice.context)
        if len(choice.context) == 1:
            assert len(choice.target) == 4
            seen.add(choice.context)
    assert seen == {(0,), (1,)}


def test_choices_come_as_often_as_the_settings_say() -> None:
    drawn = [choose(sample_generator(seed), PUBLISHED, Scheduler()) for seed in range(3000)]
    share = {
        "one": sum(len(c.context) == 1 for c in drawn) / 3000,
        "absolute": sum(c.reference is None for c in drawn) / 3000,
        "unconditional": sum(c.unconditional for c in drawn) / 3000,
        "noisy": sum(c.level >= 500 for c in drawn) / 3000,
    }
    assert share == pytest.approx({"one": 0.5, "absolute": 0.5, "unconditional": 0.1, "noisy": 0.5}, abs=0.03)


def test_without_guidance_in_training_no_sample_loses_its_context() -> None:
    """The original's switch for this made every batch unconditional."""
    sizes = Sizes(2, 3, True, 0.5, 0.0)
    assert not any(choose(sample_generator(seed), sizes, Scheduler()).unconditional for seed in range(200))


def test_a_loss_depends_on_the_seeds_of_the_samples_and_not_on_the_batch_they_came_in(model: MVLDM) -> None:
    model.train()
    context, target = views(4, 2, 1, [11, 12, 13, 14]), views(4, 3, 2, [11, 12, 13, 14])
    together = loss_of(model, context, target)
    torch.manual_seed(5)
    halves = [loss_of(model, rows(context, p), rows(target, p)) for p in ([0, 1], [2, 3])]
    torch.testing.assert_close(together, sum(halves) / 2, rtol=1e-5, atol=0)
    other = loss_of(model, Views(context.image, context.cameras, draws=[1, 2, 3, 4]), target)
    assert (together - other).abs() > 1e-4
    model.eval()


def test_samples_with_different_choices_weigh_the_same(model: MVLDM) -> None:
    clean = torch.randn(2, 5, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(2, 5, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    both = cameras(2, 5)
    choices = [Choice((0, 1), (2, 3, 4), 1, False, 700), Choice((1,), (2, 3, 4, 0), 0, False, 300)]

    def loss(place: list[int]) -> torch.Tensor:
        own = Cameras(both.c2w[place], both.fxfycxcy[place], 16, 16)
        result = model.denoise(clean[place], own, noise[place], [choices[p] for p in place])
        return model.objective(result, None, None)["loss"]

    torch.testing.assert_close(loss([0, 1]), (loss([0]) + loss([1])) / 2, rtol=1e-5, atol=0)


def test_latents_computed_beforehand_give_the_same_loss(model: MVLDM) -> None:
    model.train()
    context, target = views(2, 2, 1, [1, 2]), views(2, 3, 2, [1, 2])
    stored = [
        Views(torch.zeros_like(v.image), v.cameras, model.codec.posterior(v.image), v.draws)
        for v in (context, target)
    ]
    torch.testing.assert_close(loss_of(model, *stored), loss_of(model, context, target))
    model.eval()


# ----------------------------------------------------------------------------------------------- what the network sees


class Seen:
    """Stands for the network and keeps what it is given; its prediction is zero."""

    def __init__(self, model: MVLDM) -> None:
        self.calls: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.model, self.forward = model, model.denoiser.forward

    def __enter__(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        def keep(x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
            self.calls.append((x, level))
            return torch.zeros_like(x[:, :, :4])

        self.model.denoiser.forward = keep
        return self.calls

    def __exit__(self, *_: object) -> None:
        del self.model.denoiser.forward


def test_context_is_clean_at_level_zero_with_mask_zero_and_absent_without_guidance(model: MVLDM) -> None:
    clean, noise = torch.randn(1, 5, 4, 4, 4), torch.randn(1, 5, 4, 4, 4)
    with Seen(model) as calls:
        model.denoise(clean, cameras(1, 5), noise, [Choice((1,), (2, 3, 4, 0), 0, False, 640)])
        model.denoise(clean, cameras(1, 5), noise, [Choice((1,), (2, 3, 4, 0), 0, True, 640)])
    (x, level), (alone, level_alone) = calls
    assert torch.equal(x[0, 0, :4], clean[0, 1])
    assert level.tolist() == [[0, 640, 640, 640, 640]] and level_alone.tolist() == [[640] * 4]
    assert x[0, :, 4].amax((1, 2)).tolist() == [0, 1, 1, 1, 1] and alone[:, :, 4].min() == 1
    assert torch.equal(alone, x[:, 1:])


def test_the_reference_camera_looks_along_its_own_axis_and_absolute_poses_stay(model: MVLDM) -> None:
    clean, both = torch.randn(1, 5, 4, 4, 4), cameras(1, 5)
    with Seen(model) as calls:
        for reference in (0, 1, None):
            model.denoise(clean, both, clean, [Choice((0, 1), (2, 3, 4), reference, False, 5)])
    given = model.condition(both, 2, (4, 4))
    for view, (x, _) in zip((0, 1), calls):
        moved = both.at(rebase(both.c2w, both.c2w[:, view]))
        torch.testing.assert_close(x[:, :, 4:], model.condition(moved, 2, (4, 4)))
        assert x[0, view, 5:8].abs().max() < 1e-6  # moments of rays through the origin
    torch.testing.assert_close(calls[2][0][:, :, 4:], given)


def test_a_sample_does_not_depend_on_the_world_frame(model: MVLDM) -> None:
    """Poses are made relative in each call, whatever frame they came in."""
    context, target = views(1, 2, 1, [7]), views(1, 3, 2, [7])
    world = cameras(1, 1, 9).c2w
    moved = [Views(v.image, v.cameras.at(world @ v.cameras.c2w), draws=v.draws) for v in (context, target)]
    with torch.no_grad():
        torch.testing.assert_close(model(*moved).render, model(context, target).render, atol=2e-4, rtol=0)


# ----------------------------------------------------------------------------------------------- sampling


def test_a_sample_is_a_function_of_its_seed_and_of_no_other_sample(model: MVLDM) -> None:
    context, target = views(2, 2, 1, [3, 4]), views(2, 3, 2, [3, 4])
    with torch.no_grad():
        both = model(context, target).render
        torch.manual_seed(99)
        second = model(rows(context, [1]), rows(target, [1])).render
        other = model(Views(context.image, context.cameras, draws=[3, 5]), target).render
    torch.testing.assert_close(both[1:], second, atol=1e-5, rtol=0)
    assert torch.equal(both[:1], other[:1]) and (both[1] - other[1]).abs().max() > 1e-3


def test_rendering_in_chunks_changes_nothing(model: MVLDM) -> None:
    context, target = views(1, 2, 1, [3]), views(1, 3, 2, [3])
    with torch.no_grad():
        scene = model.encode(context)
        assert torch.equal(model.render(scene, target.cameras, 1), model.render(scene, target.cameras, 0))


def test_guidance_moves_the_sample_and_one_costs_half(model: MVLDM) -> None:
    context, target = views(1, 2, 1, [3]), views(1, 3, 2, [3])
    counts, images = Counter(), {}
    for scale in (1.0, 3.0):
        other = copy.copy(model)
        other.config = config(cfg_scale=scale)
        hook = model.denoiser.register_forward_hook(lambda *_, s=scale: counts.update([s]))
        with torch.no_grad():
            images[scale] = other(context, target).render
        hook.remove()
    assert counts == {1.0: 3, 3.0: 6}
    assert (images[1.0] - images[3.0]).abs().max() > 1e-3


def test_names_are_the_published_ones_and_averages_in_a_file_are_left_out(model: MVLDM) -> None:
    prefixes = {name.split(".")[0] for name in model.state_dict()}
    assert prefixes == {"denoiser", "autoencoder"}
    assert "autoencoder.encoder.conv_in.weight" in model.state_dict()
    state = model.state_dict() | {
        "ema.n_averaged": torch.tensor(3),
        "ema.unet.conv_in.weight": torch.zeros(1),
    }
    assert model.with_own_names(state).keys() == model.state_dict().keys()


def test_every_parameter_that_learns_gets_a_gradient_with_context_and_without(model: MVLDM) -> None:
    clean = torch.randn(1, 5, 4, 4, 4)
    for unconditional in (False, True):
        model.zero_grad(set_to_none=True)
        result = model.denoise(clean, cameras(1, 5), clean, [Choice((0,), (1, 2), 0, unconditional, 500)])
        model.objective(result, None, None)["loss"].backward()
        silent = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not silent
    model.zero_grad(set_to_none=True)


def test_the_held_out_error_is_the_same_each_time_and_one_number_for_each_sample(model: MVLDM) -> None:
    context, target = views(2, 2, 1, [3, 4]), views(2, 3, 2, [3, 4])
    with torch.no_grad():
        first = model.held_out_terms(context, target)["denoising_loss"]
        again = model.held_out_terms(rows(context, [1]), rows(target, [1]))["denoising_loss"]
    assert first.shape == (2,) and first[1].item() == pytest.approx(again.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"vae": Vae()}, "model.vae.name"),
        ({"vae": Vae(name="tiny", image_loss_weight=1.0)}, "image_loss_weight"),
        ({"image_size": 20}, "image_size"),
    ],
)
def test_settings_that_make_no_model_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**wrong)


# ----------------------------------------------------------------------------------------------- videos


class Poses(MVLDM):
    """Keeps the poses of each call, and samples nothing."""

    def sample(self, context, context_cameras, cameras, noise, *, reference=0, **_):
        joined = torch.cat([context_cameras.c2w, cameras.c2w], dim=1)
        self.calls.append((joined, reference, context.shape[1]))
        return noise


@pytest.mark.parametrize("mode", PLANS)
def test_all_calls_of_a_video_get_the_poses_as_they_came_and_every_frame_is_there(mode: str) -> None:
    """The original kept the last frame's pose relative to another frame than the others' from the third call on."""
    model = Poses(config()).eval()
    model.calls = []
    given, frames = views(1, 1, 1), cameras(1, 11, 2)
    plan = PLANS[mode](list(range(11)), 4)
    video = VideoSampler(model)(given, frames, plan, seed=1)
    assert video.shape == (1, 11, 3, 16, 16) and torch.isfinite(video).all()
    for call, (poses, reference, num_context) in zip(plan, model.calls, strict=True):
        expected = torch.cat([given.cameras.c2w, frames.c2w[:, [*call.made, *call.target]]], dim=1)
        assert torch.equal(poses, expected)
        assert reference == (1 if call.made else 0) and num_context == 1 + len(call.made)


def test_a_video_is_a_function_of_its_seed(model: MVLDM) -> None:
    given, frames, plan = views(1, 2, 1), cameras(1, 5, 2), [Call((), (0, 4)), Call((4,), (1, 2, 3))]
    sampler = VideoSampler(model)
    first = sampler(given, frames, plan, seed=1)
    torch.manual_seed(7)
    assert torch.equal(first, sampler(given, frames, plan, seed=1))
    assert torch.equal(first, VideoSampler(model, offload=True)(given, frames, plan, seed=1))
    assert not torch.equal(first, sampler(given, frames, plan, seed=2))


def test_progress_counts_every_noise_level(model: MVLDM) -> None:
    steps = []
    VideoSampler(model, on_step=lambda: steps.append(1))(
        views(1, 1), cameras(1, 4, 2), [Call((), (0, 1)), Call((1,), (2, 3))]
    )
    assert len(steps) == 2 * 3


def test_the_frame_a_call_is_conditioned_on_changes_its_frames(model: MVLDM) -> None:
    frames, given = cameras(1, 3, 2), views(1, 1, 1)
    beside = VideoSampler(model)(given, frames, [Call((), (0, 1)), Call((0,), (2,))], seed=1)
    other = VideoSampler(model)(given, frames, [Call((), (0, 1)), Call((1,), (2,))], seed=1)
    assert torch.equal(beside[:, :2], other[:, :2]) and (beside[:, 2] - other[:, 2]).abs().max() > 1e-4


def test_result_is_a_dict_that_the_trainer_takes(model: MVLDM) -> None:
    model.train()
    result = model(views(1, 2, 1, [1]), views(1, 3, 2, [1]))
    model.eval()
    assert isinstance(result, EasyDict) and {"prediction", "truth", "weight"} <= result.keys()
    assert result.weight.sum().item() == pytest.approx(1.0)
