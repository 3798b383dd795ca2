"""The memory of a step counted on paper, against what the CPU's allocator hands out and what autocast does on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from src import cost
from src.activations import PLANS
from src.config import ConfigError
from src.cost import StepOnPaper, chosen_plan, fitting_plan, plans_of
from src.geometry.camera import Cameras, Views
from src.geometry.rotation import decode_pose
from src.loss import build_image_loss
from src.memory import MARGIN, AutocastOnPaper, LiveMemory, autocast_on_paper
from src.model import build_model, family_config
from src.runtime import Runtime
from src.settings import RunConfig, load_config

CONFIGS = Path(__file__).resolve().parents[1] / "config"
SAMPLES = 1


def load(name: str, *overrides: str) -> RunConfig:
    return load_config(CONFIGS / f"{name}.yaml", list(overrides), family_config)


def random_views(samples: int, num_views: int, side: int) -> Views:
    focal = torch.tensor([side, side, side / 2, side / 2]).expand(samples, num_views, 4).clone()
    cameras = Cameras(decode_pose(torch.randn(samples, num_views, 7)), focal, side, side)
    return Views(torch.rand(samples, num_views, 3, side, side), cameras)


def most_allocated(work: Callable[[], None]) -> int:
    """Largest sum of what the allocator gave and did not get back, bytes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize(
    ("name", "overrides", "every"),
    [
        ("debug", ["model.image_tokenizer.image_size=64"], 0),
        ("debug", ["model.image_tokenizer.image_size=64"], 2),
        ("debug", ["model.image_tokenizer.image_size=64", "training.perceptual_loss_weight=0.5"], 1),
        ("kvlvsm_tiny", ["model.image_tokenizer.image_size=32"], 0),
        ("kvlvsm_tiny", ["model.image_tokenizer.image_size=32"], 1),
        ("lact_small", ["model.muon_dtype=float32"], 1),
    ],
)
def test_activations_on_paper_are_those_of_the_allocator(name: str, overrides: list[str], every: int) -> None:
    config = load(name, *overrides, "pretrained.vgg19=random", f"training.grad_checkpoint_every={every}")
    training, side = config.training, config.model.image_tokenizer.image_size
    model = build_model(config.model).train()
    model.set_checkpointing(every)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    input = random_views(SAMPLES, training.num_input_views, side)
    target = random_views(SAMPLES, training.num_target_views, side)
    image_loss = build_image_loss(training, config.pretrained, torch.device("cpu"))

    def step() -> None:
        model.objective(model(input, target), target, image_loss)["loss"].backward()

    step()  # what is only made once is not counted
    on_paper = StepOnPaper(config, samples=SAMPLES).memory().activations
    assert on_paper == pytest.approx(most_allocated(step), rel=0.1)


def test_plans_trade_memory_for_work() -> None:
    config = load(
        "lvsm_encoder_decoder_1gpu", "model.transformer.encoder_n_layer=2", "training.use_amp=false"
    )
    step, memory, work = StepOnPaper(config, samples=2), {}, {}
    for step.plan in PLANS:
        memory[step.plan], work[step.plan] = step.memory().activations, step.flops(step.plan)
    assert sorted(memory.values(), reverse=True) == list(memory.values())
    assert memory["products"] < 0.7 * memory["speed"]
    assert memory["memory"] < 0.75 * memory["blocks"]
    assert work["products"] == pytest.approx(work["speed"], rel=0.001)
    assert 1.25 < work["blocks"] / work["speed"] < 4 / 3
    assert work["memory"] == pytest.approx(work["blocks"], rel=0.05)


def test_the_fastest_plan_that_fits_is_chosen() -> None:
    overrides = ("model.transformer.n_layer=4", "training.grad_checkpoint_every=1")
    step, totals = StepOnPaper(load("debug", *overrides), samples=8), {}
    for step.plan in PLANS:
        totals[step.plan] = step.memory().total
    for plan, total in totals.items():
        assert fitting_plan(step, 1.001 * total / MARGIN) == plan
    assert fitting_plan(step, 0.5 * totals["memory"]) == "memory"


