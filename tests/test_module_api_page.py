"""docs/module_api.md is a notebook: its Python blocks run in their order, as printed."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest


def blocks(page: Path) -> list[str]:
    """Python blocks of a page, with blank lines before them so that errors show the line of the page."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return ["\n" * text.count("\n", 0, match.start(1)) + match[1] for match in found]


def test_the_page_runs_from_top_to_bottom(
    repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    page, names = repo_root / "docs" / "module_api.md", {"__name__": "page"}
    found = blocks(page)
    assert len(found) >= 10
    for block in found:
        exec(compile(block, str(page), "exec"), names)
