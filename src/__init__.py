"""Feed-forward novel view synthesis with transformers; installed, its name is `parallax_nvs`.

Public: from_pretrained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pretrained import from_pretrained

__all__ = ["from_pretrained"]


def __getattr__(name: str) -> Any:
    """`from_pretrained`, found when it is first asked for: importing a part of the package must not import all of it."""
    if name in __all__:
        from . import pretrained

        return getattr(pretrained, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
