"""Analytic ray caster for small textured rooms: exact pictures and depths from exact cameras, in numpy on one core.

A room is a box seen from inside; objects are spheres, boxes turned about the vertical, and upright cylinders. World
axes: x and y span the floor, z points up, lengths in metres. Cameras are OpenCV (x right, y down, z forward).

Public: Texture, Poster, Wall, Sphere, Box, Cylinder, Room, render, depth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

GAMMA = 2.2
CONTACT_RANGE = 0.3
"""Metres over which corners and the floor below objects darken."""


def _dot(a: Array, b: Array) -> Array:
    """Scalar products of broadcast vectors; numpy's sum over so short an axis is several times slower. [..., 3] -> [...]"""
    return np.einsum("...i,...i->...", a, b)


def _least(a: Array) -> Array:
    return np.minimum(np.minimum(a[..., 0], a[..., 1]), a[..., 2])


def _largest(a: Array) -> Array:
    return np.maximum(np.maximum(a[..., 0], a[..., 1]), a[..., 2])


# ----------------------------------------------------------------------------------------------- textures


def _hash01(i: NDArray, j: NDArray, seed: int) -> Array:
    """A number in [0, 1) for each lattice point: the same on every machine. [n], [n] -> [n]"""
    h = i.astype(np.int64).astype(np.uint32) * np.uint32(0x9E3779B1)
    h ^= j.astype(np.int64).astype(np.uint32) * np.uint32(0x85EBCA77) + np.uint32(seed * 0xC2B2AE3D % 2**32)
    h ^= h >> np.uint32(15)
    h *= np.uint32(0x2C1B3C6D)
    h ^= h >> np.uint32(12)
    h *= np.uint32(0x297A2D39)
    h ^= h >> np.uint32(15)
    return (h >> np.uint32(8)).astype(np.float32) / np.float32(2**24)


def _value_noise(u: Array, v: Array, seed: int) -> Array:
    """Smoothly interpolated random lattice, in [0, 1)."""
    i, j = np.floor(u), np.floor(v)
    a, b = u - i, v - j
    a, b = a * a * (3 - 2 * a), b * b * (3 - 2 * b)
    low = _hash01(i, j, seed) * (1 - a) + _hash01(i + 1, j, seed) * a
    high = _hash01(i, j + 1, seed) * (1 - a) + _hash01(i + 1, j + 1, seed) * a
    return low * (1 - b) + high * b


def _checks(u: Array, v: Array, seed: int) -> Array:
    return (np.floor(u) + np.floor(v)) % 2


def _stripes(u: Array, v: Array, seed: int) -> Array:
    return np.floor(u) % 2


def _diagonal(u: Array, v: Array, seed: int) -> Array:
    return np.floor((u + v) * np.float32(0.7071)) % 2


def _noise(u: Array, v: Array, seed: int) -> Array:
    return 0.7 * _value_noise(u, v, seed) + 0.3 * _value_noise(2 * u, 2 * v, seed + 1)


def _panels(u: Array, v: Array, seed: int) -> Array:
    return _hash01(np.floor(u), np.floor(v), seed)


def _bricks(u: Array, v: Array, seed: int) -> Array:
    row = np.floor(2 * v)
    return _hash01(np.floor(u + 0.5 * (row % 2)), row, seed)


def _planks(u: Array, v: Array, seed: int) -> Array:
    row = np.floor(2 * v)
    return 0.8 * _hash01(np.floor(u / 3 + 0.37 * row), row, seed) + 0.2 * _value_noise(2 * u, 8 * v, seed)


def _rings(u: Array, v: Array, seed: int) -> Array:
    return np.floor(3 * np.sqrt(u * u + v * v)) % 2


PATTERNS: dict[str, Callable[[Array, Array, int], Array]] = {
    "checks": _checks,
    "stripes": _stripes,
    "diagonal": _diagonal,
    "noise": _noise,
    "panels": _panels,
    "bricks": _bricks,
    "planks": _planks,
    "rings": _rings,
}
"""Name -> function of (u, v) in units of the texture's size; the result in [0, 1] runs along the texture's colours."""


