"""Starting a new run from weights of another: every tensor whose name and shape fit is taken, and the rest stays fresh.

Unlike `training.resume_ckpt`, which is strict. An MAE of lvsm_pytorch fills an LVSM of the same sizes completely; other
families with LVSM's blocks take what `model/lvsm_pytorch/translation.py` lists.

Public: start_from, StartReport.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .checkpoint import CheckpointError, clean_names, load_weights, require_finite
from .model.base import ViewSynthesizer
from .model.lvsm_pytorch.translation import as_shared_blocks

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StartReport:
    """What `start_from` did, as sorted names.

    taken: tensors of the model that were filled. misshaped: that the file has in another shape. fresh: that it has not.
    unused: tensors of the file that the model has no place for.
    """

    source: str
    taken: list[str]
    misshaped: list[str]
    fresh: list[str]
    unused: list[str]

    def __str__(self) -> str:
        total = len(self.taken) + len(self.misshaped) + len(self.fresh)
        parts = [f"took {len(self.taken)} of the model's {total} tensors from {self.source}"]
        for names, what in (
            (self.misshaped, "have another shape there"),
            (self.fresh, "are not there"),
            (self.unused, "of its tensors are not used"),
        ):
            if names:
                parts.append(f"{len(names)} {what} ({_some(names)})")
        return "; ".join(parts)


def start_from(model: ViewSynthesizer, path: str | Path) -> StartReport:
    """Fill what fits of a freshly built model, and log it.

    Args:
        path: anything that `load_weights` reads.

    Raises:
        CheckpointError: the file cannot be read, not a single matrix fits, or what fits is not finite.
    """
    state, _ = clean_names(load_weights(path), str(path))
    own = model.state_dict()
    given = _under_own_names(model, state, own.keys())
    taken = {name: given[name] for name in own.keys() & given.keys() if given[name].shape == own[name].shape}
    if not any(tensor.ndim >= 2 for tensor in taken.values()):  # a bias may fit by chance
        raise CheckpointError(
            f"training.init_from {path}: none of its {len(state)} tensors fits this model by name and shape. It has "
            f"{_some(sorted(state))}; the model has {_some(sorted(own))}. Set the same sizes in model, or leave it empty."
        )
    require_finite(taken, path)
    model.load_state_dict({**own, **taken})
    report = StartReport(
        source=str(path),
        taken=sorted(taken),
        misshaped=sorted((own.keys() & given.keys()) - taken.keys()),
        fresh=sorted(own.keys() - given.keys()),
        unused=sorted(given.keys() - own.keys()),
    )
    log.info("%s.", report)
    return report


def _under_own_names(
    model: ViewSynthesizer, state: dict[str, Tensor], own: Iterable[str]
) -> dict[str, Tensor]:
    """The tensors of a file under this family's names: its own forms first, else translated ones."""
    given = model.with_own_names(state)
    if given.keys() & set(own):
        return given
    return as_shared_blocks(state) or given


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
