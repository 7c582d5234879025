"""Writing masks and images on a volume's own grid: NIfTI, NRRD, PNG."""

from pathlib import Path

import nibabel
import nrrd
import numpy as np
from PIL import Image

from lib.errors import InputError
from lib.imaging.files import replacing
from lib.imaging.volume import Volume

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])
_SCANNER = 1
"""NIfTI code for scanner coordinates (nifti1.h, NIFTI_XFORM_SCANNER_ANAT)."""


def write_mask(path: Path, mask: np.ndarray, volume: Volume, compress: bool = True) -> None:
    """Write `mask`, uint8 `[i, j, k]` in the volume's own voxel order, in the format of the suffix; all or nothing.

    `.nii.gz`, `.nii`: sform and qform of the volume; a sheared grid has an sform only, as a qform cannot hold shear. `.nrrd`:
    LPS space, `space directions` with any shear, gzip encoding if `compress`, else raw. `.png`: pictures only, 0 and 255 when
    there is one label, else the label numbers. Raises InputError for other suffixes, and for a mask of another shape or type.
    """
    if mask.dtype != np.uint8 or mask.shape != volume.data.shape:
        raise InputError(f"the mask is {mask.dtype} {mask.shape}: the image needs uint8 {volume.data.shape}")
    if path.suffix == ".png":
        _write_png(path, mask, volume)
    else:
        _write_grid(path, mask, volume, compress)


def write_volume(path: Path, volume: Volume, compress: bool = True) -> None:
    """Write the image itself, `[i, j, k]` with its own integer type, as `.nii.gz`, `.nii` or `.nrrd`; all or nothing.

    A colour image is written as its luminance. Raises InputError for other suffixes.
    """
    data = volume.data
    if data.dtype.kind in "iu" and data.dtype.itemsize == 8:
        if abs(int(data.min())) >= 2**31 or int(data.max()) >= 2**31:
            raise InputError(f"the image has values beyond 32 bits: {path.name} is not written")
        data = data.astype(np.int32)
    _write_grid(path, data, volume, compress)


def _write_grid(path: Path, array: np.ndarray, volume: Volume, compress: bool) -> None:
    if path.name.endswith((".nii.gz", ".nii")):
        image = nibabel.Nifti1Image(array, volume.affine)
        image.header.set_xyzt_units("mm")
        image.set_sform(volume.affine, _SCANNER)
        if volume.sheared:
            image.set_qform(None)
        else:
            image.set_qform(volume.affine, _SCANNER)
        with replacing(path) as temporary:
            image.to_filename(temporary)
    elif path.suffix == ".nrrd":
        header = {
            "space": "left-posterior-superior",
            "space directions": (_RAS_TO_LPS @ volume.affine[:3, :3]).T + 0.0,
            "space origin": _RAS_TO_LPS @ volume.affine[:3, 3] + 0.0,
            "kinds": ["domain"] * 3,
            "encoding": "gzip" if compress else "raw",
        }
        with replacing(path) as temporary:
            nrrd.write(str(temporary), array, header, compression_level=4)
    else:
        raise InputError(f"{path.name} cannot be written: use .nii.gz, .nii or .nrrd, or .png for the mask of a picture")


def _write_png(path: Path, mask: np.ndarray, volume: Volume) -> None:
    if mask.shape[2] != 1:
        raise InputError(f"{path.name}: a .png holds one slice, the image has {mask.shape[2]}; use .nii.gz or .nrrd")
    plane = mask[:, :, 0].T
    labels = np.unique(plane[plane > 0])
    picture = np.where(plane > 0, np.uint8(255), np.uint8(0)) if len(labels) <= 1 else plane
    with replacing(path) as temporary:
        Image.fromarray(np.ascontiguousarray(picture)).save(temporary, format="PNG")
