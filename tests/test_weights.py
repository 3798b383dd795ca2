"""Downloads against a server on this machine: resumed, checked, atomic, and clear where they cannot be done."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from scripts import download_weights
from src import weights
from src.weights import TABLE, Download, DownloadError, fetch, place_of

CONTENT = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `content` with byte ranges; the next `cuts` answers break off half-way."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.version, self.cuts, self.status = CONTENT, '"v1"', 0, 200
        self.content_type = "application/octet-stream"
        self.asked: list[str | None] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """Quiet: a client that hangs up is part of the tests."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file.pt"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        if server.status != 200:
            self.send_error(server.status)
            return
        same = self.headers.get("If-Range", server.version) == server.version
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and same else 0
        if start >= len(server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.end_headers()
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", server.content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", server.version)
        self.end_headers()
        if server.cuts:
            server.cuts -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def get(url: str, folder: Path, sha256: str = "", **options: bool) -> str:
    item = Download((url,), "published/file.pt", "tests", sha256)
    target = folder / "file.pt"
    return fetch("file", item, target, folder / "digests.json", pause_s=0.0, timeout_s=5.0, **options)


def test_a_file_arrives_whole_under_its_name(server: Server, tmp_path: Path) -> None:
    assert get(server.url, tmp_path, SHA256[:16]) == SHA256
    assert (tmp_path / "file.pt").read_bytes() == CONTENT
    assert sorted(p.name for p in tmp_path.iterdir()) == ["digests.json", "file.pt"]


def test_a_broken_connection_is_resumed_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.cuts = 2
    assert get(server.url, tmp_path) == SHA256
    half = len(CONTENT) // 2
    assert server.asked == [None, f"bytes={half}-", f"bytes={half + half // 2}-"]


