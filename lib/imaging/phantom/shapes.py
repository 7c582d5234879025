"""Smooth implicit shapes on a voxel grid: what the phantom's anatomy is drawn with.

All lengths are mm. Anatomical coordinates are `(x, y, z)` to the patient's left, posterior and superior (DICOM's LPS), with the
origin at the centre of the first lumbar vertebra's body. A shape is an array of approximate signed distances, negative inside.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.interpolate import PchipInterpolator

Point = Sequence[float] | np.ndarray
Points = Sequence[Point] | np.ndarray
Radii = float | Sequence[float] | np.ndarray
Knot = tuple[float, float, float]
Box = tuple[slice, slice, slice]

REACH = 8.0
"""Tubes know their distance up to here; beyond, the distance is this constant."""
_WARP = 8.0
"""More than a grid's warp can move a point along one axis."""


def smooth_min(a: np.ndarray, b: np.ndarray, blend: float) -> np.ndarray:
    """Union of two shapes whose seam is rounded over about `blend` mm (Quilez' polynomial smooth minimum)."""
    return np.minimum(a, b) - np.square(np.maximum(blend - np.abs(a - b), 0)) / (4 * blend)


def smooth_max(a: np.ndarray, b: np.ndarray, blend: float) -> np.ndarray:
    """Intersection of two shapes whose edge is rounded over about `blend` mm; `smooth_max(a, -b, ...)` cuts b out of a."""
    return -smooth_min(-a, -b, blend)


@dataclass(frozen=True)
class Waves:
    """Low-frequency noise: a sum of separable cosines, cheap to evaluate on a whole grid."""

    numbers: np.ndarray
    """[mode, axis], radians per mm."""
    phases: np.ndarray
    """[mode, axis], radians."""
    amplitude: float
    """Root mean square, mm."""

    @classmethod
    def draw(cls, rng: np.random.Generator, modes: int, lengths: tuple[float, float], amplitude: float) -> "Waves":
        """Random modes with wavelengths between `lengths` mm."""
        numbers = 2 * np.pi / rng.uniform(*lengths, (modes, 3))
        return cls(numbers, rng.uniform(0, 2 * np.pi, (modes, 3)), amplitude)

    def at(self, points: np.ndarray) -> np.ndarray:
        """Values [n] at points [n, 3]."""
        cosines = np.cos(points[:, None, :] * self.numbers + self.phases)
        return cosines.prod(axis=2).sum(axis=1) * self.amplitude * np.sqrt(8 / len(self.numbers))

    def sample(self, axes: Sequence[np.ndarray]) -> np.ndarray:
        """Values [i, j, k] float32 on the grid of three coordinate axes."""
        cosines = [
            np.cos(axis[:, None] * self.numbers[:, a] + self.phases[:, a]).astype(np.float32) for a, axis in enumerate(axes)
        ]
        # Each mode's mean square is 1/8.
        scale = np.float32(self.amplitude * np.sqrt(8 / len(self.numbers)))
        return np.einsum("im,jm,km->ijk", cosines[0] * scale, cosines[1], cosines[2], optimize=True)


