"""Data sets of our own: chunks, packed chunks, converted folders, lists, latents, evaluation indices.

Public: KINDS, make_converted, damaged_safetensors.
"""

from __future__ import annotations

import functools
import io
import json
import random
import shutil
from pathlib import Path

import raw_chunks
import torch

from scripts import chunks, generate_index
from src.data.latents import Meta, write_scene
from src.data.packed import pack
from src.evaluate import _read_depths

from . import pictures
from .damage import NAMES, Hostile, damage_bytes, damage_file, damage_json, damage_tree
from .readers import (
    CHECKS,
    CHOOSES,
    FRAMES,
    INDEX,
    KEPT,
    LISTED,
    RESCALES_LISTED,
    SCENES,
    SIZE,
    convert,
    converts,
    index_of,
    loads,
    script,
)  # fmt: skip
from .sandbox import Case, Finding, Kind

# ----------------------------------------------------------------------------------------------- chunks


def _scenes() -> list[dict]:
    return [raw_chunks.scene(f"scene{n}", FRAMES, SIZE, seed=n) for n in range(SCENES)]


def _make_chunks(folder: Path) -> None:
    scenes = _scenes()
    raw_chunks.write_chunks(folder / "train", scenes[:2], scenes[2:])
    (folder / "index.json").write_text(json.dumps(INDEX))


def _damage_chunk(folder: Path, rng: random.Random, structural: bool, canary: Path) -> str:
    path = folder / "train" / "000000.torch"
    if not structural:
        data, how = damage_bytes(path.read_bytes(), rng)
        path.write_bytes(data)
        return how
    if rng.random() < 0.06:
        return damage_file(path, rng)
    content = torch.load(path, weights_only=True)
    if rng.random() < 0.15:
        content, how = _with_strange_pictures(content, rng)
    else:
        content, how = damage_tree(content, rng, extra=(Hostile(canary), torch.zeros(3), b"bytes"))
    old_form = rng.random() < 0.1
    torch.save(content, path, _use_new_zipfile_serialization=not old_form)
    return how + (", old form" if old_form else "")


def _with_strange_pictures(content: list[dict], rng: random.Random) -> tuple[list[dict], str]:
    """Some frames hold pictures of other sizes, modes and formats."""
    for _ in range(rng.choice((1, 6))):
        images = rng.choice(content)["images"]
        name = rng.choice(list(pictures.VARIANTS))
        data = pictures.encoded(name)
        images[rng.randrange(len(images))] = (
            raw_chunks.encoded(data) if data else torch.empty(0, dtype=torch.uint8)
        )
    return content, f"a picture is {name}"


CHUNKS = Kind(
    "chunks",
    _make_chunks,
    _damage_chunk,
    (
        converts(),
        converts("--image_format", "png", "--mode", "train"),
        loads("train"),
        script(chunks.main, "rescale", "--input", "GIVEN", "--output", "OUT/small", "--min_size", "10", "--num_processes", "1"),
        index_of("GIVEN/train"),
    ),
    KEPT,
)  # fmt: skip


def _make_packed(folder: Path) -> None:
    _make_chunks(folder / "plain")
    (folder / "train").mkdir()
    for path in (folder / "plain" / "train").glob("*.torch"):
        pack(path, folder / "train" / f"{path.stem}.bl2")
    shutil.move(folder / "plain" / "index.json", folder / "index.json")
    shutil.move(folder / "plain" / "train", folder / "unpacked")


@functools.cache
def _small_buffer_of_much() -> bytes:
    import blosc2

    return blosc2.compress2(bytes(500 * 2**20))


