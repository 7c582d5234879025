"""Where simulated annotators click: the strategies that the field trains and evaluates interactive segmentation with."""

from collections.abc import Iterable
from enum import StrEnum

import numpy as np
from scipy import ndimage

from lib.agent.protocol import Click
from lib.imaging.planes import ViewPoint
from lib.policies.clicks import next_click

EIGHT = np.ones((3, 3), dtype=bool)


class Strategy(StrEnum):
    """How the next click is drawn from the errors of a mask."""

    CENTER = "center"
    """The centre of the largest error; no chance in it (Xu et al., CVPR 2016; as evaluations click)."""
    INNER = "inner"
    """Uniformly inside the largest error, at least half as deep as its deepest pixel (RITM: Sofiiuk et al., ICIP 2022)."""
    RANDOM = "random"
    """Uniformly inside the largest error, up to its edge."""
    WEIGHTED = "weighted"
    """An error drawn with a chance proportional to its area, missed or wrong alike, and in it as INNER does."""


def pick(
    strategy: Strategy, mask: np.ndarray, reference: np.ndarray, avoid: Iterable[ViewPoint], rng: np.random.Generator
) -> Click | None:
    """The next click on an error of `mask` against `reference`, both bool `[height, width]`; None when there is none left.

    Pixels at the points of `avoid` and next to them are passed over. The largest error is that of `lib.policies.clicks`.
    """
    avoid = tuple(avoid)
    if strategy is Strategy.WEIGHTED:
        region = _drawn(reference & ~mask, mask & ~reference, avoid, rng)
    else:
        centre = next_click(mask, reference, avoid)
        if centre is None or strategy is Strategy.CENTER:
            return centre
        region = part_at(reference & ~mask if centre.positive else mask & ~reference, centre.point)
    if region is None:
        return None
    allowed = region & _clear(region.shape, avoid)
    if strategy is not Strategy.RANDOM:
        depth = np.where(allowed, depths(region), 0)
        allowed = depth >= depth.max() / 2
    rows, columns = np.nonzero(allowed)
    chosen = int(rng.integers(rows.size))
    row, column = int(rows[chosen]), int(columns[chosen])
    height, width = mask.shape
    return Click(ViewPoint.of_pixel(column, row, width, height), bool(reference[row, column]))


def part_at(region: np.ndarray, point: ViewPoint) -> np.ndarray:
    """The connected part (8 neighbours) of `region`, bool `[height, width]`, that holds the pixel at `point`; empty where the
    region does not hold it."""
    height, width = region.shape
    column, row = point.pixel(width, height)
    parts, _ = ndimage.label(region, EIGHT)
    return (parts == parts[row, column]) & region if region[row, column] else np.zeros_like(region)


def depths(region: np.ndarray) -> np.ndarray:
    """Distance of each pixel of `region` to its edge in pixels, the picture's border counted as one; 0 outside."""
    found = np.zeros(region.shape)
    boxes = ndimage.find_objects(region.astype(np.uint8))
    if boxes:
        found[boxes[0]] = ndimage.distance_transform_edt(np.pad(region[boxes[0]], 1))[1:-1, 1:-1]
    return found


def _drawn(missed: np.ndarray, extra: np.ndarray, avoid: tuple[ViewPoint, ...], rng: np.random.Generator) -> np.ndarray | None:
    """A connected part of an error that has a pixel to click on, with a chance proportional to the area of such pixels."""
    parts, count = ndimage.label(missed, EIGHT)
    parts[extra] = (ndimage.label(extra, EIGHT)[0] + count)[extra]
    labels, areas = np.unique(parts[(missed | extra) & _clear(missed.shape, avoid)], return_counts=True)
    if labels.size == 0:
        return None
    return parts == rng.choice(labels, p=areas / areas.sum())


def _clear(shape: tuple[int, ...], avoid: Iterable[ViewPoint]) -> np.ndarray:
    height, width = shape
    clear = np.ones((height, width), dtype=bool)
    for point in avoid:
        column, row = point.pixel(width, height)
        clear[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = False
    return clear
