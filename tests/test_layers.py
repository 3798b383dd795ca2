"""Who may import whom: the table of docs/architecture.md, checked on the source of every module."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "src").rglob("*.py"))

BASICS = {"config", "settings", "settings_video", "files", "runtime", "geometry"}
EVERYTHING = {path.relative_to(ROOT).with_suffix("").parts[1] for path in MODULES}
ALLOWED: dict[str, set[str]] = {
    "__init__": {"pretrained"},
    "config": set(),
    "files": set(),
    "torch_files": {"files"},
    "sizes": {"config"},
    "geometry": set(),
    "settings_names": {"config"},
    "settings": {
        "config",
        "settings_names",
        "settings_sampling",
        "settings_training",
        "settings_video",
        "settings_views",
    },
    "settings_training": {"config", "settings_remote", "settings_views", "stopping"},
    "settings_remote": {"config"},
    "settings_video": {"config"},
    "settings_views": {"config"},
    "settings_sampling": {"config"},
    "weights": {"files"},
    "dl3dv": {"weights"},
    "runtime": {"config"},
    "checkpoint": {"config", "files", "sizes", "torch_files"},
    "saving": {"checkpoint", "files"},
    "export": {"checkpoint", "files", "model", "settings"},
    "model": {"config", "files", "torch_files", "geometry"},
    "lvsm_pytorch": {"model"},
    "warm_start": {"checkpoint", "model"},
    "vae_files": {"config", "files", "sizes", "checkpoint", "model"},
    "data": {
        "config",
        "settings",
        "settings_remote",
        "settings_views",
        "stopping",
        "files",
        "torch_files",
        "geometry",
    },
    "camera_check": {"files", "data", "visualize"},
    "tiny_vae": {"data", "model"},
    "pre_encode": {"config", "settings", "runtime", "data", "model", "checkpoint", "vae_files"},
    "winograd": set(),
    "metrics": BASICS | {"winograd"},
    "loss": BASICS | {"metrics"},
    "stopping": set(),
    "parallel": {"runtime", "model"},
    "ema": {"parallel"},
    "video_plan": set(),
    "video_sampler": {"geometry", "model", "video_plan"},
    "optim": BASICS | {"parallel"},
    "step": BASICS | {"data", "optim", "parallel"},
    "floors": BASICS,
    "tracking": BASICS,
    "visualize": BASICS,
    "page": BASICS,
    "scene_view": BASICS | {"visualize"},
    "video": BASICS | {"visualize"},
    "output_folders": BASICS,
    "fid": {"config", "output_folders", "torch_files"},
    "met3r": BASICS | {"checkpoint", "data", "metrics", "model", "output_folders", "visualize"},
    "comparison": BASICS | {"data", "metrics", "output_folders", "visualize"},
    "profiling": {"files", "runtime"},
    "scaling": {"cost", "gpus", "settings"},
    "activations": {"settings", "model"},
    "frames_at_once": {"memory", "model", "settings", "geometry", "runtime"},
    "cost": {"activations", "runtime", "settings", "geometry", "model", "loss", "memory"},
    "memory": {"geometry", "runtime"},
    "gpus": {"settings"},
    "preflight": EVERYTHING - {"cli", "train", "inference", "inference_fast", "parity", "weights", "plan"},
    "plan": EVERYTHING - {"train", "inference", "inference_fast", "parity", "weights"},
    "explore": EVERYTHING
    - {
        "cli",
        "run",
        "train",
        "plan",
        "preflight",
        "inference",
        "sample",
        "render",
        "viewer",
        "parity",
        "weights",
    },
    "run_page": {"config", "files", "page"},
    "bench": EVERYTHING - {"cli", "train", "plan", "preflight", "inference", "parity", "weights", "soak"},
    "cli": {"config", "settings", "model"},
    "evaluate": EVERYTHING
    - {"cli", "run", "train", "plan", "preflight", "inference", "inference_fast", "parity", "weights"},
    "run": EVERYTHING
    - {"cli", "train", "plan", "preflight", "inference", "inference_fast", "parity", "weights"},
    "train": EVERYTHING - {"parity", "weights"},
    "inference": EVERYTHING - {"train", "parity", "weights"},
    "inference_fast": EVERYTHING - {"train", "inference", "parity", "weights"},
    "sample": EVERYTHING - {"train", "inference", "parity", "weights"},
    "pretrained": {"checkpoint", "config", "ema", "export", "files", "floors", "model", "settings"},
    "render": EVERYTHING - {"train", "inference", "parity", "weights", "viewer"},
    "viewer": EVERYTHING - {"train", "inference", "parity", "weights", "render"},
    "fit_pose_mapper": EVERYTHING - {"train", "inference", "parity", "weights", "viewer", "render"},
    "contest": EVERYTHING - {"cli", "inference", "inference_fast", "parity", "weights"},
    "soak": EVERYTHING - {"parity", "weights"},
    "parity": EVERYTHING - {"cli", "train", "inference", "inference_fast", "weights"},
}
"""Room (file or folder of src/) -> rooms that it may import besides itself."""


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path) for path in MODULES}


def imports_of(path: Path) -> Iterator[str]:
    """Absolute names of all of our modules that a file imports anywhere, also for type checking only."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = list(package[: len(package) - node.level + 1]) if node.level else []
            base = ".".join(start + ([node.module] if node.module else []))
            found = [
                f"{base}.{alias.name}" if f"{base}.{alias.name}" in NAMES else base for alias in node.names
            ]
        else:
            continue
        yield from (name for name in found if name.split(".")[0] == "src")


def room_of(name: str) -> str:
    return (name.split(".") + ["__init__"])[1]


def test_every_room_stands_in_the_table() -> None:
    missing = {room_of(name) for name in NAMES} - ALLOWED.keys()
    assert not missing, f"say in ALLOWED and in docs/architecture.md what {sorted(missing)} may import"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_what_its_room_may(path: Path) -> None:
    room = room_of(name_of(path))
    wrong = sorted({name for name in imports_of(path) if room_of(name) not in ALLOWED[room] | {room}})
    assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(wrong)}"


def test_no_two_modules_import_each_other() -> None:
    graph = {name_of(path): set(imports_of(path)) - {name_of(path)} for path in MODULES}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the cycle


def test_geometry_needs_torch_alone() -> None:
    for path in (ROOT / "src" / "geometry").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in names:
                assert name.split(".")[0] in {*sys.stdlib_module_names, "torch"}, f"{path.name}: {name}"


def test_scripts_and_source_do_not_import_tests() -> None:
    for path in [*MODULES, *(ROOT / "scripts").glob("*.py"), ROOT / "process_data.py"]:
        if path.is_file():
            assert "import tests" not in path.read_text(encoding="utf-8")
            assert "from tests" not in path.read_text(encoding="utf-8")
