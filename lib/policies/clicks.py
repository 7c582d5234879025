"""Where an expert clicks next: at the centre of the largest error."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from lib.agent.protocol import Click
from lib.imaging.planes import ViewPoint

_TIE = 1e-6


@dataclass(frozen=True)
class Error:
    """The largest error of a mask."""

    click: Click
    """At its centre."""
    radius: float
    """Of the largest circle inside it, in pixels."""


def next_click(mask: np.ndarray | None, reference: np.ndarray, avoid: Iterable[ViewPoint] = ()) -> Click | None:
    """The click at the centre of the largest error, as `largest_error` finds it; None when there is none."""
    error = largest_error(mask, reference, avoid)
    return None if error is None else error.click


def largest_error(mask: np.ndarray | None, reference: np.ndarray, avoid: Iterable[ViewPoint] = ()) -> Error | None:
    """The largest error of `mask` against `reference`; None when there is no error left to click on.

    Both are bool `[height, width]`; no mask counts as an empty one. The largest error is the one with the largest inscribed
    circle, by the exact Euclidean distance transform with the picture's border as an edge (as simulated users click since
    Xu et al., Deep Interactive Object Selection, CVPR 2016). Missed pixels give a positive click and win ties against wrongly
    included ones. Of several deepest pixels the one nearest to their mean counts, then the first by row and column. Pixels at
    the points of `avoid` and next to them are passed over.
    """
    current = np.zeros_like(reference) if mask is None else mask
    height, width = reference.shape
    passed = np.ones_like(reference)
    for point in avoid:
        column, row = point.pixel(width, height)
        passed[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = False
    missed, missed_radius = _deepest(reference & ~current, passed)
    extra, extra_radius = _deepest(current & ~reference, passed)
    positive = missed_radius >= extra_radius - _TIE
    place = missed if positive else extra
    if place is None:
        return None
    row, column = place
    return Error(Click(ViewPoint.of_pixel(column, row, width, height), positive), missed_radius if positive else extra_radius)


def _deepest(region: np.ndarray, allowed: np.ndarray) -> tuple[tuple[int, int] | None, float]:
    """(row, column) of the allowed pixel furthest from the region's edge, and that distance in pixels; None and 0 for none."""
    boxes = ndimage.find_objects(region.astype(np.uint8))
    if not boxes:
        return None, 0.0
    rows, columns = boxes[0]
    padded = np.pad(region[boxes[0]], 1)
    depth = ndimage.distance_transform_edt(padded)[1:-1, 1:-1] * allowed[boxes[0]]
    deepest = float(depth.max())
    if deepest == 0:
        return None, 0.0
    peaks = np.argwhere(depth >= deepest - _TIE)
    row, column = peaks[np.square(peaks - peaks.mean(axis=0)).sum(axis=1).argmin()]
    return (int(rows.start + row), int(columns.start + column)), deepest