@dataclass(frozen=True)
class Grid:
    """The voxel grid of an axial supine series, and the individual's deformation of the anatomy on it."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    """Patient coordinates (LPS mm) of the centre of voxel (0, 0, 0)."""
    scale: tuple[float, float, float]
    """The individual's size along x, y, z relative to the reference adult."""
    warp: tuple[Waves, Waves, Waves]

    def axis(self, a: int) -> np.ndarray:
        """Anatomical coordinate of every voxel along axis `a`, before the warp."""
        return (self.origin[a] + self.spacing[a] * np.arange(self.shape[a])) / self.scale[a]

    def box(self, low: Point, high: Point, margin: float = _WARP) -> Box:
        """The voxels that may lie between two corners (anatomical mm); empty where the grid ends before."""
        slices = []
        for a in range(3):
            first = ((low[a] - margin) * self.scale[a] - self.origin[a]) / self.spacing[a]
            last = ((high[a] + margin) * self.scale[a] - self.origin[a]) / self.spacing[a]
            start = min(max(int(np.floor(first)), 0), self.shape[a])
            slices.append(slice(start, min(max(int(np.ceil(last)) + 1, start), self.shape[a])))
        return (slices[0], slices[1], slices[2])

    def balls(self, centres: np.ndarray, radii: np.ndarray, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """First and last + 1 index [n, 3], counted from the box's corner, of the voxels in reach of each ball."""
        straight = centres - np.stack([w.at(centres) for w in self.warp], axis=1)
        scale, spacing = np.array(self.scale), np.array(self.spacing)
        middle = (straight * scale - self.origin) / spacing
        reach = (radii + REACH)[:, None] * scale / spacing
        start, stop = np.array([[s.start, s.stop] for s in box]).T
        first = np.clip(np.floor(middle - reach).astype(int), start, stop) - start
        last = np.clip(np.ceil(middle + reach).astype(int) + 1, start, stop) - start
        return first, last


class Field:
    """The anatomical coordinates of the voxels of one box, where a shape is measured.

    The box goes from `low` to `high` (anatomical mm, with room for the warp), or with `slices` over those slices k alone.
    """

    def __init__(self, grid: Grid, low: Point, high: Point, slices: slice | None = None):
        self.grid = grid
        self.box = grid.box(low, high)
        if slices is not None:
            self.box = (*self.box[:2], slices)
        self.axes = [grid.axis(a)[self.box[a]] for a in range(3)]
        self.shape = tuple(len(axis) for axis in self.axes)
        x, y, z = np.ix_(*(axis.astype(np.float32) for axis in self.axes))
        self.x, self.y, self.z = (c + w.sample(self.axes) for c, w in zip((x, y, z), grid.warp, strict=True))

    def noise(self, waves: Waves) -> np.ndarray:
        return waves.sample(self.axes)

    def ellipsoid(self, centre: Point, radii: Point, long_axis: Point = (0, 0, 1)) -> np.ndarray:
        """Distance to an ellipsoid whose third radius lies along `long_axis` and whose second stays nearest to y (Quilez'
        first-order bound, exact on the surface)."""
        w = np.asarray(long_axis, float) / np.linalg.norm(long_axis)
        u = np.cross((0.0, 1.0, 0.0), w)
        u /= np.linalg.norm(u)
        v = np.cross(w, u)
        dx, dy, dz = self.x - np.float32(centre[0]), self.y - np.float32(centre[1]), self.z - np.float32(centre[2])
        near = np.zeros(self.shape, np.float32)
        slope = np.zeros(self.shape, np.float32)
        for direction, radius in zip((u, v, w), radii, strict=True):
            d = [np.float32(c / radius) for c in direction]
            t = np.square(dx * d[0] + dy * d[1] + dz * d[2])
            near += t
            slope += t / np.float32(radius * radius)
        near = np.sqrt(near)
        return near * (near - 1) / np.maximum(np.sqrt(slope), 1e-6)

    def blank(self) -> np.ndarray:
        """No shape yet: everywhere REACH away."""
        return np.full(self.shape, REACH, np.float32)

    def tube(
        self,
        points: Points,
        radii: Radii,
        into: np.ndarray | None = None,
        height: np.ndarray | None = None,
    ) -> np.ndarray:
        """Distance to a tube along the smooth curve through `points`, `radii` mm thick at them, as a chain of balls.

        The union with `into` is taken in place. `height`, in place, takes how far a voxel lies above (anterior to) the centre
        line of its nearest tube, in radii: the gas in a bowel rises to +1.
        """
        distance = self.blank() if into is None else into
        if distance.size == 0:
            return distance
        centres, thickness = resample(points, radii)
        firsts, lasts = self.grid.balls(centres, thickness, self.box)
        for centre, radius, a, b in zip(centres.astype(np.float32), thickness.astype(np.float32), firsts, lasts, strict=True):
            ball = (slice(a[0], b[0]), slice(a[1], b[1]), slice(a[2], b[2]))
            near = distance[ball]
            if near.size == 0:
                continue
            dy = self.y[ball] - centre[1]
            square = np.square(self.x[ball] - centre[0]) + dy * dy
            square += np.square(self.z[ball] - centre[2])
            candidate = np.sqrt(square) - radius
            if height is not None:
                closer = candidate < near
                height[ball][closer] = -dy[closer] / radius
            np.minimum(near, candidate, out=near)
        return distance

    def sheet(self, first: Points, last: Points, radii: Radii, into: np.ndarray | None = None) -> np.ndarray:
        """Distance to the plate between two curves of as many points each, `radii` mm thick (half its thickness) at the curves
        or, with two values, at the first and at the last."""
        one, two = np.asarray(first, float), np.asarray(last, float)
        pair = np.broadcast_to(np.asarray(radii, float), 2)
        gap = float(np.linalg.norm(one - two, axis=1).max())
        distance = self.blank() if into is None else into
        for t in np.linspace(0, 1, int(np.ceil(gap / max(0.8 * pair.min(), 2.5))) + 1):
            self.tube(one + t * (two - one), float(pair[0] + t * (pair[1] - pair[0])), distance)
        return distance


def resample(points: Points, radii: Radii) -> tuple[np.ndarray, np.ndarray]:
    """Centres [n, 3] and radii [n] of the balls of a tube, close enough together for a smooth wall."""
    knots = np.asarray(points, float)
    thickness = np.broadcast_to(np.asarray(radii, float), len(knots))
    lengths = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(knots, axis=0), axis=1))])
    step = max(0.55 * float(thickness.min()), 1.5)
    where = np.linspace(0, lengths[-1], max(2, int(np.ceil(lengths[-1] / step)) + 1))
    balls = PchipInterpolator(lengths, np.column_stack([knots, thickness]))(where)
    return balls[:, :3], balls[:, 3]


