"""A segmenter without weights: each click's region by flood and graph cut, the mask by adding and removing them in turn.

The graph cut follows Boykov and Jolly (ICCV 2001): grey histograms of the flood and of its surroundings as data term, the
signed distance to the flood as shape term, contrast-weighted neighbours, solved by numpymaxflow (BSD) on a grid of at most
`GRID` cells a side. A larger region is solved on a coarser grid and its boundary drawn at pixel resolution afterwards.

Threads: no shared state at all. Every function is pure, a state is never changed, equal clicks on equal views give equal masks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import numpymaxflow
from scipy import ndimage

from lib.agent.limits import UNLIMITED, Bound
from lib.agent.protocol import Click
from lib.agent.segmenter import Prediction, State
from lib.errors import EngineError
from lib.imaging.views import View
from lib.segmenters.flood import (
    ADD,
    CROSS,
    FIRST,
    REMOVE,
    SQUARE,
    Patch,
    Pixel,
    Place,
    Region,
    Window,
    bounding_box,
    connected,
    disk,
    edge_strength,
    filled,
    find_region,
    gradient,
    median3,
    shrink,
)

_SMOOTHNESS = 2.0
"""Weight of the neighbour term."""
_BINS = 32
"""Grey histogram bins."""
_CERTAIN = 30.0
"""Log-odds of a cell whose side is given."""


@dataclass(frozen=True, eq=False)
class Canvas:
    """One view and the clicks on it so far."""

    view: View
    grey: np.ndarray | None = None
    """uint8 `[height, width]`; None until the first click: a view that nobody clicks on is never rendered."""
    marks: np.ndarray | None = None
    """int8 `[height, width]`: 1 in the mask, -1 removed by a negative click, 0 never touched."""
    clicks: tuple[tuple[Pixel, bool], ...] = ()
    """Where, and whether positive; oldest first."""


class GraphCut:
    """Implements `lib.agent.segmenter.Segmenter`.

    The mask holds every positive click's pixel and no negative click's; of two clicks on one pixel the later counts. A positive
    click only adds to the mask, a negative click only removes from it, and neither changes anything where the mask already
    agrees with it.
    """

    name = "graphcut"
    about: Mapping[str, str] = MappingProxyType({})

    def start(self, views: Sequence[View], limits: Bound = UNLIMITED) -> list[State | EngineError]:
        return [Canvas(view) for view in views]

    def click(
        self, states: Sequence[State], clicks: Sequence[Click], limits: Bound = UNLIMITED
    ) -> list[Prediction | EngineError]:
        return [_click(state, click) for state, click in zip(states, clicks, strict=True)]


def _click(state: Canvas, click: Click) -> Prediction:
    grey = state.view.grey() if state.grey is None else state.grey
    height, width = grey.shape
    column, row = click.point.pixel(width, height)
    seed = (row, column)
    clicks = (*state.clicks, (seed, click.positive))
    marks = np.zeros(grey.shape, np.int8) if state.marks is None else state.marks.copy()
    signs = dict(clicks)
    if (marks[seed] == 1) != click.positive:
        _apply(grey, marks, seed, signs)
    for pixel, positive in signs.items():
        marks[pixel] = 1 if positive else -1
    mask = marks == 1
    return Prediction(mask, _score(grey, mask), replace(state, grey=grey, marks=marks, clicks=clicks))


def _apply(grey: np.ndarray, marks: np.ndarray, seed: Pixel, signs: dict[Pixel, bool]) -> None:
    """Write the region of the last click, at `seed`, into `marks`."""
    positive = signs[seed]
    mask = marks == 1
    edge = mask if positive else ~mask
    domain = ~edge
    if positive and marks[seed] == 0:
        domain &= marks == 0
    barred = tuple(pixel for pixel, sign in signs.items() if sign != positive)
    reach = _distance(edge, seed)
    if not positive:
        reach = min(reach, seed[0] + 1, seed[1] + 1, marks.shape[0] - seed[0], marks.shape[1] - seed[1])
    scale = min(reach, 0.5 * float(np.sqrt(np.count_nonzero(mask) / np.pi)))
    place = Place(grey, domain, edge if mask.any() else None, seed, barred, reach, scale)
    weights = REMOVE if not positive else ADD if mask.any() else FIRST
    window, part = _cut(place, find_region(place, weights))
    near = ndimage.binary_dilation(part, SQUARE, iterations=2)
    inside = marks[window.slices]
    if positive:
        inside[part] = 1
        closed = ndimage.binary_closing(np.pad(inside == 1, 2), SQUARE)[2:-2, 2:-2]
        inside[closed & near & (inside == 0)] = 1
        marks[filled(marks == 1) & (marks == 0)] = 1
    else:
        inside[part] = -1
        left = inside == 1
        inside[left & near & ~ndimage.binary_opening(left | ~near, SQUARE)] = -1
        _drop_crumbs(marks, window, near, np.count_nonzero(part), signs)


def _distance(mask: np.ndarray, seed: Pixel) -> float:
    """From `seed` to the nearest pixel of a mask; infinite when it is empty."""
    rows, columns = np.nonzero(mask)
    if len(rows) == 0:
        return np.inf
    return float(np.sqrt(((rows - seed[0]) ** 2 + (columns - seed[1]) ** 2).min()))


def _drop_crumbs(marks: np.ndarray, window: Window, near: np.ndarray, area: int, signs: dict[Pixel, bool]) -> None:
    """Remove what a removal of `area` pixels cut off: the pieces beside it that are smaller and hold no positive click."""
    pieces, count = ndimage.label(marks == 1, CROSS)
    if count < 2:
        return
    crumb = np.zeros(count + 1, bool)
    crumb[np.unique(pieces[window.slices][near])] = True
    crumb &= np.bincount(pieces.ravel(), minlength=count + 1) < area
    crumb[[0] + [pieces[pixel] for pixel, positive in signs.items() if positive]] = False
    marks[crumb[pieces]] = -1


def _cut(place: Place, region: Region) -> tuple[Window, np.ndarray]:
    """Refine a flood. Returns a window and the connected region of the seed in it, bool at pixel resolution."""
    flood, factor = region.patch.window, region.patch.window.factor
    rows, columns = bounding_box(region.mask, 0)
    top, bottom = flood.top + rows.start * factor, flood.top + rows.stop * factor
    left, right = flood.left + columns.start * factor, flood.left + columns.stop * factor
    margin = max(4, 4 * factor, max(bottom - top, right - left) // 5)
    window = Window.clipped(top - margin, left - margin, bottom + margin, right + margin, place.grey.shape)
    patch = Patch(place, window)
    prior = _resampled(region, window, patch.domain.shape) & patch.domain
    prior[patch.seed] = True
    inside = ndimage.distance_transform_edt(np.pad(prior, 1))[1:-1, 1:-1]
    outside = ndimage.distance_transform_edt(~prior)
    size = inside.max()
    ring = patch.domain & ~prior & (outside <= max(3, size))
    bins = (ndimage.gaussian_filter(patch.grey, 0.5) * (_BINS / 256)).astype(int)
    evidence = np.clip(np.log(_histogram(bins[prior]) / _histogram(bins[ring])), -4, 4)
    shape = np.clip((inside - outside) / max(1.5, 0.35 * size), -3, 1.5)
    odds = evidence[bins] + shape
    odds[disk(odds.shape, patch.seed, min(2, size / 3))] = _CERTAIN
    odds[~patch.domain | patch.open] = -_CERTAIN
    odds[patch.seed] = _CERTAIN
    solved = filled(connected(_solve(patch.grey, odds), patch.seed)) & patch.domain
    part = _refined(solved, place.grey[window.slices], evidence, window.factor) & place.domain[window.slices]
    for pixel in place.barred:
        if window.holds(pixel):
            part[pixel[0] - window.top, pixel[1] - window.left] = False
    seed = place.seed[0] - window.top, place.seed[1] - window.left
    part[seed] = True
    return window, connected(part, seed)


def _resampled(region: Region, window: Window, shape: tuple[int, ...]) -> np.ndarray:
    """A region on the grid of another window, by nearest cell."""
    source = region.patch.window
    rows = (np.arange(shape[0]) * window.factor + window.factor // 2 + window.top - source.top) // source.factor
    columns = (np.arange(shape[1]) * window.factor + window.factor // 2 + window.left - source.left) // source.factor
    height, width = region.mask.shape
    known = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    return known & region.mask[rows.clip(0, height - 1)][:, columns.clip(0, width - 1)]


def _histogram(bins: np.ndarray) -> np.ndarray:
    counts = ndimage.gaussian_filter1d(np.bincount(bins, minlength=_BINS).astype(float), 1) + 0.5
    return counts / counts.sum()


def _solve(grey: np.ndarray, odds: np.ndarray) -> np.ndarray:
    """The minimum cut for log-odds `[row, column]` of lying inside; bool."""
    steps = np.concatenate([np.diff(grey, axis=0).ravel(), np.diff(grey, axis=1).ravel()])
    sigma = max(float(np.sqrt((steps**2).mean())), 1.0) if steps.size else 1.0
    inside = 1 / (1 + np.exp(-odds))
    probability = np.stack([1 - inside, inside]).clip(1e-13).astype(np.float32)
    return numpymaxflow.maxflow(grey[None], probability, _SMOOTHNESS, sigma, 4)[0] > 0


def _refined(solved: np.ndarray, grey: np.ndarray, evidence: np.ndarray, factor: int) -> np.ndarray:
    """A solution on a coarse grid at pixel resolution: its smooth boundary, moved a little where the grey speaks for it."""
    if factor == 1:
        return solved
    field = ndimage.gaussian_filter(np.where(solved, np.float32(1), np.float32(-1)), 0.7)
    field = ndimage.zoom(field, factor, order=1, grid_mode=True, mode="nearest")[: grey.shape[0], : grey.shape[1]]
    bins = (ndimage.gaussian_filter(grey.astype(np.float32), 0.8) * (_BINS / 256)).astype(int)
    return field + 0.15 * np.clip(evidence, -2, 2)[bins] > 0


def _score(grey: np.ndarray, mask: np.ndarray) -> float:
    """How much of the mask's boundary lies on an edge: the mean of g / (g + 6) along it, g in grey levels per two cells."""
    if not mask.any():
        return 0.0
    rows, columns = bounding_box(mask, 2)
    window = Window.clipped(rows.start, columns.start, rows.stop, columns.stop, grey.shape)
    grid = shrink(grey[window.slices], window.factor)
    inside = np.pad(shrink(mask[window.slices], window.factor) >= 0.5, 1)
    boundary = (inside & ~ndimage.binary_erosion(inside, CROSS))[1:-1, 1:-1]
    if not boundary.any():
        return 0.0
    return float(edge_strength(gradient(ndimage.gaussian_filter(median3(grid), 0.7))[boundary]).mean())
