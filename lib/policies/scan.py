"""One scan as the rules see it: its coarse grid, its landmarks, and every structure that they can find, at full resolution."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from lib.agent.anatomy import Rule, Structure
from lib.imaging.volume import Volume
from lib.policies.chest import lungs, one_lung
from lib.policies.landmarks import GAS, SKIN, Landmarks
from lib.policies.organs import Organs
from lib.policies.skeleton import MARROW, bones, vertebrae
from lib.policies.tissue import Slices, Tissue


@dataclass(frozen=True, eq=False)
class Found:
    """A structure on the coarse grid, and the HU between which fine voxels near its edge belong to it."""

    mask: np.ndarray
    low: float
    high: float
    smooth_mm: float = 1.0
    """Gaussian that the fine voxels go through before they are compared: noise makes ragged edges."""


class Scan:
    """Shared work on one volume. Not locked: `lib.policies.evidence` lets one thread at a time use it."""

    def __init__(self, volume: Volume):
        self.slices = Slices(volume)
        self.tissue = Tissue.of(self.slices)
        self.marks = Landmarks(self.tissue)

    @cached_property
    def bones(self) -> np.ndarray:
        return bones(self.marks)

    @cached_property
    def organs(self) -> Organs:
        return Organs(self.marks, self.bones)

    @cached_property
    def lungs(self) -> np.ndarray:
        return lungs(self.marks)

    def find(self, structure: Structure) -> np.ndarray:
        """bool `[r, a, s]` at full resolution; empty where the scan does not show the structure."""
        found = FINDERS[structure.name](self)
        rule = structure.rule
        if rule is None or not self._plausible(found.mask, rule):
            return np.zeros(self.slices.shape, bool)
        fine = self._refined(found)
        return fine[::-1] if self.slices.mirrored else fine

    def _plausible(self, mask: np.ndarray, rule: Rule) -> bool:
        """Whether the volume fits; a structure cut by an end of the image may be a tenth of one that is whole."""
        if not mask.any():
            return False
        cut = mask[:, :, 0].any() or mask[:, :, -1].any()
        least = rule.volume_ml[0] * (0.05 if cut else 1)
        return least <= self.marks.ml(mask) <= rule.volume_ml[1]

    def _refined(self, found: Found) -> np.ndarray:
        """Upsampled to the fine grid; within a coarse voxel of the edge the fine HU decide."""
        fine = np.zeros(self.slices.shape, bool)
        factors = self.tissue.factors
        if factors == (1, 1, 1):
            fine[...] = found.mask
            return fine
        box = ndimage.find_objects(ndimage.binary_dilation(found.mask, iterations=2).astype(np.uint8))[0]
        window = tuple(
            slice(b.start * f, min(b.stop * f, n)) for b, f, n in zip(box[:2], factors[:2], fine.shape[:2], strict=True)
        )
        sigma = [found.smooth_mm / mm for mm in self.slices.spacing[:2]]
        for s in range(max(0, (box[2].start - 1) * factors[2]), min(fine.shape[2], (box[2].stop + 1) * factors[2])):
            share = self._share(found.mask, box, s)[: window[0].stop - window[0].start, : window[1].stop - window[1].start]
            if not share.any():
                continue
            values = ndimage.gaussian_filter(self.slices[s][window], sigma)
            alike = (values > found.low) & (values < found.high)
            fine[(*window, s)] = (share > 0.9) | ((share > 0.25) & alike)
        return fine

    def _share(self, mask: np.ndarray, box: tuple[slice, ...], s: int) -> np.ndarray:
        """float32: how much of each fine voxel's coarse surroundings in `box` belongs to the mask, linear between centres."""
        factors = self.tissue.factors
        position = np.clip((s + 0.5) / factors[2] - 0.5, 0, mask.shape[2] - 1)
        below = int(position)
        above = min(below + 1, mask.shape[2] - 1)
        part = position - below
        plane = (1 - part) * mask[box[0], box[1], below] + part * mask[box[0], box[1], above]
        plane = ndimage.gaussian_filter(plane.astype(np.float32), 0.5)
        return ndimage.zoom(plane, factors[:2], order=1, mode="nearest", grid_mode=True)


def _organ(mask: np.ndarray, scan: Scan) -> Found:
    """An organ ends half-way to fat on one side, and to bone or vessels on the other."""
    inside = scan.tissue.smooth[mask]
    middle = float(np.median(inside)) if inside.size else 0.0
    return Found(mask, (middle - 100) / 2, middle + 70, 1.5)


def _kidneys(scan: Scan) -> np.ndarray:
    return scan.organs.kidney(right=False) | scan.organs.kidney(right=True)


FINDERS: dict[str, Callable[[Scan], Found]] = {
    "body": lambda scan: Found(scan.marks.body, SKIN, np.inf, 0.5),
    "lungs": lambda scan: Found(scan.lungs, -np.inf, GAS, 0.5),
    "lung_left": lambda scan: Found(one_lung(scan.marks, scan.lungs, right=False), -np.inf, GAS, 0.5),
    "lung_right": lambda scan: Found(one_lung(scan.marks, scan.lungs, right=True), -np.inf, GAS, 0.5),
    "bones": lambda scan: Found(scan.bones, MARROW, np.inf, 0.7),
    "vertebral_column": lambda scan: Found(vertebrae(scan.marks, scan.bones), MARROW, np.inf, 0.7),
    "liver": lambda scan: _organ(scan.organs.liver, scan),
    "spleen": lambda scan: _organ(scan.organs.spleen, scan),
    "kidney_left": lambda scan: _organ(scan.organs.kidney(right=False), scan),
    "kidney_right": lambda scan: _organ(scan.organs.kidney(right=True), scan),
    "kidneys": lambda scan: _organ(_kidneys(scan), scan),
    "subcutaneous_fat": lambda scan: Found(scan.marks.subcutaneous_fat, -190, -30, 0.7),
}
