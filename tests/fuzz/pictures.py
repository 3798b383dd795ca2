"""Encoded pictures of every mode and format that Pillow writes, and damage that keeps a format's structure.

Public: VARIANTS, encoded, damage_structure.
"""

from __future__ import annotations

import functools
import io
import random
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 32, 20


def _picture(mode: str) -> Image.Image:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    rgba = np.stack([8 * x, 12 * y, 255 - 4 * (x + y), np.where(x > y, 255, 90)], axis=2) % 256
    image = Image.fromarray(rgba.astype(np.uint8), "RGBA")
    if mode == "I;16":
        return Image.fromarray((x * 1700 + y).astype(np.uint16))
    if mode in ("RGBA", "LA"):
        return image.convert(mode)
    return image.convert("RGB").convert(mode)


def _saved(kind: str, mode: str = "RGB", **settings: object) -> Callable[[], bytes]:
    def save() -> bytes:
        buffer = io.BytesIO()
        _picture(mode).save(buffer, kind, **settings)
        return buffer.getvalue()

    return save


def _frames(kind: str, **settings: object) -> Callable[[], bytes]:
    """Several pictures in one file."""
    others = lambda: [_picture("RGB").rotate(90 * n) for n in (1, 2)]  # noqa: E731
    return lambda: _saved(kind, save_all=True, append_images=others(), **settings)()


def _exif(*entries: tuple[int, int, int]) -> bytes:
    """A block of EXIF written by hand: (tag, type, number) each, whatever they mean."""
    body = b"".join(struct.pack("<HHII", tag, kind, 1, number & 0xFFFFFFFF) for tag, kind, number in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4)


ORIENTATION, FOCAL_35MM, FOCAL, RESOLUTION, UNIT, WIDE, HIGH = (
    0x0112,
    0xA405,
    0x920A,
    0xA20E,
    0xA210,
    0xA002,
    0xA003,
)
SHORT, LONG, RATIO, TEXT = 3, 4, 5, 2
ODD = (
    (ORIENTATION, SHORT, 99),
    (FOCAL_35MM, SHORT, 0),
    (FOCAL, RATIO, 0),
    (RESOLUTION, RATIO, 8),
    (UNIT, SHORT, 7),
    (WIDE, LONG, 0),
    (HIGH, LONG, -1),
)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(
    width: int, height: int, *, depth: int = 8, colour: int = 2, data: bytes = b"", extra: bytes = b""
) -> bytes:
    """A PNG written by hand: any stated size over any data."""
    header = struct.pack(">IIBBBBB", width & 0xFFFFFFFF, height & 0xFFFFFFFF, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + extra + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")
    )


def _zeros(count: int) -> bytes:
    """So many zero bytes, packed; made without having them."""
    packer, part = zlib.compressobj(9), bytes(2**20)
    blocks = [packer.compress(part[: min(len(part), count - start)]) for start in range(0, count, len(part))]
    return b"".join(blocks) + packer.flush()


VARIANTS: dict[str, Callable[[], bytes]] = {
    "JPEG": _saved("JPEG"),
    "JPEG grey": _saved("JPEG", "L"),
    "JPEG CMYK": _saved("JPEG", "CMYK"),
    "JPEG progressive": _saved("JPEG", progressive=True, quality=30),
    "JPEG upside down": _saved("JPEG", exif=_exif((ORIENTATION, SHORT, 6), (FOCAL_35MM, SHORT, 28))),
    "JPEG odd EXIF": _saved("JPEG", exif=_exif(*ODD)),
    "JPEG text EXIF": _saved("JPEG", exif=_exif((ORIENTATION, TEXT, 6), (FOCAL_35MM, TEXT, 9), (0x8769, LONG, 8))),
    "JPEG profile": _saved("JPEG", icc_profile=bytes(300)),
    "MPO": _frames("MPO"),
    "PNG": _saved("PNG"),
    "PNG alpha": _saved("PNG", "RGBA"),
    "PNG grey": _saved("PNG", "L"),
    "PNG grey alpha": _saved("PNG", "LA"),
    "PNG bits": _saved("PNG", "1"),
    "PNG palette": _saved("PNG", "P"),
    "PNG palette, one colour clear": _saved("PNG", "P", transparency=3),
    "PNG colour clear": _saved("PNG", "RGB", transparency=(0, 0, 255)),
    "PNG 16 bits": _saved("PNG", "I;16"),
    "PNG 16 bits, three channels": lambda: _png(2, 2, depth=16, data=zlib.compress(bytes(26))),
    "PNG animated": _frames("PNG"),
    "PNG EXIF": _saved("PNG", exif=_exif((ORIENTATION, SHORT, 8), (FOCAL_35MM, SHORT, 50))),
    "WEBP": _saved("WEBP"),
    "WEBP lossless alpha": _saved("WEBP", "RGBA", lossless=True),
    "WEBP animated": _frames("WEBP"),
    "GIF": _saved("GIF", "P"),
    "TIFF": _saved("TIFF", "CMYK"),
    "BMP": _saved("BMP"),
    "ICO": _saved("ICO"),
    "PPM": _saved("PPM"),
    "EPS": _saved("EPS"),
    "nothing": lambda: b"",
    "one pixel": lambda: _png(1, 1, data=zlib.compress(bytes(4))),
    "one row": lambda: _png(4000, 1, data=zlib.compress(bytes(12_001))),
    "one column": lambda: _png(1, 4000, data=zlib.compress(bytes(16_000))),
    "no pixels": lambda: _png(0, 0),
    "2^31 pixels wide": lambda: _png(2**31 - 1, 1),
    "4 billion by 4 billion": lambda: _png(-1, -1),
    "170 megapixels of zeros": lambda: _png(13_000, 13_000, colour=0, data=_zeros(13_000 * 13_001)),
    "a small picture with 300 MB behind it": lambda: _png(8, 8, data=_zeros(300 * 2**20)),
    "a text of 200 MB": lambda: _png(8, 8, data=zlib.compress(bytes(200)), extra=_chunk(b"zTXt", b"a\0\0" + _zeros(200 * 2**20))),
    "a profile of 200 MB": lambda: _png(8, 8, data=zlib.compress(bytes(200)), extra=_chunk(b"iCCP", b"a\0\0" + _zeros(200 * 2**20))),
}  # fmt: skip


