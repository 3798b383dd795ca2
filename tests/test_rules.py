"""Rules of the house that a reader should be able to rely on, checked on the source."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    [
        *(ROOT / "src").rglob("*.py"),
        *(ROOT / "scripts").glob("*.py"),
        *ROOT.glob("*.py"),
    ]
)
TEXTS = [
    *SOURCES,
    *(ROOT / "tests").rglob("*.py"),
    *(ROOT / "config").rglob("*.yaml"),
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "scripts").glob("*.sh"),
    *ROOT.glob("*.md"),
]
OF_SETTINGS = [
    p
    for p in SOURCES
    if p.name not in ("config.py", "settings.py", "settings_training.py") and p.parent.name != "parity"
]
"""All but the schema, and the readers of golden files, whose dicts are not settings of ours."""
SECTIONS = {"config", "training", "inference", "pretrained", "model"}


def called(path: Path) -> list[tuple[int, str, ast.Call]]:
    """Line, dotted name and node of every call in a file, e.g. (3, "torch.load", ...)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        (node.lineno, ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)
    ]


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [p for p in SOURCES if p != ROOT / "src" / "runtime.py"], ids=short)
def test_the_device_is_named_in_runtime_only(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"[\"']cuda", text)
    assert ".cuda" not in text


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_nothing_is_run_that_a_file_or_a_shell_supplies(path: Path) -> None:
    for line, name, call in called(path):
        where = f"{short(path)}:{line}"
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert name not in ("os.system", "os.popen", "eval", "exec", "pickle.load", "pickle.loads"), where
        assert name not in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"), where
        assert options.get("shell") != "True", where
        if name in ("torch.load", "_load_torch"):
            assert options.get("weights_only") == "True", where
        if name in ("np.load", "numpy.load"):
            assert options.get("allow_pickle", "False") == "False", where


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_errors_are_caught_by_kind(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler):
            where = f"{short(path)}:{node.lineno}"
            assert node.type is not None, where
            if ast.unparse(node.type) in ("Exception", "BaseException"):
                used = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
                assert node.name in used, f"{where} catches every error and says nothing of it"


@pytest.mark.parametrize("path", OF_SETTINGS, ids=short)
def test_defaults_of_settings_stand_in_the_schema_only(path: Path) -> None:
    for line, name, call in called(path):
        owner, _, method = name.rpartition(".")
        from_config = owner.split(".")[-1] in SECTIONS
        assert not (from_config and method in ("get", "setdefault")), f"{short(path)}:{line}: {name}"
        if name == "getattr" and len(call.args) == 3:
            asked = ast.unparse(call.args[0]).split(".")[-1]
            assert asked not in SECTIONS, f"{short(path)}:{line}: a default for a setting of {asked}"


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.py")), ids=short)
def test_scripts_are_thin(path: Path) -> None:
    if path.name == "__init__.py":
        return
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    assert "def main(argv: list[str] | None = None)" in text


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_importing_a_module_does_nothing(path: Path) -> None:
    harmless = (
        ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign,
    )  # fmt: skip
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Expr):  # a docstring, or the registration of a YAML constructor
            text = ast.unparse(node)
            assert isinstance(node.value, ast.Constant) or ".add_constructor(" in text, (
                f"{short(path)}: {text}"
            )
        elif isinstance(node, ast.If):
            assert ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"), short(path)
        else:
            assert isinstance(node, harmless), f"{short(path)}:{node.lineno}"


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_files_are_documented_and_of_a_readable_size(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 430
    tree = ast.parse(text)
    assert not text or ast.get_docstring(tree), "needs a module docstring"
    assert path.stem not in ("utils", "helpers", "misc", "common")


@pytest.mark.parametrize("path", TEXTS, ids=short)
def test_text_is_plain_and_holds_no_path_of_one_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.isascii()
    assert not re.search(r"/(home|Users|root|work)/\w", text)
    assert "TO" + "DO" not in text


def test_importing_everything_starts_nothing(cli_env: dict[str, str]) -> None:
    """All modules load in a fresh process without a process group, threads of ours or output."""
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "src").rglob("*.py")
    ]
    code = (
        f"import importlib\nfor name in {names!r}: importlib.import_module(name)\n"
        "import torch\nassert not torch.distributed.is_initialized()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=cli_env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
