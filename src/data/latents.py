"""Latents that were computed beforehand: one file per scene beside a data set, made by `scripts.encode_latents`.

    vae_latents/
        meta.json                  which autoencoder, and how the pictures were resized before
        <scene>.safetensors        posterior [f, 2, c, h, w]: mean and deviation of each frame; frames that cannot be
                                   used hold NaN

A folder of latents belongs to one autoencoder and one size of pictures: whatever else is asked of it is refused.

Public: FOLDER, Meta, LatentStore, place_of_latents, open_store, finished_scenes, write_scene.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..config import ConfigError
from ..files import read_json, replacing, require_regular, write_text
from .remote.folder import is_url
from .scene import SceneError

FOLDER, META, POSTERIOR = "vae_latents", "meta.json", "posterior"
OPEN_FILES = 32
"""Scenes whose files one process keeps mapped."""


@dataclass(frozen=True, kw_only=True)
class Meta:
    """`meta.json`.

    vae_hf_model_id: where the autoencoder came from, for people.
    vae_digest: sha256 of its encoder and of the range of its pictures.
    factor, channels: of the latents.
    dtype: of the files.
    image_size, patch_size, square_crop, image_shape: how the pictures were resized; names as in `ViewSettings`.
    """

    vae_encoded: bool = True
    vae_hf_model_id: str
    vae_digest: str
    factor: int
    channels: int
    dtype: str
    image_size: int
    patch_size: int
    square_crop: bool
    image_shape: list[int]

    @classmethod
    def read(cls, folder: Path) -> Meta:
        """Raises ConfigError if the folder holds no latents."""
        path = folder / META
        try:
            tree = read_json(path)
            return cls(**{f.name: tree[f.name] for f in fields(cls)})
        except FileNotFoundError:
            raise ConfigError(
                f"{path}: no such file. `python -m scripts.encode_latents` computes the latents of a data set."
            ) from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{path} does not describe latents ({error}).") from error

    def write(self, folder: Path) -> None:
        write_text(folder / META, json.dumps(asdict(self), indent=1) + "\n")

    def require_same(self, wanted: dict[str, Any], folder: Path) -> None:
        """Raises ConfigError unless these entries are as wanted."""
        for name, value in wanted.items():
            if getattr(self, name) != value:
                raise ConfigError(
                    f"{folder} holds latents with {name} {getattr(self, name)}, but this run has {value}: they belong to "
                    "another autoencoder or picture size. Encode the data set anew, into another folder."
                )


def place_of_latents(dataset_path: str | Path, folder: str = FOLDER) -> Path:
    """Where the latents of a data set are: `folder` inside its folder; an absolute path stands for itself."""
    path = Path(dataset_path)
    if is_url(dataset_path) and not Path(folder).is_absolute():
        raise ConfigError(
            f"training.vae_latents is {folder}: latents are not read over a network, and {dataset_path} is a URL. Keep "
            "them on a disk and name their folder by its absolute path."
        )
    return (path if path.is_dir() else path.parent) / folder


def picture_settings(settings: Any) -> dict[str, Any]:
    """Of `ViewSettings`, what decides about the pixels of a picture."""
    names = ("image_size", "patch_size", "square_crop", "image_shape")
    return {name: getattr(settings, name) for name in names}


def open_store(dataset_path: str | Path, folder: str, settings: Any) -> LatentStore | None:
    """The latents of a data set for pictures of these `ViewSettings`; None if `folder` is empty: none are asked for.

    Raises:
        ConfigError: there are none, or they are those of other pictures.
    """
    if not folder:
        return None
    place = place_of_latents(dataset_path, folder)
    Meta.read(place).require_same(picture_settings(settings), place)
    return LatentStore(place)


class LatentStore:
    """Posteriors of frames, read when asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: OrderedDict[str, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {
            "folder": self.folder,
            "files": OrderedDict(),
        }  # loader processes map the files for themselves

    def read(self, scene: str, frames: list[int]) -> Tensor:
        """Mean and deviation of some frames, in the type of the file. [v, 2, c, h, w]

        Raises:
            SceneError: the scene was not encoded, or not all of it.
        """
        try:
            posterior = self._file(scene).get_slice(POSTERIOR)
            found = torch.stack([posterior[frame] for frame in frames])
        except (safetensors.SafetensorError, OSError, IndexError) as error:
            raise SceneError(f"its latents in {self.folder} cannot be read ({error})") from error
        if not torch.isfinite(found).all():
            raise SceneError(f"{self.folder} has no latents for one of its frames {frames}")
        return found

    def _file(self, scene: str) -> Any:
        if scene not in self.files:
            path = self.folder / f"{scene}.safetensors"
            require_regular(path)
            self.files[scene] = safetensors.safe_open(path, framework="pt")
            while len(self.files) > OPEN_FILES:
                self.files.popitem(last=False)
        self.files.move_to_end(scene)
        return self.files[scene]


def finished_scenes(folder: Path) -> set[str]:
    """Scenes that are already encoded: their files are whole or absent."""
    return {path.stem for path in folder.glob("*.safetensors") if not path.name.startswith(".")}


def write_scene(folder: Path, scene: str, posterior: Tensor) -> None:
    """posterior: [f, 2, c, h, w]"""
    with replacing(folder / f"{scene}.safetensors") as temporary:
        safetensors.torch.save_file({POSTERIOR: posterior.contiguous()}, temporary)