@dataclass
class Texture:
    """colors: sRGB in [0, 1]; a pattern value of 0 shows the first, 1 the last. [k, 3]; size: of one cell, metres."""

    pattern: str
    colors: Array
    size: float
    seed: int

    def albedo(self, u: Array, v: Array) -> Array:
        """Linear-light colours at surface coordinates u, v in metres. [n], [n] -> [n, 3]"""
        size = np.float32(self.size)
        value = PATTERNS[self.pattern](u / size, v / size, self.seed)
        stops = np.asarray(self.colors, np.float32) ** np.float32(GAMMA)
        position = np.clip(value, 0, 1) * np.float32(len(stops) - 1)
        below = np.minimum(position.astype(np.int64), len(stops) - 2)
        mix = (position - below)[:, None]
        return stops[below] * (1 - mix) + stops[below + 1] * mix


@dataclass
class Poster:
    """A framed picture on a wall: `center` and `half` extent in the wall's coordinates, metres. [2] each"""

    center: Array
    half: Array
    texture: Texture
    frame: Array


@dataclass
class Wall:
    texture: Texture
    posters: list[Poster] = field(default_factory=list)

    def albedo(self, u: Array, v: Array) -> Array:
        color = self.texture.albedo(u, v)
        for poster in self.posters:
            a, b = u - poster.center[0], v - poster.center[1]
            border = np.maximum(np.abs(a) - poster.half[0], np.abs(b) - poster.half[1])
            color[border < 0.06] = np.asarray(poster.frame, np.float32) ** np.float32(GAMMA)
            inside = border < 0
            color[inside] = poster.texture.albedo(a[inside], b[inside])
        return color


# ----------------------------------------------------------------------------------------------- objects


@dataclass
class Sphere:
    center: Array
    radius: float
    texture: Texture

    def hit(self, o: Array, d: Array) -> Array:
        """Distance along each ray to the object, inf where it misses; o and d broadcast. [n, 3] -> [n]"""
        p = o - self.center
        b, c = _dot(p, d), _dot(p, p) - np.float32(self.radius**2)
        disc = b * b - c
        t = -b - np.sqrt(np.maximum(disc, 0))
        return np.where((disc > 0) & (t > 0), t, np.float32(np.inf))

    def surface(self, x: Array) -> tuple[Array, Array, Array]:
        """Outward unit normals and texture coordinates of surface points. [n, 3] -> [n, 3], [n], [n]"""
        n = (x - self.center) / np.float32(self.radius)
        u = np.arctan2(n[:, 1], n[:, 0]) * np.float32(self.radius)
        v = np.arcsin(np.clip(n[:, 2], -1, 1)) * np.float32(self.radius)
        return n, u, v

    @property
    def footprint(self) -> float:
        """Radius of the object seen from above, metres."""
        return self.radius

    @property
    def bottom(self) -> float:
        return float(self.center[2]) - self.radius


@dataclass
class Box:
    """half: half extents along its own axes. [3]; yaw_rad: turn about the vertical."""

    center: Array
    half: Array
    yaw_rad: float
    texture: Texture

    def _turn(self) -> Array:
        """Rows are the box axes in the world: x_own = turn @ x_world."""
        c, s = np.cos(self.yaw_rad), np.sin(self.yaw_rad)
        return np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]], np.float32)

    def hit(self, o: Array, d: Array) -> Array:
        turn = self._turn().T
        o, d = (o - self.center) @ turn, d @ turn
        inverse = 1 / np.where(np.abs(d) < 1e-7, np.float32(1e-7), d)
        middle, span = -o * inverse, np.abs(self.half * inverse)
        near, far = _largest(middle - span), _least(middle + span)
        return np.where((near < far) & (near > 0), near, np.float32(np.inf))

    def surface(self, x: Array) -> tuple[Array, Array, Array]:
        own = (x - self.center) @ self._turn().T
        face = np.abs(own / self.half).argmax(-1)
        rows = np.arange(len(own))
        n = np.zeros_like(own)
        n[rows, face] = np.sign(own[rows, face])
        u = own[rows, np.array([1, 0, 0])[face]]
        v = own[rows, np.array([2, 2, 1])[face]]
        return n @ self._turn(), u + face.astype(np.float32), v

    @property
    def footprint(self) -> float:
        return float(self.half[:2].mean() * 1.15)

    @property
    def bottom(self) -> float:
        return float(self.center[2] - self.half[2])