def _damage_packed(folder: Path, rng: random.Random, structural: bool, canary: Path) -> str:
    import blosc2

    path = folder / "train" / "000000.bl2"
    if not structural:
        data, how = damage_bytes(path.read_bytes(), rng)
        path.write_bytes(data)
        return how
    way = rng.randrange(8)
    if way == 0:
        return damage_file(path, rng)
    plain = (folder / "unpacked" / "000000.torch").read_bytes()
    if way == 1:  # what a frame can claim in a few bytes
        bomb = blosc2.SChunk(chunksize=2**30, contiguous=True, urlpath=str(path), mode="w")
        bomb.fill_special(2**36, blosc2.SpecialValue.ZERO)
        return "64 GiB of zeros"
    if way == 2:
        path.write_bytes(blosc2.compress2(plain[: rng.randrange(len(plain))]))
        return "one buffer of a part"
    if way == 3:
        data, how = damage_bytes(plain, rng)
    elif way == 4:
        path.write_bytes(_small_buffer_of_much())
        return "a buffer of 500 MiB of zeros"
    else:
        content, how = damage_tree(_scenes()[:2], rng, extra=(Hostile(canary), torch.zeros(3)))
        buffer = io.BytesIO()
        torch.save(content, buffer)
        data = buffer.getvalue()
    if rng.random() < 0.5:
        path.write_bytes(blosc2.compress2(data))
        return f"{how}, as one buffer"
    (folder / "new.torch").write_bytes(data)
    pack(folder / "new.torch", path)
    return how


PACKED = Kind(
    "packed",
    _make_packed,
    _damage_packed,
    (
        converts(),
        loads("train"),
        script(
            chunks.main,
            "decompress",
            "--input",
            "GIVEN/train",
            "--output",
            "OUT/plain",
            "--num_processes",
            "1",
        ),
    ),
    KEPT,
)


# ----------------------------------------------------------------------------------------------- converted folders


def make_converted(folder: Path) -> None:
    """`folder/train/` as process_data.py leaves it, and an index."""
    _make_chunks(folder / "raw")
    case = Case(folder / "raw", folder, folder / "canary")
    convert(case)
    shutil.move(folder / "raw" / "index.json", folder / "index.json")
    shutil.rmtree(folder / "raw")


def _damage_metadata(folder: Path, rng: random.Random, structural: bool, canary: Path) -> str:
    path = folder / "train" / "metadata" / f"scene{rng.randrange(SCENES)}.json"
    if structural and rng.random() < 0.1:
        picture = rng.choice(sorted((folder / "train" / "images").rglob("*.jpg")))
        return damage_file(rng.choice((path, picture)), rng)
    data, how = (damage_json if structural else damage_bytes)(path.read_bytes(), rng)
    path.write_bytes(data)
    return how


METADATA = Kind(
    "metadata",
    make_converted,
    _damage_metadata,
    (loads(LISTED), RESCALES_LISTED, index_of(f"GIVEN/{LISTED}"), CHOOSES, CHECKS),
)


def _make_earlier(folder: Path) -> None:
    make_converted(folder / "earlier")
    _make_chunks(folder)


def _continues(case: Case) -> None:
    """A conversion that goes on where one left a damaged output."""
    shutil.copytree(case.given / "earlier", case.output, symlinks=True, dirs_exist_ok=True)
    convert(case)


def _damage_earlier(folder: Path, rng: random.Random, structural: bool, canary: Path) -> str:
    return _damage_metadata(folder / "earlier", rng, structural, canary)


EARLIER = Kind("earlier_output", _make_earlier, _damage_earlier, (_continues,), KEPT)


# ----------------------------------------------------------------------------------------------- lists


def _make_lists(folder: Path) -> None:
    make_converted(folder)
    (folder / "train" / "meta.json").write_text(
        json.dumps({"expected_shape": [3, SIZE[1], SIZE[0]], "vae_encoded": False})
    )
    (folder / "depths.json").write_text(json.dumps(dict.fromkeys(INDEX, 2.5)))


def _damage_list(folder: Path, rng: random.Random, structural: bool, canary: Path) -> str:
    path = folder / rng.choice((LISTED, LISTED, "train/meta.json", "depths.json"))
    if structural and rng.random() < 0.1:
        return damage_file(path, rng)
    if not structural:
        data, how = damage_bytes(path.read_bytes(), rng)
    elif path.suffix == ".json":
        data, how = damage_json(path.read_bytes(), rng)
    else:
        data, how = _damaged_lines(path.read_text().splitlines(), rng)
    path.write_bytes(data)
    return f"{path.name}: {how}"


