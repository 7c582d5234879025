"""The flood: which connected region of similar grey around a point looks most like an object.

Everything works on small grids (`Patch`), so the cost does not depend on the size of the picture.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

GRID = 128
"""Cells along the longer side of a patch, at most."""
_HALVES = (24, 64)
_TOLERANCES = np.geomspace(2, 230, 16)
_CROSS = ndimage.generate_binary_structure(2, 1)
_SQUARE = np.ones((3, 3), bool)


def median3(grey: np.ndarray) -> np.ndarray:
    """3x3 median of an array `[row, column]` with repeated borders, by Paeth's sorting network (Graphics Gems, 1990)."""
    padded = np.pad(grey, 1, mode="edge")
    rows, columns = grey.shape
    v = [padded[r : r + rows, c : c + columns] for r in range(3) for c in range(3)]
    for a, b in (
        (1, 2), (4, 5), (7, 8), (0, 1), (3, 4), (6, 7), (1, 2), (4, 5), (7, 8), (0, 3), (5, 8), (4, 7),
        (3, 6), (1, 4), (2, 5), (4, 7), (4, 2), (6, 4), (4, 2),
    ):  # fmt: skip
        v[a], v[b] = np.minimum(v[a], v[b]), np.maximum(v[a], v[b])
    return v[4]


