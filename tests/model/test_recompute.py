"""What is left out or computed again changes neither renders nor gradients, and saves what it says."""

from __future__ import annotations

import pytest
import torch
from test_families import DECODER_ONLY, ENCODER_DECODER, FAMILIES, PT, UP
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from src.activations import PLANS, keep_activations
from src.model.prope import camera_encoding
from src.model.transformer import BlockStack, TransformerSettings, transformer_stack
from src.settings import Training

SIZES = TransformerSettings(d=16, d_head=8, use_qk_norm=True, init_std=0.3)


def gradients(stack: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(stack.parameters())))


@pytest.mark.parametrize("used", [slice(2), slice(3, None), slice(1, 4), slice(None)], ids=str)
@pytest.mark.parametrize("every", [0, 1, 2])
def test_a_stack_gives_the_used_tokens_of_the_whole_pass(used: slice, every: int) -> None:
    torch.manual_seed(0)
    stack, x = transformer_stack(3, SIZES, qk_norm_eps=1e-5).train(), torch.randn(2, 5, 16)
    whole = stack(x)[:, used]
    expected = gradients(stack, whole.square().sum())
    stack.checkpoint_every = every
    part = stack(x, used=used)
    torch.testing.assert_close(part, whole)
    torch.testing.assert_close(gradients(stack, part.square().sum()), expected)


def test_the_last_block_does_not_work_on_unused_tokens() -> None:
    stack, x = transformer_stack(1, SIZES, qk_norm_eps=1e-5), torch.randn(1, 32, 16)

    def work(used: slice) -> int:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
            stack(x, used=used)
        return counter.get_total_flops()

    linear = (
        2 * 16 * 16
    )  # a token through a square map; queries, keys and values are 3, the rest of a block 9
    assert work(slice(None)) == 32 * 12 * linear + 4 * 32 * 32 * 16
    assert work(slice(4)) == 32 * 3 * linear + 4 * 9 * linear + 4 * 4 * 32 * 16


def test_cameras_in_attention_see_the_same_tokens(make_views):
    stack, x = transformer_stack(2, SIZES, qk_norm_eps=1e-5), torch.randn(2, 8, 16)
    encoding = camera_encoding(make_views(2).cameras, patch_size=4, d_head=8)  # 2 views of 4 patches
    torch.testing.assert_close(stack(x, encoding, used=slice(4, None)), stack(x, encoding)[:, 4:])


@pytest.mark.parametrize("family", [DECODER_ONLY, ENCODER_DECODER, PT, UP])
def test_families_render_the_same_without_skipping(family, make_model, make_views):
    model, input, target = make_model(family).eval(), make_views(2), make_views(3)
    render = model(input, target).render
    for stack in model.modules():
        if isinstance(stack, BlockStack):
            stack.skip_unused = False
    torch.testing.assert_close(model(input, target).render, render, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_plan_gives_the_same_loss_and_gradients(family, make_model, make_views):
    model, input, target = make_model(family).train(), make_views(2), make_views(2)
    results = {}
    for plan in PLANS:
        keep_activations(model, Training(), plan)
        loss = (model(input, target).render - target.image).square().mean()
        results[plan] = [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]
    for plan in PLANS[1:]:
        torch.testing.assert_close(results[plan], results["speed"], atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_plan_works_under_autocast(family, plan, make_model, make_views):
    """A weight that autocast has cast once is cast as often in the recomputation."""
    model, input, target = make_model(family).train(), make_views(2), make_views(2)
    keep_activations(model, Training(), plan)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        render = model(input, target).render
        assert torch.is_autocast_cache_enabled()
    (render.float() - target.image).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_slices_recompute_one_part_of_the_batch_after_another() -> None:
    stack, rows = transformer_stack(2, SIZES, qk_norm_eps=1e-5).train(), []
    stack[0].register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    stack.checkpoint_every, stack.slices = 1, 4
    stack(torch.randn(6, 3, 16)).sum().backward()
    assert rows == [2, 2, 2] * 2


def test_an_unknown_plan_is_refused(make_model):
    with pytest.raises(ValueError, match="no such plan: spede; there are speed, products"):
        keep_activations(make_model(DECODER_ONLY), Training(), "spede")
