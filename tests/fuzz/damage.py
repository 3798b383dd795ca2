"""Ways to damage input: bytes, trees of plain values and tensors, files on a disk.

Half of what is tried changes the meaning and keeps the form (structural), half flips bytes. Everything is drawn from the
generator that is passed in.

Public: damage_bytes, damage_tree, damage_json, damage_file, Hostile, NAMES.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

NAMES = (
    "../../x", "../../../../../../x", "..", ".", "", " ", "/victim/x", "a/../../../b", "a\nb", "a\0b", "x" * 300, "x" * 70_000, "\u202egpj.a",
    "e\u0301", "\u00e9", "CON", "a\\..\\b", " scene ", "-rf", "$(touch canary)", "%s%n{0}", "\x1b[31mred", "\ud800",
    ".hidden", "scene0/", "SCENE0", "*", "None", "\u0661\u0662",
)  # fmt: skip
"""Names of scenes, files and keys that lead elsewhere, cannot be file names, or are mistaken for others."""


def _nested(depth: int) -> list:
    tree: list = []
    for _ in range(depth):
        tree = [tree]
    return tree


PLAIN = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, -(10**30), 10**400, 0.0, -0.0, 0.5, 1e-320, 1e300, -1e39, 7e38,
    math.nan, math.inf, -math.inf, "nan", "1e5", [], {}, [[]], [None], [0] * 1000, {"a": {}}, {"": 0}, *NAMES,
)  # fmt: skip
"""Values that stand where another is expected."""


class Hostile:
    """Opening a pickle that holds one creates the file `canary`."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return open, (str(self.canary), "w")


# ----------------------------------------------------------------------------------------------- bytes


def _flipped(data: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def _overwritten(data: bytearray, rng: random.Random) -> bytearray:
    start, length = rng.randrange(len(data)), rng.choice((1, 2, 4, 8, 64, 512))
    value = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80", rng.randbytes(1)))
    data[start : start + length] = value * min(length, len(data) - start)
    return data


def _cut(data: bytearray, rng: random.Random) -> bytearray:
    return data[: rng.choice((0, 1, 3, rng.randrange(len(data)), rng.randrange(len(data)), len(data) - 1))]


def _holed(data: bytearray, rng: random.Random) -> bytearray:
    start = rng.randrange(len(data))
    del data[start : start + rng.choice((1, 4, 100))]
    return data


def _repeated(data: bytearray, rng: random.Random) -> bytearray:
    start, length = rng.randrange(len(data)), rng.choice((1, 16, 400))
    return data[: start + length] + data[start:]


def _grown(data: bytearray, rng: random.Random) -> bytearray:
    extra = rng.randbytes(rng.choice((1, 30, 3000)))
    return data + extra if rng.random() < 0.7 else bytearray(extra) + data


def _number(data: bytearray, rng: random.Random) -> bytearray:
    """An extreme number where another may have stood: sizes, counts, offsets."""
    width, order = rng.choice((2, 4, 8)), rng.choice(("little", "big"))
    value = rng.choice((0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), 2 ** (8 * width - 1) - 1))
    start = rng.randrange(len(data))
    data[start : start + width] = value.to_bytes(width, order)
    return data


BYTES: tuple[Callable[[bytearray, random.Random], bytearray], ...] = (
    _flipped, _flipped, _overwritten, _cut, _holed, _repeated, _grown, _number, _number,
)  # fmt: skip


