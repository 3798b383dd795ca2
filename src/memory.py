"""The most memory that a piece of work holds at once, followed tensor by tensor; on the meta device nothing is computed.

`LiveMemory` sees every operation, forward and backward, and adds up the storages that are alive. `AutocastOnPaper` gives
tensors on the meta device the types that autocast gives them on a CUDA device: there the dispatcher has no autocast.

Public: LiveMemory, AutocastOnPaper, autocast_on_paper, views_on_paper, MARGIN.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from .geometry.camera import Cameras, Views
from .runtime import AUTOCAST_TYPES, Precision

MARGIN = 0.85
"""Part of a device's free memory that a plan may take on paper: allocators leave gaps."""


class LiveMemory(TorchDispatchMode):
    """While entered, follows the storages that operations make, until they are freed.

    bytes: alive now; peak: the most that were alive at once. Storages that `known` tensors have are not counted.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.followed: dict[int, weakref.ref] = {}
        self.known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known or key in self.followed or not size:
            return

        def freed(_: weakref.ref) -> None:
            del self.followed[key]
            self.bytes -= size

        self.followed[key] = weakref.ref(storage, freed)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)


def views_on_paper(samples: int, num_views: int, height: int, width: int) -> Views:
    """Views without content, made on the device in force."""
    cameras = Cameras(
        torch.empty(samples, num_views, 4, 4), torch.empty(samples, num_views, 4), height, width
    )
    # Fixed draws: what a family leaves to chance is the same in every count. MV-LDM uses its whole context with them.
    return Views(torch.empty(samples, num_views, 3, height, width), cameras, draws=[0] * samples)


# ----------------------------------------------------------------------------------------------- autocast

HALF: set[Callable] = {
    F.linear, F.bilinear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
    torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, torch.bmm, Tensor.bmm, torch.mm, Tensor.mm,
    torch.mv, torch.baddbmm, torch.addmm, torch.einsum, torch.chain_matmul, torch.linalg.multi_dot,
    F.scaled_dot_product_attention,
}  # fmt: skip
"""Computed in the type of autocast."""

FULL: set[Callable] = {
    F.layer_norm, F.group_norm, F.softmax, F.log_softmax, F.softplus, F.mse_loss, F.l1_loss, F.smooth_l1_loss,
    F.cosine_similarity, F.normalize, torch.softmax, Tensor.softmax, torch.log_softmax, torch.layer_norm, torch.group_norm,
    torch.cumsum, Tensor.cumsum, torch.cumprod, torch.sum, Tensor.sum, torch.prod, Tensor.prod, torch.exp, Tensor.exp,
    torch.log, Tensor.log, torch.pow, Tensor.pow, Tensor.__pow__, torch.rsqrt, Tensor.rsqrt, torch.reciprocal,
    torch.norm, Tensor.norm, torch.linalg.vector_norm, torch.acos, torch.asin, torch.tan, torch.cosh, torch.sinh,
}  # fmt: skip
"""Computed in float32. Both sets: pytorch.org/docs/stable/amp.html, "CUDA Ops that can autocast"."""


_STANDS_IN = "cpu"
"""The meta device has no autocast of its own: that of CPUs carries its state, which recomputation restores."""


def autocast_on_paper(training: Precision) -> AbstractContextManager:
    """`runtime.autocast` for the meta device, inside of `AutocastOnPaper`."""
    if not training.use_amp or training.amp_dtype not in AUTOCAST_TYPES:
        return nullcontext()
    return torch.autocast(_STANDS_IN, dtype=AUTOCAST_TYPES[training.amp_dtype])


class AutocastOnPaper(TorchFunctionMode):
    """While entered, operations on the meta device have the types of CUDA's autocast wherever `autocast_on_paper` is on,
    and attention the memory of the fused kernels, which keep no matrix of scores.

    The half copies of parameters are kept until the forward pass is over, as autocast does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.recomputing = False
        self.casts: dict[int, Tensor] = {}

    def backward(self, loss: Tensor) -> None:
        """`loss.backward()` with this mode entered: that function itself would leave it for what it calls, and blocks
        that are recomputed would not be what they were.
        """
        self.casts.clear()
        self.recomputing, one = True, torch.ones_like(loss)
        torch.autograd.Variable._execution_engine.run_backward(
            (loss,), (one,), False, False, (), allow_unreachable=True, accumulate_grad=True
        )

    def __torch_function__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.is_autocast_enabled(_STANDS_IN):
            if function in HALF:
                args, kwargs = tree_map(self._half, (args, kwargs))
            elif function in FULL:
                args, kwargs = tree_map(_full, (args, kwargs))
        if function is F.scaled_dot_product_attention:
            return _fused_attention(*args, **kwargs)
        return function(*args, **kwargs)

    def _half(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        dtype = torch.get_autocast_dtype(_STANDS_IN)
        if (
            self.recomputing
            or not torch.is_autocast_cache_enabled()
            or not (value.is_leaf and value.requires_grad)
        ):
            return value.to(dtype)
        if id(value) not in self.casts:
            self.casts[id(value)] = value.to(dtype)
        return self.casts[id(value)]


def _full(value: Any) -> Any:
    half = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if half else value


def _fused_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """The memory-efficient kernel: as it keeps what flash attention keeps. [b, heads, n, c] -> [b, heads, n, c]"""
    bias = None
    if attn_mask is not None:
        bias = q.new_empty(attn_mask.shape).expand(*q.shape[:-1], k.shape[-2])
    if enable_gqa:
        k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], dim=1) for part in (k, v))
    fused = torch.ops.aten._scaled_dot_product_efficient_attention
    return fused(q, k, v, bias, True, dropout_p, is_causal, scale=scale)[0]
