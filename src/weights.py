"""Published files: which there are, where they come from, where they go, and how they are fetched and checked.

A file arrives in `<place>.part`, is resumed there after an interruption, and gets its name only once its sha256 is
right. Where no digest was ever published, the one of the first download is written to `checkpoints/digests.json` and
every later copy is compared with it. A file that was put in its place by hand is checked and recorded the same way.

Public: Download, TABLE, DownloadError, place_of, fetch, verify; for other downloads: Refused, stream, asking, discard.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib
import json
import logging
import shutil
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from .files import write_text

log = logging.getLogger(__name__)

BLOCK_BYTES = 2**20
DRIVE = "gdrive:"
ONLY_CKPT = "only-ckpt:"


class DownloadError(ValueError):
    """A file that could not be fetched or is not the right one; the message says what to do."""


class Refused(Exception):
    """The server's answer will not change by asking again."""


@dataclass(frozen=True)
class Download:
    """One published file.

    urls: addresses in the order in which they are tried; `gdrive:ID` is a file on Google Drive, `only-ckpt:REPOSITORY` the
        one .ckpt of a repository on Hugging Face.
    place: where the file goes, relative to the folder of weights, or of indices if it lies in `indices/`.
    used_by: the configs or the part that need it.
    sha256: first digits of its sha256; empty if none was published.
    """

    urls: tuple[str, ...]
    place: str
    used_by: str
    sha256: str = ""


def _hugging_face(repository: str, file: str, used_by: str, *more: str) -> Download:
    url = f"https://huggingface.co/{repository}/resolve/main/{file}"
    return Download((url, *more), f"published/{file}", used_by)


def _index(file: str, sha256: str, repository: str, path: str) -> Download:
    url = f"https://raw.githubusercontent.com/{repository}/HEAD/{path}"
    return Download((url,), f"indices/{file}", "evaluation", sha256)


_PIXELSPLAT, _LESS3DEPEND, _KAIHELLI = "dcharatan/pixelsplat", "ou524u/Less3Depend", "KaiHelli/lvsm"

