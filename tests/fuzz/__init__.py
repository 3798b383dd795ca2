"""Hostile and broken input: seeded damage to everything that is read from files, and what may come of it.

    pytest tests/fuzz                                    a thousand and more, in CI
    python tests/fuzz --cases 20000 --seed 3          as many as wanted, with a table of what came of them
    python tests/fuzz --kind chunks --only 417        one case again, with its folder kept and its traceback

A case takes undamaged input, damages a copy, and hands it to the entry points that read it. Every one of them must
succeed, count what it skipped, or say in one line which file is wrong. `sandbox.py` holds the rules, `damage.py` the ways
to damage bytes, trees and files; `kinds_*.py` say for each kind of input what it looks like and who reads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .sandbox import Kind


def all_kinds() -> tuple[Kind, ...]:
    """Every kind of input."""
    from . import kinds_imports, kinds_scenes, kinds_settings, kinds_weights

    return kinds_scenes.KINDS + kinds_imports.KINDS + kinds_settings.KINDS + kinds_weights.KINDS
