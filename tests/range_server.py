"""A small HTTP server of files by byte ranges that can misbehave; for tests of data behind URLs.

Public: RangeServer.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote


class RangeServer:
    """Serves a folder while it is entered. url: its address.

    behaviour: given the path of a request and its number among those for that path (from 0), what the server does with
    it: "fine", "slow", "drip" (byte after byte), "drip_head" (a header without end), "cut" (half of the body), "500", "403",
    "moved" (a redirect to where it is fine), "loop" (redirects without end, with bodies without end), "whole" (no ranges),
    "other" (other bytes than asked for). asked: (path, bytes sent) of all requests. connections: addresses from which they came.
    """

    def __init__(self, folder: Path, *, listing: bool = True, slow_s: float = 1.0) -> None:
        self.folder, self.listing, self.slow_s = folder, listing, slow_s
        self.behaviour: Callable[[str, int], str] = lambda path, number: "fine"
        self.asked: list[tuple[str, int]] = []
        self.connections: set[tuple[str, int]] = set()
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # the other side went away
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> RangeServer:
        threading.Thread(target=lambda: self.server.serve_forever(0.02), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.shutdown()
        self.server.server_close()

    def misbehave(self, pattern: str, *how: str) -> None:
        """Requests for paths that match are answered so, one after the other; the last way for ever."""
        self.behaviour = lambda path, number: (
            how[min(number, len(how) - 1)] if re.search(pattern, path) else "fine"
        )

    @property
    def bytes_sent(self) -> int:
        return sum(size for _, size in self.asked)

    def count(self, pattern: str) -> int:
        """Requests for paths that match."""
        return sum(bool(re.search(pattern, path)) for path, _ in self.asked)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else each answer waits 40 ms between its head and its body

            def do_GET(self) -> None:
                outer._answer(self, unquote(self.path))

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def _answer(self, handler: BaseHTTPRequestHandler, path: str) -> None:
        with self.lock:
            number = sum(path == other for other, _ in self.asked)
            self.asked.append((path, 0))
            self.connections.add(handler.client_address)
        how = self.behaviour(path, number)
        file = self.folder / path.strip("/").removeprefix("moved/")
        if how == "slow":
            time.sleep(self.slow_s)
        if how in ("moved", "loop") and not path.startswith("/moved/"):
            return self._redirect(handler, path, how)
        if how in ("500", "403"):
            return self._send(handler, int(how), {}, b"no")
        if file.is_dir() and self.listing and path.endswith("/"):
            links = "".join(f'<a href="{entry.name}">{entry.name}</a>' for entry in sorted(file.iterdir()))
            page = f'<html><a href="../">up</a><a href="https://example.org/x.torch">x</a>{links}</html>'
            return self._send(handler, 200, {"Content-Type": "text/html"}, page.encode())
        if not file.is_file():
            return self._send(handler, 404, {}, b"none")
        content, stat = file.read_bytes(), file.stat()
        headers = {"ETag": f'"{stat.st_mtime_ns}-{stat.st_size}"'}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
        if not asked or how == "whole":
            return self._send(handler, 200, headers, content)
        first, last = int(asked[1]), min(int(asked[2]), len(content) - 1)
        if first > last:
            return self._send(handler, 416, {"Content-Range": f"bytes */{len(content)}"}, b"")
        if how == "other":
            first, last = first + 1, last + 1
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return self._send(handler, 206, headers, content[first : last + 1], how)

    def _redirect(self, handler: BaseHTTPRequestHandler, path: str, how: str) -> None:
        try:
            handler.send_response(302)
            handler.send_header("Location", f"/moved{path}" if how == "moved" else path)
            handler.send_header("Content-Length", str(0 if how == "moved" else 10**12))
            handler.end_headers()
            while how == "loop":
                handler.wfile.write(bytes(2**16))
        except OSError:  # the other side went away
            handler.close_connection = True

    def _send(
        self, handler: BaseHTTPRequestHandler, status: int, headers: dict, body: bytes, how: str = "fine"
    ) -> None:
        with self.lock:
            self.asked.append(("sent", len(body)))
        try:
            handler.send_response(status)
            while how == "drip_head":
                handler.wfile.write(b"x")
                time.sleep(0.05)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                handler.send_header(name, value)
            handler.end_headers()
            if how == "drip":
                for place in range(len(body)):
                    handler.wfile.write(body[place : place + 1])
                    time.sleep(0.05)
            elif how == "cut":
                handler.wfile.write(body[: len(body) // 2])
                handler.close_connection = True
            else:
                handler.wfile.write(body)
        except OSError:  # the other side went away
            handler.close_connection = True
