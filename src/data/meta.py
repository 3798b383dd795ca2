"""`meta.json` of a data set: the shape that all its pictures have.

    {"expected_shape": [3, height, width], "vae_encoded": false}

It stands in the folder of the chunks (or of full_list.txt) or in the folder above, which `train` and `test` share.

Public: META, expected_shape, write_meta.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..config import ConfigError
from ..files import parse_json, read_bytes, read_json, write_text
from ..settings_remote import Remote
from .remote.folder import RemoteFolder, is_url
from .remote.source import Absent, RemoteError

META = "meta.json"

_FORM = (
    "training.skip_bad_shape compares pictures with the shape stated there: "
    '{"expected_shape": [3, height, width]}.'
)


def expected_shape(dataset_path: str | Path, remote: Remote | None = None) -> tuple[int, int]:
    """Height and width that `meta.json` states for a data set.

    remote: how it is read if the path is a URL.

    Raises:
        ConfigError: there is no such file, or it does not state them.
    """
    if is_url(dataset_path):
        return _stated(str(dataset_path), _fetched(str(dataset_path), remote))
    path = Path(dataset_path)
    folder = path if path.is_dir() else path.parent
    for place in (folder / META, folder.parent / META):
        if place.is_file():
            return _stated(str(place), _content(place))
    raise ConfigError(f"{folder / META}: no such file, and none in the folder above. {_FORM}")


def _content(place: Path) -> bytes:
    try:
        return read_bytes(place)
    except OSError as error:
        raise ConfigError(f"{place}: {error.strerror}.") from error


def _fetched(url: str, remote: Remote | None) -> bytes:
    """meta.json of a remote folder, or of the one above it."""
    above = url.rstrip("/").rpartition("/")[0]
    for place in (url, above):
        try:
            return RemoteFolder(place, remote).content(META)
        except Absent:
            continue
        except RemoteError as error:
            raise ConfigError(f"{place}/{META} {error}.") from error
    raise ConfigError(f"{url}/{META}: no such file, and none in the folder above. {_FORM}")


def _stated(place: str, content: bytes) -> tuple[int, int]:
    """Height and width that the content of a meta.json states."""
    try:
        channels, height, width = parse_json(content)["expected_shape"]
        if [type(n) for n in (channels, height, width)] == [int] * 3 and height > 0 and width > 0:
            return height, width
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{place} does not state expected_shape [3, height, width] ({error}).") from error
    raise ConfigError(f"{place}: expected_shape is no [3, height, width] of positive numbers.")


def write_meta(folder: Path, height: int, width: int, made_with: dict[str, Any]) -> None:
    """State the shape of all pictures below `folder`, and how they were made.

    Raises:
        ConfigError: the folder says already that its pictures were made in another way.
    """
    content = {"expected_shape": [3, height, width], "vae_encoded": False, "made_with": made_with}
    if (folder / META).is_file():
        before = read_json(folder / META)
        if before != content:
            raise ConfigError(
                f"{folder} holds pictures that were made in another way ({before}): name an empty folder."
            )
    write_text(folder / META, json.dumps(content) + "\n")
