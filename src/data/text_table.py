"""Very many short texts in two arrays, without an object for each.

A million Python strings take 100 MB, and as using one changes its counter of references, each loader process ends up with
a copy of its own; arrays stay shared.

Public: TextTable.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


class TextTable(Sequence[str]):
    """A list of texts that cannot be changed; texts are made when asked for."""

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = [text.encode() for text in texts]
        self._content = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, position: int) -> str:
        position = range(len(self))[position]  # from the end if negative; IndexError
        return self._content[self._ends[position] : self._ends[position + 1]].decode()
