"""Scenes of DL3DV's benchmark from Hugging Face: plain listings and files over HTTPS, nothing that is unpickled.

    benchmark-meta.csv                                  column `hash`: the names of the scenes
    <hash>/nerfstudio/transforms.json, images_4/*.png   what is fetched; images_4 is 960 x 540

The data set is given out on request: accept its terms on its page, and put a token of yours into HF_TOKEN. A file that
is there in its full size is kept, a part of one is continued.

Public: SERVER, REPOSITORY, Remote, RemoteFile, scene_names, scene_files, fetch_files.
"""

from __future__ import annotations

import csv
import hashlib
import http.client
import io
import json
import re
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from .weights import DownloadError, Refused, asking, discard, stream

SERVER, REPOSITORY = "https://huggingface.co", "DL3DV/DL3DV-10K-Benchmark"
ATTEMPTS = 5
"""Tries of every request, as published."""

LARGEST_LISTING = 64 * 2**20
PICTURES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Remote:
    """A data set on a server. token: "" asks without."""

    token: str = ""
    server: str = SERVER
    repository: str = REPOSITORY
    pause_s: float = 1.0
    timeout_s: float = 30.0

    def file_url(self, path: str) -> str:
        return f"{self.server}/datasets/{self.repository}/resolve/main/{urllib.parse.quote(path)}"

    def tree_url(self, path: str) -> str:
        place = urllib.parse.quote(path)
        return f"{self.server}/api/datasets/{self.repository}/tree/main/{place}?recursive=true"


@dataclass(frozen=True)
class RemoteFile:
    """path: in the data set and below the output folder. sha256: "" where the server states none."""

    path: str
    size: int
    sha256: str = ""


def scene_names(remote: Remote) -> list[str]:
    """The scenes of the benchmark, in the order of its table; raises DownloadError."""
    content, _ = _ask(remote, remote.file_url("benchmark-meta.csv"))
    rows = csv.DictReader(io.StringIO(content.decode("utf-8", errors="replace")))
    names = [str(row.get("hash") or "").strip() for row in rows]
    names = [name for name in dict.fromkeys(names) if re.fullmatch(r"[0-9A-Za-z_-]{1,128}", name)]
    if not names:
        raise DownloadError(f"{remote.file_url('benchmark-meta.csv')} lists no scenes (column hash).")
    return names


def scene_files(remote: Remote, name: str, *, level4: bool) -> list[RemoteFile]:
    """What of a scene is fetched: `transforms.json` and its pictures.

    Args:
        level4: only those of images_4 (960 x 540), not the larger ones.

    Raises:
        DownloadError: the listing cannot be had, or has no such scene.
    """
    folder, files = f"{name}/nerfstudio", []
    for entry in _listing(remote, remote.tree_url(folder)):
        path = PurePosixPath(str(entry.get("path")))
        parts = path.relative_to(folder).parts if path.is_relative_to(folder) else ("..",)
        picture = len(parts) == 2 and parts[0].startswith("images") and path.suffix.lower() in PICTURES
        wanted = parts == ("transforms.json",) or (picture and (parts[0] == "images_4" or not level4))
        if entry.get("type") == "file" and wanted and ".." not in parts and type(entry.get("size")) is int:
            lfs = entry.get("lfs")
            digest = str(lfs.get("oid", "")) if isinstance(lfs, dict) else ""
            files.append(RemoteFile(path.as_posix(), entry["size"], digest))
    if not any(file.path.endswith("transforms.json") for file in files):
        raise DownloadError(f"{remote.repository} has no {folder}/transforms.json.")
    return files


def fetch_files(remote: Remote, files: list[RemoteFile], folder: Path, num_workers: int) -> list[str]:
    """Bring files below `folder`, several at a time; "path: reason" of those that could not be fetched."""
    problems, pool = [], ThreadPoolExecutor(num_workers)
    size = sum(file.size for file in files)
    try:
        with tqdm(total=size, unit="B", unit_scale=True, desc=files[0].path[:12], disable=None) as bar:
            for file, problem in zip(files, pool.map(partial(_fetch, remote, folder), files)):
                if problem:
                    problems.append(f"{file.path}: {problem}")
                bar.update(file.size)
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C only the files in hand are finished
    return problems


def _fetch(remote: Remote, folder: Path, file: RemoteFile) -> str:
    """Why a file could not be fetched, "" if it is in its place."""
    target = folder / file.path
    if target.is_file() and target.stat().st_size == file.size:
        return ""
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        stream(
            remote.file_url(file.path), part, attempts=ATTEMPTS, pause_s=remote.pause_s,
            timeout_s=remote.timeout_s, token=remote.token, bar=False,
        )  # fmt: skip
    except (Refused, OSError, http.client.HTTPException) as error:
        return _reason(error)
    if problem := _wrong(part, file):
        discard(part)
        return problem
    part.replace(target)
    discard(part)
    return ""


def _wrong(part: Path, file: RemoteFile) -> str:
    if part.stat().st_size != file.size:
        return f"{part.stat().st_size} bytes came instead of {file.size}"
    if not file.sha256:
        return ""
    with part.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return "" if digest == file.sha256 else f"its sha256 is {digest[:16]}, not {file.sha256[:16]}"


# ----------------------------------------------------------------------------------------------- listings


def _listing(remote: Remote, url: str) -> Iterator[dict]:
    """The entries of a folder, all pages of them."""
    while url:
        content, following = _ask(remote, url)
        try:
            entries = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise DownloadError(f"{url}: no listing came ({error}).") from error
        if not isinstance(entries, list):
            raise DownloadError(f"{url}: expected a list, found a {type(entries).__name__}.")
        yield from (entry for entry in entries if isinstance(entry, dict))
        if following and not following.startswith(f"{remote.server}/"):
            raise DownloadError(f"{url}: the next page is said to be on another server, {following[:80]}.")
        url = following if following != url else ""


def _ask(remote: Remote, url: str) -> tuple[bytes, str]:
    """Content of a small file and the address of its next page; raises DownloadError after five tries."""
    for attempt in range(ATTEMPTS):
        try:
            with urllib.request.urlopen(asking(url, remote.token), timeout=remote.timeout_s) as response:
                following = re.search(r'<([^>]+)>;\s*rel="next"', response.headers.get("Link") or "")
                return response.read(LARGEST_LISTING), following[1] if following else ""
        except (OSError, http.client.HTTPException) as error:
            final = isinstance(getattr(error, "reason", None), socket.gaierror)
            final |= isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429
            if final or attempt == ATTEMPTS - 1:
                raise DownloadError(f"{url} cannot be read: {_reason(error)}.") from error
            time.sleep(remote.pause_s * 2**attempt)
    raise AssertionError("unreachable")


def _reason(error: Exception) -> str:
    """One line; what to do where access is refused."""
    if isinstance(getattr(error, "reason", None), socket.gaierror):
        return "the name of the server cannot be resolved; no network?"
    text = " ".join(str(error).split()) or type(error).__name__
    if re.search(r"\b40[13]\b", text):
        text += f" (accept the terms at {SERVER}/datasets/{REPOSITORY} and set HF_TOKEN to a token of yours)"
    return text
