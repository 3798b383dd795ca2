"""Chunks compressed with blosc2 (`.bl2`): what a `.torch` file holds, in a blosc2 frame.

Ours is a contiguous frame of 1 MiB blocks, so any part can be read without the rest, and random access to frames works
as in `.torch` files. Files that hold one blosc2 buffer without a frame (`blosc2.compress2`) are read too, each as a
whole. JPEG pictures hardly get smaller (0.3 %); raw arrays, such as latents, do.

blosc2 is an optional package and is imported when the first such file is met. What was packed is only ever opened with
`weights_only`: a plain pickle inside is refused.

Public: SUFFIX, pack, Packed.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from ..config import ConfigError
from ..files import replacing, require_regular

SUFFIX = ".bl2"
BLOCK_BYTES = 2**20
LEVEL = 5
"""zstd, as strong as pays: higher levels gain nothing measurable on pictures."""

LARGEST_RATIO = 100
"""What is packed may be so many times larger than its file: a frame of a few bytes can claim terabytes of zeros."""

_FRAME = b"b2frame"
"""At byte 2 of a file that holds a frame."""


def _blosc2() -> ModuleType:
    """The package; one thread, since several processes read."""
    try:
        import blosc2
    except ImportError as error:
        raise ConfigError(
            "a .bl2 chunk needs the package blosc2: pip install blosc2. (Or unpack the folder elsewhere with "
            "`python -m scripts.chunks decompress`.)"
        ) from error
    blosc2.set_nthreads(1)
    return blosc2


def pack(source: Path, target: Path) -> None:
    """Write `target` (.bl2) with the content of `source`, in one step."""
    blosc2 = _blosc2()
    settings = blosc2.CParams(
        codec=blosc2.Codec.ZSTD,
        clevel=LEVEL,
        typesize=1,
        nthreads=1,
        filters=[blosc2.Filter.NOFILTER],
    )
    with replacing(target) as temporary, source.open("rb") as file:
        temporary.unlink(missing_ok=True)
        frame = blosc2.SChunk(
            chunksize=BLOCK_BYTES, contiguous=True, urlpath=str(temporary), mode="w", cparams=settings
        )
        while block := file.read(BLOCK_BYTES):
            frame.append_data(block)
        del frame  # closes the file


class Packed:
    """An open `.bl2` file. nbytes: size of what is packed in it."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError if the file is damaged or something else, OSError if it cannot be opened."""
        self.blosc2, self.path = _blosc2(), path
        require_regular(path)
        with path.open("rb") as file:
            is_frame = file.read(2 + len(_FRAME))[2:] == _FRAME
        try:
            self.frame = self.blosc2.open(str(path), mode="r") if is_frame else None
            content = b"" if is_frame else path.read_bytes()
            self.nbytes = self.frame.nbytes if is_frame else self.blosc2.get_cbuffer_sizes(content)[0]
            if self.nbytes > LARGEST_RATIO * path.stat().st_size:
                raise ValueError("claims more than such a file holds")
            self.whole = b"" if is_frame else self.blosc2.decompress2(content)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ValueError(f"is damaged, or not compressed with blosc2 ({str(error)[:80]})") from error

    def read(self, size: int, offset: int) -> bytes:
        """Part of what is packed; ValueError if it is damaged there."""
        if self.frame is None:
            return self.whole[offset : offset + size]
        end = min(offset + size, self.nbytes)
        try:
            return self.frame.get_slice(offset, end) if offset < end else b""
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"is damaged at byte {offset}") from error

    def unpack(self, target: Path) -> None:
        """Write all of it to a file."""
        with target.open("wb") as file:
            for offset in range(0, self.nbytes, BLOCK_BYTES):
                file.write(self.read(BLOCK_BYTES, offset))
