"""Planes and views: which voxel a point of the agent's picture is, and back."""

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np
from scipy import ndimage

from lib.errors import InputError
from lib.imaging.volume import Volume


class Plane(StrEnum):
    """The nearest anatomical plane to cut a volume along."""

    AXIAL = "axial"
    CORONAL = "coronal"
    SAGITTAL = "sagittal"

    @classmethod
    def across(cls, volume: Volume, axis: int) -> "Plane":
        """The plane whose slices follow array axis 0, 1 or 2 (i, j or k) of `volume`."""
        return next(plane for plane, normal in _NORMAL.items() if volume.orientation.axes[normal] == axis)


_NORMAL = {Plane.SAGITTAL: 0, Plane.CORONAL: 1, Plane.AXIAL: 2}
_COLUMNS = {Plane.SAGITTAL: 1, Plane.CORONAL: 0, Plane.AXIAL: 0}
_ROWS = {Plane.SAGITTAL: 2, Plane.CORONAL: 2, Plane.AXIAL: 1}


@dataclass(frozen=True)
class ViewPoint:
    """A point of a view: `x` = column / width, `y` = row / height, both 0..1, origin at the top left corner."""

    x: float
    y: float

    def pixel(self, width: int, height: int) -> tuple[int, int]:
        """(column, row) of the pixel that holds this point; x = 1.0 is in the last column."""
        return (min(int(self.x * width), width - 1), min(int(self.y * height), height - 1))

    @classmethod
    def of_pixel(cls, column: int, row: int, width: int, height: int) -> "ViewPoint":
        """The centre of a pixel."""
        return cls((column + 0.5) / width, (row + 0.5) / height)


@dataclass(frozen=True)
class VoxelIndex:
    """Index into a volume's array in the file's own order."""

    i: int
    j: int
    k: int