TABLE: dict[str, Download] = (
    {
        "uplvsm_x224": _hugging_face(
            "littlekoyo/Less3Depend",
            "uplvsm_x224.pt",
            "eval/uplvsm_x224, uplvsm_x518",
            f"{DRIVE}1PMEl0RoOwi2wlsMRv6K9YSfeq-KqVYbz",
        ),
        "uplvsm_x518": _hugging_face(
            "littlekoyo/Less3Depend",
            "uplvsm_x518.pt",
            "eval/uplvsm_x518",
            f"{DRIVE}1DiLCEzHbxtusvA6ic6IhpYuhD93PUjJw",
        ),
        "lvsm_decoder_only_256": _hugging_face(
            "coast01/LVSM", "scene_decoder_only_256.pt", "eval/lvsm_decoder_only_256, lvsm_decoder_only_512"
        ),
        "lvsm_encoder_decoder_256": _hugging_face(
            "coast01/LVSM",
            "scene_encoder_decoder_256.pt",
            "eval/lvsm_encoder_decoder_256, lvsm_encoder_decoder_512",
        ),
        "lvsm_decoder_only_512": _hugging_face(
            "coast01/LVSM", "lvsm_scene_decoder_only_res512.pt", "eval/lvsm_decoder_only_512"
        ),
        "lvsm_encoder_decoder_512": _hugging_face(
            "coast01/LVSM", "lvsm_scene_encoder_decoder_res512.pt", "eval/lvsm_encoder_decoder_512"
        ),
        "efficient_lvsm_256": _hugging_face(
            "Ayakaee/efficient-lvsm", "efficient_lvsm_res256.pt", "eval/efficient_lvsm_256"
        ),
        "efficient_lvsm_512": _hugging_face(
            "Ayakaee/efficient-lvsm", "efficient_lvsm_res512.pt", "eval/efficient_lvsm_512"
        ),
        "mvldm": Download((f"{ONLY_CKPT}asimbluemoon/mvldm-1.0",), "published/mvldm.ckpt", "mvldm"),
        "dinov2": Download(
            ("https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_reg4_pretrain.pth",),
            "pretrained/dinov2_vitb14_reg4_pretrain.pth",
            "training of uplvsm_*, ptlvsm_*",
        ),
        "dinov2_teacher": Download(
            ("https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth",),
            "pretrained/dinov2_vitb14_pretrain.pth",
            "training of efficient_lvsm_* with alignment",
        ),
        "vgg19": Download(
            ("https://www.vlfeat.org/matconvnet/models/imagenet-vgg-verydeep-19.mat",),
            "pretrained/imagenet-vgg-verydeep-19.mat",
            "perceptual loss of training",
        ),
        "vgg16": Download(
            ("https://download.pytorch.org/models/vgg16-397923af.pth",),
            "pretrained/vgg16-397923af.pth",
            "LPIPS",
            "397923af",
        ),
        "inception_fid": Download(
            (
                "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
                "weights-inception-2015-12-05-6726825d.pth",
            ),
            "pretrained/weights-inception-2015-12-05-6726825d.pth",
            "FID and KID",
            "6726825d",
        ),
        "re10k_index": _index(
            "evaluation_index_re10k.json",
            "fbcff9b4b1313922",
            _PIXELSPLAT,
            "assets/evaluation_index_re10k.json",
        ),
        "re10k_video_index": _index(
            "evaluation_index_re10k_video.json",
            "f1a66dc0a257e46f",
            _PIXELSPLAT,
            "assets/evaluation_index_re10k_video.json",
        ),
        "acid_index": _index(
            "evaluation_index_acid.json", "7a08cf5c612b60b4", _PIXELSPLAT, "assets/evaluation_index_acid.json"
        ),
        "mvldm_video_index": _index(
            "mvldm_re10k_video.json",
            "53c1a15a852e86dd",
            "mohammadasim98/mv-ldm",
            "assets/evaluation_index/re10k_video.json",
        ),
        "extrapolation_index": _index(
            "extrapolation.json", "f5ef161c4a099841", _LESS3DEPEND, "assets/extrapolation.json"
        ),
    }
    | {
        f"lact_{name}": _hugging_face("airsplay/lact_nvs", f"{name}.pt", config)
        for config, names in {
            "lact_l24_d768_ttt2x": (
                *("obj_res256", "obj_res512", "obj_res1024"),
                *("scene_res128x128", "scene_res256x256", "scene_res512x512"),
            ),
            "lact_l24_d768_ttt4x": (
                *("scene_res72x128", "scene_res144x256", "scene_res288x512", "scene_res536x960"),
            ),
        }.items()
        for name in names
    }
    | {
        f"overlap_{size}_index": _index(
            f"overlap_{size}.json", sha256, _LESS3DEPEND, f"assets/overlap_{size}.json"
        )
        for size, sha256 in {
            "small": "94e417077d0655c4",
            "medium": "0778f92c54fa6c6f",
            "large": "16d86857b5adecb7",
        }.items()
    }
    | {
        f"re10k_{count}view_index": _index(
            f"re10k_num_src_{count}.json",
            sha256,
            _KAIHELLI,
            f"assets/multi_view_experiment/evaluation_index_num_src_{count}.json",
        )
        for count, sha256 in {
            2: "1ea3c487e7a1414c",
            3: "e1eb16bff2cd681b",
            4: "9d89707359fd49de",
            5: "e4bea0212388ad1c",
            6: "4ba940f8b90dd22e",
            7: "9131e22043290220",
            8: "089f4f1feb38f4e6",
        }.items()
    }
)
"""Name on the command line -> file."""


