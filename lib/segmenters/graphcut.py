from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpymaxflow
from scipy import ndimage

from lib.agent.protocol import Click
from lib.agent.segmenter import Prediction
from lib.imaging.views import View
from lib.segmenters.flood import Patch, Place, Region, Window, best_region, connected, disk, grown_box, shrink

_CROSS = ndimage.generate_binary_structure(2, 1)
_SQUARE = np.ones((3, 3), bool)
LAMBDA = 2.0
SD = 0.35
BINS = 32


@dataclass(frozen=True, eq=False)
class Canvas:
    view: View
    clicks: tuple[Click, ...] = ()
    grey: np.ndarray | None = None
    labels: np.ndarray | None = None
    """int8: 1 in the mask, -1 removed, 0 untouched"""


class GraphCut:
    name = "graphcut"

    def start(self, views: Sequence[View]) -> list[Canvas]:
        return [Canvas(view) for view in views]

    def click(self, states: Sequence[Canvas], clicks: Sequence[Click]) -> list[Prediction]:
        return [_click(s, c) for s, c in zip(states, clicks, strict=True)]


def _click(state: Canvas, click: Click) -> Prediction:
    grey = state.view.grey() if state.grey is None else state.grey
    labels = np.zeros(grey.shape, np.int8) if state.labels is None else state.labels
    width, height = state.view.size
    column, row = click.point.pixel(width, height)
    seed = (row, column)
    mask = labels == 1
    positive = click.positive
    signs = {}
    for c in state.clicks:
        x, y = c.point.pixel(width, height)
        signs[(y, x)] = c.positive
    signs[seed] = positive
    score = 1.0
    new = labels.copy()
    if mask[seed] == positive:
        new[seed] = 1 if positive else -1
    else:
        domain = ~mask if positive else mask.copy()
        if positive and labels[seed] == 0:
            domain &= labels == 0
        barred = tuple(p for p, s in signs.items() if s != positive)
        other = mask if positive else ~mask
        reach = np.inf
        if positive and mask.any() or not positive:
            rr, cc = np.nonzero(other)
            d = (rr - row) ** 2 + (cc - column) ** 2
            reach = float(np.sqrt(d.min())) if len(d) else np.inf
            if not positive:
                reach = min(reach, row + 1, column + 1, height - row, width - column)
        scale = 0.5 * np.sqrt(mask.sum() / np.pi) if mask.any() else np.inf
        place = Place(grey, domain, seed, barred, reach, scale, other)
        region = best_region(place)
        score = region.score
        part = cut(place, region)
        part &= domain
        for p in barred:
            part[p] = False
        part[seed] = True
        part = connected(part, seed)
        new[part] = 1 if positive else -1
        new = tidy(new, part, signs, positive)
    return Prediction(new == 1, score, replace(state, clicks=(*state.clicks, click), grey=grey, labels=new))


def tidy(labels, part, signs, positive):
    box = grown_box(part, 3)
    lab = labels[box]
    m = lab == 1
    near = ndimage.binary_dilation(part[box], _SQUARE, iterations=2)
    if positive:
        closed = ndimage.binary_closing(np.pad(m, 2), _SQUARE)[2:-2, 2:-2]
        hole = closed & ~m & near
        lab[hole] = 1
        full = labels == 1
        filled = ndimage.binary_fill_holes(full) & ~full & (labels == 0)
        labels[filled] = 1
    else:
        opened = ndimage.binary_opening(m | ~near, _SQUARE)
        lab[m & ~opened & near] = -1
        full = labels == 1
        names, n = ndimage.label(full, _CROSS)
        if n > 1:
            sizes = np.bincount(names.ravel())
            keep = sizes >= part.sum()
            for p, s in signs.items():
                if s:
                    keep[names[p]] = True
            touched = np.zeros(n + 1, bool)
            touched[np.unique(names[box][ndimage.binary_dilation(part[box], _SQUARE, iterations=3)])] = True
            drop = touched & ~keep
            drop[0] = False
            labels[drop[names]] = -1
    for p, s in signs.items():
        labels[p] = 1 if s else -1
    return labels


