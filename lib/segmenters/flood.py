"""The flood: which connected region of similar grey around a point looks most like what a person would click on.

Everything is measured on small grids (`Patch`), fine near the point and coarser as the flood grows, so that the cost does not
depend on the size of the picture. Candidates are threshold components at many tolerances, their openings (which cut leaks at
their necks) and disks; a log-linear model over a few traits ranks them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage

Pixel = tuple[int, int]
"""(row, column)"""

GRID = 128
"""Cells along the longer side of a patch, at most."""
CROSS = ndimage.generate_binary_structure(2, 1)
SQUARE = np.ones((3, 3), bool)
_TOLERANCES = np.geomspace(2, 230, 16)
_FIRST_HALF = 24
"""Half side in pixels of the first patch around the point; each next one is 2.5 times larger."""
_NEW_AREA = 1.06
"""A flood counts as another candidate when it is so much larger than the last one."""
_OPENINGS = (1, 1.5, 2, 3, 4, 6, 8, 12)
"""Radii in cells."""
_HOLE = 0.5
"""Holes up to this part of a region's area belong to it (marrow in bone), larger ones do not (brain in skull)."""


@dataclass(frozen=True)
class Window:
    """A rectangle of the picture, in pixels, on a coarser grid: one cell covers `factor` x `factor` pixels."""

    top: int
    left: int
    bottom: int
    right: int
    factor: int

    @classmethod
    def clipped(cls, top: int, left: int, bottom: int, right: int, shape: tuple[int, ...]) -> "Window":
        """The part inside a picture of `shape`, with the finest grid of at most `GRID` cells."""
        top, left, bottom, right = max(top, 0), max(left, 0), min(bottom, shape[0]), min(right, shape[1])
        return cls(top, left, bottom, right, -(-max(bottom - top, right - left) // GRID))

    @classmethod
    def around(cls, pixel: Pixel, half: int, shape: tuple[int, ...]) -> "Window":
        row, column = pixel
        return cls.clipped(row - half, column - half, row + half + 1, column + half + 1, shape)

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def holds(self, pixel: Pixel) -> bool:
        return self.top <= pixel[0] < self.bottom and self.left <= pixel[1] < self.right

    def cell(self, pixel: Pixel) -> Pixel:
        return (pixel[0] - self.top) // self.factor, (pixel[1] - self.left) // self.factor


@dataclass(frozen=True, eq=False)
class Place:
    """Where a region is looked for. Arrays are `[row, column]` of the whole picture."""

    grey: np.ndarray
    """uint8."""
    domain: np.ndarray
    """bool: pixels that the region may take."""
    edge: np.ndarray | None
    """bool: what the region grows away from, the mask or its outside; None when there is no mask yet."""
    seed: Pixel
    barred: tuple[Pixel, ...]
    """Clicks of the other sign."""
    reach: float
    """Distance in pixels from the seed to `edge`: a click in the middle of an error has the error's radius here; infinite
    when there is no mask yet."""
    scale: float
    """The least radius in pixels to expect: the reach, but not more than half of the mask's radius."""


class Traits(NamedTuple):
    """What is measured of a candidate, and as weights what each is worth. Lengths are in pixels, logs are natural."""

    edge: float = 0.0
    """Log of the mean edge strength along the boundary, g / (g + 6): is there an edge."""
    contrast: float = 0.0
    """The same with g / (g + 20): is it a strong one."""
    spread: float = 0.0
    """Log of 1 + the standard deviation inside, counted on the side that the flood's threshold bounds."""
    compact: float = 0.0
    """Log of 4 pi area / perimeter^2."""
    central: float = 0.0
    """Log of the seed's depth in the region over the greatest depth: people click in the middle."""
    aside: float = 0.0
    """Distance of the seed from the centre of mass, in radii of the disk of equal area."""
    size: float = 0.0
    """Log of the radius of the disk of equal area."""
    speck: float = 0.0
    """Log of that radius over 4, where below 0."""
    shared: float = 0.0
    """Part of the boundary that lies on the mask's edge."""
    beyond: float = 0.0
    """Part of the region that lies deeper than twice the reach."""
    shallow: float = 0.0
    """Log of the greatest depth over the scale, where below 0."""
    deep: float = 0.0
    """Log of the reach over the greatest depth, where below 0."""
    rest: float = 0.0
    """Log of the part of the domain that remains, a hundredth at least: clicks correct, they do not take everything."""


# Tuned with clicks at the centre of the largest error, on CT and MR slices with pixels of 0.4 to 3 mm.
FIRST = Traits(edge=4, contrast=2.2, spread=-0.2, compact=0.4, central=8.5, aside=-0.65, size=-1, speck=4)
"""Weights for a first click."""
ADD = Traits(
    edge=1.5,
    contrast=0.5,
    spread=-0.15,
    compact=-0.15,
    central=1.1,
    size=-0.2,
    speck=1.5,
    shared=1.5,
    beyond=-1.0,
    shallow=0.6,
    deep=2.9,
    rest=0.3,
)
"""Weights for a positive click outside a mask."""
REMOVE = Traits(
    edge=0.7,
    contrast=1,
    spread=-0.1,
    compact=-0.25,
    central=0.6,
    size=-0.2,
    shared=1,
    beyond=-1.5,
    shallow=1.2,
    deep=2.5,
    rest=0.5,
)
"""Weights for a negative click inside a mask."""


class Patch:
    """A place seen through one window. All arrays are `[row, column]` cells."""

    def __init__(self, place: Place, window: Window):
        self.window = window
        self.grey = shrink(place.grey[window.slices], window.factor)
        self.smooth = ndimage.gaussian_filter(median3(self.grey), 0.7)
        self.domain = shrink(place.domain[window.slices], window.factor) > 0.5
        self.seed = window.cell(place.seed)
        self.barred = [window.cell(pixel) for pixel in place.barred if window.holds(pixel)]
        for cell in self.barred:
            self.domain[cell] = False
        self.domain[self.seed] = True
        self.reach = place.reach / window.factor
        self.scale = place.scale / window.factor
        height, width = place.grey.shape
        self.open = np.zeros(self.grey.shape, bool)
        """Cells where the picture goes on beyond the window."""
        self.open[0] |= window.top > 0
        self.open[-1] |= window.bottom < height
        self.open[:, 0] |= window.left > 0
        self.open[:, -1] |= window.right < width
        self._room = np.count_nonzero(place.domain) / window.factor**2
        self._gradient = gradient(self.smooth)
        self._free = ndimage.binary_erosion(self.domain, SQUARE, border_value=0)
        self._depth: np.ndarray | None = None
        if place.edge is not None:
            edge = shrink(place.edge[window.slices], window.factor) > 0.5
            self._depth = ndimage.distance_transform_edt(~edge) if edge.any() else np.zeros(edge.shape)

    def traits(self, mask: np.ndarray, low: float = 0, high: float = 255) -> Traits:
        """Measure a region; `low` and `high` are the grey levels between which differences inside count."""
        box = bounding_box(mask, 1)
        inside = np.pad(mask[box], 1)
        boundary = (inside & ~ndimage.binary_erosion(inside, CROSS))[1:-1, 1:-1]
        area, perimeter = float(np.count_nonzero(mask)), float(np.count_nonzero(boundary))
        steps = self._gradient[box][boundary & self._free[box]]
        shared = perimeter - len(steps)
        distances = ndimage.distance_transform_edt(inside)
        greatest = distances.max()
        at_seed = distances[self.seed[0] - box[0].start + 1, self.seed[1] - box[1].start + 1]
        length = perimeter if self._depth is None else perimeter - 0.7 * shared
        radius = np.sqrt(area / np.pi)
        rows, columns = np.nonzero(mask)
        aside = float(np.hypot(rows.mean() - self.seed[0], columns.mean() - self.seed[1]))
        beyond = shallow = deep = 0.0
        if self._depth is not None and np.isfinite(self.reach):
            beyond = float((self._depth[box][mask[box]] > 2 * self.reach + 1).mean())
            shallow = min(float(np.log(greatest / self.scale)), 0.0)
            deep = min(float(np.log(self.reach / greatest)), 0.0)
        return Traits(
            edge=float(np.log(max((edge_strength(steps).sum() + 0.5 * shared) / perimeter, 1e-3))),
            contrast=float(np.log(max(((steps / (steps + 20)).sum() + 0.5 * shared) / perimeter, 1e-3))),
            spread=float(np.log1p(np.clip(self.smooth[box][mask[box]], low, high).std())),
            compact=float(np.log(min(4 * np.pi * area / length**2, 1))),
            central=float(np.log(at_seed / greatest)),
            aside=aside / radius,
            size=float(np.log(radius * self.window.factor)),
            speck=min(float(np.log(radius * self.window.factor / 4)), 0.0),
            shared=0.0 if self._depth is None else shared / perimeter,
            beyond=beyond,
            shallow=shallow,
            deep=deep,
            rest=float(np.log(max(1 - area / self._room, 0.01))),
        )


@dataclass(frozen=True, eq=False)
class Region:
    """A candidate on a patch's grid."""

    patch: Patch
    mask: np.ndarray
    low: float
    high: float
    traits: Traits

    def worth(self, weights: Traits) -> float:
        return sum(trait * weight for trait, weight in zip(self.traits, weights, strict=True))


def find_region(place: Place, weights: Traits) -> Region:
    """The candidate around the seed that is worth most."""
    found = [_measured(patch, mask, low, high) for patch, mask, low, high in _floods(place)]
    found.sort(key=lambda region: -region.worth(weights))
    for region in found[:3]:
        found += [_measured(region.patch, mask, region.low, region.high) for mask in _openings(region)]
    if np.isfinite(place.reach):
        patch = Patch(place, Window.around(place.seed, int(3 * place.reach) + 4, place.grey.shape))
        for scale in (0.7, 1.0, 1.5):
            mask = connected(disk(patch.domain.shape, patch.seed, max(scale * patch.reach, 1)) & patch.domain, patch.seed)
            found.append(_measured(patch, mask, 0, 255))
    return max(found, key=lambda region: region.worth(weights))


def _measured(patch: Patch, mask: np.ndarray, low: float, high: float) -> Region:
    return Region(patch, mask, low, high, patch.traits(mask, low, high))


def _floods(place: Place) -> Iterator[tuple[Patch, np.ndarray, float, float]]:
    """Connected regions of the seed within a tolerance of its grey: on both sides, not darker, not brighter.

    A flood that reaches the border of its patch is taken up again in the next, larger one.
    """
    shape = place.grey.shape
    row, column = place.seed
    furthest = max(row, shape[0] - row, column, shape[1] - column)
    halves = [_FIRST_HALF]
    while halves[-1] < furthest:
        halves.append(halves[-1] * 5 // 2)
    patch = Patch(place, Window.around(place.seed, halves[0], shape))
    reference = _reference(patch)
    tolerances = {
        (True, True): list(_TOLERANCES),
        (True, False): [t for t in _TOLERANCES if t <= reference],
        (False, True): [t for t in _TOLERANCES if t <= 255 - reference],
    }
    areas = dict.fromkeys(tolerances, 0.0)
    for half in halves:
        if half > halves[0]:
            patch = Patch(place, Window.around(place.seed, half, shape))
        above = patch.smooth - reference
        for (not_darker, not_brighter), waiting in tolerances.items():
            while waiting:
                inside = patch.domain.copy()
                if not_darker:
                    inside &= above >= -waiting[0]
                if not_brighter:
                    inside &= above <= waiting[0]
                inside[patch.seed] = True
                mask = connected(inside, patch.seed)
                if (mask & patch.open).any():
                    break
                waiting.pop(0)
                area = float(np.count_nonzero(mask)) * patch.window.factor**2
                if area > _NEW_AREA * areas[not_darker, not_brighter]:
                    areas[not_darker, not_brighter] = area
                    low, high = 0.0 if not_darker else reference, 255.0 if not_brighter else reference
                    yield patch, filled(mask) & patch.domain, low, high


def _reference(patch: Patch) -> float:
    """The grey level around the seed: the median over as large a square, up to 7x7, as is no more mixed than the innermost."""
    row, column = patch.seed
    reference, innermost = 0.0, np.inf
    for half in (1, 2, 3):
        at = slice(max(row - half, 0), row + half + 1), slice(max(column - half, 0), column + half + 1)
        values = patch.smooth[at][patch.domain[at]]
        if half == 1:
            innermost = float(values.std())
        elif values.std() > innermost + 4 or not patch.domain[at].all():
            break
        reference = float(np.median(values))
    return reference


def _openings(region: Region) -> Iterator[np.ndarray]:
    """What remains of a region around its seed when narrow parts are cut off, wider and wider ones."""
    box = bounding_box(region.mask, 0)
    mask = region.mask[box]
    seed = region.patch.seed[0] - box[0].start, region.patch.seed[1] - box[1].start
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    last = np.count_nonzero(mask)
    for radius in _OPENINGS:
        if depth[seed] <= radius:
            return
        core = connected(depth > radius, seed)
        opened = connected(mask & (ndimage.distance_transform_edt(~core) <= radius + 0.5), seed)
        if np.count_nonzero(opened) < 0.97 * last:
            last = np.count_nonzero(opened)
            whole = np.zeros_like(region.mask)
            whole[box] = opened
            yield whole


def median3(grey: np.ndarray) -> np.ndarray:
    """3x3 median of `[row, column]` with repeated borders, by Paeth's sorting network (Graphics Gems, 1990): 20 times as
    fast as scipy's."""
    padded = np.pad(grey, 1, mode="edge")
    rows, columns = grey.shape
    v = [padded[r : r + rows, c : c + columns] for r in range(3) for c in range(3)]
    for a, b in (
        (1, 2), (4, 5), (7, 8), (0, 1), (3, 4), (6, 7), (1, 2), (4, 5), (7, 8), (0, 3), (5, 8), (4, 7),
        (3, 6), (1, 4), (2, 5), (4, 7), (4, 2), (6, 4), (4, 2),
    ):  # fmt: skip
        v[a], v[b] = np.minimum(v[a], v[b]), np.maximum(v[a], v[b])
    return v[4]


def gradient(smooth: np.ndarray) -> np.ndarray:
    """Grey levels per two cells of `[row, column]`, at least 0."""
    return np.hypot(ndimage.correlate1d(smooth, [-1, 0, 1], 0), ndimage.correlate1d(smooth, [-1, 0, 1], 1))


def edge_strength(steps: np.ndarray) -> np.ndarray:
    """0..1 for gradients in grey levels per two cells: a half at 6, where noise ends and anatomy begins."""
    return steps / (steps + 6)


def shrink(array: np.ndarray, factor: int) -> np.ndarray:
    """Means of `factor` x `factor` blocks of `[row, column]`, float32; the last blocks are filled up from the border."""
    if factor == 1:
        return array.astype(np.float32)
    rows, columns = array.shape
    padded = np.pad(array, ((0, -rows % factor), (0, -columns % factor)), mode="edge")
    bands = padded.reshape(-1, factor, padded.shape[1]).sum(1, dtype=np.float32)
    return bands.reshape(bands.shape[0], -1, factor).sum(2) / factor**2


def bounding_box(mask: np.ndarray, margin: int) -> tuple[slice, slice]:
    """The smallest rectangle around a mask that is not empty, `margin` cells larger on each side as far as the array goes."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (
        slice(max(int(rows[0]) - margin, 0), int(rows[-1]) + margin + 1),
        slice(max(int(columns[0]) - margin, 0), int(columns[-1]) + margin + 1),
    )


def connected(mask: np.ndarray, seed: Pixel) -> np.ndarray:
    """The 4-connected part of a mask that holds `seed`, which must be in the mask."""
    labels, _ = ndimage.label(mask, CROSS)
    return labels == labels[seed]


def filled(mask: np.ndarray) -> np.ndarray:
    """A mask without its holes, but for those larger than half of it."""
    box = bounding_box(mask, 0)
    labels, count = ndimage.label(~np.pad(mask[box], 1), SQUARE)
    if count == 1:
        return mask
    sizes = np.bincount(labels.ravel())
    small = sizes <= _HOLE * np.count_nonzero(mask)
    small[[0, labels[0, 0]]] = False
    result = mask.copy()
    result[box] |= small[labels][1:-1, 1:-1]
    return result


def disk(shape: tuple[int, ...], centre: Pixel, radius: float) -> np.ndarray:
    """bool of `shape`: the cells within `radius` of `centre`."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2
