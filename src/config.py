"""How settings work: `key` declares one on a dataclass, `build` checks a plain dict against such a dataclass.

A setting is declared once: meaning, default, allowed values. Code reads attributes; nothing else in the tree holds
a default. The settings of a run are in `settings.py`; model families and data sets declare their own with `key`.

Public: key, ConfigError, raise_all, build, remainder, keys_of, unknown_key, read_yaml, parse_overrides, and the nested-dict
functions.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import math
import re
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Union

import yaml

log = logging.getLogger(__name__)

_REQUIRED = object()
_REFUSED = object()


class ConfigError(ValueError):
    """A setting that cannot be used: the message names the dotted key, what was found and what is allowed."""


def raise_all(problems: Iterable[str]) -> None:
    """Raises ConfigError with all of the problems, one a line, if there are any; one raised on the way ends the search."""
    found: list[str] = []
    try:
        found.extend(problems)
    except ConfigError as error:
        found.append(str(error))
    if found:
        raise ConfigError("\n".join(found))


def key(
    doc: str,
    default: Any = _REQUIRED,
    *,
    choices: tuple = (),
    least: float | None = None,
    ignored: bool = False,
    section: str = "",
) -> Any:
    """Declare one setting on a dataclass field.

    Args:
        doc: what the setting means, with its unit.
        default: value when the key is absent; a dataclass type stands for a nested section; none given: required.
        choices: the allowed values, if they can be listed.
        least: the smallest allowed number.
        ignored: the key is accepted for old files and has no effect.
        section: the value stands in this top-level section of the file instead of inside its parent.
    """
    metadata = {"doc": doc, "choices": choices, "least": least, "ignored": ignored, "section": section}
    if default is _REQUIRED:
        return field(metadata=metadata)
    if isinstance(default, type) and dataclasses.is_dataclass(default):
        return field(default_factory=default, metadata=metadata)
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def build(schema: type, tree: Any, where: str, problems: list[str], known: Sequence[str] = ()) -> Any:
    """Instance of the dataclass `schema` from a plain dict; every mistake is appended to `problems`.

    Args:
        schema: dataclass whose fields were made with `key`.
        tree: mapping of field name to value; None stands for an empty section.
        where: dotted path of the section, for messages.
        known: dotted keys of the whole file, among which the right place of an unknown one is looked for.

    Returns:
        the instance, or None when there was a problem.
    """
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        names = ", ".join(f.name for f in dataclasses.fields(schema))
        problems.append(f"{where} is {tree!r}: expected a section with {names}.")
        return None
    known = known or keys_of(schema, where)
    start = len(problems)
    values, wrong = _values(schema, tree, where, problems, known)
    made = _make(schema, values, wrong, problems)
    return made if len(problems) == start else None


def remainder(schema: type, tree: Any, where: str) -> Any:
    """What can be used of a section in which `build` finds mistakes: its good values and defaults for the others, not
    checked against each other. None where a value without default is missing.
    """
    values, _ = _values(schema, tree if isinstance(tree, dict) else {}, where, [], keys_of(schema, where))
    if set(_required(schema)) - values.keys():
        return None
    made = object.__new__(schema)
    for f in (f for f in dataclasses.fields(schema) if not f.metadata["ignored"]):
        made_default = f.default_factory if f.default is dataclasses.MISSING else lambda f=f: f.default
        setattr(made, f.name, values[f.name] if f.name in values else made_default())
    return made


def _required(schema: type) -> list[str]:
    return [f.name for f in dataclasses.fields(schema) if f.default is f.default_factory]


def _values(
    schema: type, tree: dict, where: str, problems: list[str], known: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """Converted values by field, and the fields whose values cannot be used."""
    fields = {f.name: f for f in dataclasses.fields(schema)}
    hints = typing.get_type_hints(schema)
    values: dict[str, Any] = {}
    wrong: list[str] = []
    problems += [unknown_key(f"{where}.{name}", known) for name in tree if name not in fields]
    for name, f in fields.items():
        hint, rules, before = hints[name], f.metadata, len(problems)
        path = rules["section"] or f"{where}.{name}"
        if rules["ignored"]:
            if name in tree:
                log.warning("%s has no effect: %s.", path, rules["doc"])
        elif dataclasses.is_dataclass(hint):
            values[name] = build(hint, tree.get(name), path, problems, known)
        elif name in tree:
            values[name] = _convert(hint, tree[name], path, rules, problems)
        elif name in _required(schema):
            problems.append(f"{path} is missing: {rules['doc']}.")
        if len(problems) > before:
            values.pop(name, None)
            wrong.append(name)
    return values, wrong


def _make(schema: type, values: dict[str, Any], wrong: list[str], problems: list[str]) -> Any:
    """The instance; with values that are `wrong` left out, only to find what else is: nothing is said that depends on
    them.
    """
    if set(_required(schema)) & set(wrong):
        return None
    try:
        return schema(**values)
    except ConfigError as error:
        about = re.compile(rf"\b({'|'.join(wrong)})\b") if wrong else None
        problems += [line for line in str(error).splitlines() if not (about and about.search(line))]
        return None


def _convert(hint: Any, value: Any, where: str, rules: Any, problems: list[str]) -> Any:
    """`value` as the type `hint`, with the few conversions YAML makes necessary (4e-4 and 1e5 are strings to it)."""
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is Union
    allowed = typing.get_args(hint) if union else (hint,)
    choices, least = rules["choices"], rules["least"]
    for kind in allowed:
        converted = _as_type(typing.get_origin(kind) or kind, value, choices)
        if converted is _REFUSED or (choices and converted not in choices):
            continue
        if least is not None and converted is not None and converted < least:
            problems.append(f"{where} is {value!r}: it must be at least {least}.")
            return None
        return converted
    expected = " or ".join(map(str, choices) if choices else map(_type_name, allowed))
    quote = "" if isinstance(value, str | dict | list) or str not in allowed or choices else " (in quotes)"
    problems.append(f"{where} is {value!r}: expected {expected}{quote}.")
    return None


def _as_type(kind: type, value: Any, choices: tuple) -> Any:
    if kind is types.NoneType:
        return None if value is None else _REFUSED
    if kind is bool:
        return value if isinstance(value, bool) else _REFUSED
    if kind in (int, float):
        return _as_number(kind, value)
    if kind is str:
        if value is False and "disabled" in choices:  # YAML reads `off` as False
            return "disabled"
        if value is None:
            return ""
        if isinstance(value, int | float) and not isinstance(value, bool):
            return getattr(value, "text", "") or str(value)
    return _as_plain(value) if isinstance(value, kind) else _REFUSED


def _as_plain(value: Any) -> Any:
    """Numbers in a list or mapping, however they were typed, as plain ones."""
    if isinstance(value, dict):
        return {name: _as_plain(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_as_plain(entry) for entry in value]
    if isinstance(value, TypedInt | TypedFloat):
        return int(value) if isinstance(value, int) else float(value)
    return value


def _as_number(kind: type, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return _REFUSED
    if kind is int and isinstance(value, int):
        return int(value)
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return _REFUSED
    if not math.isfinite(number) or (kind is int and number != int(number)):
        return _REFUSED
    return kind(number)


def _type_name(kind: Any) -> str:
    kind = typing.get_origin(kind) or kind
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list"}
    return names.get(kind, "nothing" if kind is types.NoneType else getattr(kind, "__name__", str(kind)))


def keys_of(schema: type, where: str) -> list[str]:
    """Dotted keys, sections included, of everything that has an effect below `where`."""
    hints = typing.get_type_hints(schema)
    found = []
    for f in (f for f in dataclasses.fields(schema) if not f.metadata["ignored"]):
        path = f.metadata["section"] or f"{where}.{f.name}"
        found.append(path)
        if dataclasses.is_dataclass(hints[f.name]):
            found += keys_of(hints[f.name], path)
    return found


def unknown_key(dotted: str, known: Sequence[str]) -> str:
    """Message for a key that is not in `known`: where a key of this name lives, or the nearest, or the choice."""
    section, _, last = dotted.rpartition(".")
    here = [name for name in known if name.rpartition(".")[0] == section]
    meant = [name for name in known if name.rpartition(".")[2] == last]
    meant = meant or _nearest(last, here, 0.6) or _nearest(last, known, 0.8)
    if meant:
        return f"unknown key {dotted}. Did you mean {' or '.join(meant)}?"
    choice = ", ".join(name.rpartition(".")[2] for name in here)
    return f"unknown key {dotted}." + (f" Keys of {section or 'the file'}: {choice}." if here else "")


def _nearest(last: str, names: Sequence[str], cutoff: float) -> list[str]:
    by_last = {name.rpartition(".")[2]: name for name in names}
    return [by_last[near] for near in difflib.get_close_matches(last, by_last, 1, cutoff)]


def leaves(tree: dict, prefix: str = "") -> list[str]:
    """Dotted path of every value that is no dict."""
    found = []
    for name, value in tree.items():
        dotted = f"{prefix}{name}"
        found += leaves(value, f"{dotted}.") if isinstance(value, dict) else [dotted]
    return found


def pop_path(tree: Any, dotted: str, absent: Any = None) -> Any:
    """Take the value at a dotted path out of the tree; `absent` if there is none."""
    *parents, last = dotted.split(".")
    for part in parents:
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree.pop(last, absent) if isinstance(tree, dict) else absent


def set_path(tree: dict, dotted: str, value: Any) -> None:
    """Set one leaf, making sections on the way; ConfigError where a value stands in the place of a section."""
    *parents, last = dotted.split(".")
    for depth, part in enumerate(parents):
        if not isinstance(tree.get(part), dict):
            if tree.get(part) is not None:
                raise ConfigError(f"{dotted}: {'.'.join(parents[: depth + 1])} is a value, not a section.")
            tree[part] = {}
        tree = tree[part]
    tree[last] = value


class TypedInt(int):
    """A whole number of a file in an unusual spelling: 2024_01 is one to YAML, and a name to a setting that takes text."""

    text = ""


class TypedFloat(float):
    """The same for other numbers: 1.50."""

    text = ""


MOST_VALUES = 100_000
"""In one YAML document. A few lines of aliases of aliases can stand for more than a memory holds."""


class _Loader(yaml.SafeLoader):
    """Safe loader that refuses what YAML lets pass: a key given twice, a key that is no text, a tree in itself."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict:
    seen = set()
    for name, _ in node.value:
        if name.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
            found = getattr(name, "value", name.tag)
            raise ConfigError(f"line {name.start_mark.line + 1}: the key {found} is not text; quote it.")
        if name.value in seen:
            raise ConfigError(f"line {name.start_mark.line + 1}: the key {name.value} is given twice.")
        seen.add(name.value)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


