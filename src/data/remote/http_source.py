"""Byte ranges over HTTP, with a limit on the time of each request and a check of each answer.

Credentials of a server come from ~/.netrc (or the file that NETRC names), proxies and certificates from the usual variables.

Public: HttpSource.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from urllib.parse import quote, unquote, urljoin, urlsplit

import requests
import urllib3

from .source import Absent, Refused, RemoteError, RemoteFile, within

MOST_CONNECTIONS = 32
MOST_REDIRECTS = 5
BLOCK_BYTES = 2**18
PAGE_BYTES = 2**25
"""Of a page that lists a directory, at most."""

PASSING = (408, 425, 429)
"""Besides all from 500 on: statuses after which it is worth asking again."""

_BAD_ADDRESS = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
)


class _Session(requests.Session):
    """Follows no redirects: it would read their bodies first."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


class HttpSource:
    """See `source.Source`; safe in several threads."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url, self.timeout_s = url, timeout_s
        self.session = _Session()
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=MOST_CONNECTIONS))
        self.session.headers["Accept-Encoding"] = "identity"  # ranges count the bytes of the file

    def names(self) -> list[str] | None:
        """What the directory page links to; None if the server shows none."""
        return within(self.timeout_s, self._names)

    def _names(self) -> list[str] | None:
        try:
            with self._get("") as (answer, until):
                if "html" not in answer.headers.get("Content-Type", ""):
                    return None
                page = self._body(answer, PAGE_BYTES, until)
        except Refused:
            return None
        links = _Links()
        links.feed(page.decode("utf-8", errors="replace"))
        base = answer.url.rstrip("/") + "/"
        targets = (urljoin(base, link) for link in links.found)
        names = (unquote(target.removeprefix(base)) for target in targets if target.startswith(base))
        return sorted({name for name in names if name and "/" not in name})

    def stat(self, name: str) -> RemoteFile:
        """By a range of one byte: some servers answer HEAD otherwise, and this tells whether ranges work."""
        return self.read(name, 0, 1)[1]

    def read(self, name: str, offset: int, size: int) -> tuple[bytes, RemoteFile]:
        return within(self.timeout_s, lambda: self._read(name, offset, size))

    def _read(self, name: str, offset: int, size: int) -> tuple[bytes, RemoteFile]:
        last = offset + size - 1
        with self._get(name, f"bytes={offset}-{last}") as (answer, until):
            if answer.status_code != 206:
                raise Refused(
                    "comes as a whole where a part was asked for: the server does not know byte ranges; put the files on "
                    "one that does, or copy them here"
                )
            told = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.headers.get("Content-Range", "").strip())
            if not told:
                raise Refused("comes in parts of which the server does not tell place and size")
            first, end, total = map(int, told.groups())
            if (first, end) != (offset, last):
                short = end == total - 1 < last
                raise (Refused if short else RemoteError)(
                    f"gave bytes {first} to {end} of {total} for {offset} to {last}"
                )
            data = self._body(answer, size, until)
        if len(data) != size:
            raise RemoteError(f"broke off after {len(data)} of {size} bytes")
        tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        return data, RemoteFile(name, total, tag)

    @contextmanager
    def _get(self, name: str, span: str = "") -> Iterator[tuple[requests.Response, float]]:
        """An open answer of a status that is fine, and when it must have come."""
        until = time.monotonic() + self.timeout_s
        headers = {"Range": span} if span else {}
        try:
            with self._followed(f"{self.url}/{quote(name)}", headers) as answer:
                _check_status(answer)
                yield answer, until
        except RemoteError:
            raise
        except _BAD_ADDRESS as error:
            raise Refused(f"has no address that can be asked ({_reason(error)})") from error
        except requests.exceptions.Timeout as error:
            raise RemoteError(f"gave no answer for {self.timeout_s:g} s") from error
        except requests.exceptions.ConnectionError as error:
            raise RemoteError(f"cannot be reached ({_reason(error)})") from error
        except (OSError, urllib3.exceptions.HTTPError) as error:
            raise RemoteError(f"broke off ({_reason(error)})") from error

    def _followed(self, address: str, headers: dict[str, str]) -> requests.Response:
        """The answer at the end of redirects, whose own bodies are not read: they may have any size."""
        for _ in range(MOST_REDIRECTS):
            answer = self.session.get(address, headers=headers, stream=True, timeout=self.timeout_s)
            if not answer.is_redirect:
                return answer
            address = urljoin(address, answer.headers["Location"])
            answer.close()
        raise Refused(f"is redirected more than {MOST_REDIRECTS} times")

    def _body(self, answer: requests.Response, limit: int, until: float) -> bytes:
        """What comes, as soon as it comes: a server that sends byte after byte does not outlive the time limit."""
        parts, left = [], limit + 1
        while left and (part := answer.raw.read1(min(BLOCK_BYTES, left))):
            parts.append(part)
            left -= len(part)
            if time.monotonic() > until:
                raise RemoteError(f"did not come within {self.timeout_s:g} s")
        return b"".join(parts)


def _check_status(answer: requests.Response) -> None:
    status = answer.status_code
    if status < 300:
        return
    said = f"HTTP {status} {answer.reason or ''}".strip()
    if status >= 500 or status in PASSING:
        raise RemoteError(f"gave {said}")
    if status in (401, 403):
        raise Refused(
            f"gave {said}: put the credentials for {urlsplit(answer.url).hostname} into ~/.netrc (some servers say "
            "this of files that do not exist)"
        )
    if status in (404, 410):
        raise Absent(f"is not there ({said}): look at the address")
    if status == 416:
        raise Absent(f"has no such bytes ({said})")
    raise Refused(f"gave {said}")


def _reason(error: BaseException) -> str:
    """What an error began with, one line: those of requests wrap those of urllib3, which wrap those of the system."""
    while error.__context__ is not None:
        error = error.__context__
    return " ".join(str(error).split())[:160] or type(error).__name__


class _Links(HTMLParser):
    """Targets of the links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]
