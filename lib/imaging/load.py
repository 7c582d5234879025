"""Loading an image of any supported format; what a file is, its content says, not its name."""

import gzip
import zlib
from pathlib import Path

from lib.errors import ImageError, InputError
from lib.imaging.dicom import list_dicom, load_dicom
from lib.imaging.dicom_headers import is_dicom
from lib.imaging.dicom_series import SeriesInfo
from lib.imaging.grids import is_nifti, load_itk, load_nifti
from lib.imaging.pictures import is_picture, load_picture
from lib.imaging.volume import Modality, Volume

__all__ = ["SeriesInfo", "list_series", "load_volume"]

_HEAD = 1024


def load_volume(path: Path, series: str | None = None, modality: Modality | None = None) -> Volume:
    """Read an image: DICOM (a file, a folder, a DICOMDIR), NIfTI, NRRD, MetaImage, or a picture (PNG, JPEG, TIFF, BMP, WebP).

    `series` chooses among several DICOM series (see `list_series`); `modality` overrules what the file says or its values
    suggest. Raises ImageError when the file is damaged or cannot be represented truly, InputError for a `series` that is not
    there. What was repaired or assumed is in `Volume.warnings`.
    """
    dicom = _dicom_source(path)
    if dicom is not None:
        return load_dicom(dicom, series, modality)
    if series is not None:
        raise InputError(f"{path.name} is not DICOM: it has no series to choose", "series")
    head = _head(path)
    if is_nifti(head):
        return load_nifti(path, modality)
    if head.startswith(b"NRRD000") or _is_metaimage(head):
        return load_itk(path, modality)
    if is_picture(path):
        return load_picture(path, modality)
    raise ImageError(
        f"{path.name} is no image that IBIS Label reads: give DICOM, NIfTI, NRRD, MetaImage, PNG, JPEG, TIFF or BMP"
    )


def list_series(path: Path) -> list[SeriesInfo]:
    """The volumes that a DICOM file or folder offers, in the order of their UIDs; empty for other formats, which hold one
    image.

    Raises ImageError when there is no DICOM image in a folder, or nothing at `path`.
    """
    dicom = _dicom_source(path)
    return [] if dicom is None else list_dicom(dicom)


def _dicom_source(path: Path) -> Path | None:
    """The DICOM file or folder that `path` stands for: a DICOMDIR stands for its folder. None for other formats."""
    if path.is_dir():
        return path
    if not path.is_file():
        raise ImageError(f"there is no image at {path}")
    with path.open("rb") as file:
        head = file.read(132)
    if not head:
        raise ImageError(f"{path.name} is empty")
    if not is_dicom(head):
        return None
    return path.parent if path.name == "DICOMDIR" else path


def _head(path: Path) -> bytes:
    """The first bytes of the content, unpacked if gzipped."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head[:2] != b"\x1f\x8b":
        return head
    try:
        with gzip.open(path) as stream:
            return stream.read(_HEAD)
    except (EOFError, OSError, zlib.error) as error:
        raise ImageError(f"{path.name} is gzipped and damaged or truncated: {error}") from error


def _is_metaimage(head: bytes) -> bool:
    words = head.lstrip().split(b"=")[0].strip()
    return words in (b"ObjectType", b"NDims", b"Comment") and b"=" in head
