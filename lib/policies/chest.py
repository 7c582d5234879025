"""The lungs in a CT, and which is which."""

import numpy as np
from scipy import ndimage

from lib.policies.landmarks import Landmarks
from lib.policies.tissue import components, distance, erode, planewise

_SQUARE = ndimage.generate_binary_structure(2, 2)


def lungs(marks: Landmarks) -> np.ndarray:
    """bool `[r, a, s]`: both lungs with the vessels inside them, without trachea and main bronchi."""
    airy = marks.airy
    if not airy.any():
        return airy
    closed = planewise(ndimage.binary_closing, airy, _SQUARE, 2)
    for s in np.flatnonzero(closed.any(axis=(0, 1))):
        holes = ndimage.binary_fill_holes(closed[:, :, s]) & ~closed[:, :, s]
        closed[:, :, s] |= ndimage.binary_opening(holes) ^ holes
    return closed & marks.body & ~marks.airway


def one_lung(marks: Landmarks, both: np.ndarray, right: bool) -> np.ndarray:
    """bool `[r, a, s]`: the parts of `both` lungs on one side; where the lungs touch before the heart, their cores decide."""
    found = np.zeros_like(both)
    own = (marks.aside > 0) == right
    for part, box, size in components(both):
        share = (part & own[box[0], :, box[2]]).sum() / size
        if share > 0.85:
            found[box] |= part
        elif share > 0.15:
            found[box] |= _split(part, own[box[0], :, box[2]], marks.spacing)
    return found


def _split(part: np.ndarray, own: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """The side `own` of one part that spans both: eroded until it falls into two lungs, which then take what is nearer."""
    for depth in (5, 8, 12, 16, 20):
        cores = erode(part, depth, spacing, border=False)
        mine, others = np.zeros_like(part), np.zeros_like(part)
        for core, box, size in components(cores):
            if size < 0.02 * cores.sum():
                break
            here = (core & own[box[0], :, box[2]]).sum() > size / 2
            (mine if here else others)[box] |= core
        if mine.any() and others.any() and min(mine.sum(), others.sum()) > 0.1 * cores.sum():
            return part & (distance(~mine, spacing) <= distance(~others, spacing))
    return part & own