@dataclass
class Cylinder:
    """Upright; half_height in metres."""

    center: Array
    radius: float
    half_height: float
    texture: Texture

    def hit(self, o: Array, d: Array) -> Array:
        p = o - self.center
        o2, d2 = p[..., :2], d[..., :2]
        a = np.maximum(_dot(d2, d2), np.float32(1e-9))
        b, c = _dot(o2, d2), _dot(o2, o2) - np.float32(self.radius**2)
        disc = b * b - a * c
        root = np.sqrt(np.maximum(disc, 0))
        enter, leave = (-b - root) / a, (-b + root) / a
        inverse = 1 / np.where(np.abs(d[..., 2]) < 1e-7, np.float32(1e-7), d[..., 2])
        middle, span = -p[..., 2] * inverse, np.abs(np.float32(self.half_height) * inverse)
        near, far = np.maximum(enter, middle - span), np.minimum(leave, middle + span)
        return np.where((disc > 0) & (near < far) & (near > 0), near, np.float32(np.inf))

    def surface(self, x: Array) -> tuple[Array, Array, Array]:
        own = x - self.center
        cap = np.abs(own[:, 2]) / self.half_height > np.hypot(own[:, 0], own[:, 1]) / self.radius
        n = np.stack([own[:, 0], own[:, 1], np.zeros_like(own[:, 0])], -1) / np.float32(self.radius)
        n[cap] = np.array([0, 0, 1], np.float32) * np.sign(own[cap, 2:])
        u = np.where(cap, own[:, 0], np.arctan2(own[:, 1], own[:, 0]) * np.float32(self.radius))
        v = np.where(cap, own[:, 1], own[:, 2])
        return n, u, v

    @property
    def footprint(self) -> float:
        return self.radius

    @property
    def bottom(self) -> float:
        return float(self.center[2]) - self.half_height


@dataclass
class Room:
    """size: extents, the floor's centre is the origin. [3]; walls: x-, x+, y-, y+, floor, ceiling; light: a point."""

    size: Array
    walls: list[Wall]
    objects: list[Sphere | Box | Cylinder]
    light: Array
    light_color: Array

    def hit(self, o: Array, d: Array) -> Array:
        """Distance along each ray from inside the room to its shell. [n, 3], [n, 3] -> [n]"""
        low = np.array([-self.size[0] / 2, -self.size[1] / 2, 0], np.float32)
        d = np.where(np.abs(d) < 1e-7, np.float32(1e-7), d)
        return _least(np.where(d > 0, low + self.size - o, low - o) / d)

    def surface(self, x: Array) -> tuple[Array, Array, NDArray]:
        """Inward normals, texture coordinates and wall number of points on the shell. [n, 3], [n, 2], [n]"""
        low = np.array([-self.size[0] / 2, -self.size[1] / 2, 0], np.float32)
        distance = np.stack([x - low, low + self.size - x], -1).reshape(-1, 6)
        wall = distance.argmin(-1)
        axis, rows = wall // 2, np.arange(len(x))
        n = np.zeros_like(x)
        n[rows, axis] = 1 - 2 * (wall % 2)
        uv = np.stack([x[rows, np.array([1, 0, 0])[axis]], x[rows, np.array([2, 2, 1])[axis]]], -1)
        return n, uv, wall


# ----------------------------------------------------------------------------------------------- pictures


def _rays(c2w: Array, fxfycxcy: Array, height: int, width: int, dx: float, dy: float) -> tuple[Array, Array]:
    """Origins and unit directions through the points (column + dx, row + dy). [n, 3] each, and z per unit length."""
    fx, fy, cx, cy = fxfycxcy
    y, x = np.meshgrid((np.arange(height) + dy - cy) / fy, (np.arange(width) + dx - cx) / fx, indexing="ij")
    d = np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 3)
    d = d @ c2w[:3, :3].T
    d = (d / np.sqrt(_dot(d, d))[:, None]).astype(np.float32)
    return np.broadcast_to(c2w[:3, 3].astype(np.float32), d.shape), d


def _nearest(room: Room, o: Array, d: Array) -> tuple[Array, NDArray]:
    """Distance to the first surface along each ray, and whose it is (-1: the room's shell). [n], [n]"""
    t, owner = room.hit(o, d), np.full(len(d), -1)
    for number, thing in enumerate(room.objects):
        candidate = thing.hit(o[:1], d)
        closer = candidate < t
        t, owner = np.where(closer, candidate, t), np.where(closer, number, owner)
    return t, owner


