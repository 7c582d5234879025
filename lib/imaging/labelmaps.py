"""Label maps from files, brought onto the grid of their image."""

from itertools import product
from pathlib import Path

import numpy as np

from lib.errors import ImageError
from lib.imaging.load import load_volume
from lib.imaging.seg import read_seg
from lib.imaging.volume import Volume

_NEAR_MM = 0.1


class OffGrid(ImageError):
    """A label map that lies elsewhere than its image."""


def load_labels(path: Path, volume: Volume) -> np.ndarray:
    """The labels of a file, uint16 `[i, j, k]` on the volume's grid.

    A grid file (NIfTI, NRRD, MetaImage) may hold them in another axis order; a DICOM SEG is placed by its own positions, of
    overlapping segments the one with the higher number counts. Raises OffGrid when the file's grid is another, ImageError when
    it cannot be read or its values are no labels.
    """
    if _is_dicom(path):
        labels = np.zeros(volume.data.shape, np.uint16)
        for number, mask in sorted(read_seg(path, volume).items()):
            labels[mask.astype(bool)] = number
        return labels
    found = load_volume(path)
    there, here = found.orientation.canonical(found.data), volume.orientation
    if there.shape != here.canonical(volume.data).shape or not np.allclose(_extent(found), _extent(volume), atol=_NEAR_MM):
        sizes = " x ".join(map(str, there.shape)), " x ".join(map(str, here.canonical(volume.data).shape))
        raise OffGrid(f"{path.name} ({sizes[0]} voxels) does not lie on the grid of its image ({sizes[1]} voxels)")
    if (there < 0).any() or (there > np.iinfo(np.uint16).max).any() or (there != there.astype(np.uint16)).any():
        raise ImageError(f"{path.name} holds other values than the whole numbers 0 to 65535: it is no label map")
    return here.restore(there).astype(np.uint16)


def _is_dicom(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _extent(volume: Volume) -> np.ndarray:
    """The box in RAS mm that the centres of the corner voxels span: `[2, 3]`, the same for every storage order."""
    corners = np.array(list(product(*((0, n - 1) for n in volume.data.shape[:3]))))
    points = corners @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    return np.array([points.min(axis=0), points.max(axis=0)])
