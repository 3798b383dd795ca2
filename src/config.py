"""How settings work: `key` declares one on a dataclass, `build` checks a plain dict against such a dataclass.

A setting is declared once: meaning, default, allowed values. Code reads attributes; nothing else in the tree holds
a default. The settings of a run are in `settings.py`; model families and data sets declare their own with `key`.

Public: key, ConfigError, build, read_yaml, parse_overrides, unknown_key, and the nested-dict helpers.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import math
import re
import types
import typing
from dataclasses import field
from pathlib import Path
from typing import Any, Union

import yaml

log = logging.getLogger(__name__)

_REQUIRED = object()


class ConfigError(ValueError):
    """A setting that cannot be used: the message names the dotted key, what was found and what is allowed."""


def key(
    doc: str,
    default: Any = _REQUIRED,
    *,
    choices: tuple = (),
    ignored: bool = False,
    section: str = "",
) -> Any:
    """Declare one setting on a dataclass field.

    Args:
        doc: what the setting means, with its unit.
        default: value when the key is absent; a dataclass type stands for a nested section; none given: required.
        choices: the allowed values, if they can be listed.
        ignored: the key is accepted for old files and has no effect.
        section: the value stands in this top-level section of the file instead of inside its parent.
    """
    metadata = {"doc": doc, "choices": choices, "ignored": ignored, "section": section}
    if default is _REQUIRED:
        return field(metadata=metadata)
    if isinstance(default, type) and dataclasses.is_dataclass(default):
        return field(default_factory=default, metadata=metadata)
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


# ----------------------------------------------------------------------------------------------- checking


def build(schema: type, tree: Any, where: str, problems: list[str]) -> Any:
    """Instance of the dataclass `schema` from a plain dict; every mistake is appended to `problems`.

    Args:
        schema: dataclass whose fields were made with `key`.
        tree: mapping of field name to value; None stands for an empty section.
        where: dotted path of the section, for messages.

    Returns:
        the instance, or None when there was a problem.
    """
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        problems.append(f"{where} is {tree!r}: expected a section with {', '.join(_names(schema))}.")
        return None
    fields = {f.name: f for f in dataclasses.fields(schema)}
    hints = typing.get_type_hints(schema)
    before = len(problems)
    values = {}
    for name, value in tree.items():
        if name not in fields:
            problems.append(unknown_key(f"{where}.{name}", [f"{where}.{n}" for n in fields]))
            continue
        f = fields[name]
        path = f.metadata["section"] or f"{where}.{name}"
        if f.metadata["ignored"]:
            log.warning("%s has no effect: %s.", path, f.metadata["doc"])
            continue
        values[name] = _convert(hints[name], value, path, f.metadata["choices"], problems)
    for name, f in fields.items():
        if name in tree:
            continue
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            problems.append(f"{where}.{name} is missing: {f.metadata['doc']}.")
        elif dataclasses.is_dataclass(hints[name]):
            values[name] = build(hints[name], {}, f.metadata["section"] or f"{where}.{name}", problems)
    if len(problems) > before:
        return None
    try:
        return schema(**values)
    except ConfigError as error:
        problems.append(str(error))
        return None


def _convert(hint: Any, value: Any, where: str, choices: tuple, problems: list[str]) -> Any:
    """`value` as the type `hint`, with the few conversions YAML makes necessary (4e-4 and 1e5 are strings to it)."""
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where, problems)
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is Union:
        allowed = typing.get_args(hint)
    else:
        allowed = (hint,)
    for kind in allowed:
        converted = _as_type(typing.get_origin(kind) or kind, value, choices)
        if converted is not _NO:
            if choices and converted not in choices:
                break
            return converted
    expected = (
        " or ".join(map(str, choices)) if choices else " or ".join(_type_name(kind) for kind in allowed)
    )
    problems.append(f"{where} is {value!r}: expected {expected}.")
    return None


_NO = object()


def _as_type(kind: type, value: Any, choices: tuple) -> Any:
    if kind is types.NoneType:
        return None if value is None else _NO
    if kind is bool:
        return value if isinstance(value, bool) else _NO
    if kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            return _NO
        try:
            number = float(value)
        except ValueError:
            return _NO
        if not math.isfinite(number):
            return _NO
        if kind is float:
            return number
        return int(number) if number == int(number) else _NO
    if kind is str:
        if isinstance(value, bool) and "disabled" in choices and not value:
            return "disabled"
        if value is None:
            return ""
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        return value if isinstance(value, str) else _NO
    return value if isinstance(value, kind) else _NO


def _type_name(kind: Any) -> str:
    kind = typing.get_origin(kind) or kind
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _names(schema: type) -> list[str]:
    return [f.name for f in dataclasses.fields(schema)]


def unknown_key(dotted: str, known: list[str]) -> str:
    last = dotted.rpartition(".")[2]
    by_name = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(last, by_name, 1, 0.5)
    hint = f" Did you mean {by_name[near[0]]}?" if near else ""
    section = dotted.rpartition(".")[0] or "the file"
    return f"unknown key {dotted}.{hint} Keys of {section}: {', '.join(by_name)}."


# ----------------------------------------------------------------------------------------------- nested dicts


def leaves(tree: dict, prefix: str = "") -> list[str]:
    found = []
    for name, value in tree.items():
        dotted = f"{prefix}{name}"
        found += leaves(value, f"{dotted}.") if isinstance(value, dict) else [dotted]
    return found


def has_path(tree: dict, dotted: str) -> bool:
    for part in dotted.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


def pop_path(tree: dict, dotted: str) -> Any:
    *parents, last = dotted.split(".")
    for part in parents:
        tree = tree[part]
    return tree.pop(last)


def set_path(tree: dict, dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for depth, part in enumerate(parents):
        if not isinstance(tree.get(part), dict):
            if tree.get(part) is not None:
                raise ConfigError(f"{dotted}: {'.'.join(parents[: depth + 1])} is a value, not a section.")
            tree[part] = {}
        tree = tree[part]
    tree[last] = value


# ----------------------------------------------------------------------------------------------- files and command line


def read_yaml(path: Path) -> dict:
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1)
        hint = f" Did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"{path}: no such config file.{hint}")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        detail = " ".join(str(error).split())
        raise ConfigError(f"{path}: not readable as YAML: {detail}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping with sections model, training, inference.")
    if isinstance(tree.get("parameters"), dict):
        tree = {**{k: v for k, v in tree.items() if k != "parameters"}, **tree["parameters"]}
    return tree


def parse_overrides(words: list[str]) -> list[tuple[str, Any]]:
    """`["a.b", "=", "1"]` or `["a.b=1"]` -> `[("a.b", 1)]`; values are read as YAML.

    Raises:
        ConfigError: a word that is no `key=value`.
    """
    joined: list[str] = []
    for word in words:
        if joined and (word.startswith("=") or joined[-1].endswith("=")) and not _complete(joined[-1], word):
            joined[-1] += word
        else:
            joined.append(word)
    pairs = []
    for item in joined:
        dotted, equals, text = item.partition("=")
        dotted = dotted.strip().removeprefix("parameters.")
        if not equals or not re.fullmatch(r"[A-Za-z_][\w.]*", dotted):
            raise ConfigError(f"command line: {item!r} is not of the form key.sub=value.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"command line: the value of {item!r} is not YAML; quote it.") from None
        pairs.append((dotted, value))
    return pairs


def _complete(previous: str, word: str) -> bool:
    """`a=` followed by `b=1` is an empty value and a new key, not `a=b=1`."""
    return previous.endswith("=") and re.match(r"[A-Za-z_][\w.]*=", word) is not None
