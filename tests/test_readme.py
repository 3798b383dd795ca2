"""What the README and docs/ name exists: files, modules, settings, names of downloads."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from src.config import keys_of
from src.model import MODELS, family_config
from src.settings import Inference, Pretrained, Training
from src.weights import TABLE

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "checkpoints" / "README.md",
    ROOT / "datasets" / "README.md",
    *(ROOT / "docs").glob("*.md"),
]
KNOWN = {
    key
    for schema, name in [(Training, "training"), (Inference, "inference"), (Pretrained, "pretrained")]
    for key in keys_of(schema, name)
} | {key for name in MODELS for key in keys_of(family_config(name), "model")}
PUBLISHED_ONLY = {
    "inference.checkpoint_dir",
    "inference.if_inference",
    "training.api_key_path",
    "training.center_crop",
    "training.use_rel_pose",
}


@pytest.fixture(params=PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def page(request: pytest.FixtureRequest) -> str:
    return request.param.read_text(encoding="utf-8")


def test_files_that_a_page_names_exist(page: str) -> None:
    found = set(re.findall(r"\b(?:config|scripts|src|docs|tests)/[\w./*-]*\.(?:yaml|py|sh|md|png)", page))
    missing = sorted(name for name in found if not list(ROOT.glob(name)))
    assert not missing


def test_modules_that_a_page_runs_exist(page: str) -> None:
    for name in set(re.findall(r"-m ((?:src|scripts)\.\w+)", page)):
        assert importlib.util.find_spec(name), name


def test_tests_that_a_page_runs_exist(page: str) -> None:
    for words in re.findall(r"`pytest ([^`]+)`", page):
        places = [ROOT / name for name in re.findall(r"tests[\w./]*", words)]
        files = [file for place in places for file in (place.rglob("*.py") if place.is_dir() else [place])]
        code = "".join(file.read_text(encoding="utf-8") for file in files)
        chosen = re.search(r"-k (\w+|\"[^\"]+\")", words)
        for part in chosen[1].strip('"').split(" or ") if chosen else [""]:
            assert re.search(rf"def test_\w*{part}", code), words


def test_settings_that_a_page_names_exist(page: str) -> None:
    named = set(re.findall(r"\b(?:training|inference|pretrained)\.[a-z_]\w*(?:\.[a-z_]\w*)*", page))
    endings = (".py", ".md", ".yaml")
    unknown = {name for name in named if name not in KNOWN | PUBLISHED_ONLY and not name.endswith(endings)}
    assert not unknown


def test_downloads_that_a_page_asks_for_exist(page: str) -> None:
    for words in re.findall(r"scripts\.download_weights ([a-z][\w ]*)", page):
        assert set(words.split()) <= set(TABLE), words


def test_comments_of_configs_ask_for_downloads_that_exist() -> None:
    for path in (ROOT / "config").rglob("*.yaml"):
        for words in re.findall(
            r"scripts\.download_weights ([a-z][\w ]*)`", path.read_text(encoding="utf-8")
        ):
            assert set(words.split()) <= set(TABLE), path.name