def _number(loader: _Loader, node: yaml.ScalarNode) -> int | float:
    whole = node.tag.endswith(":int")
    value = loader.construct_yaml_int(node) if whole else loader.construct_yaml_float(node)
    if str(value) == node.value:
        return value
    typed = TypedInt(value) if whole else TypedFloat(value)
    typed.text = node.value
    return typed


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _number)
_Loader.add_constructor("tag:yaml.org,2002:float", _number)
_Loader.add_constructor(
    "tag:yaml.org,2002:timestamp", yaml.SafeLoader.construct_yaml_str
)  # 2024-01-31 is text


def parse_yaml(text: str) -> Any:
    """Plain values of one YAML document; raises yaml.YAMLError or ConfigError."""
    loader = _Loader(text)
    try:
        tree = loader.get_single_data()
    finally:
        loader.dispose()
    if _size(tree, {}) > MOST_VALUES:
        raise ConfigError(f"its anchors (&) and aliases (*) stand for more than {MOST_VALUES:,} values.")
    return tree


def _size(tree: Any, known: dict[int, int]) -> int:
    """How many values a tree has that says the same by aliases; each part of it is looked at once."""
    if not isinstance(tree, dict | list):
        return 1
    if id(tree) not in known:
        known[id(tree)] = sum(
            _size(part, known) for part in (tree.values() if isinstance(tree, dict) else tree)
        )
    return 1 + known[id(tree)]


