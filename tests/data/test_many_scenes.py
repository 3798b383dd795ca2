"""Lists of very many scenes: little memory, and any place in the endless order at once."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from src.data.order import Order
from src.data.scene import ListedScenes
from src.data.text_table import TextTable


def test_a_table_gives_back_its_texts():
    texts = ["", "a", "metadata/Stra\u00dfe.json", "b" * 300]
    table = TextTable(texts)
    assert list(table) == texts and len(table) == 4 and table[-1] == texts[-1]
    assert "a" in table and table.index("a") == 1 and len(TextTable([])) == 0
    with pytest.raises(IndexError):
        table[4]


def test_a_list_of_many_scenes_holds_little_more_than_its_text(tmp_path):
    lines = "".join(f"metadata/{number:016x}.json\n" for number in range(30_000))
    (tmp_path / "full_list.txt").write_text(lines)
    tracemalloc.start()
    scenes = ListedScenes(tmp_path / "full_list.txt")
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(scenes) == 30_000 and scenes.names[29_999] == f"{29_999:016x}"
    assert scenes.metadata_path(7) == tmp_path / "metadata" / f"{7:016x}.json"
    assert held < 2.5 * len(lines)


def test_the_order_of_a_million_scenes_starts_anywhere_and_visits_each_once():
    resumed = Order([1_000_000], [1.0], seed=7)
    late = [resumed.draw(number) for number in range(5_000_000, 5_000_064)]
    whole = Order([1_000_000], [1.0], seed=7)
    walk = [whole.draw(number) for number in range(5_000_000, 5_000_064)]
    assert late == walk and {draw.walk for draw in late} == {5}
    (scenes,) = whole._walk(0, 5)
    assert scenes[:64].tolist() == [draw.scene for draw in late]
    assert (np.sort(scenes) == np.arange(1_000_000)).all()