@dataclass(frozen=True, eq=False)
class ViewGrid:
    """All slices of one volume along one plane, shown as the released weights were trained.

    The array is brought to RAS and turned by 90 degrees: axial views have anterior on top and the patient's LEFT on the image's
    left, coronal views superior on top, sagittal views superior on top and posterior on the left. Slices count from the
    patient's left, posterior, inferior side. Pixels are square: the coarser in-plane axis is enlarged.
    """

    volume: Volume
    plane: Plane

    @cached_property
    def _shape(self) -> tuple[int, int, int]:
        r, a, s = self.volume.orientation.canonical(self.volume.data).shape
        return (r, a, s)

    @property
    def slice_count(self) -> int:
        return self._shape[_NORMAL[self.plane]]

    @cached_property
    def acquired(self) -> tuple[int, ...]:
        """The slices that hold data: all but those that were never received, where the plane runs along them."""
        orientation, anatomical = self.volume.orientation, _NORMAL[self.plane]
        if orientation.axes[anatomical] != 2:
            return tuple(range(self.slice_count))
        last = self.slice_count - 1
        missing = {last - k if orientation.flips[anatomical] else k for k in self.volume.missing}
        return tuple(index for index in range(self.slice_count) if index not in missing)

    @cached_property
    def size(self) -> tuple[int, int]:
        """(width, height) of every view in pixels."""
        spacing = self.volume.orientation.permute(self.volume.spacing)
        columns, rows = _COLUMNS[self.plane], _ROWS[self.plane]
        unit = min(spacing[columns], spacing[rows])
        return (
            max(1, round(self._shape[columns] * spacing[columns] / unit)),
            max(1, round(self._shape[rows] * spacing[rows] / unit)),
        )

    @cached_property
    def pixel_mm(self) -> float:
        """Edge length of a view's pixel in mm."""
        spacing = self.volume.orientation.permute(self.volume.spacing)
        return min(spacing[_COLUMNS[self.plane]], spacing[_ROWS[self.plane]])

    def check(self, index: int) -> None:
        """Raise InputError unless `index` is a slice of this plane."""
        if not 0 <= index < self.slice_count:
            raise InputError(f"slice {index} does not exist: {self.plane} slices are 0 to {self.slice_count - 1}", "slices")

    def to_voxel(self, index: int, point: ViewPoint) -> VoxelIndex:
        """The voxel shown at `point` of slice `index`."""
        self.check(index)
        columns, rows, normal = _COLUMNS[self.plane], _ROWS[self.plane], _NORMAL[self.plane]
        column, row = point.pixel(self._shape[columns], self._shape[rows])
        canonical = [0, 0, 0]
        canonical[columns] = column
        canonical[rows] = self._shape[rows] - 1 - row
        canonical[normal] = index
        orientation = self.volume.orientation
        source = [0, 0, 0]
        for anatomical, (axis, flip) in enumerate(zip(orientation.axes, orientation.flips, strict=True)):
            source[axis] = self._shape[anatomical] - 1 - canonical[anatomical] if flip else canonical[anatomical]
        return VoxelIndex(*source)

    def to_view(self, voxel: VoxelIndex) -> tuple[int, ViewPoint]:
        """The slice that shows `voxel`, and the point at the voxel's centre. Raises InputError outside the volume."""
        source = (voxel.i, voxel.j, voxel.k)
        shape = self.volume.data.shape[:3]
        if not all(0 <= v < n for v, n in zip(source, shape, strict=True)):
            raise InputError(f"point {list(source)} is outside the image, whose size is {list(shape)} voxels")
        orientation = self.volume.orientation
        canonical = [
            self._shape[anatomical] - 1 - source[axis] if flip else source[axis]
            for anatomical, (axis, flip) in enumerate(zip(orientation.axes, orientation.flips, strict=True))
        ]
        columns, rows, normal = _COLUMNS[self.plane], _ROWS[self.plane], _NORMAL[self.plane]
        row = self._shape[rows] - 1 - canonical[rows]
        return canonical[normal], ViewPoint.of_pixel(canonical[columns], row, self._shape[columns], self._shape[rows])

    def cut(self, array: np.ndarray, index: int) -> np.ndarray:
        """Slice `index` of an array `[i, j, k, ...]` as `[row, column, ...]` at voxel resolution; a view, no copy."""
        canonical = self.volume.orientation.canonical(array)
        selection: list[slice | int] = [slice(None)] * 3
        selection[_NORMAL[self.plane]] = index
        return canonical[tuple(selection)].swapaxes(0, 1)[::-1]

    def enlarge(self, plane: np.ndarray, order: int) -> np.ndarray:
        """A `cut` `[row, column, ...]` at view resolution: `order` 0 repeats voxels (masks), 1 interpolates (images)."""
        width, height = self.size
        rows, columns = plane.shape[:2]
        if (rows, columns) == (height, width):
            return plane
        if order == 0:
            return plane[_nearest(height, rows)][:, _nearest(width, columns)]
        zoom = (height / rows, width / columns) + (1,) * (plane.ndim - 2)
        return ndimage.zoom(plane, zoom, order=order, mode="nearest", grid_mode=True)

    def paste(self, mask: np.ndarray, index: int, target: np.ndarray) -> None:
        """Write a view's mask `[height, width]` into slice `index` of `target` `[i, j, k]`: each voxel takes the pixel at its
        centre, so a mask that came from `enlarge(cut(...), 0)` returns exactly."""
        plane = self.cut(target, index)
        rows, columns = plane.shape[:2]
        height, width = mask.shape
        if (rows, columns) == (height, width):
            plane[...] = mask
        else:
            plane[...] = mask[_nearest(rows, height)][:, _nearest(columns, width)]


def _nearest(size: int, source: int) -> np.ndarray:
    """For each of `size` cells the cell of a `source`-cell axis that holds its centre."""
    return np.minimum(((np.arange(size) + 0.5) * source / size).astype(int), source - 1)