def read_yaml(path: Path) -> dict:
    """The mapping in a YAML file, freed of a top key `parameters`."""
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1)
        hint = f" Did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"{path}: no such config file.{hint}")
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping with sections model, training, inference.")
    inner = tree.pop("parameters", None) or {}
    if not isinstance(inner, dict):
        raise ConfigError(
            f"{path}: parameters is {inner!r}: expected sections, as model, training, inference."
        )
    if twice := sorted(inner.keys() & tree.keys()):
        raise ConfigError(f"{path}: {twice[0]} is given twice, inside and outside of parameters.")
    return {**tree, **inner}


def parse_overrides(words: list[str]) -> list[tuple[str, Any]]:
    """`["a.b", "=", "1"]` or `["a.b=1"]` -> `[("a.b", 1)]`; values are read as YAML.

    Raises:
        ConfigError: a word that is no `key=value`.
    """
    joined: list[str] = []
    for word in words:
        # `a= b=1` is an empty value and another key, not `a=b=1`
        value_follows = joined and joined[-1].endswith("=") and not re.match(r"[A-Za-z_][\w.]*=", word)
        if joined and (word.startswith("=") or value_follows):
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
            pairs.append((dotted, parse_yaml(text)))
        except (yaml.YAMLError, ValueError, RecursionError):
            raise ConfigError(f"command line: the value of {item!r} is not YAML; quote it.") from None
    return pairs
