"""Damaged input of every kind, as much as CI has time for; `python tests/fuzz` does more."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import all_kinds
from . import sandbox as rules
from .sandbox import Case, Finding, Kind, Sandbox, Skipped

SEED, READERS = 0, 1
"""Each case is read by so many of the kind's readers, in turn."""

MAIN = ("chunks", "metadata", "evaluation_index", "pictures", "configs", "checkpoints", "weights")
CASES, FEWER = 100, 40
"""Of each of the main kinds, and of each other kind."""

KINDS = {kind.name: kind for kind in all_kinds()}


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    yield Sandbox(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("name", KINDS)
def test_undamaged_input_is_read_by_everything(name: str, sandbox: Sandbox) -> None:
    """Else the cases below would say nothing."""
    kind = KINDS[name]
    as_it_is = Kind(kind.name, kind.make, lambda *_: "undamaged", kind.readers, kind.finished)
    assert sandbox.run(as_it_is, 0, SEED).outcome == "success"


@pytest.mark.parametrize("name", KINDS)
def test_damaged_input_is_read_skipped_or_refused_in_one_line(name: str, sandbox: Sandbox) -> None:
    cases = range(CASES if name in MAIN else FEWER)
    outcomes = [sandbox.run(KINDS[name], number, SEED, readers=READERS).outcome for number in cases]
    assert set(outcomes) - {"success"}, "nothing was damaged enough to be noticed"


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_the_same_with_every_reader_and_another_seed(name: str, sandbox: Sandbox) -> None:
    for number in range(300):
        sandbox.run(KINDS[name], number, SEED + 1)


# ----------------------------------------------------------------------------------------------- the rules themselves


def _raises(error: BaseException) -> None:
    raise error


WRONG_READERS = {
    "a bare KeyError": (lambda case: _raises(KeyError("x")), "KeyError"),
    "a ValueError of a library": (lambda case: b"\xff".decode(), "UnicodeDecodeError"),
    "an error without a file": (lambda case: _raises(ValueError("wrong")), "names no file"),
    "an error of two lines": (lambda case: _raises(ValueError("input.txt\nis wrong")), "no line"),
    "a file outside the output": (lambda case: (case.given.parent.parent / "x").write_text("x"), "outside"),
    "a changed input": (lambda case: (case.given / "input.txt").write_text("other"), "outside"),
    "a temporary file that stays": (lambda case: (case.given.parents[3] / "tmp" / "x").write_text("x"), "outside"),
    "code from the input": (lambda case: case.canary.write_text(""), "code"),
    "a lost result": (lambda case: (case.output / "finished.txt").unlink(), "lost"),
    "memory": (lambda case: bytearray(200 * 2**20), "memory"),
    "an exit": (lambda case: _raises(SystemExit(1)), "SystemExit"),
}  # fmt: skip


@pytest.mark.parametrize("how", WRONG_READERS)
def test_a_reader_that_breaks_a_rule_is_found(
    how: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "MEMORY_BYTES", 100 * 2**20)
    reader, message = WRONG_READERS[how]
    with pytest.raises(Finding, match=message):
        sandbox.run(_kind(how, reader), 0, SEED)


@pytest.mark.parametrize("how", ["computes", "waits"])
def test_a_reader_that_hangs_is_found(how: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "SECONDS" if how == "computes" else "WAIT_SECONDS", 0.2)
    reader = {"computes": lambda case: all(True for _ in iter(int, 1)), "waits": lambda case: time.sleep(60)}[
        how
    ]
    with pytest.raises(Finding, match="takes more than"):
        sandbox.run(_kind(how, reader), 0, SEED)


def test_what_is_allowed_is_counted(sandbox: Sandbox) -> None:
    fine = {
        "success": lambda case: (case.output / "new.txt").write_text("x"),
        "skip": lambda case: _raises(Skipped("one")),
        "error": lambda case: _raises(ValueError(f"{case.given / 'input.txt'} is wrong: write it again")),
    }
    for outcome, reader in fine.items():
        assert sandbox.run(_kind(f"fine {outcome}", reader), 0, SEED).outcome == outcome


def _kind(name: str, reader: object) -> Kind:
    def make(folder: Path) -> None:
        (folder / "input.txt").write_text("input")

    def read(case: Case) -> None:
        reader(case)

    return Kind(name.replace(" ", "_"), make, lambda *_: "nothing", (read,), {"finished.txt": b"done"})
