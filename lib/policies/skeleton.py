"""Bones in a CT."""

import numpy as np
from scipy import ndimage

from lib.policies.landmarks import Landmarks
from lib.policies.tissue import components, depth_in_planes, dilate, planewise

MARROW = 120
"""HU down to which bone is followed from its dense parts: spongy bone, and cortex thinned by partial volume."""
VESSEL = 230
"""HU above which even tissue beside a vertebra is blood with contrast medium rather than marrow."""
CARTILAGE = 180
"""HU that costal cartilage, in the front of the chest, seldom reaches."""
MARROW_MM2 = 1600
"""An adult's femoral head or vertebral body."""
_SQUARE = ndimage.generate_binary_structure(2, 2)


def bones(marks: Landmarks) -> np.ndarray:
    """bool `[r, a, s]`: every bone in view, with its marrow; vessels, kidneys and bowel that hold contrast medium are not bone.

    Bone lies in or outside the wall of chest and belly, except for the vertebrae; has dense parts; and is no wire on the skin.
    """
    hu = marks.tissue.hu
    least = np.where((marks.ahead > 70) & (marks.wall_depth > 0), CARTILAGE, MARROW)
    hard = (hu > least) & marks.body & ~_contrast(marks)
    kept = np.zeros_like(hard)
    below_skin = depth_in_planes(marks.body, marks.spacing)
    for part, box, size in components(hard):
        volume = marks.ml(part)
        if volume < 0.4:
            break
        inner = (part & marks.cavity[box]).sum() / size
        on_skin = volume < 3 and np.median(below_skin[box][part]) < 8
        if inner < 0.5 and np.percentile(hu[box][part], 90) > 220 and not on_skin:
            kept[box] |= part
    whole = _with_marrow(planewise(ndimage.binary_closing, kept, _SQUARE, 2), marks.adult[0] * marks.adult[1], marks.canal)
    return whole & (kept | ~marks.canal) & (hu > -80)


def _with_marrow(bone: np.ndarray, pixel_mm2: float, canal: np.ndarray) -> np.ndarray:
    """Holes filled slice by slice, but none larger than the widest bone's marrow, as the brain is, and not the spinal canal."""
    whole = bone.copy()
    for s in np.flatnonzero(bone.any(axis=(0, 1))):
        labels, _ = ndimage.label(ndimage.binary_fill_holes(bone[:, :, s]) & ~bone[:, :, s])
        small = np.bincount(labels.ravel()) * pixel_mm2 <= MARROW_MM2
        small[labels[canal[:, :, s]]] = False
        small[0] = False
        whole[:, :, s] |= small[labels]
    return whole


def vertebrae(marks: Landmarks, bone: np.ndarray) -> np.ndarray:
    """bool `[r, a, s]`: the bone around the spinal canal: bodies, arches and processes, ribs cut off at their heads."""
    return bone & (np.abs(marks.aside) < 38) & (marks.ahead > -60) & (marks.ahead < 46)


def _contrast(marks: Landmarks) -> np.ndarray:
    """bool: inside the cavity, what is as bright as spongy bone and as even as blood or kidney."""
    values = marks.tissue.hu.astype(np.float32)
    mean = ndimage.uniform_filter(values, 3)
    spread = np.sqrt(np.maximum(ndimage.uniform_filter(values**2, 3) - mean**2, 0))
    even = (spread < 35) & marks.body
    rim = marks.vertebra & ((marks.aside / 17) ** 2 + ((marks.ahead - 24) / 13) ** 2 > 1)
    vessel = even & (mean > VESSEL) & (marks.cavity | rim)
    organ = even & (mean > MARROW - 20) & marks.cavity
    return (dilate(organ, 7, marks.spacing) & marks.cavity) | (dilate(vessel, 5, marks.spacing) & (marks.cavity | rim))
