"""What came of the cases, kind by kind.

Public: Table.
"""

from __future__ import annotations

from collections import Counter

from .sandbox import Result

OUTCOMES = ("success", "skip", "error")


class Table:
    """Counts of outcomes and of findings."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}

    def add(self, kind: str, result: Result | None) -> None:
        """`None`: a finding."""
        self.counts.setdefault(kind, Counter())[result.outcome if result else "finding"] += 1

    def __str__(self) -> str:
        columns = ("cases", *OUTCOMES, "finding")
        rows = [
            (name, counts.total(), *(counts[c] for c in columns[1:])) for name, counts in self.counts.items()
        ]
        rows.append(("all", *(sum(row[i] for row in rows) for i in range(1, len(columns) + 1))))
        return "\n".join(
            f"{row[0]:<18}" + "".join(f"{cell:>10}" for cell in row[1:])
            for row in [("kind", *columns), *rows]
        )
