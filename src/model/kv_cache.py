"""What a model with one-way attention keeps of a scene: keys and values of the context views, layer by layer.

Nothing in it depends on what will be rendered, so any number of cameras can be rendered from it; and where no view sees a
later one, views can be added and taken away without computing the others again.

Public: KVCache, fingerprint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..config import ConfigError
from ..files import replacing
from ..geometry.camera import Cameras, Views
from ..geometry.frames import WorldFrame
from ..torch_files import read_torch_file

_DAMAGED = (OSError, LookupError, TypeError, AttributeError, ValueError)
"""What reading a file raises that is cut off or holds something else."""

LARGEST = 1e18
"""No number in a file may reach this."""


@dataclass(frozen=True)
class KVCache:
    """Keys and values of context tokens as attention takes them: normed, and turned by their cameras.

    It is never changed: every method returns another one, which shares memory with this where it can.

    keys, values: one tensor for each layer, the views after one another. [b, heads, tokens, d_head]
    tokens: how many tokens each view has.
    removable: which views can be taken away exactly: `any`, `last` (no other depends on it) or `none`.
    fingerprint: of the model that made it; "": it was not asked for.
    frame: the world in which all cameras are put, those of later views and of targets too; None: the given one.
    context: images and cameras of the views in the given world, if they were to be kept.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    tokens: tuple[int, ...]
    removable: str
    fingerprint: str = ""
    frame: WorldFrame | None = None
    context: Views | None = None

    @property
    def num_views(self) -> int:
        return len(self.tokens)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Layers, heads, and width of a head."""
        return len(self.keys), self.keys[0].shape[1], self.keys[0].shape[3]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(x.numel() * x.element_size() for x in self.keys + self.values)

    def prefix(self, num_views: int) -> KVCache:
        """The first so many views; exact unless they have seen the others (`removable` is `none`).

        Raises:
            ValueError: there are not so many, or none is asked for.
        """
        if not 1 <= num_views <= self.num_views:
            raise ValueError(
                f"the cache holds {self.num_views} views: a prefix of {num_views} is not possible."
            )
        if num_views == self.num_views:
            return self
        if self.removable == "none":
            raise ValueError(
                "the views of this cache have seen one another: encode the first ones by themselves."
            )
        end = sum(self.tokens[:num_views])
        shorter = self._mapped(lambda x: x[:, :, :end])
        return replace(
            shorter, tokens=self.tokens[:num_views], context=_views(self.context, slice(num_views))
        )

    def drop_view(self, index: int) -> KVCache:
        """Without one view, as if it had never been there.

        Raises:
            IndexError: there is no such view. ValueError: others depend on it, or it is the only one.
        """
        number = index + self.num_views if index < 0 else index
        if not 0 <= number < self.num_views:
            raise IndexError(f"the cache holds {self.num_views} views: there is no view {index}.")
        last = number == self.num_views - 1
        if self.num_views == 1 or self.removable == "none" or (self.removable == "last" and not last):
            raise ValueError(
                f"view {index} of {self.num_views} cannot be taken out of this cache (removable: {self.removable}): "
                "encode the remaining views afresh."
            )
        if last:
            return self.prefix(number)
        begin = sum(self.tokens[:number])
        end = begin + self.tokens[number]
        rest = [i for i in range(self.num_views) if i != number]
        shorter = self._mapped(lambda x: torch.cat([x[:, :, :begin], x[:, :, end:]], dim=2))
        return replace(
            shorter, tokens=tuple(self.tokens[i] for i in rest), context=_views(self.context, rest)
        )

    def appended(self, other: KVCache) -> KVCache:
        """With the views of `other` behind these. What they saw of these is the caller's matter."""
        keys = tuple(torch.cat(pair, dim=2) for pair in zip(self.keys, other.keys, strict=True))
        values = tuple(torch.cat(pair, dim=2) for pair in zip(self.values, other.values, strict=True))
        return replace(self, keys=keys, values=values, tokens=self.tokens + other.tokens, context=None)

    def samples(self, index: slice | list[int] | Tensor) -> KVCache:
        """Some scenes of the batch."""
        frame = self.frame and self.frame.mapped(lambda x: x[index])
        return replace(self._mapped(lambda x: x[index]), frame=frame, context=None)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> KVCache:
        """On another device or in another floating-point type; frame and context change their device alone."""
        moved = self._mapped(lambda x: x.to(device=device, dtype=dtype))
        moved = replace(moved, frame=self.frame and self.frame.mapped(lambda x: x.to(device)))
        if self.context is None:
            return moved
        cameras = self.context.cameras
        cameras = replace(cameras, c2w=cameras.c2w.to(device), fxfycxcy=cameras.fxfycxcy.to(device))
        return replace(moved, context=Views(self.context.image.to(device), cameras))

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> KVCache:
        return replace(self, keys=tuple(map(change, self.keys)), values=tuple(map(change, self.values)))

    # ------------------------------------------------------------------------------------------- files

    def save(self, path: str | Path) -> None:
        """Write a plain dict of tensors, texts and numbers, in one step; `load` reads it."""

        def plain(x: Tensor) -> Tensor:
            return x.detach().cpu().clone()  # a slice of a larger tensor would take that along

        content = {
            "keys": [plain(x) for x in self.keys],
            "values": [plain(x) for x in self.values],
            "tokens": list(self.tokens),
            "removable": self.removable,
            "fingerprint": self.fingerprint,
        }
        if self.frame is not None:
            content["frame"] = {"rigid": plain(self.frame.rigid), "scale": plain(self.frame.scale)}
        if self.context is not None:
            cameras = self.context.cameras
            tensors = {"image": self.context.image, "c2w": cameras.c2w, "fxfycxcy": cameras.fxfycxcy}
            content["context"] = {name: plain(x) for name, x in tensors.items()}
        with replacing(path) as temporary:
            torch.save(content, temporary)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> KVCache:
        """What `save` wrote. Whether it belongs to a model is checked when that renders from it.

        Raises:
            ConfigError: no such file, damaged, or no cache.
        """
        try:
            content = read_torch_file(path, device)
            frame, context = content.get("frame"), content.get("context")
            if context is not None:
                cameras = {name: _float32(x) for name, x in context.items()}
                image = cameras.pop("image")
                context = Views(image, Cameras(**cameras, height=image.shape[-2], width=image.shape[-1]))
            scene = cls(
                **{name: tuple(content[name]) for name in ("keys", "values", "tokens")},
                **{name: content[name] for name in ("removable", "fingerprint")},
                frame=WorldFrame(**frame) if frame else None,
                context=context,
            )
            _require_whole(scene)
            return scene
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file.") from None
        except _DAMAGED as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"{path}: damaged or not the cache of a scene ({reason}).") from error


