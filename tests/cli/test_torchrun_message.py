"""torchrun's last words name the mistake, not only the process that made it."""

from __future__ import annotations

import json

import pytest

from src.cli import guarded


def failing() -> None:
    raise ValueError("training.lr is 7: use less")


def test_the_message_stands_in_the_file_that_torchrun_reports(tmp_path, monkeypatch, capsys) -> None:
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    assert guarded(failing) == 2
    assert json.loads(file.read_text())["message"]["message"] == "error: training.lr is 7: use less"
    assert int(json.loads(file.read_text())["message"]["extraInfo"]["timestamp"]) > 0
    assert capsys.readouterr().err == "error: training.lr is 7: use less\n"


@pytest.mark.parametrize("file", [None, "no/such/folder/error.json"])
def test_without_torchrun_or_room_the_message_is_shown_all_the_same(file, monkeypatch, capsys) -> None:
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    if file:
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", file)
    assert guarded(failing) == 2
    assert capsys.readouterr().err == "error: training.lr is 7: use less\n"
