"""Canonical orientation: between an array in its file's order and the same array with axes R, A, S."""

from dataclasses import dataclass

import numpy as np
from nibabel.orientations import io_orientation

from lib.errors import ImageError


@dataclass(frozen=True)
class Orientation:
    """Axis permutation and flips that bring an array `[i, j, k]` to `[r, a, s]`: indices grow to the Right, Anterior, Superior.

    Oblique volumes go to their nearest anatomical axes; voxels are never resampled.
    """

    axes: tuple[int, int, int]
    """`axes[0]` is the array axis that runs right-left, `axes[1]` anterior-posterior, `axes[2]` superior-inferior."""
    flips: tuple[bool, bool, bool]
    """Whether that array axis runs the other way (to L, P, I)."""

    @classmethod
    def of(cls, affine: np.ndarray) -> "Orientation":
        """Nearest orientation of a 4x4 affine (voxel -> RAS mm). Raises ImageError when an axis has no direction."""
        codes = io_orientation(affine)
        if np.isnan(codes).any():
            raise ImageError("the image's affine is singular: one voxel axis has no direction in space")
        axes = [0, 0, 0]
        flips = [False, False, False]
        for array_axis, (anatomical_axis, sign) in enumerate(codes.astype(int)):
            axes[anatomical_axis] = array_axis
            flips[anatomical_axis] = bool(sign < 0)
        return cls((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))

    def canonical(self, array: np.ndarray) -> np.ndarray:
        """View of `array` `[i, j, k, ...]` as `[r, a, s, ...]`; no copy."""
        steps = tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flips)
        rest = range(3, array.ndim)
        return array.transpose(*self.axes, *rest)[steps]

    def restore(self, array: np.ndarray) -> np.ndarray:
        """Inverse of `canonical`: view of `[r, a, s, ...]` as `[i, j, k, ...]`; no copy."""
        steps = tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flips)
        inverse = tuple(int(a) for a in np.argsort(self.axes))
        rest = range(3, array.ndim)
        return array[steps].transpose(*inverse, *rest)

    def permute(self, values: tuple[float, float, float]) -> tuple[float, float, float]:
        """Per-axis values of i, j, k (such as spacing) in the order R, A, S."""
        return (values[self.axes[0]], values[self.axes[1]], values[self.axes[2]])
