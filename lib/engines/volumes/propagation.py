"""Propagation: masks for the slices between two that were looked at, from both sides.

With a segmenter that remembers slices each side's mask is followed through the gap, and the two are fused. With another one the
shape between both sides is interpolated, and its edge moved towards what clicks at its centre draw on the slice's own picture.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lib.agent.engine import Engine
from lib.agent.limits import Limits
from lib.agent.segmenter import Propagator
from lib.engines.volumes.carrying import Views, draw, tissue_of
from lib.engines.volumes.shapes import box, fused, interpolated, iou, moved, signed_distance
from lib.engines.volumes.survey import Gap
from lib.errors import EngineError
from lib.imaging import rle
from lib.imaging.rle import Rle

_JUMP = 0.3
"""A followed mask that overlaps less (IoU) with its neighbour's has left the object, or the object has ended."""
Masks = Mapping[int, np.ndarray]
"""Bool `[height, width]` by slice; empty where the target is absent."""


@dataclass(frozen=True, eq=False)
class Carried:
    """A slice's mask from its neighbours."""

    mask: Rle
    agreement: float
    """IoU of the masks from both sides, or of the clicks' mask with the interpolated one, 0..1."""
    score: float
    """The segmenter's, 0..1."""


def propagate(gap: Gap, masks: Masks, views: Views, engine: Engine, limits: Limits, reach_mm: float) -> dict[int, Carried]:
    """The slices of `gap` on which the target goes on, as far as limits allow.

    `masks` has the gap's ends, one at least with the target; a gap that ends at the volume's end is treated as if the target
    were absent beyond. `reach_mm` is how far clicks may move an edge. Raises EngineError when the segmenter fails.
    """
    shape = _Shape(gap, masks, views(gap.slices[0]).grid.pixel_mm, reach_mm)
    if isinstance(engine.segmenter, Propagator):
        return _followed(gap, masks, shape, views, engine.segmenter, limits)
    return _clicked(gap, masks, shape, views, engine, limits, reach_mm)


class _Shape:
    """The interpolated shape in a gap."""

    def __init__(self, gap: Gap, masks: Masks, pixel_mm: float, reach_mm: float):
        low = gap.slices[0] - 1 if gap.low is None else gap.low
        high = gap.slices[-1] + 1 if gap.high is None else gap.high
        self._low, self._length = low, high - low
        known = next(mask for mask in masks.values())
        below, above = (np.zeros_like(known) if end is None else masks[end] for end in (gap.low, gap.high))
        self.box = box([below, above], margin=int(2 * reach_mm / pixel_mm) + 3)
        self._size = known.shape
        self._below, self._above = signed_distance(below[self.box]), signed_distance(above[self.box])

    def share(self, index: int) -> float:
        """How far the slice is from the lower end to the upper, 0..1."""
        return (index - self._low) / self._length

    def at(self, index: int) -> np.ndarray:
        """Signed distance in the box."""
        return interpolated(self._below, self._above, self.share(index))

    def whole(self, distance: np.ndarray) -> np.ndarray:
        """A signed distance in the box as a mask of the whole view."""
        mask = np.zeros(self._size, bool)
        mask[self.box] = distance > 0
        return mask


def _clicked(
    gap: Gap, masks: Masks, shape: _Shape, views: Views, engine: Engine, limits: Limits, reach_mm: float
) -> dict[int, Carried]:
    ends = [end for end in (gap.low, gap.high) if end is not None and masks[end].any()]
    tissues = {end: tissue_of(views(end), masks[end]) for end in ends}
    carried = {}
    order = gap.slices if gap.low in ends else gap.slices[::-1]
    for index in order:
        view, distance = views(index), shape.at(index)
        expected = shape.whole(distance)
        if not expected.any():
            continue
        near = min(ends, key=lambda end: abs(end - index))
        drawn = draw(view, expected, tissues[near], engine, limits)
        if not drawn.outcome.conclusive:
            if limits.reached() is None:
                raise EngineError(drawn.outcome.detail)
            break
        if drawn.found:
            mask = rle.decode(drawn.outcome.mask)
            fitted = shape.whole(moved(distance, mask[shape.box], reach_mm / view.grid.pixel_mm))
            score = next(step.score for step in reversed(drawn.outcome.steps) if step.mask is not None)
            carried[index] = Carried(rle.encode(fitted), iou(mask, expected), score or 0.0)
        elif len(ends) == 2:
            carried[index] = Carried(rle.encode(expected), 0.0, 0.0)
        else:
            break
    return carried


def _followed(gap: Gap, masks: Masks, shape: _Shape, views: Views, memory: Propagator, limits: Limits) -> dict[int, Carried]:
    ways = ((gap.low, gap.slices), (gap.high, gap.slices[::-1]))
    sides = {
        end: _follow(end, order, masks[end], views, memory, limits)
        for end, order in ways
        if end is not None and masks[end].any()
    }
    if limits.reached() is not None:
        return {}
    carried = {}
    for index in gap.slices:
        expected = shape.whole(shape.at(index))
        met = {end: side[index] for end, side in sides.items() if index in side}
        if met:
            carried[index] = _met(met, expected, shape.share(index), gap)
        elif len(sides) == 2 and expected.any():
            carried[index] = Carried(rle.encode(expected), 0.0, 0.0)
    return carried


def _met(met: Mapping[int, tuple[np.ndarray, float]], expected: np.ndarray, share: float, gap: Gap) -> Carried:
    """The masks (and scores) that came from the gap's ends as one: the nearer end counts more, and so does the mask that the
    segmenter scores higher and that is more like the interpolated one."""
    masks = [mask for mask, _ in met.values()]
    scores = [score for _, score in met.values()]
    nearness = [1 - share if end == gap.low else share for end in met]
    weights = [near * score * iou(mask, expected) + 1e-6 for near, score, mask in zip(nearness, scores, masks, strict=True)]
    region = box(masks, margin=2)
    mask = np.zeros_like(expected)
    mask[region] = fused([signed_distance(one[region]) for one in masks], weights) > 0
    agreement = iou(*masks) if len(masks) == 2 else iou(masks[0], expected)
    return Carried(rle.encode(mask), agreement, float(np.average(scores, weights=weights)))


def _follow(
    end: int, order: tuple[int, ...], mask: np.ndarray, views: Views, memory: Propagator, limits: Limits
) -> dict[int, tuple[np.ndarray, float]]:
    """By the memory from the slice `end`, until the object has ended: (mask, score) by slice."""
    found = {}
    along = memory.propagate([views(index) for index in (end, *order)], mask, limits)
    for index, (next_mask, score) in zip(order, along, strict=False):
        if not next_mask.any() or iou(mask, next_mask) < _JUMP:
            break
        found[index] = (next_mask, score)
        mask = next_mask
    return found