def around(grid: Grid, points: Points, margin: float) -> Field:
    """The field of the box that holds all points, `margin` mm wider on every side."""
    knots = np.asarray(points, float)
    return Field(grid, knots.min(axis=0) - margin, knots.max(axis=0) + margin)


def mirrored(points: Points, side: int) -> list[Knot]:
    """Points given for the patient's left: as they are for side +1, mirrored to the right for -1."""
    return [(side * p[0], p[1], p[2]) for p in points]


class Canvas:
    """HU [i, j, k] float32 and label numbers [i, j, k] uint8, painted over from the skin inwards."""

    def __init__(self, grid: Grid, air: float):
        self.grid = grid
        self.hu = np.full(grid.shape, air, np.float32)
        self.labels = np.zeros(grid.shape, np.uint8)
        self.names: dict[str, int] = {}

    def number(self, name: str) -> int:
        return self.names.setdefault(name, len(self.names) + 1)

    def paint(
        self,
        field: Field,
        distance: np.ndarray,
        hu: float | np.ndarray,
        name: str | None = None,
        within: np.ndarray | None = None,
    ) -> np.ndarray:
        """Fill a shape, each voxel by the share of it that lies inside; returns that share.

        Without a name the label below is kept. `within` multiplies the share: it confines a shape to another.
        """
        share = coverage(distance)
        if within is not None:
            share *= within
        region = self.hu[field.box]
        change = hu - region
        change *= share
        region += change
        if name is not None:
            self.labels[field.box][share > 0.5] = self.number(name)
        return share


def coverage(distance: np.ndarray) -> np.ndarray:
    """The share of each voxel that lies inside a shape, 0..1.

    The boundary crosses a voxel over the change of the distance along its three edges, so anisotropic voxels and functions that
    are not true distances get their partial volume too.
    """
    width = np.full(distance.shape, 1e-3, np.float32)
    for axis in range(3):
        if distance.shape[axis] > 1 and distance.size:
            step = np.gradient(distance, axis=axis)
            width += np.abs(step, out=step)
    np.divide(distance, width, out=width)
    np.subtract(0.5, width, out=width)
    return np.clip(width, 0, 1, out=width)


def grain(rng: np.random.Generator, field: Field, size: float) -> np.ndarray:
    """Texture of about unit variance whose grains are `size` mm wide, on the field's voxels."""
    white = rng.standard_normal(field.shape, dtype=np.float32)
    sigma = [size / (2.0 * s) for s in field.grid.spacing]
    smooth = ndimage.gaussian_filter(white, sigma, truncate=2.5)
    return smooth / max(float(smooth.std()), 1e-6) if smooth.size else smooth
