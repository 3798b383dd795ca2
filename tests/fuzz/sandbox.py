"""One case: damaged input, handed to what reads it, under rules that hold for all.

A reader may succeed, skip and count, or raise one of our errors with one line that names the file. It may not raise
anything else, take longer than `SECONDS` or more than `MEMORY_BYTES`, run code from the input, or touch a file outside the
output folder, and what was finished there before must stay whole.

Public: Kind, Case, Result, Finding, Sandbox, Skipped, command.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import resource
import shutil
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from src.cli import printable
from src.config import ConfigError

SECONDS, WAIT_SECONDS = 10, 120
"""Time of the processor, and of the clock, that a reader may take; it needs milliseconds, on a busy machine more."""

MEMORY_BYTES = 2**30
"""How far the peak of resident memory may rise in one case. A picture of 89 megapixels, which is allowed, takes half of it."""

ADDRESS_BYTES = 6 * 2**30
"""Address space beyond what is mapped at the start: where a case goes far too far, it fails instead of the machine."""

LINES = 300
"""A config is told all its problems at once, one a line; every key can be wrong."""

GIVEN, OUTPUT = "given_data", "output"


class Finding(AssertionError):
    """A rule was broken."""


class Skipped(Exception):
    """Raised by a reader of a `Kind`: part of the input was passed over, counted and told."""


class _Hang(BaseException):
    """Not an Exception, so that nothing takes it for a damaged file."""


@dataclass(frozen=True)
class Case:
    """given: the damaged input. output: where results may go. canary: exists if code from the input was run."""

    given: Path
    output: Path
    canary: Path


Reader = Callable[[Case], None]
"""Reads the input as users do; returns, raises Skipped, or one of our errors."""


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    make: writes undamaged input into a folder.
    damage: (folder, generator, structural, canary) -> what was done to the copy.
    readers: entry points; each gets the same damaged input.
    finished: files that an earlier run left in the output folder, relative to it -> content.
    """

    name: str
    make: Callable[[Path], None]
    damage: Callable[[Path, random.Random, bool, Path], str]
    readers: tuple[Reader, ...]
    finished: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """outcome: "success", "skip" or "error". message: the first error."""

    outcome: str
    how: str
    message: str = ""