def _contact_shade(room: Room, x: Array, n: Array) -> Array:
    """Darkening near corners of the room and below objects, 0 to 1. [n, 3], [n, 3] -> [n]"""
    low = np.array([-room.size[0] / 2, -room.size[1] / 2, 0], np.float32)
    shade = np.ones(len(x), np.float32)
    for axis in range(3):
        edge = np.minimum(x[:, axis] - low[axis], low[axis] + room.size[axis] - x[:, axis])
        faces_axis = np.abs(n[:, axis]) > 0.9
        shade *= 1 - np.where(faces_axis, 0, 0.45 * np.exp(-np.maximum(edge, 0) / CONTACT_RANGE))
    floor = np.flatnonzero((n[:, 2] > 0.9) & (x[:, 2] < 0.01))
    for thing in room.objects:
        gap = np.hypot(x[floor, 0] - thing.center[0], x[floor, 1] - thing.center[1]) - thing.footprint
        strength = 0.5 * np.exp(-max(thing.bottom, 0.0) / CONTACT_RANGE)
        shade[floor] *= 1 - strength * np.exp(-np.maximum(gap, 0) / (CONTACT_RANGE / 2))
    return shade.astype(np.float32)


def _lit(room: Room, x: Array, n: Array, light: Array) -> Array:
    """Light that reaches surface points: hemisphere ambient plus one shadowed lamp. [n, 3], [n, 3] -> [n, 3]"""
    to_light = light - x
    distance = np.sqrt(_dot(to_light, to_light))
    to_light = to_light / distance[:, None]
    facing = np.maximum(_dot(n, to_light), 0)
    start = x + np.float32(2e-3) * n
    for thing in room.objects:
        facing = np.where(thing.hit(start, to_light) < distance, np.float32(0), facing)
    falloff = 1 / (1 + 0.06 * distance**2)
    ambient = (0.34 + 0.16 * n[:, 2]) * _contact_shade(room, x, n)
    return ambient[:, None] + (facing * falloff)[:, None] * room.light_color


def _radiance(room: Room, o: Array, d: Array, light: Array) -> Array:
    """Linear-light colour seen along each ray. [n, 3]"""
    t, owner = _nearest(room, o, d)
    x = o + t[:, None] * d
    n, albedo = np.empty_like(x), np.empty_like(x)
    shell = np.flatnonzero(owner < 0)
    n[shell], uv, wall = room.surface(x[shell])
    for number, face in enumerate(room.walls):
        chosen = wall == number
        albedo[shell[chosen]] = face.albedo(uv[chosen, 0], uv[chosen, 1])
    for number, thing in enumerate(room.objects):
        chosen = np.flatnonzero(owner == number)
        if len(chosen):
            n[chosen], u, v = thing.surface(x[chosen])
            albedo[chosen] = thing.texture.albedo(u, v)
    return albedo * _lit(room, x, n, light)


def render(
    room: Room, c2w: Array, fxfycxcy: Array, height: int, width: int, *, samples: int = 2
) -> NDArray[np.uint8]:
    """Picture of the room with `samples` x `samples` rays a pixel; each ray also sees another point of the lamp.

    Args:
        c2w: camera to world, OpenCV axes. [4, 4]
        fxfycxcy: pixels of the height x width picture; pixel centres at +0.5. [4]

    Returns:
        sRGB picture. [height, width, 3] uint8
    """
    total = np.zeros((height * width, 3), np.float32)
    for k in range(samples * samples):
        dy, dx = (k // samples + 0.5) / samples, (k % samples + 0.5) / samples
        lamp = room.light + 0.12 * np.array([np.cos(2.4 * k), np.sin(2.4 * k), 0], np.float32)
        total += _radiance(room, *_rays(c2w, fxfycxcy, height, width, dx, dy), lamp)
    color = np.clip(total / (samples * samples), 0, 1) ** np.float32(1 / GAMMA)
    return (color * 255 + 0.5).astype(np.uint8).reshape(height, width, 3)


def depth(room: Room, c2w: Array, fxfycxcy: Array, height: int, width: int) -> Array:
    """Depth along the optical axis at the pixel centres, metres. [height, width]"""
    o, d = _rays(c2w, fxfycxcy, height, width, 0.5, 0.5)
    t, _ = _nearest(room, o, d)
    return (t * (d @ c2w[:3, 2].astype(np.float32))).reshape(height, width)