@functools.cache
def encoded(name: str) -> bytes:
    """The bytes of a variant."""
    return VARIANTS[name]()


# ----------------------------------------------------------------------------------------------- structure


def damage_structure(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Other sizes, depths or parts in a picture whose checksums still hold, and how."""
    if data.startswith(b"\x89PNG"):
        return _damage_png(data, rng)
    if data.startswith(b"\xff\xd8"):
        return _damage_jpeg(data, rng)
    if len(data) > 40 and data.startswith(b"RIFF"):
        place = rng.choice((4, 16, 20, 24, 27, 30))
        value = rng.choice((0, 1, 0xFFFFFFFF, 0x7FFFFFFF, 0xFFFFFF))
        return data[:place] + value.to_bytes(4, "little") + data[place + 4 :], f"{value} at {place}"
    return data + data, "twice"


def _damage_png(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    parts, place = [], 8
    while place + 12 <= len(data):
        (size,) = struct.unpack(">I", data[place : place + 4])
        parts.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + size]))
        place += 12 + size
    number = rng.randrange(len(parts))
    way = rng.choice(("header", "header", "header", "remove", "repeat", "move", "empty", "rename"))
    if way == "header":
        number, header = 0, bytearray(parts[0][1].ljust(13, b"\0"))
        field, value = rng.choice(
            [(f, v) for f in (0, 4) for v in (0, 1, 3, 31, 33, 5000, 9000, 2**31 - 1, 2**32 - 1)]
            + [(8, v) for v in (0, 1, 2, 4, 8, 16, 32)] + [(9, v) for v in range(8)] + [(12, 1), (10, 1), (11, 1)]
        )  # fmt: skip
        width = 4 if field < 8 else 1
        header[field : field + width] = value.to_bytes(width, "big")
        parts[0] = (parts[0][0], bytes(header))
        way = f"header {field} = {value}"
    elif way == "remove":
        del parts[number]
    elif way == "repeat":
        parts[number:number] = [parts[number]] * rng.choice((1, 500))
    elif way == "move":
        parts.append(parts.pop(number))
    else:
        name, content = parts[number]
        kinds = (
            b"PLTE",
            b"tRNS",
            b"IDAT",
            b"eXIf",
            b"iCCP",
            b"fdAT",
            b"acTL",
            b"fcTL",
            b"gAMA",
            b"pHYs",
            b"zTXt",
            b"iTXt",
        )
        parts[number] = (name, b"") if way == "empty" else (rng.choice(kinds), content)
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts), f"{way}, part {number}"


def _damage_jpeg(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    way = rng.choice(("size", "size", "segment", "length", "exif", "end", "twice"))
    if way == "exif":
        body = b"Exif\0\0" + rng.choice((b"II*\0", b"MM\0*")) + rng.randbytes(rng.choice((0, 4, 8, 40, 400)))
        return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:], "random EXIF"
    if way == "end":
        return data.replace(b"\xff\xd9", b""), "no end"
    if way == "twice":
        return data[:-2] + data, "twice"
    segments = _segments(data)
    frame = next((place for place in segments if data[place + 1] in (0xC0, 0xC1, 0xC2)), segments[0])
    if way == "size":
        field, value = rng.choice(
            ((5, 0), (5, 1), (5, 65535), (7, 0), (7, 1), (7, 65535), (4, 12), (9, 4), (9, 1))
        )
        width = 2 if field in (5, 7) else 1
        return _put(data, frame + field, value, width), f"frame header {field} = {value}"
    place = rng.choice(segments)
    if way == "length":
        return _put(data, place + 2, rng.choice((0, 1, 2, 65535)), 2), "another length"
    (length,) = struct.unpack(">H", data[place + 2 : place + 4])
    part = data[place : place + 2 + length]
    return data[:place] + rng.choice((b"", part * 300)) + data[
        place + len(part) :
    ], "a segment gone or repeated"


def _segments(data: bytes) -> list[int]:
    """Where the segments before the pixels begin."""
    found, place = [], 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:
        found.append(place)
        place += 2 + struct.unpack(">H", data[place + 2 : place + 4])[0]
    return found or [2]


def _put(data: bytes, place: int, value: int, width: int) -> bytes:
    return data[:place] + value.to_bytes(width, "big") + data[place + width :]