def shrink(array: np.ndarray, factor: int) -> np.ndarray:
    """Mean of `factor` x `factor` blocks, float32; the last blocks are filled up with the border's values."""
    if factor == 1:
        return array.astype(np.float32)
    rows, columns = array.shape
    padded = np.pad(array.astype(np.float32), ((0, -rows % factor), (0, -columns % factor)), mode="edge")
    return padded.reshape(padded.shape[0] // factor, factor, -1, factor).mean((1, 3))


@dataclass(frozen=True)
class Window:
    """A rectangle of the picture on a coarser grid: one cell covers `factor` x `factor` pixels."""

    top: int
    left: int
    bottom: int
    right: int
    factor: int

    @classmethod
    def of(cls, top: int, left: int, bottom: int, right: int, shape: tuple[int, ...]) -> "Window":
        top, left, bottom, right = max(top, 0), max(left, 0), min(bottom, shape[0]), min(right, shape[1])
        return cls(top, left, bottom, right, -(-max(bottom - top, right - left) // GRID))

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def cell(self, pixel: tuple[int, int]) -> tuple[int, int] | None:
        row, column = pixel
        if not (self.top <= row < self.bottom and self.left <= column < self.right):
            return None
        return (row - self.top) // self.factor, (column - self.left) // self.factor


@dataclass(frozen=True, eq=False)
class Place:
    grey: np.ndarray
    domain: np.ndarray
    seed: tuple[int, int]
    barred: tuple[tuple[int, int], ...]
    reach: float
    scale: float
    other: np.ndarray


class Patch:
    def __init__(self, place: Place, window: Window):
        self.window = window
        self.reach = place.reach / window.factor
        self.scale = place.scale / window.factor
        fine = shrink(place.grey[window.slices], window.factor)
        self.grey = ndimage.gaussian_filter(fine, 0.5)
        self.smooth = ndimage.gaussian_filter(median3(fine), 0.7)
        self.domain = shrink(place.domain[window.slices], window.factor) > 0.5
        seed = window.cell(place.seed)
        assert seed
        self.seed = seed
        self.barred = [c for c in map(window.cell, place.barred) if c and c != seed]
        for cell in self.barred:
            self.domain[cell] = False
        self.domain[seed] = True
        gr, gc = np.gradient(self.smooth)
        self.gradient = 2 * np.hypot(gr, gc)
        self.open = np.zeros(self.smooth.shape, bool)
        height, width = place.grey.shape
        self.open[0] |= window.top > 0
        self.open[-1] |= window.bottom < height
        self.open[:, 0] |= window.left > 0
        self.open[:, -1] |= window.right < width
        self.free = ndimage.binary_erosion(self.domain, _SQUARE, border_value=1)
        self.rim = np.zeros(self.smooth.shape, bool)
        self.rim[[0, -1]] = self.rim[:, [0, -1]] = True
        self.free &= ~self.rim
        if np.isfinite(self.reach):
            other = shrink(place.other[window.slices], window.factor) > 0.5
            self.depth = ndimage.distance_transform_edt(~other) if other.any() else np.zeros(other.shape)

    def score(self, mask: np.ndarray, family: int = 0, ref: float = 0.0) -> float:
        box = grown_box(mask, 1)
        m = np.pad(mask[box], 1)
        edge = (m & ~ndimage.binary_erosion(m, _CROSS))[1:-1, 1:-1]
        area = int(mask.sum())
        own = edge & self.free[box]
        perimeter = int(edge.sum())
        g = self.gradient[box][own]
        values = self.smooth[box][mask[box]]
        if SIDE and family == 1:
            values = np.minimum(values, ref)
        elif SIDE and family == 2:
            values = np.maximum(values, ref)
        spread = float(values.std())
        rim = int((edge & self.rim[box]).sum())
        shared = perimeter - int(own.sum()) - rim
        soft = (g / (g + K_EDGE + A_STD * spread)).sum()
        hard = np.minimum(g / (K_CLIP + A_CLIP * spread), 1).sum()
        strength = (1 - W_CLIP) * soft + W_CLIP * hard + BORDER * shared + RIM * rim
        strength /= perimeter
        length = perimeter - (1 - W_OWN) * shared if np.isfinite(self.reach) else perimeter
        compact = min(1.0, 4 * np.pi * area / max(length, 1)**2) ** P_COMPACT
        depth = ndimage.distance_transform_edt(m)
        at = self.seed[0] - box[0].start + 1, self.seed[1] - box[1].start + 1
        central = (depth[at] / depth.max()) ** P_CENTRAL
        s = strength * compact * central
        if np.isfinite(self.reach):
            r = np.sqrt(area / np.pi)
            s *= min(1.0, (R_SMALL * self.reach / max(r, 1e-6))) ** P_REACH * min(1.0, r / min(self.reach, self.scale)) ** P_SMALL
            far = float((self.depth[box][mask[box]] > K_BAND * self.reach + 1).mean())
            s *= (1.02 - far) ** P_BAND
        elif area * self.window.factor**2 < A_SMALL:
            s *= (area * self.window.factor**2 / A_SMALL) ** 0.5
        return float(s)


K_EDGE = 6.0
SIDE = 1
K_CLIP = 10.0
A_CLIP = 1.0
W_CLIP = 0.0
W_OWN = 0.3
REF_STD = 4.0
A_STD = 1.0
BORDER = 0.5
RIM = 0.5
P_BAND = 0.5
K_BAND = 2.0
P_COMPACT = 0.25
P_CENTRAL = 1.0
P_REACH = 0.5
P_SMALL = 0.5
R_SMALL = 3.0
A_SMALL = 12


def grown_box(mask: np.ndarray, margin: int) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (
        slice(max(int(rows[0]) - margin, 0), int(rows[-1]) + margin + 1),
        slice(max(int(columns[0]) - margin, 0), int(columns[-1]) + margin + 1),
    )


@dataclass(frozen=True, eq=False)
class Region:
    patch: Patch
    mask: np.ndarray
    score: float
    family: int = 0
    ref: float = 0


def connected(mask: np.ndarray, seed: tuple[int, int]) -> np.ndarray:
    labels, _ = ndimage.label(mask, _CROSS)
    return labels == labels[seed] if labels[seed] else np.zeros_like(mask)


def floods(place: Place) -> Iterator[tuple[Patch, np.ndarray]]:
    """Connected floods of the seed, from fine to coarse."""
    shape = place.grey.shape
    row, column = place.seed
    pending = {0: 0, 1: 0, 2: 0}
    areas: dict[int, float] = {0: 0, 1: 0, 2: 0}
    ref = None
    full = max(max(row, shape[0] - row), max(column, shape[1] - column))
    halves = [24]
    while halves[-1] < full:
        halves.append(halves[-1] * 5 // 2)
    for half in halves:
        patch = Patch(place, Window.of(row - half, column - half, row + half + 1, column + half + 1, shape))
        if ref is None:
            r, c = patch.seed
            first = None
            for n in (1, 2, 3):
                at = slice(max(r - n, 0), r + n + 1), slice(max(c - n, 0), c + n + 1)
                near = patch.smooth[at][patch.domain[at]]
                if first is None:
                    first = near.std()
                elif near.std() > first + REF_STD or not patch.domain[at].all():
                    break
                ref = float(np.median(near))
        below = np.where(patch.domain, ref - patch.smooth, np.inf)
        for family, cost in enumerate((abs(below), below, -below)):
            if family == 2:
                cost = np.where(patch.domain, cost, np.inf)
            while pending[family] < len(_TOLERANCES):
                tolerance = _TOLERANCES[pending[family]]
                if (family == 1 and tolerance > ref) or (family == 2 and tolerance > 255 - ref):
                    pending[family] = 99
                    break
                inside = cost <= tolerance
                inside[patch.seed] = True
                mask = connected(inside, patch.seed)
                if (mask & patch.open).any():
                    break
                pending[family] += 1
                area = mask.sum() * patch.window.factor**2
                if area > 1.04 * areas[family]:
                    yield patch, mask, family, ref
                areas[family] = area


def opened(mask: np.ndarray, seed: tuple[int, int], radius: float) -> np.ndarray | None:
    """The part of `mask` around `seed` that a disk of `radius` cells reaches without leaving it."""
    box = grown_box(mask, 0)
    at = seed[0] - box[0].start, seed[1] - box[1].start
    inner = ndimage.distance_transform_edt(np.pad(mask[box], 1))[1:-1, 1:-1] > radius
    if not inner[at]:
        return None
    core = connected(inner, at)
    out = np.zeros_like(mask)
    out[box] = mask[box] & (ndimage.distance_transform_edt(~core) <= radius + 0.5)
    return connected(out, seed)


def disk(shape: tuple[int, ...], centre: tuple[int, int], radius: float) -> np.ndarray:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


def best_region(place: Place) -> Region:
    """The flood that looks most like an object."""
    found: list[Region] = []
    for patch, mask, family, ref in floods(place):
        filled = ndimage.binary_fill_holes(mask) & patch.domain
        found.append(Region(patch, filled, patch.score(filled, family, ref), family, ref))
    found.sort(key=lambda r: -r.score)
    for region in found[:3]:
        last = region.mask.sum()
        for radius in (1, 1.5, 2, 3, 4, 6, 8, 12):
            mask = opened(region.mask, region.patch.seed, radius)
            if mask is None:
                break
            if mask.sum() < 0.97 * last:
                last = mask.sum()
                found.append(Region(region.patch, mask, region.patch.score(mask, region.family, region.ref), region.family, region.ref))
    if np.isfinite(place.reach):
        r = int(np.ceil(place.reach))
        row, column = place.seed
        patch = Patch(place, Window.of(row - 3 * r - 4, column - 3 * r - 4, row + 3 * r + 5, column + 3 * r + 5, place.grey.shape))
        for k in (1.0,):
            mask = connected(disk(patch.domain.shape, patch.seed, max(k * patch.reach, 1)) & patch.domain, patch.seed)
            found.append(Region(patch, mask, patch.score(mask) * DISK))
    best = max(found, key=lambda r: r.score)
    return best


DISK = 1.0
