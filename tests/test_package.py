"""The tree is installable as `parallax_nvs`, and works under that name as it does as `src`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

USE = """
import importlib, pkgutil, sys
import parallax_nvs
from parallax_nvs.lvsm_pytorch import LVSM, CameraWrapper, MAE, MAECameraWrapper
from parallax_nvs.data import DATASETS
from parallax_nvs.model import MODELS, family_config
from parallax_nvs.parity import READERS, find_reader
from parallax_nvs.page import TEMPLATE

for module in pkgutil.walk_packages(parallax_nvs.__path__, "parallax_nvs."):
    importlib.import_module(module.name)
for name in MODELS:
    assert family_config(name).__module__.startswith("parallax_nvs.")
for system, kind in READERS:
    assert find_reader(system, kind).__module__.startswith("parallax_nvs.")
assert TEMPLATE.is_file()
assert not [name for name in sys.modules if name == "src" or name.startswith("src.")]
print(parallax_nvs.__path__[0])
"""


def test_the_list_of_packages_is_that_of_the_folders(repo_root: Path) -> None:
    settings = tomllib.loads((repo_root / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        path.parent.relative_to(repo_root / "src").parts for path in repo_root.glob("src/**/__init__.py")
    }
    assert set(settings["packages"]) == {".".join(["parallax_nvs", *parts]) for parts in folders}


def test_every_data_file_travels_with_the_package(repo_root: Path) -> None:
    others = {p.suffix for p in (repo_root / "src").rglob("*") if p.is_file()} - {".py", ".pyc"}
    assert others == {".html"}, "name new kinds under tool.setuptools.package-data"


@pytest.mark.slow
def test_an_installed_wheel_works_under_its_own_name(repo_root: Path, tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    tree = tmp_path / "tree"  # a copy: building writes beside the sources
    shutil.copytree(repo_root / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(repo_root / name, tree)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run([*build, "-w", str(tmp_path), str(tree)], check=True, capture_output=True)
    target = tmp_path / "target"
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(target)
    environment = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run(
        [sys.executable, "-c", USE], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(target / "parallax_nvs")
