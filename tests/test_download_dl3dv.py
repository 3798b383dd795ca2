"""DL3DV's benchmark from a server on this machine: what is fetched, resumed, checked and refused."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from scripts import download_dl3dv
from src.dl3dv import Remote, fetch_files, scene_files, scene_names
from src.weights import DownloadError

A, B = "a" * 64, "b1" * 32
REPOSITORY = "some/benchmark"


class Server(ThreadingHTTPServer):
    """A data set: `files` path -> content; `cuts` answers break off half-way; `token` is asked for if set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"benchmark-meta.csv": f"index,hash\n0,{A}\n1,{B}\n".encode()}
        for scene in (A, B):
            names = [
                "transforms.json",
                "images_4/frame_00001.png",
                "images_4/frame_00002.png",
                "images_2/frame_00001.png",
            ]
            names += ["colmap/cameras.bin", "images_4/readme.txt"]
            self.files |= {
                f"{scene}/nerfstudio/{name}": f"{scene[:2]} {name} ".encode() * 500 for name in names
            }
        self.listed: dict[str, dict] = {}
        self.cuts, self.failures, self.token, self.elsewhere = 0, 0, "", ""
        self.refer_to = ""
        self.asked: list[str] = []
        self.tokens: list[str | None] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """Quiet: a client that hangs up is part of the tests."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def entries(self, folder: str) -> list[dict]:
        found = [{"type": "directory", "path": f"{folder}/images_4"}]
        for path, content in self.files.items():
            if path.startswith(folder):
                entry = {"type": "file", "path": path, "size": len(content)}
                if path.endswith(".png"):
                    entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}
                found.append({**entry, **self.listed.get(path, {})})
        return found


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, address = self.server, urlsplit(self.path)
        server.asked.append(address.path)
        server.tokens.append(self.headers.get("Authorization"))
        if server.failures:
            server.failures -= 1
            self.send_error(503)
        elif server.token and self.headers.get("Authorization") != f"Bearer {server.token}":
            self.send_error(401)
        elif address.path.startswith(f"/api/datasets/{REPOSITORY}/tree/main/"):
            self._listing(address.path.rpartition("/tree/main/")[2], parse_qs(address.query))
        elif address.path.startswith(f"/datasets/{REPOSITORY}/resolve/main/"):
            self._file(address.path.rpartition("/resolve/main/")[2])
        else:
            self.send_error(404)

    def _listing(self, folder: str, query: dict) -> None:
        """Three entries a page."""
        entries, start = self.server.entries(folder), int(query.get("cursor", ["0"])[0])
        if len(entries) == 1:
            self.send_error(404)
            return
        body = json.dumps(entries[start : start + 3]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        if start + 3 < len(entries):
            host = self.server.elsewhere or self.server.url
            following = f"{host}{urlsplit(self.path).path}?recursive=true&cursor={start + 3}"
            self.send_header("Link", f'<{following}>; rel="next"')
        self.end_headers()
        self.wfile.write(body)

    def _file(self, path: str) -> None:
        if self.server.refer_to and path.endswith(".png"):
            self.send_response(302)
            self.send_header("Location", self.server.refer_to + self.path)
            self.end_headers()
            return
        content = self.server.files.get(path)
        if content is None:
            self.send_error(404)
            return
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        body = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.cuts and path.endswith(".png"):
            self.server.cuts -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


def remote(server: Server, token: str = "") -> Remote:
    return Remote(token, server.url, REPOSITORY, pause_s=0.0, timeout_s=5.0)


def run(server: Server, folder: Path, *words: str) -> int:
    return download_dl3dv.main(
        [
            "--odir",
            str(folder),
            "--server",
            server.url,
            "--repository",
            REPOSITORY,
            "--num_workers",
            "2",
            *words,
        ]
    )


def fetched(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_level_4_of_all_scenes_arrives_in_the_layout_of_the_importer(server: Server, tmp_path: Path) -> None:
    assert run(server, tmp_path, "--subset", "full", "--only_level4") == 0
    names = ("images_4/frame_00001.png", "images_4/frame_00002.png", "transforms.json")
    assert fetched(tmp_path) == [f"{scene}/nerfstudio/{name}" for scene in (A, B) for name in names]
    for path in fetched(tmp_path):
        assert (tmp_path / path).read_bytes() == server.files[path]
    asked = len(server.asked)
    assert run(server, tmp_path, "--level4") == 0  # everything is there: listings only
    assert not any("resolve" in path and "meta" not in path for path in server.asked[asked:])


def test_one_scene_with_all_its_levels(server: Server, tmp_path: Path) -> None:
    assert run(server, tmp_path, "--subset", "hash", "--hash", B) == 0
    assert f"{B}/nerfstudio/images_2/frame_00001.png" in fetched(tmp_path) and len(fetched(tmp_path)) == 4


def test_cut_connections_and_a_busy_server_are_tried_again(server: Server, tmp_path: Path) -> None:
    server.cuts, server.failures = 3, 2
    plain = remote(server)
    assert scene_names(plain) == [A, B]
    assert fetch_files(plain, scene_files(plain, A, level4=True), tmp_path, 1) == []
    assert len(fetched(tmp_path)) == 3


def test_a_part_of_an_earlier_run_is_continued(server: Server, tmp_path: Path) -> None:
    path = f"{A}/nerfstudio/images_4/frame_00001.png"
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / (path + ".part")).write_bytes(server.files[path][:100])
    plain = remote(server)
    files = [file for file in scene_files(plain, A, level4=True) if file.path == path]
    assert fetch_files(plain, files, tmp_path, 1) == []
    assert (tmp_path / path).read_bytes() == server.files[path] and fetched(tmp_path) == [path]


@pytest.mark.parametrize("stated", [{"size": 7}, {"lfs": {"oid": "0" * 64}}])
def test_a_wrong_size_or_digest_is_refused(server: Server, tmp_path: Path, stated: dict, capsys) -> None:
    path = f"{A}/nerfstudio/images_4/frame_00001.png"
    server.listed[path] = stated
    assert run(server, tmp_path, "--level4") == 1
    assert path not in fetched(tmp_path) and len(fetched(tmp_path)) == 5
    assert path in capsys.readouterr().err


@pytest.mark.parametrize(
    "path", ["../../evil.png", f"{A}/nerfstudio/../../../evil.png", "/evil.png", f"{B}/evil.png"]
)
def test_a_listing_cannot_write_elsewhere(server: Server, tmp_path: Path, path: str) -> None:
    server.listed[f"{A}/nerfstudio/images_4/frame_00001.png"] = {"path": path}
    files = scene_files(remote(server), A, level4=True)
    assert sorted(file.path for file in files) == [
        f"{A}/nerfstudio/images_4/frame_00002.png",
        f"{A}/nerfstudio/transforms.json",
    ]


def test_the_token_goes_to_the_server_and_nowhere_else(
    server: Server, tmp_path: Path, monkeypatch, capsys
) -> None:
    server.token = "secret"
    assert run(server, tmp_path) == 2
    assert "HF_TOKEN" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert run(server, tmp_path, "--level4") == 0
    with serving() as storage:
        server.refer_to = storage.url.replace("127.0.0.1", "localhost")
        assert run(server, tmp_path / "again", "--level4") == 0
        assert len(storage.asked) == 4 and set(storage.tokens) == {None}
    server.elsewhere = "http://127.0.0.2:9"
    with pytest.raises(DownloadError, match="another server"):
        scene_files(remote(server, "secret"), A, level4=True)
    assert "secret" not in "".join(fetched(tmp_path))


@pytest.mark.parametrize(
    "words,message",
    [
        (["--subset", "hash"], "belong together"),
        (["--hash", A], "belong together"),
        (["--subset", "hash", "--hash", "../x"], "has no scene ../x"),
    ],
)
def test_wrong_arguments_end_with_status_2(server: Server, tmp_path: Path, words, message, capsys) -> None:
    assert run(server, tmp_path, *words) == 2
    assert message in capsys.readouterr().err


def test_without_a_network_one_line_says_so(tmp_path: Path, capsys) -> None:
    words = ["--odir", str(tmp_path / "out"), "--server", "http://no-such-host.invalid"]
    assert download_dl3dv.main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no network?" in error and not (tmp_path / "out").exists()
