"""The volume: voxels in the file's own order, and where they lie in the patient."""

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path

import numpy as np
from nibabel.orientations import aff2axcodes

from lib.imaging.orientation import Orientation


class Modality(StrEnum):
    """DICOM modality (PS3.3 C.7.3.1.1.1) as far as windows and rules need to tell them apart."""

    CT = "CT"
    MR = "MR"
    PT = "PT"
    US = "US"
    XA = "XA"
    OTHER = "OT"


@dataclass(frozen=True)
class Instance:
    """The DICOM image that one slice `k` of a volume came from."""

    path: Path
    sop_instance_uid: str
    frame: int | None
    """1-based frame number in a multi-frame file; None for a single-frame file."""


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxel array `[i, j, k]` in the file's own order, with its 4x4 affine: voxel index -> RAS mm (nibabel's convention).

    A DICOM volume has i along the columns of its images, j along the rows and k along the slice normal, ascending.
    A 2-D picture has one slice, i = column, j = row, and an affine that shows it as it is stored.
    """

    data: np.ndarray
    """[i, j, k], physical values (HU for CT) in any real dtype."""
    affine: np.ndarray
    modality: Modality
    source: Path
    """The file or folder that it was read from."""
    warnings: tuple[str, ...] = ()
    """What a person should know about how this volume was read, one sentence each."""
    missing: frozenset[int] = frozenset()
    """Slices `k` that were never received; their voxels hold air and nothing is segmented there."""
    instances: tuple[Instance | None, ...] = ()
    """One per slice `k` for DICOM, None where missing; empty for other formats."""
    colour: np.ndarray | None = None
    """[i, j, k, 3] uint8 for colour pictures; `data` then holds their luminance."""
    planar: bool = False
    """A 2-D picture: no anatomical axes, no physical grey values."""

    @cached_property
    def orientation(self) -> Orientation:
        return Orientation.of(self.affine)

    @cached_property
    def axcodes(self) -> str:
        """Nearest anatomical direction of i, j, k, such as `"LPS"`."""
        return "".join(aff2axcodes(self.affine))

    @cached_property
    def spacing(self) -> tuple[float, float, float]:
        """Distance in mm between neighbours along i, j, k; rounded to 1e-4 mm so that a rotated affine gives the same."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0).round(4).tolist()
        return (i, j, k)

    @cached_property
    def content_hash(self) -> str:
        """Hex digest of voxels, colours, shape and affine: the key of every cache that depends on this volume."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(f"{self.data.shape}{self.data.dtype}{self.modality}".encode())
        digest.update(np.ascontiguousarray(self.affine, dtype=np.float64).tobytes())
        for k in range(self.data.shape[2]):
            digest.update(np.ascontiguousarray(self.data[:, :, k]).tobytes())
        if self.colour is not None:
            digest.update(np.ascontiguousarray(self.colour).tobytes())
        return digest.hexdigest()

    @property
    def sheared(self) -> bool:
        """True when the axes are not perpendicular (a tilted gantry): some formats cannot keep such a grid."""
        directions = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        return bool(np.abs(directions.T @ directions - np.eye(3)).max() > 1e-3)