def damage_bytes(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Damaged bytes, and how."""
    way = rng.choice(BYTES) if data else _grown
    return bytes(way(bytearray(data), rng)), way.__name__.strip("_")


# ----------------------------------------------------------------------------------------------- trees


def _slots(tree: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """(container, key or index) of everything below `tree`, to a depth at which only damage lies."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items if depth < 20 else ():
        yield tree, key
        yield from _slots(value, depth + 1)


def damage_tree(tree: Any, rng: random.Random, extra: tuple = ()) -> tuple[Any, str]:
    """A tree of dicts and lists, changed in place in one to three places, and how.

    Args:
        extra: further wrong values, beside `PLAIN`.
    """
    done = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        tree, how = _damage_once(tree, rng, extra)
        done.append(how)
    return tree, "; ".join(done)


def _damage_once(tree: Any, rng: random.Random, extra: tuple) -> tuple[Any, str]:
    slots = list(_slots(tree))
    if not slots or rng.random() < 0.03:
        wrong = _wrong(tree, rng, extra)
        return wrong, f"all -> {_short(wrong)}"
    depth = rng.random()  # half of the changes are near the top, where there are few places
    holder, key = slots[rng.randrange(len(slots))] if depth < 0.5 else rng.choice(_near_top(tree))
    action = rng.choice(("replace", "replace", "replace", "delete", "rename", "double", "swap"))
    where = _short(key)
    if action == "delete":
        del holder[key]
    elif action == "rename" and isinstance(holder, dict):
        name = rng.choice(NAMES)
        holder[name] = holder.pop(key)
        return tree, f"{where} renamed {_short(name)}"
    elif action == "double" and isinstance(holder, list):
        holder.extend([holder[key]] * rng.choice((1, 1, 5000)))
    elif action == "swap":
        other = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        holder[key], holder[other] = holder[other], holder[key]
    else:
        holder[key] = _wrong(holder[key], rng, extra)
        return tree, f"{where} -> {_short(holder[key])}"
    return tree, f"{action} {where}"


def _near_top(tree: Any) -> list[tuple[Any, Any]]:
    """Places on the first levels, one branch followed."""
    found, here = [], tree
    while isinstance(here, dict | list) and here and len(found) < 40:
        keys = list(here) if isinstance(here, dict) else [0]
        found += [(here, key) for key in keys]
        here = next((here[key] for key in keys if isinstance(here[key], dict | list)), None)
    return found


def _wrong(value: Any, rng: random.Random, extra: tuple) -> Any:
    if isinstance(value, Tensor) and rng.random() < 0.7:
        return damage_tensor(value, rng)
    if extra and rng.random() < 0.2:
        return rng.choice(extra)
    if isinstance(value, str) and rng.random() < 0.6:
        return rng.choice(NAMES)
    if rng.random() < 0.03:
        return _nested(rng.choice((30, 150)))
    return rng.choice(PLAIN)


def _short(value: object) -> str:
    if isinstance(value, Tensor):
        return f"tensor {value.dtype} {tuple(value.shape)}"
    return type(value).__name__ if isinstance(value, list | dict) else ascii(value)[:40]


# ----------------------------------------------------------------------------------------------- tensors


def _filled(x: Tensor, rng: random.Random) -> Tensor:
    x = x.clone()
    if not x.is_floating_point():
        return x.fill_(rng.choice((0, 1, 255))) if x.numel() else x
    value = rng.choice((math.nan, math.inf, -math.inf, 3e38, -3e38, 1e-45, 0.0, -1.0))
    if rng.random() < 0.5 and x.numel():
        x.view(-1)[rng.randrange(x.numel())] = value
        return x
    return x.fill_(value)


def _of_type(x: Tensor, rng: random.Random) -> Tensor:
    kinds = (
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.uint8,
        torch.bool,
        torch.complex64,
    )
    return x.to(rng.choice(kinds))


def _reshaped(x: Tensor, rng: random.Random) -> Tensor:
    return rng.choice(
        (
            x.reshape(-1), x[None], x[..., None], x.flatten()[: x.numel() // 2], torch.cat([x, x]) if x.ndim else x[None],
            torch.empty(0), torch.tensor(1.0), x.transpose(0, -1) if x.ndim else x, x[:0] if x.ndim else x,
        )
    )  # fmt: skip


def _huge_by_stride(x: Tensor, rng: random.Random) -> Tensor:
    """A few bytes in the file, a claim of many in memory."""
    shape = rng.choice(((10**7, 18), (10**12,), (10**6, 10**6)))
    return torch.zeros(1, dtype=x.dtype).expand(shape)


def _unusual(x: Tensor, rng: random.Random) -> Any:
    return rng.choice(
        (
            lambda: x.to_sparse() if x.numel() else x,
            lambda: nn.Parameter(x.float()),
            lambda: x.to("meta"),
            lambda: x.to(torch.float64) * 1e300 * 10,
            lambda: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.quint8) if x.numel() else x,
            lambda: x.flatten()[::2],
            lambda: x.float().to(torch.complex64).conj(),
        )
    )()


def damage_tensor(x: Tensor, rng: random.Random) -> Any:
    """Another tensor in the place of `x`: other numbers, type, shape, or of a kind that few programs expect."""
    return rng.choice((_filled, _filled, _of_type, _reshaped, _reshaped, _huge_by_stride, _unusual))(x, rng)


# ----------------------------------------------------------------------------------------------- text and files


def damage_json(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """The text of a JSON file with another meaning, form or encoding, and how."""
    way = rng.randrange(12)
    text = data.decode()
    if way == 0:
        return b"[" * 100_000 + data, "nested without end"
    if way == 1:
        return rng.choice(
            (b"", b"null", b"0", b'""', b"[]", b"{}", b"{", b"NaN", b"true", b"[[]]", b"[{}]")
        ), "trivial"
    if way == 2:
        encoding = rng.choice(("utf-16", "utf-8-sig", "utf-32"))
        return text.encode(encoding), encoding
    if way == 3:
        return text.replace(
            "0", "9" * rng.choice((30, 400, 5000)), rng.choice((1, 3))
        ).encode(), "long numbers"
    tree, how = damage_tree(json.loads(text), rng)
    return json.dumps(tree).encode(), how


def _becomes_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _becomes_link(target: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.unlink()
        path.symlink_to(target)

    return change


def _becomes_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


FILES: dict[str, Callable[[Path], None]] = {
    "gone": Path.unlink,
    "a folder": _becomes_folder,
    "a pipe": _becomes_pipe,
    "a dangling link": _becomes_link("nowhere"),
    "a link to itself": _becomes_link(""),
    "a link to an endless device": _becomes_link("/dev/zero"),
    "a link to a file that is none of its kind": _becomes_link("/proc/self/status"),
    "empty": lambda path: path.write_bytes(b""),
}


def damage_file(path: Path, rng: random.Random) -> str:
    """Something else in the place of a file."""
    how = rng.choice(list(FILES))
    if how == "a link to itself":
        path.unlink()
        path.symlink_to(path.name)
    else:
        FILES[how](path)
    return f"{path.name} is {how}"


def replace_by_copy(path: Path, other: Path) -> None:
    """`path` with the content of another file."""
    shutil.copyfile(other, path)