def _require_whole(scene: KVCache) -> None:
    """Raises ValueError for contents of a file that no `encode` makes."""
    shape = scene.keys[0].shape
    if not all(type(count) is int for count in scene.tokens):
        raise ValueError("tokens must be counts")
    if len(shape) != 4 or len(scene.keys) != len(scene.values) or shape[2] != sum(scene.tokens):
        raise ValueError("keys, values and tokens do not belong together")
    dtype = scene.keys[0].dtype
    if any(x.shape != shape or x.dtype != dtype or not _usable(x) for x in (*scene.keys, *scene.values)):
        raise ValueError("keys and values must be finite, of one type and of one shape in all layers")
    if scene.removable not in ("any", "last", "none") or not isinstance(scene.fingerprint, str):
        raise ValueError("removable or fingerprint is unknown")
    if scene.frame is not None:
        rigid, scale = scene.frame.rigid, scene.frame.scale
        if (
            rigid.shape != (shape[0], 4, 4)
            or scale.shape != shape[:1]
            or not (_usable(rigid) and _usable(scale))
        ):
            raise ValueError("frame must be finite matrices and scales, one for each scene")
    if scene.context is not None:
        image, cameras = scene.context.image, scene.context.cameras
        if image.shape[:3] != (*cameras.c2w.shape[:2], 3) or cameras.num_views != scene.num_views:
            raise ValueError("images and cameras do not belong to the views")


def _float32(x: Tensor) -> Tensor:
    """Raises ValueError unless it is `_usable`."""
    if not _usable(x):
        raise ValueError("images and cameras must be finite numbers")
    return x.float()


def _usable(x: Tensor) -> bool:
    """Whether a tensor of a file is a plain one of finite numbers, and products of two of them are finite too."""
    plain = x.is_floating_point() and x.layout == torch.strided and not x.is_meta and x.numel() > 0
    return plain and bool(x.abs().max() < LARGEST)


def _views(context: Views | None, index: slice | list[int]) -> Views | None:
    return context and Views(context.image[:, index], context.cameras.views(index))


# ----------------------------------------------------------------------------------------------- whose is it

_KNOWN: WeakKeyDictionary[nn.Module, tuple[tuple, str]] = WeakKeyDictionary()
"""Model -> (versions of its parameters, fingerprint), so that weights are read only after they have changed."""


def fingerprint(model: nn.Module) -> str:
    """16 hexadecimal digits of `model.config` and all weights; "" on the meta device, where there are none."""
    parameters = dict(model.named_parameters())
    if any(p.is_meta for p in parameters.values()):
        return ""
    versions = tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters.values())
    known = _KNOWN.get(model)
    if known is None or known[0] != versions:
        digest = hashlib.sha256(repr(sorted(asdict(model.config).items())).encode())
        sums = torch.stack([_checksum(p.detach()) for p in parameters.values()])
        digest.update(repr([*zip(parameters, sums.tolist())]).encode())
        known = (versions, digest.hexdigest()[:16])
        _KNOWN[model] = known
    return known[1]


def _checksum(weight: Tensor) -> Tensor:
    """Sum of the bit patterns, each times its place, modulo 2^64: the same on every device, in whatever order added."""
    bits = weight.contiguous().view(-1)
    bits = bits.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[bits.element_size()]).long()
    return (bits * torch.arange(1, len(bits) + 1, device=bits.device)).sum()
