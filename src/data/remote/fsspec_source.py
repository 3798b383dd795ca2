"""Byte ranges by fsspec, for s3://, hf:// and whatever else it has a package for.

fsspec's file systems have time limits of their own or none: here each call runs in a thread that is left behind when its
time is over.

Public: FsspecSource.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import fsspec
from fsspec.registry import known_implementations

from ...config import ConfigError
from .source import Absent, OutOfTime, Refused, RemoteError, RemoteFile, within

T = TypeVar("T")

TAGS = ("ETag", "etag", "blob_id", "md5", "mtime", "LastModified", "last_modified")
"""Under what names file systems tell the state of a file; the first that is there counts."""

CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or FSSPEC_S3_ANON=true for a public bucket",
    "hf": "HF_TOKEN, and accept the terms of the data set if it has some",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
}
"""What to put into the environment."""

LISTING_TIMES = 10
"""A listing makes many requests: it may take so many times as long as one."""


class FsspecSource:
    """See `source.Source`."""

    def __init__(self, url: str, timeout_s: float) -> None:
        """Raises ConfigError if fsspec does not know the protocol, or the package that it needs is missing."""
        self.protocol, self.timeout_s = url.partition("://")[0], timeout_s
        try:
            self.system, self.root = fsspec.url_to_fs(url, skip_instance_cache=True)
        except ImportError as error:
            package = known_implementations.get(self.protocol, {}).get("class", "").partition(".")[0]
            raise ConfigError(f"{url} needs the package {package}: pip install {package}.") from error
        except ValueError as error:
            raise ConfigError(f"{url}: {error}. Known: http, https, s3, hf and others of fsspec.") from error
        self.found: dict[str, RemoteFile] = {}

    def names(self) -> list[str] | None:
        try:
            entries = self._within(
                lambda: self.system.ls(self.root, detail=True), self.timeout_s * LISTING_TIMES
            )
        except NotImplementedError:
            return None
        for entry in entries:
            if entry.get("type") == "file":
                name = str(entry["name"]).rpartition("/")[2]
                self.found[name] = _file(name, entry)
        return sorted(self.found)

    def stat(self, name: str) -> RemoteFile:
        if name not in self.found:
            info = self._within(lambda: self.system.info(f"{self.root}/{name}"), self.timeout_s)
            self.found[name] = _file(name, info)
        return self.found[name]

    def read(self, name: str, offset: int, size: int) -> tuple[bytes, RemoteFile]:
        """The state of the file is that in which this process first met it."""
        file = self.stat(name)
        # Without this, buffered files would fetch megabytes ahead.
        options = {} if self.system.async_impl else {"cache_type": "none"}
        data = self._within(
            lambda: self.system.cat_file(f"{self.root}/{name}", start=offset, end=offset + size, **options),
            self.timeout_s,
        )
        if len(data) != size:
            raise RemoteError(f"gave {len(data)} bytes instead of {size}")
        return data, file

    def _within(self, work: Callable[[], T], seconds: float) -> T:
        """What `work()` returns, if it does so in time; its errors by kind."""
        try:
            return within(seconds, work)
        except OutOfTime:
            raise
        except Exception as error:  # every file system has kinds of its own
            raise self._told(error) from error

    def _told(self, error: Exception) -> Exception:
        """What an error of a file system means for those who ask."""
        if isinstance(error, NotImplementedError):
            return error
        said = " ".join(str(error).split())[:160] or type(error).__name__
        status = getattr(getattr(error, "response", None), "status_code", None)
        if (
            status in (401, 403)
            or isinstance(error, PermissionError)
            or "Credentials" in type(error).__name__
        ):
            remedy = CREDENTIALS.get(self.protocol, "the credentials of this service")
            return Refused(f"may not be read ({said}): put into the environment {remedy}")
        if status == 404 or isinstance(error, FileNotFoundError):
            return Absent("is not there: look at the address")
        return RemoteError(f"cannot be read ({said})")


def _file(name: str, info: dict[str, Any]) -> RemoteFile:
    tag = next((str(info[key]) for key in TAGS if info.get(key)), "")
    return RemoteFile(name, int(info.get("size") or 0), tag)
