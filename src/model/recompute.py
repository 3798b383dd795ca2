"""Lists of blocks that can compute activations again in the backward pass instead of keeping them.

Public: RecomputingList.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

_aten = torch.ops.aten
_PRODUCTS = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.baddbmm.default,
    _aten.convolution.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
}
"""Nearly all of the work of a block, and less than half of what it would keep."""


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE


class RecomputingList(nn.ModuleList):
    """Blocks of which those that run them decide what is a group: it calls it through `run_group`.

    checkpoint_every: while training, keep activations only between groups of so many blocks and recompute the rest in
        the backward pass; 0 keeps all.
    keep_products: keep the results of matrix products and attention all the same, and recompute what is cheap.
    slices: where a stack can, it runs a group for one part of the batch after another, so that no more than that part
        is recomputed at once.
    """

    checkpoint_every = 0
    keep_products = False
    slices = 1

    def recomputes(self) -> bool:
        """Whether groups are recomputed in the pass at hand."""
        return bool(self.checkpoint_every) and self.training and torch.is_grad_enabled()

    def run_group(self, run: Callable[..., Any], *inputs: Any) -> Any:
        """`run(*inputs)`, now and perhaps once more in the backward pass."""
        if not self.recomputes():
            return run(*inputs)
        kept = (
            partial(create_selective_checkpoint_contexts, _policy) if self.keep_products else noop_context_fn
        )
        cached = torch.is_autocast_cache_enabled()
        # What is kept is found again by counting operations: a weight must be cast as often in both passes.
        torch.set_autocast_cache_enabled(cached and not self.keep_products)
        try:
            return checkpoint(run, *inputs, use_reentrant=False, context_fn=kept)
        finally:
            torch.set_autocast_cache_enabled(cached)
