"""Golden files: reading them, comparing our numbers with the stored ones, and printing the verdicts.

A golden file holds what the original code of one system computed. A reader (src/parity/<system>.py) takes a `Golden`
and returns our outputs in the layout of the stored ones; everything about tolerances and verdicts is here.

Public: Golden, load_golden, Rows, Line, compare, check_file, passed, print_lines, print_totals.
"""

from __future__ import annotations

import math
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import ConfigError
from ..torch_files import TorchFileError, read_torch_file

OK, FAIL, OPTIONAL, NO_STAGE, UNCHECKED = "ok", "FAIL", "optional", "no such stage", "unchecked"
VERDICTS = (OK, FAIL, OPTIONAL, NO_STAGE, UNCHECKED)

_MISSING = object()
"""Stands for an output that our reader does not compute; None is a value."""


# ----------------------------------------------------------------------------------------------- files


@dataclass(kw_only=True)
class Golden:
    """One golden file, by the keys of its dict; `extra` has those that only some kinds carry.

    as_class: `model.class_name` of another family of ours that is to compute the same; "": the original's.
    """

    path: Path
    system: str
    case: str
    kind: str
    config: dict
    state_dict: dict[str, Tensor] = field(repr=False)
    inputs: dict = field(repr=False)
    outputs: dict = field(repr=False)
    optional: list[str]
    stage: list[str]
    tolerances: list[dict]
    extra: dict = field(repr=False)
    as_class: str = ""