def test_all_ranks_take_what_the_smallest_gpu_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ("training.grad_checkpoint_every=1", "training.activations=auto")
    config = load("debug", *overrides)
    step = StepOnPaper(config, samples=config.training.batch_size_per_gpu)
    step.plan = "blocks"
    little = 1 + int(step.memory().total / MARGIN)
    monkeypatch.setattr(cost, "device_memory", lambda device: (10**9, 10**10))
    assert chosen_plan(config, Runtime()) == "speed"
    monkeypatch.setattr(cost, "all_gather_objects", lambda mine: [mine, little])
    assert chosen_plan(config, Runtime()) == "blocks"


def test_without_a_gpu_auto_is_as_published() -> None:
    assert chosen_plan(load("debug", "training.activations=auto"), Runtime()) == "blocks"
    assert chosen_plan(load("debug", "training.activations=memory"), Runtime()) == "memory"


def test_compiled_blocks_are_not_promised_what_they_choose_themselves() -> None:
    with pytest.raises(ConfigError, match="activations products does not see into compiled blocks"):
        load("debug", "training.activations=products", "training.compile=true")
    assert plans_of(load("debug", "training.compile=true").training) == ("speed", "blocks", "memory")


def outputs(model: nn.Module, run: Callable[[], None]) -> dict[str, torch.dtype]:
    """Type of what each module returns."""
    seen: dict[str, torch.dtype] = {}

    def remember(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: object, result: object) -> None:
            if isinstance(result, Tensor):
                seen[name] = result.dtype

        return hook

    handles = [m.register_forward_hook(remember(name)) for name, m in model.named_modules() if name]
    run()
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", ["debug", "kvlvsm_tiny", "lact_small", "debug_lvsm_pytorch"])
def test_types_on_paper_are_those_that_cuda_autocast_gives(name: str) -> None:
    """Fake CUDA tensors pass through PyTorch's own autocast without a GPU."""
    config = load(name, "training.use_amp=true", "training.grad_checkpoint_every=0")
    step = StepOnPaper(config)

    def on_paper() -> None:
        with AutocastOnPaper(), autocast_on_paper(config.training):
            step.model(step.input, step.target)

    found = outputs(step.model, on_paper)
    with FakeTensorMode():
        with torch.device("cuda"):
            model = build_model(config.model).train()
            twin = StepOnPaper.__new__(StepOnPaper)
            twin.input, twin.target = (_fake(views) for views in (step.input, step.target))
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        try:
            wanted = outputs(model, lambda: model(twin.input, twin.target))
        finally:
            torch.set_autocast_enabled("cuda", False)
            torch.clear_autocast_cache()
    assert len(found) > 10 and torch.bfloat16 in found.values() and torch.float32 in found.values()
    assert found == wanted


def _fake(views: Views) -> Views:
    cameras = views.cameras
    made = Cameras(
        torch.empty(cameras.c2w.shape), torch.empty(cameras.fxfycxcy.shape), cameras.height, cameras.width
    )
    return Views(torch.empty(views.image.shape), made)


def test_freed_storages_are_subtracted_and_views_are_not_counted() -> None:
    with LiveMemory() as live:
        a = torch.empty(1000, device="meta")
        b = a.view(10, 100)
        c = a + 1
        assert live.bytes == 8000
        del a, c
        assert (live.bytes, live.peak) == (4000, 8000)
        del b
    assert live.bytes == 0


def test_fsdp_divides_what_is_learnt_and_gathers_one_block() -> None:
    config = load("lvsm_decoder_only_1gpu", "training.parallel=fsdp")
    step = StepOnPaper(config)
    step._activations = lambda *_: 0  # is the same in both
    whole, shared = step.memory(1), step.memory(8)
    for name in ("weights", "gradients", "optimizer"):
        assert getattr(shared, name) == pytest.approx(getattr(whole, name) / 8, rel=0.01)
    block = 4 * 12 * 768**2  # float32, (4 + 8) d^2 weights
    assert whole.gathered == 0 and 3 * block < shared.gathered < 4 * block
    assert whole.total == 16 * 85_840_896 + whole.loss_network
