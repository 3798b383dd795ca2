"""Cameras as relative positions inside attention: PRoPE, and GTA where intrinsics are left out.

Half of every head's channels are read as groups of 4 numbers and multiplied by the projection P of their view (queries
by P^T, keys and values by P^-1, results by P), so that a token sees another one through P_i P_j^-1 alone; the other half
is rotated by the patch's column and row. Scores and results do not change when the world is moved.

What a key or value is turned by depends on its own view alone: turned keys and values can be cached.

Paper: "Cameras as Relative Positional Encoding", arXiv 2507.10496. Original repository: liruilong940607/prope.

Public: CAMERA_ENCODINGS, CameraEncoding, camera_encoding, projections.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry.camera import Cameras, full_precision

CAMERA_ENCODINGS = ("prope", "gta", "none")
"""`model.camera`: with intrinsics, poses alone, neither."""

ROPE_BASE = 100.0
"""Frequency f of n turns by position * ROPE_BASE^(-f / n)."""


def projections(cameras: Cameras, *, intrinsics: bool = True) -> tuple[Tensor, Tensor]:
    """World to image as 4 x 4 matrices, and their inverses, both in closed form.

    Args:
        cameras: poses must be rigid.
        intrinsics: False: world to camera alone (GTA).

    Returns:
        P = K W and P^-1 = W^-1 K^-1, with W world to camera and K the intrinsics in units of the image, its centre at 0;
        float32, or float64 if the poses are. [b, v, 4, 4] each
    """
    c2w = _at_least_float32(cameras.c2w)
    rotation, centre = c2w[..., :3, :3].transpose(-1, -2), c2w[..., :3, 3]
    # Written out, here and below: as matrix products they would run in TF32 where that is allowed.
    offset = -(rotation * centre[..., None, :]).sum(-1, keepdim=True)  # [b, v, 3, 1]
    w2c = torch.cat([torch.cat([rotation, offset], dim=-1), c2w[..., 3:, :]], dim=-2)
    if not intrinsics:
        return w2c, c2w
    fx, fy, cx, cy = cameras.fxfycxcy.to(c2w).unbind(-1)
    focal = torch.stack([fx / cameras.width, fy / cameras.height], dim=-1)[..., None]  # [b, v, 2, 1]
    middle = torch.stack([cx / cameras.width - 0.5, cy / cameras.height - 0.5], dim=-1)[..., None]
    projected = focal * w2c[..., :2, :] + middle * w2c[..., 2:3, :]
    axes, forward = c2w[..., :2] / focal.transpose(-1, -2), c2w[..., 2:3]
    forward = forward - (axes * middle.transpose(-1, -2)).sum(-1, keepdim=True)
    return (
        torch.cat([projected, w2c[..., 2:, :]], dim=-2),
        torch.cat([axes, forward, c2w[..., 3:]], dim=-1),
    )


@dataclass(frozen=True)
class _Part:
    """Tokens of views of one size.

    into_query, into_key, out_of: matrices that a row of half a head's channels is multiplied by. [b, v, c, c]
    cos, sin: rotation of the other half, by patch, axis (column, row) and frequency. [n, 2, 1, f]
    """

    into_query: Tensor
    into_key: Tensor
    out_of: Tensor
    cos: Tensor
    sin: Tensor

    @property
    def num_tokens(self) -> int:
        return self.into_query.shape[1] * len(self.cos)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> _Part:
        """The same patches, with `change` applied to the matrices of the views."""
        matrices = (change(m) for m in (self.into_query, self.into_key, self.out_of))
        return _Part(*matrices, self.cos, self.sin)

    def apply(self, x: Tensor, matrices: Tensor, sin: Tensor) -> Tensor:
        """Multiply and rotate. x: [..., b, heads, v * n, d_head]; matrices: [..., b, v, c, c]"""
        half = x.shape[-1] // 2
        views, patches = matrices.shape[-3], len(self.cos)
        cameras = x[..., :half].unflatten(-2, (views, patches)) @ matrices.unsqueeze(-4)
        # [..., v, n, axis, half of the pairs, frequency]: the two numbers that turn together lie f apart.
        pairs = x[..., half:].unflatten(-1, (2, 2, -1)).unflatten(-4, (views, patches))
        swapped = torch.stack([pairs[..., 1, :], -pairs[..., 0, :]], dim=-2)
        turned = pairs * self.cos + swapped * sin
        return torch.cat([cameras.flatten(-3, -2), turned.flatten(-3).flatten(-3, -2)], dim=-1)


@dataclass(frozen=True)
class CameraEncoding:
    """What attention needs to know of the cameras of a token sequence; made once, used in every layer.

    Tokens stand view by view, patches row by row. All methods compute in the precision of the matrices, autocast off
    (as TF32 where a run allows that, still finer than the bf16 it goes on with), and return the type they were given.
    """

    parts: tuple[_Part, ...]

    def turn(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of these tokens before attention. [b, heads, tokens, d_head] each"""
        turned = self._apply(torch.stack([q, k, v]), ("into_query", "into_key", "into_key"), 1)
        return turned[0], turned[1], turned[2]

    def turn_queries(self, q: Tensor) -> Tensor:
        """Queries alone, for attention to keys of other tokens. [b, heads, tokens, d_head]"""
        return self._apply(q[None], ("into_query",), 1)[0]

    def turn_keys(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values alone. [b, heads, tokens, d_head] each"""
        turned = self._apply(torch.stack([k, v]), ("into_key", "into_key"), 1)
        return turned[0], turned[1]

    def back(self, out: Tensor) -> Tensor:
        """What attention gave for queries of these tokens, before it is projected. [b, heads, tokens, d_head]"""
        return self._apply(out[None], ("out_of",), -1)[0]

    def _apply(self, x: Tensor, names: tuple[str, ...], direction: int) -> Tensor:
        """x: [len(names), b, heads, tokens, d_head]; direction: 1 turns the patches forward, -1 back."""
        dtype, done = x.dtype, []
        with full_precision(x.device):
            x = x.to(self.parts[0].cos.dtype)
            for part, tokens in zip(self.parts, x.split([p.num_tokens for p in self.parts], dim=-2)):
                matrices = torch.stack([getattr(part, name) for name in names])
                done.append(part.apply(tokens, matrices, direction * part.sin))
        return (done[0] if len(done) == 1 else torch.cat(done, dim=-2)).to(dtype)

    def joined(self, other: CameraEncoding) -> CameraEncoding:
        """Of a sequence in which the tokens of `other` follow these."""
        return CameraEncoding(self.parts + other.parts)

    def repeated(self, times: int) -> CameraEncoding:
        """Each sample of the batch `times` times in a row: [b] -> [b * times]"""
        return CameraEncoding(
            tuple(p.mapped(lambda m: m.repeat_interleave(times, dim=0)) for p in self.parts)
        )

    def folded(self) -> CameraEncoding:
        """Each view a sequence of its own: [b, v] -> [b * v, 1]"""
        return CameraEncoding(tuple(p.mapped(lambda m: m.flatten(0, 1).unsqueeze(1)) for p in self.parts))


def camera_encoding(
    cameras: Cameras, patch_size: int, d_head: int, kind: str = "prope"
) -> CameraEncoding | None:
    """The encoding of all patches of all views, or None for kind `none`.

    Args:
        cameras: [b, v] cameras; sides are multiples of `patch_size`, pixels.
        d_head: width of an attention head, a multiple of 8.
        kind: one of CAMERA_ENCODINGS.

    Raises:
        ValueError: another kind, or a width that cannot be split.
    """
    if kind not in CAMERA_ENCODINGS:
        raise ValueError(f"camera encoding {kind} is unknown. Known: {', '.join(CAMERA_ENCODINGS)}.")
    if kind == "none":
        return None
    if d_head % 8:
        raise ValueError(f"camera encoding {kind} needs heads whose width is a multiple of 8, not {d_head}.")
    forward, inverse = projections(cameras, intrinsics=kind == "prope")
    cos, sin = _patch_rotation(cameras.height // patch_size, cameras.width // patch_size, d_head, forward)
    # A row is multiplied from the right: q^T P for P^T q, and so on.
    matrices = (forward, inverse.transpose(-1, -2), forward.transpose(-1, -2))
    return CameraEncoding((_Part(*(_block_diagonal(m, d_head // 8) for m in matrices), cos, sin),))


def _block_diagonal(matrix: Tensor, times: int) -> Tensor:
    """The 4 x 4 matrix `times` times along a diagonal: one product with it is several times faster than many of
    4 x 4, though most of it is zeros. [b, v, 4, 4] -> [b, v, 4 times, 4 times]
    """
    spread = torch.eye(times, device=matrix.device, dtype=matrix.dtype)[:, None, :, None]  # [g, 1, g, 1]
    return (spread * matrix[..., None, :, None, :]).flatten(-4, -3).flatten(-2, -1)


def _patch_rotation(rows: int, columns: int, d_head: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every patch's angles: first by column, then by row. [rows * columns, 2, 1, d_head / 8]"""
    count, rows, columns = d_head // 8, _count(rows, like), _count(columns, like)
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    position = torch.stack([column.flatten(), row.flatten()], dim=1)  # [n, 2]
    frequency = ROPE_BASE ** (-_count(count, like) / count)
    angle = (position[..., None] * frequency)[:, :, None]
    return angle.cos(), angle.sin()


def _count(number: int, like: Tensor) -> Tensor:
    """0, 1, ... below `number`, made on the device of `like`."""
    return torch.arange(number, device=like.device, dtype=like.dtype)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
