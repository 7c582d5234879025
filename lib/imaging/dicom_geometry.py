"""DICOM geometry: from the positions of image planes to one affine, or a clear reason why there is none."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lib.errors import ImageError
from lib.imaging.dicom_headers import Frame

SAME_PLACE = 1e-3
"""Planes closer than this (mm along the normal) are at one place."""
_EXACT = 1e-3
_IRREGULAR_MM = 0.05
_IRREGULAR_SHARE = 0.01
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Arrangement:
    """The frames of a stack in the order of slices `k`, None where a slice was never received."""

    frames: tuple[Frame | None, ...]
    affine: np.ndarray
    """Voxel `[i = column, j = row, k]` -> RAS mm."""
    warnings: tuple[str, ...]


def normal(frame: Frame) -> np.ndarray:
    """Unit normal of a frame with an orientation, LPS."""
    assert frame.orientation is not None
    cross = np.cross(frame.orientation[0], frame.orientation[1])
    return cross / np.linalg.norm(cross)


def distances(frames: Sequence[Frame]) -> np.ndarray:
    """Position in mm of each frame along the slice normal of the first."""
    direction = normal(frames[0])
    return np.array([direction @ frame.position for frame in frames])


def arrange(frames: Sequence[Frame]) -> Arrangement:
    """Sort the frames of one stack by position, ascending along the slice normal, and fit the affine (PS3.3 C.7.6.2.1.1).

    The step from slice to slice is fitted in three dimensions, so a tilted gantry's shear stays in the affine. Gaps of whole
    steps become missing slices, up to a third of the stack. Raises ImageError when the slices are not evenly spaced within 1 %
    of the step or 0.05 mm.
    """
    first = frames[0]
    if first.position is None or first.orientation is None:
        return _without_positions(frames)
    along = distances(frames)
    order = np.argsort(along, kind="stable")
    frames = [frames[index] for index in order]
    positions = np.array([frame.position for frame in frames])
    warnings = [] if first.spacing else ["the series has no pixel spacing: 1 mm is assumed, sizes in mm are not to be trusted"]
    if len(frames) == 1:
        if first.thickness is None:
            warnings.append("the slice has no thickness: 1 mm is assumed")
        return Arrangement((first,), _affine(first, positions[0], normal(first) * (first.thickness or 1.0)), tuple(warnings))
    index = _slots(frames, along[order])
    design = np.stack([np.ones(len(index)), index], axis=1)
    (origin, step), *_ = np.linalg.lstsq(design, positions, rcond=None)
    if abs(normal(first) @ step) < 0.1 * np.linalg.norm(step):
        raise ImageError("the slices of the series lie nearly in one plane: they do not make a volume")
    affine = _affine(first, origin, step)
    error = _residual(frames, index, affine)
    if error > max(_IRREGULAR_MM, _IRREGULAR_SHARE * float(np.linalg.norm(step))):
        raise ImageError(
            f"the slices do not lie on one grid: the best grid misses their positions by {error:.3f} mm; resample the series "
            "to a regular grid, or load a part of it that is regular"
        )
    if error > _EXACT:
        warnings.append(f"slice positions are uneven: the volume's grid misses them by up to {error:.3f} mm")
    slots: list[Frame | None] = [None] * (int(index[-1]) + 1)
    for k, frame in zip(index, frames, strict=True):
        slots[k] = frame
    missing = [k for k, frame in enumerate(slots) if frame is None]
    if missing:
        warnings.append(_describe_missing(missing, float(along.min()), float(normal(first) @ step)))
    return Arrangement(tuple(slots), affine, tuple(warnings))


def _slots(frames: Sequence[Frame], along: np.ndarray) -> np.ndarray:
    """The slice number of each plane at the sorted distances `along` (mm), counting missing ones."""
    gaps = np.diff(along)
    smallest = float(gaps.min())
    if smallest < SAME_PLACE:
        where = int(gaps.argmin())
        raise ImageError(
            f"two slices of the series are at one place: {frames[where].name} and {frames[where + 1].name}; list the series to "
            "see its parts, and choose one with --series UID"
        )
    tolerance = max(_IRREGULAR_MM, _IRREGULAR_SHARE * smallest)
    step = float(gaps[gaps < smallest + tolerance].mean())
    steps = np.round(gaps / step)
    holes = steps.sum() - len(gaps)
    uneven = np.abs(gaps - steps * step) > np.maximum(tolerance, _IRREGULAR_SHARE * gaps)
    if uneven.any() or holes > (steps.sum() + 1) / 3:
        raise ImageError(
            f"the slices are not evenly spaced: distances between neighbours are {_distances(gaps)} mm; resample the series to "
            "a regular grid, or complete it"
        )
    return np.concatenate([[0], np.cumsum(steps)]).astype(int)


def _distances(gaps: np.ndarray) -> str:
    values, counts = np.unique(gaps.round(2), return_counts=True)
    common = np.argsort(-counts, kind="stable")[:6]
    text = ", ".join(f"{values[index]:g} ({counts[index]} times)" for index in common)
    return text + (", ..." if len(values) > len(common) else "")


def _affine(frame: Frame, origin: np.ndarray, step: np.ndarray) -> np.ndarray:
    assert frame.orientation is not None
    between_rows, between_columns = frame.spacing or (1.0, 1.0)
    affine = np.eye(4)
    affine[:3, 0] = frame.orientation[0] * between_columns
    affine[:3, 1] = frame.orientation[1] * between_rows
    affine[:3, 2] = step
    affine[:3, 3] = origin
    return _LPS_TO_RAS @ affine + 0.0  # no negative zeros


def _residual(frames: Sequence[Frame], index: np.ndarray, affine: np.ndarray) -> float:
    """Largest distance in mm between where the affine puts three corners of each frame and where the frame's header does."""
    worst = 0.0
    columns, rows = frames[0].header.columns - 1, frames[0].header.rows - 1
    for k, frame in zip(index, frames, strict=True):
        assert frame.position is not None
        own = _affine(frame, frame.position, np.zeros(3))
        for column, row in ((0, 0), (columns, 0), (0, rows)):
            difference = own @ [column, row, 0, 1] - affine @ [column, row, k, 1]
            worst = max(worst, float(np.linalg.norm(difference)))
    return worst


def _describe_missing(missing: list[int], start: float, step: float) -> str:
    places = ", ".join(f"{k} (at {start + k * step:.1f} mm)" for k in missing[:10]) + (" ..." if missing[10:] else "")
    return f"{len(missing)} slices were never received and are filled with air, nothing is segmented there: {places}"


def _without_positions(frames: Sequence[Frame]) -> Arrangement:
    """Frames in file order, 1 mm apart; shown as they are stored when they have no orientation either."""
    first = frames[0]
    numbers = [frame.header.instance_number for frame in frames]
    if len(set(numbers)) == len(numbers):
        frames = sorted(frames, key=lambda frame: frame.header.instance_number)
    if first.orientation is not None:
        affine = _affine(first, np.zeros(3), normal(first))
    else:
        between_rows, between_columns = first.spacing or (1.0, 1.0)
        affine = np.diag([between_columns, -between_rows, 1.0, 1.0])
    order = "file order" if len(frames) > 1 else "the file"
    warning = f"the images have no position in the patient: taken in {order}, 1 mm apart; do not trust distances or sides"
    return Arrangement(tuple(frames), affine, (warning,))