def _damaged_lines(lines: list[str], rng: random.Random) -> tuple[bytes, str]:
    way = rng.randrange(7)
    if way == 0:
        return "\r\n".join(["", *lines, "", " "]).encode(), "other line ends"
    if way == 1:
        return "\n".join(lines).encode(rng.choice(("utf-16", "utf-8-sig"))), "another encoding"
    if way == 2:
        return "\n".join(lines * rng.choice((2, 300))).encode(), "lines repeated"
    name = rng.choice(NAMES)
    line = rng.choice(
        (name, f"metadata/{name}.json", f"{name}.json", f"/proc/self/{name}", "/dev/zero", "/dev/zero.json")
    )
    place = rng.randrange(len(lines))
    lines = lines[:place] + [line] + lines[place + (way < 5) :]
    return "\n".join(lines).encode("utf-8", "surrogatepass"), f"a line is {ascii(line)[:40]}"


def reads_depths(case: Case) -> None:
    """`inference.median_depth_path`."""
    depths = _read_depths(str(case.given / "depths.json"))
    if not all(0 < depth < float("inf") for depth in depths.values()):
        raise Finding(f"depths {depths}")


LISTS = Kind(
    "lists",
    _make_lists,
    _damage_list,
    (loads(LISTED, skip_bad_shape=True), RESCALES_LISTED, CHOOSES, reads_depths),
)


# ----------------------------------------------------------------------------------------------- latents


def _make_latents(folder: Path) -> None:
    make_converted(folder)
    meta = Meta(
        vae_hf_model_id="tiny", vae_digest="0" * 64, factor=14, channels=4, dtype="float32", image_size=28,
        patch_size=14, square_crop=True, image_shape=[],
    )  # fmt: skip
    place = folder / "train" / "vae_latents"
    place.mkdir()
    meta.write(place)
    for n in range(SCENES):
        write_scene(place, f"scene{n}", torch.randn(FRAMES, 2, 4, 2, 2))


def _damage_latents(folder: Path, rng: random.Random, structural: bool, canary: Path) -> str:
    place = folder / "train" / "vae_latents"
    path = place / rng.choice(("meta.json", "scene0.safetensors", "scene1.safetensors"))
    if structural and rng.random() < 0.1:
        return damage_file(path, rng)
    if not structural:
        data, how = damage_bytes(path.read_bytes(), rng)
    elif path.suffix == ".json":
        data, how = damage_json(path.read_bytes(), rng)
    else:
        data, how = damaged_safetensors(path.read_bytes(), rng)
    path.write_bytes(data)
    return f"{path.name}: {how}"


def damaged_safetensors(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Another header before the same numbers, or other numbers of the stated type."""
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    way = rng.randrange(4)
    if way == 0:
        value = rng.choice(
            (b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f")
        )  # NaN, infinity, the largest
        return data[: 8 + size] + value * (len(body) // 4), "all numbers alike"
    header, how = damage_tree(header, rng)
    if way == 1 and isinstance(header, dict):
        entries = [entry for entry in header.values() if isinstance(entry, dict) and "dtype" in entry]
        for entry in entries[:1]:
            entry["dtype"] = rng.choice(("F64", "F16", "BF16", "I32", "U8", "BOOL", "F8_E4M3", "C64", "X"))
            how += ", another type"
    text = json.dumps(header).encode()
    length = len(text) if rng.random() < 0.9 else rng.choice((0, 2**62, len(text) - 1))
    return length.to_bytes(8, "little") + text + body, how


LATENTS = Kind("latents", _make_latents, _damage_latents, (loads(LISTED, vae_latents="vae_latents"),))


# ----------------------------------------------------------------------------------------------- evaluation index


def _damage_index(folder: Path, rng: random.Random, structural: bool, canary: Path) -> str:
    path = folder / "index.json"
    if structural and rng.random() < 0.06:
        return damage_file(path, rng)
    data, how = (damage_json if structural else damage_bytes)(path.read_bytes(), rng)
    path.write_bytes(data)
    return how


EVALUATION_INDEX = Kind(
    "evaluation_index",
    make_converted,
    _damage_index,
    (
        loads(LISTED),
        script(
            generate_index.main, "--data", f"GIVEN/{LISTED}", "--method", "video", "--index", "GIVEN/index.json",
            "--output", "OUT/video.json",
        ),
    ),
)  # fmt: skip

KINDS = (CHUNKS, PACKED, METADATA, EARLIER, LISTS, LATENTS, EVALUATION_INDEX)