def test_a_part_of_an_earlier_run_is_continued(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.pt.part").write_bytes(CONTENT[:1000])
    assert get(server.url, tmp_path) == SHA256
    assert server.asked == ["bytes=1000-"]


def test_a_part_that_is_already_whole_is_taken(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.pt.part").write_bytes(CONTENT)
    assert get(server.url, tmp_path) == SHA256


def test_a_part_of_another_version_is_begun_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.pt.part").write_bytes(b"x" * 1000)
    (tmp_path / "file.pt.part.version").write_text('"v0"')
    assert get(server.url, tmp_path) == SHA256


def test_a_wrong_digest_is_refused_and_nothing_is_left_in_place(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="begins with 0123456789abcdef"):
        get(server.url, tmp_path, "0123456789abcdef")
    assert list(tmp_path.iterdir()) == []


def test_an_unpublished_digest_is_recorded_and_compared_afterwards(server: Server, tmp_path: Path) -> None:
    get(server.url, tmp_path)
    assert json.loads((tmp_path / "digests.json").read_text())["file"]["sha256"] == SHA256
    (tmp_path / "file.pt").unlink()
    server.content = CONTENT[::-1]
    with pytest.raises(DownloadError, match="--accept-new-digest"):
        get(server.url, tmp_path)
    assert not (tmp_path / "file.pt").exists()
    assert get(server.url, tmp_path, accept_new_digest=True) == hashlib.sha256(CONTENT[::-1]).hexdigest()


def test_a_file_put_there_by_hand_is_checked_without_the_network(tmp_path: Path) -> None:
    (tmp_path / "file.pt").write_bytes(CONTENT)
    assert get("http://127.0.0.1:1/file.pt", tmp_path) == SHA256
    assert json.loads((tmp_path / "digests.json").read_text())["file"]["bytes"] == len(CONTENT)
    (tmp_path / "file.pt").write_bytes(CONTENT[:-1])
    with pytest.raises(DownloadError, match="Delete it"):
        get("http://127.0.0.1:1/file.pt", tmp_path)


def test_without_a_network_the_message_names_address_and_place(tmp_path: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        get("http://127.0.0.1:1/file.pt", tmp_path)
    message = str(caught.value)
    assert "http://127.0.0.1:1/file.pt" in message
    assert f"put it at {tmp_path / 'file.pt'}" in message
    assert "\n" not in message


@pytest.mark.parametrize("change", [{"status": 404}, {"content_type": "text/html"}], ids=["missing", "page"])
def test_an_answer_that_is_no_file_is_not_asked_for_again(
    server: Server, tmp_path: Path, change: dict
) -> None:
    for name, value in change.items():
        setattr(server, name, value)
    with pytest.raises(DownloadError):
        get(server.url, tmp_path)
    assert len(server.asked) == 1
    assert not (tmp_path / "file.pt").exists()


def test_the_next_address_is_tried(server: Server, tmp_path: Path) -> None:
    item = Download(("http://127.0.0.1:1/gone.pt", server.url), "published/file.pt", "tests")
    lock = tmp_path / "digests.json"
    assert fetch("file", item, tmp_path / "file.pt", lock, attempts=1, pause_s=0.0) == SHA256


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        ({"siblings": [{"rfilename": "README.md"}, {"rfilename": "a b/model.ckpt"}]}, ""),
        ({"siblings": [{"rfilename": "a.ckpt"}, {"rfilename": "b.ckpt"}]}, "2 .ckpt files"),
        ({"error": "not found"}, "no list of the files"),
    ],
)
def test_the_only_checkpoint_of_a_repository_is_found_by_its_suffix(listing, message, monkeypatch) -> None:
    answer = io.BytesIO(json.dumps(listing).encode())
    monkeypatch.setattr("urllib.request.urlopen", lambda request, timeout: answer)
    if message:
        with pytest.raises(weights.Refused, match=message):
            weights._only_checkpoint("some/where", 1.0)
    else:
        assert weights._only_checkpoint("some/where", 1.0).endswith(
            "some/where/resolve/main/a%20b/model.ckpt"
        )


def test_published_evaluation_indices_have_the_digests_of_the_table(shared: Path) -> None:
    indices = {name: item for name, item in TABLE.items() if item.place.startswith("indices/")}
    assert len(indices) == 15
    for item in indices.values():
        content = (shared / "published" / item.place).read_bytes()
        assert hashlib.sha256(content).hexdigest().startswith(item.sha256)
        assert len(item.sha256) == 16


def test_every_config_finds_what_the_table_puts_in_place(repo_root: Path) -> None:
    places = {str(place_of(item, Path("checkpoints"), Path("datasets/indices"))) for item in TABLE.values()}
    for path in (repo_root / "config").rglob("*.yaml"):
        for word in path.read_text().split():
            if word.startswith(("checkpoints/published/", "checkpoints/pretrained/", "datasets/indices/")):
                assert word in places, f"{path.name}: {word}"


def test_the_command_checks_files_and_reports_by_exit_status(tmp_path: Path, capsys, monkeypatch) -> None:
    content = b"{}"
    item = Download(
        ("http://127.0.0.1:1/x.json",), "indices/x.json", "tests", hashlib.sha256(content).hexdigest()
    )
    monkeypatch.setitem(TABLE, "x", item)
    (tmp_path / "x.json").write_bytes(content)
    words = ["x", "--dir", str(tmp_path), "--index-dir", str(tmp_path)]
    assert download_weights.main(words) == 0
    (tmp_path / "x.json").write_bytes(b"[]")
    assert download_weights.main(words) == 2
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(SystemExit) as stopped:
        download_weights.main(["uplvsm_224"])
    assert stopped.value.code == 2
    assert "Did you mean uplvsm_x224?" in capsys.readouterr().err


def test_list_names_every_file_with_place_and_address(capsys) -> None:
    assert download_weights.main(["--list"]) == 0
    shown = capsys.readouterr().out
    for item in TABLE.values():
        assert item.urls[0] in shown
        assert Path(item.place).name in shown