def cut(place: Place, region: Region) -> np.ndarray:
    w = region.patch.window
    f = w.factor
    box = grown_box(region.mask, 0)
    top, bottom = w.top + box[0].start * f, w.top + box[0].stop * f
    left, right = w.left + box[1].start * f, w.left + box[1].stop * f
    margin = max(4, 4 * f, (max(bottom - top, right - left)) // 5)
    win = Window.of(top - margin, left - margin, bottom + margin, right + margin, place.grey.shape)
    patch = Patch(place, win)
    # shape prior at pixel resolution, then on the patch's grid
    rows = (np.arange(patch.domain.shape[0]) * win.factor + win.factor // 2 + win.top - w.top) // f
    cols = (np.arange(patch.domain.shape[1]) * win.factor + win.factor // 2 + win.left - w.left) // f
    ok = ((rows >= 0) & (rows < region.mask.shape[0]))[:, None] & ((cols >= 0) & (cols < region.mask.shape[1]))
    prior = region.mask[np.clip(rows, 0, region.mask.shape[0] - 1)][:, np.clip(cols, 0, region.mask.shape[1] - 1)] & ok
    prior &= patch.domain
    prior[patch.seed] = True
    inside = ndimage.distance_transform_edt(np.pad(prior, 1))[1:-1, 1:-1]
    outside = ndimage.distance_transform_edt(~prior)
    size = inside.max()
    ring = (outside > 0) & (outside <= max(3, size)) & patch.domain
    bins = (patch.grey * (BINS / 256)).astype(int)
    ratio = np.clip(np.log(_histogram(bins[prior]) / _histogram(bins[ring])), -4, 4) if ring.any() else np.zeros(BINS)
    shape = np.clip((inside - outside) / max(1.5, SD * size), -3, 1.5)
    unary = ratio[bins] + shape
    field = unary
    unary = np.where(patch.domain, unary, -30)
    unary[disk(unary.shape, patch.seed, min(2, size / 3)) & patch.domain] = 30
    for cell in patch.barred:
        unary[cell] = -30
    if win.top > 0: unary[0] = -30
    if win.left > 0: unary[:, 0] = -30
    if win.bottom < place.grey.shape[0]: unary[-1] = -30
    if win.right < place.grey.shape[1]: unary[:, -1] = -30
    unary[patch.seed] = 30
    probability = 1 / (1 + np.exp(-unary))
    g = patch.grey
    d = np.concatenate([np.diff(g, axis=0).ravel(), np.diff(g, axis=1).ravel()])
    sigma = max(float(np.sqrt((d**2).mean())), 1.0)
    solved = numpymaxflow.maxflow(
        g[None].astype(np.float32), np.stack([1 - probability, probability]).clip(1e-13).astype(np.float32), LAMBDA, sigma, 4
    )[0] > 0
    solved = ndimage.binary_fill_holes(solved) & patch.domain
    solved = connected(solved, patch.seed)
    out = np.zeros(place.grey.shape, bool)
    out[win.slices] = _refine(place, patch, solved, ratio)
    return out


def _refine(place, patch, solved, ratio):
    win = patch.window
    f = win.factor
    fine_shape = (win.bottom - win.top, win.right - win.left)
    if f == 1:
        return solved
    signed = np.where(solved, 1.0, -1.0)
    signed = ndimage.gaussian_filter(signed, 0.7)
    up = ndimage.zoom(signed, f, order=1, grid_mode=True, mode="nearest")[: fine_shape[0], : fine_shape[1]]
    grey = place.grey[win.slices]
    app = ratio[(ndimage.gaussian_filter(grey.astype(np.float32), 0.8) * (BINS / 256)).astype(int)]
    return (up + 0.15 * np.clip(app, -2, 2)) > 0


def _histogram(bins):
    h = ndimage.gaussian_filter1d(np.bincount(bins, minlength=BINS).astype(float), 1) + 0.5
    return h / h.sum()
