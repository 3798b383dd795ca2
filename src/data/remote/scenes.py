"""The scenes of a folder of chunks behind a URL: the same as from a copy of the folder, frame by frame.

What was read stays in a cache on the disk, which all processes of the machine share (`training.remote.cache_bytes`).

Public: RemoteScenes, RemoteScene.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from ...files import user_cache
from ...settings_remote import Remote
from ..chunk_index import ChunkScene, ChunkScenes
from ..chunks import frame_camera
from ..scene import FrameError, SceneError
from ..transforms import image_header
from .byte_cache import ByteCache
from .folder import PIECE_BYTES, RemoteFolder
from .index import prepare
from .source import RemoteError, RemoteFile

log = logging.getLogger(__name__)

CONNECTIONS = 8
"""Requests at once for the frames of one sample."""

GAP_BYTES = 2**15
"""Frames with at most so much between them come in one request."""

Span = tuple[int, int]
"""(offset, size) of a frame in its chunk."""


class RemoteScenes(ChunkScenes):
    """Implements `scene.Scenes`. Only the address travels to other processes; each connects for itself."""

    def __init__(self, url: str, settings: Remote | None = None, num_processes: int = 0) -> None:
        """Find the chunks and open their index, which is fetched or made first if it is not in the user's cache.

        Raises:
            ConfigError: there are no chunks, or they cannot be read; the message says what to do.
            ChunkError: none of them gives a scene.
        """
        self.remote = RemoteFolder(url, settings)
        self.chunks, self.index = prepare(self.remote, num_processes or os.cpu_count() or 1)
        self._open()
        self.problems = [tuple(p) for p in json.loads((self.index / "index.json").read_bytes())["problems"]]
        if self.problems:
            log.warning(
                "%s: %d chunks or scenes cannot be used; first %s: %s",
                url, len(self.problems), *self.problems[0],
            )  # fmt: skip

    def _open(self) -> None:
        super()._open()
        self.cache = ByteCache(user_cache() / "bytes", self.remote.settings.cache_bytes)

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("remote", "chunks", "index", "problems")}

    def __getitem__(self, position: int) -> RemoteScene:
        return RemoteScene(self, position)

    def read(self, chunk: int, offset: int, size: int) -> bytes:
        """`size` bytes of a chunk.

        Raises:
            FrameError: they do not come, or the chunk is another than was indexed.
            SourceLost: nothing came for a long time.
        """
        file = self.chunks[chunk]
        data = self.kept(file, (offset, size))
        return self.fetch(file, [(offset, size)])[offset, size] if data is None else data

    def kept(self, file: RemoteFile, span: Span) -> bytes | None:
        """A frame out of the cache."""
        data = self.cache.get(self._key(file, span), span[1])
        if data is not None:
            self.remote.alive()
        return data

    def fetch(self, file: RemoteFile, spans: Sequence[Span]) -> dict[Span, bytes]:
        """Frames that lie near to each other, in one request. Raises as `read` does."""
        begin, end = spans[0][0], max(offset + size for offset, size in spans)
        try:
            data = self.remote.read(file, begin, end - begin)
        except RemoteError as error:
            raise FrameError(f"{self.remote}/{file.name} {error}") from error
        found = {(offset, size): data[offset - begin : offset - begin + size] for offset, size in spans}
        for span, content in found.items():
            self.cache.put(self._key(file, span), content)
        return found

    def _key(self, file: RemoteFile, span: Span) -> str:
        """Of the cache. A file whose state nobody told is known by the index that belongs to it."""
        return json.dumps([self.remote.url, file.name, file.size, file.tag or self.index.name, *span])


class RemoteScene(ChunkScene):
    """One scene of a chunk behind a URL. Implements `scene.Scene`.

    The camera of a frame follows the size of its picture as soon as that was read; before, the size of the scene's first
    picture, as the index of a remote chunk holds no other.
    """

    scenes: RemoteScenes

    def __init__(self, scenes: RemoteScenes, position: int) -> None:
        super().__init__(scenes, position)
        self.file = scenes.chunks[self.chunk]
        self.ahead: dict[Span, bytes] = {}
        self.sizes: dict[int, Span] = {}

    def camera(self, frame: int) -> tuple[np.ndarray, np.ndarray]:
        row = self.frames[frame]
        width, height = self.sizes.get(frame, (int(row["width"]), int(row["height"])))
        return frame_camera(row["camera"], width, height)

    def announce(self, frames: Sequence[int]) -> None:
        """These will be read next: fetch those that are not kept here, together.

        Raises:
            SceneError: one does not come, and others of the chunk will hardly do so. SourceLost: see `RemoteScenes.read`.
        """
        wanted = {self._span(frame) for frame in frames if not self.frames[frame]["status"]}
        self.ahead = {
            span: data for span in wanted if (data := self.scenes.kept(self.file, span)) is not None
        }
        groups: list[list[Span]] = []
        for span in sorted(wanted - self.ahead.keys()):
            if groups and _fits(groups[-1], span):
                groups[-1].append(span)
            else:
                groups.append([span])
        if groups:
            with ThreadPoolExecutor(min(CONNECTIONS, len(groups))) as pool:
                try:
                    for found in pool.map(partial(self.scenes.fetch, self.file), groups):
                        self.ahead |= found
                except FrameError as error:
                    raise SceneError(str(error)) from error

    def encoded(self, frame: int) -> bytes:
        span = self._span(frame)
        data = self.ahead.get(span) or self.scenes.read(self.chunk, *span)
        try:
            self.sizes[frame] = image_header(data)[:2]
        except ValueError:  # whoever decodes it will tell
            self.sizes.pop(frame, None)
        return data

    def _span(self, frame: int) -> Span:
        return int(self.frames[frame]["offset"]), int(self.frames[frame]["size"])


def _fits(group: list[Span], span: Span) -> bool:
    """Whether a further frame may come in the request for those before it: near to them, and not too much in all."""
    return span[0] - sum(group[-1]) <= GAP_BYTES and sum(span) - group[0][0] <= PIECE_BYTES
