"""One training on several processes: whole weights in each (`training.parallel: ddp`), or a share of them (`fsdp`).

With fsdp (FSDP2, `torch.distributed.fsdp.fully_shard`) each rank keeps 1 / world of every learnt weight, its gradient and
its moments; a transformer block is whole only while it computes. Frozen parts stay whole on every rank. Model,
optimiser and averages then hold `DTensor`s. Checkpoints do not: they are gathered when written and dealt out when
read, so one form serves any number of processes, ddp and fsdp alike, and needs no pickled metadata.

torch's modules for it take seconds to import, so only those who shard do.

Public: spread, is_replicated, is_sharded, settle, unsynced, sync_next_backward,
gathered, gathered_state, like, whole.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .model.base import ViewSynthesizer
from .runtime import Runtime


def spread(
    model: ViewSynthesizer, parallel: str, runtime: Runtime
) -> tuple[nn.Module, ViewSynthesizer | None]:
    """Put a freshly built model on the device of every rank, with the weights of rank 0. Build the optimiser afterwards.

    Args:
        model: on the CPU. The learnt weights of one that is sharded are replaced in place.
        parallel: `training.parallel`.

    Returns:
        what a training step calls, and for `gathered` the sharded model without weights (on the meta device).
    """
    if runtime.world == 1:
        return model.to(runtime.device), None
    if parallel == "fsdp":
        twin = copy.deepcopy(model).to("meta")
        _shard(model, runtime)
        return model, twin
    network = DistributedDataParallel(model.to(runtime.device), gradient_as_bucket_view=True)
    # Buffers are tables that no step changes; sending them in each forward pass would make ranks meet there.
    network.broadcast_buffers = False
    return network, None


def _shard(model: ViewSynthesizer, runtime: Runtime) -> None:
    """Deal out the learnt weights, unit by unit: a device never holds more than its share and one whole unit."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(runtime.device.type, (runtime.world,))
    for module in (*model.units(), model):
        module.to(runtime.device)
        tensors = [*module.parameters(), *module.buffers()]
        for tensor in tensors:
            if not _is_dealt_out(tensor):
                dist.broadcast(tensor.detach(), src=0)
        fully_shard(module, mesh=mesh, ignored_params={t for t in tensors if not t.requires_grad})
        if hasattr(module, "keys_values"):
            register_fsdp_forward_method(module, "keys_values")
    for module in model.modules():
        module.register_load_state_dict_pre_hook(_deal_out)


def is_replicated(network: nn.Module) -> bool:
    """Whether ranks meet in the backward pass of this network only."""
    return isinstance(network, DistributedDataParallel)


def is_sharded(network: nn.Module) -> bool:
    """Whether ranks meet in every block, forward and backward."""
    return any(map(_is_dealt_out, network.parameters()))


def settle(network: nn.Module) -> None:
    """At the start of a step, when all ranks are there: whatever they have to settle before the backward pass.

    After the first backward pass DistributedDataParallel sorts its buckets anew, and sends their order to all ranks at the
    start of the next forward pass. A rank whose data fail before that would not be there.
    """
    if is_replicated(network):
        network.reducer._rebuild_buckets()


def unsynced(network: nn.Module) -> AbstractContextManager:
    """The context of everything in a step before its last backward pass: gradients are summed in each rank first.

    Sharded gradients are summed between ranks at once all the same: each rank would have to keep them whole.
    """
    return network.no_sync() if is_replicated(network) else nullcontext()


def sync_next_backward(network: nn.Module) -> None:
    """Right before the last backward pass of a step, which is the one that averages gradients between ranks.

    DistributedDataParallel does this at the end of a forward pass outside of `no_sync`. But then a step that is given up
    after it leaves ranks that wait for gradients in the next backward pass beside ranks that do not.
    """
    if is_replicated(network):
        network.reducer.prepare_for_backward([])


# ----------------------------------------------------------------------------------------------- whole again


@contextmanager
def gathered(model: ViewSynthesizer, twin: ViewSynthesizer | None) -> Iterator[ViewSynthesizer]:
    """Inside, a model with whole weights that each rank may call as often as it likes; all ranks enter together.

    Args:
        twin: what `spread` returned; None: the model is whole already and is given itself.
    """
    if twin is None:
        yield model
        return
    device = next(model.parameters()).device
    twin.to_empty(device=device)
    ours = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    theirs = (*twin.named_parameters(remove_duplicate=False), *twin.named_buffers(remove_duplicate=False))
    for name, tensor in theirs:
        tensor.detach().copy_(whole(ours[name].detach()))
    twin.train(model.training)
    try:
        yield twin
    finally:
        twin.to("meta")


def gathered_state(tree: Any) -> Any:
    """Dicts and lists made anew, with every sharded tensor whole in the memory of rank 0's host; all ranks call this.

    Other ranks get None in their places. One tensor at a time is whole on the devices.
    """
    if _is_dealt_out(tree):
        tensor = tree.detach().full_tensor()
        return tensor.cpu() if dist.get_rank() == 0 else None
    if isinstance(tree, dict):
        return {name: gathered_state(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(map(gathered_state, tree))
    return tree


def whole(tensor: Tensor) -> Tensor:
    """The tensor as if it had never been sharded; all ranks call this."""
    return tensor.full_tensor() if _is_dealt_out(tensor) else tensor


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """This rank's share of a whole tensor, dealt out as `other` is. Each rank has the whole one, and nothing is sent.

    Raises:
        ValueError: they are not of the same shape.
    """
    if not _is_dealt_out(other) or _is_dealt_out(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    if tensor.shape != other.shape:
        raise ValueError(f"{tuple(tensor.shape)} cannot be dealt out as {tuple(other.shape)}")
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


def _is_dealt_out(value: Any) -> bool:
    """Whether a value is a DTensor."""
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")


def _deal_out(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before `load_state_dict` fills a module with whole tensors."""
    for name, parameter in module.named_parameters(recurse=False):
        given = state.get(prefix + name)
        if isinstance(given, Tensor) and given.shape == parameter.shape:
            state[prefix + name] = like(given, parameter)
