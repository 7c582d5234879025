"""The coarse grid on which rules look for structures: Hounsfield units at about 3 mm in RAS order; shapes measured in mm."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_li

from lib.imaging.volume import Modality, Volume

COARSE_MM = 3.0
"""Edge length that the coarse voxels come close to where the volume is finer."""
AIR = -1024
"""HU that padding outside the scanner's field of view (-2000, -3024) is set to."""
BONE_MAX = 3000
_AIR_ENDS = -300
_PICTURE_WINDOW = (-160, 240)
_TRUNK_DEPTH_MM = 220
_SAMPLE = 500_000

Spacing = tuple[float, float, float]


class Slices:
    """Axial slices of a volume as `[r, a]` arrays of HU, whatever order the file has; a slice that was never received
    repeats its nearest neighbour, so that shapes stay whole across the gap.

    A picture counts as a radiological axial slice (patient's right on its left) in the abdomen window, black for air; its size
    is told from the body's depth. Other modalities have no HU: their signal is shifted so that air ends where it does in a CT.
    """

    def __init__(self, volume: Volume):
        self._canonical = volume.orientation.canonical(volume.data)
        self.mirrored = volume.planar
        """Whether r runs to the patient's left, against the volume's own canonical order."""
        if self.mirrored:
            self._canonical = self._canonical[::-1]
        self._gap_axis = volume.orientation.axes.index(2)
        r, a, s = self._canonical.shape
        self.shape: tuple[int, int, int] = (r, a, s)
        self._nearest = self._present(volume)
        self._to_hu = self._reading(volume)
        self.spacing: Spacing = self._picture_spacing() if volume.planar else volume.orientation.permute(volume.spacing)

    def __getitem__(self, s: int) -> np.ndarray:
        """float32 `[r, a]`, clipped to -1024..3000 HU."""
        plane = self._canonical[:, :, self._nearest[s] if self._gap_axis == 2 else s]
        if self._gap_axis != 2:
            plane = plane.take(self._nearest, axis=self._gap_axis)
        return np.clip(np.nan_to_num(self._to_hu(plane.astype(np.float32)), nan=AIR), AIR, BONE_MAX)

    def _present(self, volume: Volume) -> np.ndarray:
        """For each slice along the file's k axis, in canonical order, the nearest one that was received."""
        count = volume.data.shape[2]
        received = np.setdiff1d(np.arange(count), sorted(volume.missing))
        if not received.size:
            return np.arange(count)
        nearest = received[np.abs(np.arange(count)[:, None] - received[None, :]).argmin(axis=1)]
        return (count - 1 - nearest)[::-1] if volume.orientation.flips[self._gap_axis] else nearest

    def _reading(self, volume: Volume) -> Callable[[np.ndarray], np.ndarray]:
        """Turns stored values into HU."""
        if volume.planar:
            low, high = _PICTURE_WINDOW
            return lambda grey: np.where(grey <= 0, AIR, low + grey * ((high - low) / 255))
        if volume.modality is Modality.CT:
            return lambda values: values
        step = max(1, round((self._canonical.size / _SAMPLE) ** (1 / 3)))
        sample = self._canonical[::step, ::step, ::step].astype(np.float32)
        sample = sample[np.isfinite(sample)]
        if not sample.size or sample.min() == sample.max():
            return lambda values: np.full_like(values, AIR)
        air = float(threshold_li(sample)) / 2
        return lambda values: (values - air) * (700 / max(abs(air), 1e-6)) + _AIR_ENDS

    def _picture_spacing(self) -> Spacing:
        """Millimetres per pixel, if the largest thing in the picture is a trunk of an adult's depth."""
        solid = ndimage.binary_opening(self[0] > -100, iterations=3)
        trunk = ndimage.find_objects(largest(solid).astype(np.uint8))
        depth = trunk[0][1].stop - trunk[0][1].start if trunk else self.shape[1]
        mm = float(np.clip(_TRUNK_DEPTH_MM / depth, 0.3, 4))
        return (mm, mm, 5.0)


