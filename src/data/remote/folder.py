"""A folder behind a URL: files by name, bytes by range; with time limits and retries, so that nothing waits for ever.

A URL has the form that fsspec gives it: https://host/dir, s3://bucket/dir, hf://datasets/org/name/dir. Credentials never
stand in it: they come from the environment, as each service defines it.

Public: is_url, RemoteFolder, CONNECTIONS, PIECE_BYTES.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ...config import ConfigError
from ...settings_remote import Remote
from .fsspec_source import FsspecSource
from .http_source import HttpSource
from .source import Refused, RemoteError, RemoteFile, Source, SourceLost

T = TypeVar("T")

PIECE_BYTES = 2**23
"""Of a larger file in one request, so that the time limit of a request fits files of any size."""

CONNECTIONS = 16
"""Requests at once, where there are many to make."""

PAUSE_SHARE = 1 / 30
"""The first pause before asking again, in units of the time limit of a request; each further one is twice as long."""


def is_url(path: object) -> bool:
    """Whether a path of a data set has the form of a URL."""
    return isinstance(path, str) and re.match(r"[A-Za-z][\w+.:-]*://", path) is not None


class RemoteFolder:
    """A folder behind a URL. Only its address travels to other processes; each connects for itself, also after a fork.

    fetched: bytes of files that came to this process.
    """

    def __init__(self, url: str, settings: Remote | None = None) -> None:
        """Nothing is asked yet. Raises ConfigError for a URL that is not the plain address of a folder."""
        self.url, self.settings = _checked(url), settings or Remote()
        self._source: tuple[int, Source] | None = None
        self._failing_since: float | None = None
        self.fetched = 0

    def __str__(self) -> str:
        return self.url

    def __getstate__(self) -> dict[str, Any]:
        return {
            "url": self.url,
            "settings": self.settings,
            "_source": None,
            "_failing_since": None,
            "fetched": 0,
        }

    def names(self) -> list[str] | None:
        """Files of the folder; None if it cannot be listed. Raises RemoteError."""
        return self._ask(lambda source: source.names())

    def stat(self, name: str) -> RemoteFile:
        """Size and state of a file. Raises RemoteError."""
        return self._ask(lambda source: source.stat(name))

    def read(self, file: RemoteFile, offset: int, size: int) -> bytes:
        """Exactly `size` bytes of a file that is in the given state.

        Raises:
            RemoteError: they did not come after all attempts, or the file has changed.
            SourceLost: nothing came for a long time.
        """
        if not size:
            return b""
        data, found = self._ask(lambda source: source.read(file.name, offset, size))
        if found.size != file.size or (file.tag and found.tag and found.tag != file.tag):
            raise Refused("has changed since it was indexed: start again")
        self.fetched += size
        return data

    def content(self, name: str, limit: int = 2**26) -> bytes:
        """The whole of a file of at most `limit` bytes. Raises RemoteError."""
        file = self.stat(name)
        if file.size > limit:
            raise Refused(f"is {file.size:,} bytes large, expected at most {limit:,}")
        starts = range(0, file.size, PIECE_BYTES)
        return b"".join(self.read(file, start, min(PIECE_BYTES, file.size - start)) for start in starts)

    def alive(self) -> None:
        """Work goes on, if only from the cache."""
        self._failing_since = None

    def _ask(self, work: Callable[[Source], T]) -> T:
        """What `work` gives, repeated while it fails in a way that may pass."""
        pause = self.settings.timeout_s * PAUSE_SHARE
        for left in reversed(range(self.settings.attempts)):
            try:
                answer = work(self._connected())
            except RemoteError as error:
                if left and not isinstance(error, Refused):
                    time.sleep(pause)
                    pause *= 2
                    continue
                self._check_patience(error)
                raise
            self.alive()
            return answer
        raise AssertionError("unreachable")

    def _check_patience(self, error: RemoteError) -> None:
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        elif now - self._failing_since > self.settings.patience_s:
            raise SourceLost(
                f"{self.url}: all that was asked for failed for {now - self._failing_since:.0f} s; last: {error}"
            ) from error

    def _connected(self) -> Source:
        """The connection of this process: one that was made before a fork belongs to the other process.

        Threads that come here first at the same time may make several, of which one is kept.
        """
        if self._source is None or self._source[0] != os.getpid():
            self._source = (os.getpid(), _connect(self.url, self.settings.timeout_s))
        return self._source[1]


def _connect(url: str, timeout_s: float) -> Source:
    if url.startswith(("http://", "https://")):
        return HttpSource(url, timeout_s)
    return FsspecSource(url, timeout_s)


def _checked(url: str) -> str:
    """Without the slash at its end; ConfigError, which does not repeat a password, for what is no plain address."""
    if re.search(r"::[A-Za-z][\w+.-]*://", url):
        raise ConfigError(
            f"{url}: chained URLs are not read; name the folder itself, such as s3://bucket/dir."
        )
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigError(f"{url} is no URL ({error}).") from None
    if "@" in parts.netloc:
        raise ConfigError(
            f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}: the URL holds a user name or password, which would be "
            "written into configs and checkpoints. Take it out; credentials come from the environment (~/.netrc, "
            "AWS_ACCESS_KEY_ID, HF_TOKEN)."
        )
    if parts.query or parts.fragment:
        raise ConfigError(f"{url.partition('?')[0]}: expected the address of a folder, without ? and #.")
    if re.search(r"\.(json|txt|torch|bl2)/*$", parts.path):
        raise ConfigError(f"{url}: over a network only folders of .torch chunks are read: name the folder.")
    return url.rstrip("/")