def load_golden(path: str | Path) -> Golden:
    """Raises ConfigError when the file is absent, unreadable or of another form."""
    path = Path(path)
    try:
        raw = read_torch_file(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file.") from None
    except OSError as error:
        raise ConfigError(f"{path}: not readable: {error}.") from error
    except TorchFileError as error:
        raise ConfigError(f"{path}: not readable as a golden file: it {error}.") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: not a golden file: it holds a {type(raw).__name__}.")
    shared = [f.name for f in fields(Golden) if f.name not in ("path", "extra", "as_class")]
    raw = {"state_dict": {}, "optional": [], "stage": []} | raw  # nothing of the kind
    missing = [name for name in shared if name not in raw]
    if missing:
        raise ConfigError(f"{path}: not a golden file: it has no {missing[0]}.")
    return Golden(path=path, **{name: raw.pop(name) for name in shared}, extra=raw)


# ----------------------------------------------------------------------------------------------- entries


@dataclass(frozen=True)
class Rows:
    """Our version of a stage of which we compute only some rows.

    value: what we have.
    select: takes the same rows out of the stored tensor.
    """

    value: Tensor
    select: Callable[[Tensor], Tensor]


def entries(stored: Any, ours: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, stored value, our value or _MISSING) of every leaf of `stored`.

    A list without tensors and dicts is one leaf, and so is an empty dict.
    """
    if isinstance(stored, dict) and stored:
        children = stored.items()
    elif isinstance(stored, list | tuple) and _has_children(stored):
        children = enumerate(stored)
    else:
        yield name, stored, ours
        return
    for key, value in children:
        yield from entries(value, _child(ours, key), f"{name}.{key}" if name else str(key))


def _has_children(values: list | tuple) -> bool:
    return any(
        isinstance(v, Tensor | dict) or (isinstance(v, list | tuple) and _has_children(v)) for v in values
    )


def _child(ours: Any, key: str | int) -> Any:
    if isinstance(ours, dict):
        return ours.get(key, _MISSING)
    if isinstance(ours, list | tuple | Tensor) and isinstance(key, int) and key < len(ours):
        return ours[key]
    return _MISSING


def covers(patterns: list[str], name: str) -> bool:
    """Whether a shell pattern names this entry or something above it."""
    parts = name.split(".")
    above = [".".join(parts[:i]) for i in range(1, len(parts) + 1)]
    return any(fnmatchcase(prefix, pattern) for pattern in patterns for prefix in above)


# ----------------------------------------------------------------------------------------------- comparison


@dataclass(frozen=True)
class Line:
    """Verdict on one entry. `max_abs` and `max_rel` are None where nothing was measured."""

    name: str
    verdict: str
    tolerance: str = ""
    max_abs: float | None = None
    max_rel: float | None = None
    remark: str = ""


def compare(golden: Golden, computed: dict, no_such_stage: dict[str, str]) -> list[Line]:
    """One line for each stored entry.

    Args:
        computed: our outputs, in the layout of `golden.outputs`; what is missing there is not computed.
        no_such_stage: pattern of an intermediate tensor that our design does not have -> reason.
    """
    lines = []
    for name, stored, ours in entries(golden.outputs, computed):
        optional, stage = covers(golden.optional, name), covers(golden.stage, name)
        if stored is None:
            lines.append(Line(name, OPTIONAL, remark="not recorded"))
        elif ours is not _MISSING:
            line = _measured(name, stored, ours, _tolerance(golden.tolerances, name), stage)
            lines.append(replace(line, verdict=OPTIONAL) if optional else line)
        elif optional:
            lines.append(Line(name, OPTIONAL))
        elif stage and (reason := _reason(no_such_stage, name)):
            lines.append(Line(name, NO_STAGE, remark=reason))
        else:
            lines.append(Line(name, UNCHECKED))
    return lines


def _reason(table: dict[str, str], name: str) -> str:
    return next((reason for pattern, reason in table.items() if covers([pattern], name)), "")


def _tolerance(tolerances: list[dict], name: str) -> dict:
    """The first that matches; without one, exact."""
    return next((t for t in tolerances if fnmatchcase(name, t["match"])), {})


def _measured(name: str, stored: Any, ours: Any, tolerance: dict, stage: bool) -> Line:
    """As `_measure`; two values that cannot even be compared disagree."""
    try:
        return _measure(name, stored, ours, tolerance, stage)
    except (RuntimeError, TypeError, ValueError, LookupError) as error:
        return Line(name, FAIL, remark=f"cannot be compared: {_one_line(error)}")


def _measure(name: str, stored: Any, ours: Any, tolerance: dict, stage: bool) -> Line:
    """Compare one entry. Strings, booleans and integers must be equal, whatever the tolerance says."""
    if ours is None and isinstance(stored, float) and "grad_norm" in name:
        ours = 0.0  # no gradient at all is a gradient of 0
    if isinstance(ours, Rows):
        stored, ours = ours.select(stored), ours.value
    if isinstance(stored, Tensor):
        ours = ours.detach().cpu() if isinstance(ours, Tensor) else torch.tensor(np.asarray(ours))
        if stage and ours.shape != stored.shape and _reshapes(ours.shape, stored.shape):
            ours = ours.reshape(stored.shape)
        if ours.shape != stored.shape:
            remark = f"shape {tuple(ours.shape)} instead of {tuple(stored.shape)}"
            return Line(name, FAIL, remark=remark)
        if stored.dtype == torch.uint8 or stored.dtype.is_floating_point:
            return _judge(name, stored.double().flatten(), ours.double().flatten(), tolerance)
        same = torch.equal(stored, ours.to(stored.dtype)) and not ours.dtype.is_floating_point
        return Line(name, OK if same else FAIL, "exact")
    if stored == {} and isinstance(ours, dict):
        return Line(name, OK, "exact")  # what we have in addition does not matter
    if isinstance(ours, Tensor):
        ours = ours.detach().tolist()
    numbers: list[tuple[float, float]] = []
    difference = _differs(stored, ours, numbers)
    if difference:
        return Line(name, FAIL, "exact", remark=difference)
    if not numbers:
        return Line(name, OK, "exact")
    pairs = torch.tensor(numbers, dtype=torch.float64)
    return _judge(name, pairs[:, 0], pairs[:, 1], tolerance)


def _reshapes(ours: tuple, stored: tuple) -> bool:
    """Equal up to merged or split leading axes: the last axis, the features of a token or a pixel, must agree."""
    return math.prod(ours) == math.prod(stored) and ours[-1:] == stored[-1:]


def _differs(stored: Any, ours: Any, numbers: list[tuple[float, float]]) -> str:
    """What is unlike in two plain values, or ""; pairs of floats are appended to `numbers` instead."""
    if isinstance(stored, list | tuple):
        if not isinstance(ours, list | tuple) or len(ours) != len(stored):
            return f"{_short(ours)} instead of {_short(stored)}"
        return next(filter(None, (_differs(a, b, numbers) for a, b in zip(stored, ours))), "")
    if stored is None:
        return ""
    is_number = isinstance(ours, int | float) and not isinstance(ours, bool)
    if isinstance(stored, float) and is_number:
        numbers.append((stored, float(ours)))
        return ""
    same = stored == ours and isinstance(stored, bool) == isinstance(ours, bool)
    return "" if same else f"{_short(ours)} instead of {_short(stored)}"


def _judge(name: str, stored: Tensor, ours: Tensor, tolerance: dict) -> Line:
    """Apply the rule of a tolerance to two float64 vectors. Equal infinities agree; NaN agrees with NaN only."""
    same = (stored == ours) | (stored.isnan() & ours.isnan())
    error = torch.where(same, 0.0, (ours - stored).abs())
    allowance, slope = tolerance.get("abs", 0.0), tolerance.get("rel", 0.0)
    text = f"{allowance:g}"
    if "fro" in tolerance:
        norm = stored.norm()
        within = bool(error.norm() <= allowance + tolerance["fro"] * norm)
        text += f" + {tolerance['fro']:g} fro"
    else:
        limit = allowance + slope * stored.abs()
        within = bool((((error <= limit) & stored.isfinite()) | same).all())
        text += f" + {slope:g} rel" if slope else ""
    if "mean" in tolerance and len(error):
        within &= bool(error.mean() <= tolerance["mean"])
        text += f", mean {tolerance['mean']:g}"
    relative = torch.where(same, 0.0, error / stored.abs())
    largest = [float(x.max()) if len(x) else 0.0 for x in (error, relative)]
    return Line(name, OK if within else FAIL, text, *largest)


# ----------------------------------------------------------------------------------------------- running and printing


_FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What code that a golden file drives may raise: such a file fails, and the files after it are still checked."""


def check_file(
    golden: Golden, reader: Callable[[Golden], dict] | None, no_such_stage: dict[str, str]
) -> list[Line]:
    """Run the reader of a file and compare; whatever the reader raises is a failure of this file."""
    if reader is None:
        return [Line("(file)", FAIL, remark=f"no reader for kind {golden.kind} of system {golden.system}")]
    try:
        computed = reader(golden)
    except _FAILURES as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        return [Line("(run)", FAIL, remark=f"{type(error).__name__} at {where}: {_one_line(error)}")]
    return compare(golden, computed, no_such_stage)


def print_lines(golden: Golden, lines: list[Line]) -> None:
    """`system/case/output  max_abs  max_rel  tolerance  verdict`, one entry a line; a reason stands below its line."""
    names = [f"{golden.system}/{golden.case}/{line.name}" for line in lines]
    width = max(map(len, names), default=0)
    for name, line in zip(names, lines):
        numbers = "  ".join("-" * 9 if x is None else f"{x:9.2e}" for x in (line.max_abs, line.max_rel))
        print(f"{name:{width}s}  {numbers}  {line.tolerance or '-':24s}  {line.verdict}")
        if line.remark and line.verdict in (FAIL, NO_STAGE):
            print(f"    {line.remark}")


def print_totals(lines: list[Line], num_files: int) -> None:
    counts = Counter(line.verdict for line in lines)
    parts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
    print(f"{num_files} files, {len(lines)} entries: {parts}")


def passed(lines: list[Line]) -> bool:
    """Nothing failed and nothing is unchecked."""
    return not any(line.verdict in (FAIL, UNCHECKED) for line in lines)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
