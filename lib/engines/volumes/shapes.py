"""Shapes between slices: signed distances, and what interpolates, moves and fuses them.

Shape-based interpolation as of Raya and Udupa, IEEE Transactions on Medical Imaging 9 (1990): the distances to the edges of two
masks are interpolated, and the slice's mask is where the result is positive. All arrays are `[height, width]` of one box of a
view; distances are in pixels.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage


def signed_distance(mask: np.ndarray) -> np.ndarray:
    """float32: distance to the mask's edge, positive inside, negative outside; the array's border is no edge.

    Without an edge the distance is the array's longer side.
    """
    if mask.all() or not mask.any():
        return np.where(mask, 1, -1).astype(np.float32) * max(mask.shape)
    inside, outside = ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask)
    return np.where(mask, inside - 0.5, 0.5 - outside).astype(np.float32)


def interpolated(low: np.ndarray, high: np.ndarray, share: float) -> np.ndarray:
    """The signed distance at `share` (0..1) of the way from one to another. Towards an empty one the shape shrinks and
    is gone half-way: where it ends is not known, and half-way is the mean."""
    low, high = (one if (one > 0).any() else np.full_like(one, -other.max()) for one, other in ((low, high), (high, low)))
    return (1 - share) * low + share * high


def moved(distance: np.ndarray, mask: np.ndarray, reach: float) -> np.ndarray:
    """The signed distance, its edge moved half-way towards that of `mask`, by at most `reach` pixels."""
    return distance + 0.5 * np.clip(signed_distance(mask) - distance, -2 * reach, 2 * reach)


def fused(distances: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """The weighted mean of signed distances; weights are not negative and not all zero."""
    return np.average(np.stack(distances), axis=0, weights=weights)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union; 1 for two empty masks."""
    union = np.count_nonzero(a | b)
    return float(np.count_nonzero(a & b) / union) if union else 1.0


def box(masks: Sequence[np.ndarray], margin: int) -> tuple[slice, slice]:
    """The rows and columns that hold all the masks, one at least with a pixel, and `margin` pixels around them."""
    rows, columns = ndimage.find_objects(np.logical_or.reduce(masks).astype(np.uint8))[0]
    return (
        slice(max(0, rows.start - margin), rows.stop + margin),
        slice(max(0, columns.start - margin), columns.stop + margin),
    )