class Sandbox:
    """A folder in which cases are run one after another."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.work, self.tmp = self.root / "up" / "up" / "work", self.root / "tmp"
        self.undamaged: dict[str, Path] = {}

    def run(self, kind: Kind, number: int, seed: int, *, readers: int = 0) -> Result:
        """Case `number` of a kind. Odd ones are structural.

        Args:
            readers: so many of the kind's readers, in turn; 0: all of them.

        Raises:
            Finding: a rule was broken; the message says which, and how the case is run again.
        """
        rng = random.Random(f"{kind.name} {seed} {number}")
        case = self._fresh(kind)
        how = kind.damage(case.given, rng, number % 2 == 1, case.canary)
        before = _files(self.root, leave_out=case.output)
        outcomes, message = {"success"}, ""
        try:
            for reader in _some(kind.readers, number // 2, readers):
                outcome, told = self._read(reader, case)
                outcomes.add(outcome)
                message = message or told
            self._check(case, kind, before)
        except Finding as finding:
            raise Finding(
                f"{kind.name} {number} (seed {seed}; {how}): {finding}\n"
                f"python tests/fuzz --kind {kind.name} --only {number} --seed {seed}"
            ) from finding
        worst = next(o for o in ("error", "skip", "success") if o in outcomes)
        return Result(worst, how, message)

    def _fresh(self, kind: Kind) -> Case:
        """Input and output of a new case; undamaged input is made once."""
        if kind.name not in self.undamaged:
            self.undamaged[kind.name] = self.root / "undamaged" / kind.name
            self.undamaged[kind.name].mkdir(parents=True)
            kind.make(self.undamaged[kind.name])
        for folder in (self.work, self.tmp):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        case = Case(self.work / GIVEN, self.work / OUTPUT, self.root / "canary")
        case.canary.unlink(missing_ok=True)
        shutil.copytree(self.undamaged[kind.name], case.given, symlinks=True)
        case.output.mkdir()
        for name, content in kind.finished.items():
            path = case.output / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return case

    def _read(self, reader: Reader, case: Case) -> tuple[str, str]:
        """Outcome and message of one reader; raises Finding."""
        memory = _Memory()
        what = reader.__name__
        try:
            with _surroundings(case, self.tmp), _alarm(), _output():
                reader(case)
            outcome, message = "success", ""
        except Skipped as error:
            outcome, message = "skip", str(error)
        except (ValueError, OSError) as error:
            _require_told(error, case, what)
            outcome, message = "error", str(error)
        except Finding:
            raise
        except _Hang as error:
            raise Finding(
                f"{what} takes more than {SECONDS} s of the processor or {WAIT_SECONDS} s:\n{_where(error)}"
            ) from error
        except BaseException as error:
            raise Finding(f"{what} raises {type(error).__name__}: {error}\n{_where(error)}") from error
        if memory.growth() > MEMORY_BYTES:
            raise Finding(f"{what} takes {memory.growth() / 2**20:.0f} MiB of memory")
        return outcome, message

    def _check(self, case: Case, kind: Kind, before: dict[str, tuple]) -> None:
        if case.canary.exists():
            raise Finding("code from the input was run")
        after = _files(self.root, leave_out=case.output)
        if after != before:
            changed = sorted(
                name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
            )
            raise Finding(f"files outside the output folder changed: {changed[:5]}")
        for name, content in kind.finished.items():
            path = case.output / name
            if not path.is_file() or path.read_bytes() != content:
                raise Finding(f"{name}, finished before, was lost")


def _some(readers: tuple[Reader, ...], first: int, count: int) -> list[Reader]:
    """`count` of them from place `first` on, in a circle; 0: all."""
    return [readers[(first + i) % len(readers)] for i in range(min(count, len(readers)) or len(readers))]


# ----------------------------------------------------------------------------------------------- rules


def _require_told(error: Exception, case: Case, what: str) -> None:
    """An error is ours, one line (a config: one for each problem), and names a file of the input or a setting."""
    kind, text = type(error), printable(error)
    if isinstance(error, ValueError) and kind is not ValueError and not kind.__module__.startswith("src."):
        raise Finding(f"{what} raises {kind.__name__}: {text[:300]}\n{_where(error)}") from error
    lines = text.strip().split("\n")
    if len(lines) > (LINES if kind is ConfigError else 1) or max(map(len, lines)) > 1200:
        raise Finding(
            f"{what} raises {kind.__name__} with a message that is no line: {text[:600]!r}"
        ) from error
    names = {part for path in case.given.rglob("*") for part in (path.name, path.stem) if part}
    settings = (
        ("command line", "model.", "training.", "inference.", "pretrained.") if kind is ConfigError else ()
    )
    if not any(name in text for name in (GIVEN, *names, *settings)):
        raise Finding(
            f"{what} raises {kind.__name__} that names no file: {text[:300]!r}\n{_where(error)}"
        ) from error


def _require_printable(text: str, what: str) -> None:
    """Control characters in a name from the input would steer the terminal."""
    bad = next((c for c in text if not c.isprintable() and c not in "\n\r\t"), "")
    if bad:
        at = text.index(bad)
        raise Finding(f"{what} prints the control character {bad!r}: {text[max(0, at - 80) : at + 20]!r}")


def _where(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)[-6:])[-3000:]


def _files(root: Path, leave_out: Path) -> dict[str, tuple]:
    """Everything below a folder: kind, size and time of change. Indices that lie beside chunks are left out."""
    found = {}
    for folder, folders, names in os.walk(root):
        folders[:] = [
            name for name in folders if Path(folder, name) != leave_out and name != ".parallax_index"
        ]
        for name in [*folders, *names]:
            stat = os.lstat(os.path.join(folder, name))
            facts = (stat.st_size, stat.st_mtime_ns) if name in names else ()
            found[os.path.relpath(os.path.join(folder, name), root)] = (stat.st_mode, *facts)
    return found


# ----------------------------------------------------------------------------------------------- surroundings


@contextlib.contextmanager
def _surroundings(case: Case, tmp: Path) -> Iterator[None]:
    """Working folder, cache and temporary folder of the case; no address space without bounds; no waiting for the disk."""
    here, limits = os.getcwd(), resource.getrlimit(resource.RLIMIT_AS)
    handlers = list(logging.getLogger().handlers)
    cache, temporary = os.environ.get("PARALLAX_CACHE"), tempfile.tempdir
    os.environ["PARALLAX_CACHE"], tempfile.tempdir = str(case.output / "cache"), str(tmp)
    os.chdir(case.given.parent)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + ADDRESS_BYTES, limits[1]))
    try:
        with warnings.catch_warnings(), mock.patch("os.fsync"):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger().handlers[:] = handlers  # scripts add theirs
        resource.setrlimit(resource.RLIMIT_AS, limits)
        os.chdir(here)
        tempfile.tempdir = temporary
        os.environ.pop("PARALLAX_CACHE")
        if cache is not None:
            os.environ["PARALLAX_CACHE"] = cache


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise _Hang

    timers = {
        signal.SIGPROF: (signal.ITIMER_PROF, SECONDS),
        signal.SIGALRM: (signal.ITIMER_REAL, WAIT_SECONDS),
    }
    before = {number: signal.signal(number, ring) for number in timers}
    for timer, seconds in timers.values():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


@contextlib.contextmanager
def _output() -> Iterator[tuple[io.TextIOWrapper, io.TextIOWrapper]]:
    """What is printed inside; encoded as a terminal would, so that what cannot be fails."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict", write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace", write_through=True)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield out, err


def _text(stream: io.TextIOWrapper) -> str:
    return stream.buffer.getvalue().decode("utf-8", "replace")


class _Memory:
    """The peak of resident memory since it was made, beyond what there was then; 0 where the system does not tell."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self.before = _status("VmRSS")

    def growth(self) -> int:
        return _status("VmHWM") - self.before


def _status(name: str) -> int:
    """Bytes, from /proc/self/status."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        line = next((line for line in file if line.startswith(f"{name}:")), "")
    return int(line.split()[1]) * 1024 if line else 0


def command(main: Callable[[list[str]], int | None], *argv: object) -> None:
    """Run a script as its user does.

    Raises:
        Skipped: its exit status is 1. ValueError: it is 2, with what it said.
    """
    with _output() as streams:
        try:
            status = main([str(word) for word in argv])
        except SystemExit as error:  # argparse
            raise ConfigError(f"command line: {error.code}") from error
    for stream in streams:
        _require_printable(_text(stream), main.__module__)
    told = _text(streams[1]).replace("\r", "\n")
    if status in (0, None):
        return
    if status == 1:
        raise Skipped("exit status 1")
    lines = [line for line in told.split("\n") if "error: " in line or ".py: " in line]
    if status != 2 or not lines:
        raise Finding(f"{main.__module__} ends with status {status}: {told[-500:]}")
    raise (ConfigError if main.__module__ == "src.train" else ValueError)(
        told[told.index(lines[0]) :].strip()
    )