def place_of(item: Download, folder: Path, index_folder: Path) -> Path:
    """Where a file belongs, given the folder of weights and that of evaluation indices."""
    inside = Path(item.place)
    return index_folder / inside.name if inside.parts[0] == "indices" else folder / inside


def fetch(
    name: str,
    item: Download,
    target: Path,
    lock: Path,
    *,
    accept_new_digest: bool = False,
    attempts: int = 4,
    pause_s: float = 2.0,
    timeout_s: float = 30.0,
) -> str:
    """Bring a file to `target`, or check the one that is there, and return its sha256.

    Args:
        name: its name in the table and in the lock file.
        lock: JSON file of the digests of first downloads.
        accept_new_digest: replace a recorded digest that differs (a published one is never overruled).
        attempts: connections in a row that may fail without bringing a byte.
        pause_s: wait after the first failure, seconds; doubled after each further one.
        timeout_s: longest silence of the server, seconds.

    Raises:
        DownloadError: no address answered, or the file is not the right one.
    """
    if target.is_file():
        return verify(name, item, target, lock, accept_new_digest=accept_new_digest)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    failures = []
    for url in item.urls:
        try:
            if url.startswith(DRIVE):
                _from_drive(url.removeprefix(DRIVE), part)
            else:
                if url.startswith(ONLY_CKPT):
                    url = _only_checkpoint(url.removeprefix(ONLY_CKPT), timeout_s)
                stream(url, part, attempts=attempts, pause_s=pause_s, timeout_s=timeout_s)
            break
        except (Refused, OSError, http.client.HTTPException) as error:
            failures.append(f"{url}: {error}")
    else:
        raise DownloadError(
            f"{name} could not be downloaded ({'; '.join(failures)}). Fetch {item.urls[0]} on a machine that can, "
            f"put it at {target} and run this command again: it is checked there."
        )
    try:
        digest = verify(name, item, part, lock, accept_new_digest=accept_new_digest)
    except DownloadError:
        discard(part)
        raise
    part.replace(target)
    discard(part)
    return digest


