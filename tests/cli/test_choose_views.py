"""scripts.choose_views: an index that another run reads."""

from __future__ import annotations

import json

from object_list import write_list, write_object

from scripts import choose_views


def test_an_index_is_written_and_short_scenes_are_null(tmp_path, capsys):
    write_object(tmp_path, "toy", views=12)
    write_object(tmp_path, "short", views=3)
    path, index = write_list(tmp_path / "list.json", "toy", "short"), tmp_path / "index.json"
    words = ["--input", str(path), "--output", str(index), "--num_input_views", "4"]
    assert choose_views.main(words) == 0
    tree = json.loads(index.read_text())
    assert tree["short"] is None and tree["toy"]["target"] == [0, 8] and len(tree["toy"]["context"]) == 4
    assert "1 scenes, 1 with too few frames" in capsys.readouterr().out
    first = index.read_bytes()
    choose_views.main(words)
    assert index.read_bytes() == first


def test_mistakes_end_with_status_2(tmp_path, capsys):
    index = tmp_path / "index.json"
    assert choose_views.main(["--input", str(tmp_path / "no.json"), "--output", str(index)]) == 2
    path = write_object(tmp_path, views=3)
    assert choose_views.main(["--input", str(path), "--output", str(index)]) == 2
    assert "no scene has enough frames" in capsys.readouterr().err and not index.exists()