@dataclass(frozen=True, eq=False)
class Tissue:
    """A volume averaged over whole blocks of voxels."""

    hu: np.ndarray
    """int16 `[r, a, s]`."""
    spacing: Spacing
    """mm along R, A, S."""
    factors: tuple[int, int, int]
    """Fine voxels per coarse voxel and axis."""
    fine_shape: tuple[int, int, int]

    @classmethod
    def of(cls, slices: Slices) -> "Tissue":
        """Average to about 3 mm, slice by slice: needs memory for the coarse grid and one slice only."""
        factors = [max(1, round(COARSE_MM / mm)) if mm > 0 else 1 for mm in slices.spacing]
        factors = [min(factor, size) for factor, size in zip(factors, slices.shape, strict=True)]
        fr, fa, fs = factors
        shape = [-(-size // factor) for size, factor in zip(slices.shape, factors, strict=True)]
        hu = np.empty(shape, np.int16)
        padding = [(0, n * f - size) for n, f, size in zip(shape[:2], (fr, fa), slices.shape[:2], strict=True)]
        for index in range(shape[2]):
            members = range(index * fs, min((index + 1) * fs, slices.shape[2]))
            plane = np.mean([slices[s] for s in members], axis=0)
            padded = np.pad(plane, padding, mode="edge")
            hu[:, :, index] = padded.reshape(shape[0], fr, shape[1], fa).mean(axis=(1, 3))
        r, a, s = slices.spacing
        return cls(hu, (r * fr, a * fa, s * fs), (fr, fa, fs), slices.shape)

    @cached_property
    def voxel_ml(self) -> float:
        return float(np.prod(self.spacing)) / 1000

    @cached_property
    def smooth(self) -> np.ndarray:
        """int16 `[r, a, s]`: HU after a 3x3x3 median, which keeps edges and drops noise."""
        return ndimage.median_filter(self.hu, size=(3, 3, 3 if self.spacing[2] < 4 else 1))


def distance(mask: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """float32: from each voxel of the mask to the nearest one outside it, in mm; infinite where all is mask.

    As `scipy.ndimage.distance_transform_edt`, in a third of its memory.
    """
    if mask.all():
        return np.full(mask.shape, np.inf, np.float32)
    nearest = ndimage.distance_transform_edt(mask, sampling=spacing, return_distances=False, return_indices=True)
    total = np.zeros(mask.shape, np.float32)
    for axis, (indices, mm) in enumerate(zip(nearest, spacing, strict=True)):
        indices -= np.arange(mask.shape[axis], dtype=indices.dtype).reshape([-1 if d == axis else 1 for d in range(mask.ndim)])
        step = indices.astype(np.float32)
        step *= mm
        step *= step
        total += step
    return np.sqrt(total, out=total)


def dilate(mask: np.ndarray, mm: float, spacing: tuple[float, ...]) -> np.ndarray:
    """All voxels within `mm` of the mask."""
    if not mask.any():
        return mask.copy()
    box = grown_box(mask, mm, spacing)
    grown = mask.copy()
    grown[box] = distance(~mask[box], spacing) <= mm
    return grown


def erode(mask: np.ndarray, mm: float, spacing: tuple[float, ...], border: bool = True) -> np.ndarray:
    """All voxels further than `mm` from the outside. `border`: whether the edge of the array counts as outside."""
    if not mask.any():
        return mask.copy()
    box = grown_box(mask, 2 * max(spacing), spacing)
    inner = mask[box]
    padded = np.pad(inner, 1, mode="constant" if border else "edge")
    depth = distance(padded, spacing)[(slice(1, -1),) * mask.ndim]
    eroded = np.zeros_like(mask)
    eroded[box] = depth > mm
    return eroded


def opened(mask: np.ndarray, mm: float, spacing: tuple[float, ...], border: bool = False) -> np.ndarray:
    """What a ball of radius `mm` can reach inside the mask."""
    return dilate(erode(mask, mm, spacing, border), mm, spacing) & mask


def planewise(operation: Callable[..., np.ndarray], mask: np.ndarray, structure: np.ndarray, iterations: int = 1) -> np.ndarray:
    """A `scipy.ndimage` binary operation on every axial slice of `[r, a, s]` by itself."""
    return operation(mask, structure[:, :, None], iterations=iterations)


def fill_planes(mask: np.ndarray) -> np.ndarray:
    """Holes filled in every axial slice of `[r, a, s]`."""
    filled = np.empty_like(mask)
    for s in range(mask.shape[2]):
        filled[:, :, s] = ndimage.binary_fill_holes(mask[:, :, s])
    return filled


def without_pinholes(mask: np.ndarray, voxels: int) -> np.ndarray:
    """The mask with every enclosed hole of at most so many voxels filled: noise makes them."""
    labels, _ = ndimage.label(~mask)
    return mask | (np.bincount(labels.ravel()) <= voxels)[labels]


def depth_in_planes(mask: np.ndarray, spacing: Spacing) -> np.ndarray:
    """float32 `[r, a, s]`: distance in mm to the outside, within each axial slice; the array's edge is not outside."""
    depth = np.empty(mask.shape, np.float32)
    for s in range(mask.shape[2]):
        depth[:, :, s] = ndimage.distance_transform_edt(mask[:, :, s], sampling=spacing[:2])
    return depth


def components(mask: np.ndarray) -> Iterator[tuple[np.ndarray, tuple[slice, ...], int]]:
    """Face-connected parts, largest first: the part inside its box, the box, its voxel count."""
    labels, count = ndimage.label(mask)
    if not count:
        return
    sizes = np.bincount(labels.ravel())[1:]
    boxes = ndimage.find_objects(labels)
    for index in np.argsort(-sizes, kind="stable"):
        box = boxes[index]
        yield labels[box] == index + 1, box, int(sizes[index])


def largest(mask: np.ndarray) -> np.ndarray:
    """The largest face-connected part; empty stays empty."""
    kept = np.zeros_like(mask)
    for part, box, _ in components(mask):
        kept[box] = part
        break
    return kept


def reached(mask: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """The face-connected parts of `mask` that hold a seed."""
    labels, count = ndimage.label(mask)
    hit = np.zeros(count + 1, bool)
    hit[np.unique(labels[seeds & mask])] = True
    hit[0] = False
    return hit[labels]


def grown_box(mask: np.ndarray, mm: float, spacing: tuple[float, ...]) -> tuple[slice, ...]:
    """The mask's bounding box, `mm` larger on every side, inside the array."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    margins = [int(np.ceil(mm / step)) + 1 for step in spacing]
    return tuple(
        slice(max(0, part.start - margin), min(size, part.stop + margin))
        for part, margin, size in zip(box, margins, mask.shape, strict=True)
    )
