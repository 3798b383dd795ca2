"""The section `training.remote`: how data sets behind URLs are read, by training and scoring alike.

Public: Remote.
"""

from __future__ import annotations

from dataclasses import dataclass

from .config import key


@dataclass(kw_only=True)
class Remote:
    """How data sets behind URLs are read."""

    cache_bytes: int = key(
        "most bytes of pictures kept in $PARALLAX_CACHE (else ~/.cache/parallax), for all processes of a machine "
        "together; 0: none are kept",
        20 * 2**30,
        least=0,
    )
    timeout_s: float = key("longest time of one request, seconds", 30.0, least=0.01)
    attempts: int = key(
        "requests for the same bytes, with growing pauses, before a frame counts as unreadable", 4, least=1
    )
    patience_s: float = key(
        "a run ends if for so long all that it asks a server for fails, seconds", 600.0, least=0
    )
