"""Which operations would make the host wait for an accelerator, found on a CPU."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

WAITING = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "unique", "bincount")
"""aten operations whose result must reach the host: `item`, `if tensor`, boolean indices, sizes that depend on data."""


class Waits(TorchDispatchMode):
    """While entered, collects the names of such operations in `found`, those of a backward pass included."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None):
        name = operation.overloadpacket.__name__
        if name.startswith(WAITING):
            self.found.append(name)
        return operation(*args, **(kwargs or {}))
