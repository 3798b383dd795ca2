"""Files of torch.save, opened without ever running code from them: published weights, chunks, caches.

Such a file is a pickle, which can name any function. `weights_only` lets tensors and plain values pass, and there is no
way back to the unsafe form.

Public: TorchFileError, read_torch_file, is_zip.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from .files import require_regular

SAFE_TORCH = (2, 10)
"""Before this version of torch, two published ways led around `weights_only`."""


class TorchFileError(ValueError):
    """What is wrong with a file, one line, to be put behind its name."""


def read_torch_file(path: str | Path, device: torch.device | str = "cpu") -> Any:
    """What torch.save wrote: tensors and plain values in dicts and lists.

    Where its layout allows, the file is mapped: what is not used stays on the disk (optimiser states of published files
    are 2 GB), and a size that it only claims takes no memory.

    Raises:
        TorchFileError: damaged, holds more than tensors and plain values, or torch is too old to tell.
        OSError: it cannot be read.
    """
    if torch.__version__ < SAFE_TORCH:
        raise TorchFileError(
            f"is not opened by torch {torch.__version__}, which such a file can make run code: install torch "
            f"{'.'.join(map(str, SAFE_TORCH))} or newer, or use a .safetensors file"
        )
    require_regular(path)
    try:
        mapped = is_zip(path)
        if mapped:
            _require_stored(path)
        return torch.load(path, map_location=device, weights_only=True, mmap=mapped)
    except (torch.OutOfMemoryError, FileNotFoundError):
        raise
    except Exception as error:  # a damaged file can break the unpickler in any way
        raise TorchFileError(_problem(error)) from error


def is_zip(path: str | Path) -> bool:
    """Whether a file has torch's present zip layout, which alone can be mapped and read at random places. Raises OSError."""
    require_regular(path)
    with Path(path).open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _require_stored(path: str | Path) -> None:
    """Raises ValueError for a zip with compressed records: torch.save makes none, and they may be of any size."""
    with zipfile.ZipFile(path) as archive:
        if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
            raise ValueError("its records are compressed")


def _problem(error: Exception) -> str:
    """What a failed `torch.load` means."""
    if foreign := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"is refused: it holds {foreign[1]}, and opening such a pickle can run code"
    # What torch says before that invites to open the file unsafely.
    text = re.sub(r".*WeightsUnpickler error:\s*", "", str(error), flags=re.DOTALL)
    reason = " ".join(text.partition("\n")[0].split())[:120] or type(error).__name__
    return f"is damaged or no torch file ({reason})"