def verify(name: str, item: Download, path: Path, lock: Path, *, accept_new_digest: bool = False) -> str:
    """sha256 of a file, compared with the published or recorded one; recorded if it is the first.

    Raises:
        DownloadError: another file was expected.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(item.sha256):
        raise DownloadError(
            f"{path} has sha256 {digest}, the published {name} begins with {item.sha256}: it is damaged or another "
            "file. Delete it and download again."
        )
    recorded = json.loads(lock.read_text(encoding="utf-8")) if lock.is_file() else {}
    known = recorded.get(name, {}).get("sha256")
    if known not in (None, digest) and not accept_new_digest:
        raise DownloadError(
            f"{path} has sha256 {digest}, the first {name} here had {known} ({lock}): damaged, or published anew. "
            "Delete it and download again, or accept it with --accept-new-digest."
        )
    if known != digest:
        if not item.sha256:
            log.info("%s: no digest was published; recorded sha256 %s in %s.", name, digest, lock)
        recorded[name] = {"sha256": digest, "bytes": path.stat().st_size, "source": item.urls[0]}
        write_text(lock, json.dumps(recorded, indent=2, sort_keys=True) + "\n")
    return digest


def stream(
    url: str,
    part: Path,
    *,
    attempts: int,
    pause_s: float,
    timeout_s: float,
    token: str = "",
    bar: bool = True,
) -> None:
    """Append to `part` until it is whole; a connection that brought bytes does not count as failed.

    Args:
        token: sent to the first server as a bearer token, not to those that it refers to.
        bar: show the progress of this file.

    Raises:
        Refused: asking again will not help.
        OSError, HTTPException: the last of `attempts` failures in a row.
    """
    failed = 0
    while True:
        before = part.stat().st_size if part.is_file() else 0
        try:
            if _read_on(url, part, timeout_s, token, bar):
                return
            reason: Exception = ConnectionError("the connection was cut off")
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != 429:
                raise Refused(f"HTTP {error.code} {error.reason}") from None
            reason = error
        except (OSError, http.client.HTTPException) as error:
            if isinstance(getattr(error, "reason", None), socket.gaierror):
                raise Refused("the name of the server cannot be resolved; no network?") from None
            reason = error
        failed = 0 if part.is_file() and part.stat().st_size > before else failed + 1
        if failed >= attempts:
            raise reason
        log.warning("%s: %s; trying again.", url, reason)
        time.sleep(pause_s * 2 ** max(failed - 1, 0))


def _read_on(url: str, part: Path, timeout_s: float, token: str, bar: bool) -> bool:
    """One request for what `part` lacks. True when the file is whole."""
    start = part.stat().st_size if part.is_file() else 0
    stamp = _stamp_of(part)
    request = asking(url, token)
    if start:
        request.add_header("Range", f"bytes={start}-")
        if stamp.is_file():  # the server sends the whole file if it is no longer the one that was begun
            request.add_header("If-Range", stamp.read_text(encoding="utf-8"))
    try:
        response = urllib.request.urlopen(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        total = error.headers.get("Content-Range", "").rpartition("/")[2]
        if total == str(start):
            return True
        discard(part)  # longer than the file, so of no use
        return False
    with response:
        if response.headers.get_content_type() == "text/html":
            raise Refused("a web page came instead of the file")
        resumed = response.status == 206
        start = start if resumed else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        free = shutil.disk_usage(part.parent).free
        if total and total - start > free:
            raise Refused(f"needs {total - start:,} bytes, {part.parent} has {free:,} free")
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        if validator and not validator.startswith("W/"):  # a weak ETag does not promise equal bytes
            stamp.write_text(validator, encoding="utf-8")
        shown = tqdm(
            total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, leave=False,
            disable=None if bar else True,
        )  # fmt: skip
        with part.open("ab" if resumed else "wb") as file, shown:
            while block := response.read(BLOCK_BYTES):
                file.write(block)
                shown.update(len(block))
    return total is None or part.stat().st_size == total


def asking(url: str, token: str = "") -> urllib.request.Request:
    """A request; the token stays with the server that is asked, whatever it refers to."""
    request = urllib.request.Request(url, headers={"User-Agent": "parallax", "Accept-Encoding": "identity"})
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    return request


def _only_checkpoint(repository: str, timeout_s: float) -> str:
    """Address of the only .ckpt in a repository of Hugging Face, whose name is not known beforehand.

    Raises:
        Refused: there is none, or several.
    """
    listing = asking(f"https://huggingface.co/api/models/{repository}")
    with urllib.request.urlopen(listing, timeout=timeout_s) as answer:
        content = answer.read()
    try:
        files = [str(entry["rfilename"]) for entry in json.loads(content)["siblings"]]
    except (ValueError, LookupError, TypeError) as error:
        raise Refused(f"no list of the files of {repository}: {error}") from error
    found = [name for name in files if name.endswith(".ckpt")]
    if len(found) != 1:
        raise Refused(f"{repository} holds {len(found)} .ckpt files, expected one: {', '.join(files)}")
    return f"https://huggingface.co/{repository}/resolve/main/{urllib.parse.quote(found[0])}"


def _from_drive(file_id: str, part: Path) -> None:
    try:
        gdown = importlib.import_module("gdown")
    except ImportError:
        raise Refused("Google Drive needs the package gdown: pip install gdown") from None
    try:
        done = gdown.download(id=file_id, output=str(part), quiet=True, resume=part.is_file())
    except Exception as error:  # gdown raises many kinds, its own and those of requests
        raise Refused(f"gdown: {' '.join(str(error).split())}") from error
    if done is None:
        raise Refused("gdown brought no file")


def _stamp_of(part: Path) -> Path:
    return part.with_name(part.name + ".version")


def discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _stamp_of(part).unlink(missing_ok=True)
