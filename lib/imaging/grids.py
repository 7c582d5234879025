"""Grid files: NIfTI, NRRD and MetaImage to a volume."""

import gzip
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from lib.errors import ImageError
from lib.imaging.dicom_pixels import AIR, OUTSIDE_CT, luminance
from lib.imaging.limits import check_size
from lib.imaging.modality import guess_modality
from lib.imaging.volume import Modality, Volume

_DAMAGED = (EOFError, HeaderDataError, ImageFileError, KeyError, OSError, OverflowError, ValueError, struct.error, zlib.error)
_MILLIMETRES = {"mm": 1.0, "unknown": 1.0, "meter": 1000.0, "micron": 0.001}
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_HEADER = 2**16
_DATA_FILE = re.compile(rb"^(?:ElementDataFile\s*=|data ?file:)[ \t]*([^\r\n]*)", re.MULTILINE | re.IGNORECASE)


def is_nifti(head: bytes) -> bool:
    """Whether unpacked bytes begin a NIfTI-1 or NIfTI-2 single file (header size and magic, either byte order)."""
    sizes = {struct.pack(order + "i", size): size for order in "<>" for size in (348, 540)}
    size = sizes.get(head[:4])
    return (size == 348 and head[344:348] == b"n+1\0") or (size == 540 and head[4:8] == b"n+2\0")


def load_nifti(path: Path, modality: Modality | None = None) -> Volume:
    """Read a NIfTI-1 or NIfTI-2 file, plain or gzipped, whatever its name ends in.

    The affine is the sform, else the qform, in mm whatever the file's unit; `scl_slope` is applied. Raises ImageError for
    several volumes in one file, for values that are not real numbers, and for damaged files.
    """
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else path.open("rb") as stream:
        try:
            size = struct.unpack("=i", stream.read(4))[0]
            stream.seek(0)
            kind = nibabel.Nifti2Image if size in (540, struct.unpack("=i", struct.pack(">i", 540))[0]) else nibabel.Nifti1Image
            image: Any = kind.from_stream(stream)
            _check_nifti(path, image)
            stored = np.asanyarray(image.dataobj.get_unscaled())
            affine, warnings = _nifti_affine(image)
        except _DAMAGED as error:
            if isinstance(error, ImageError):
                raise
            raise ImageError(f"{path.name} cannot be read as NIfTI, it is damaged or truncated: {error}") from error
    return _volume(path, stored, affine, modality, warnings, image.dataobj.slope, image.dataobj.inter)


def load_itk(path: Path, modality: Modality | None = None) -> Volume:
    """Read an NRRD or MetaImage file, whatever its name ends in.

    SimpleITK (like ITK-SNAP and Slicer) and pynrrd keep sheared `space directions`, so the affine holds them too. A header may
    name a data file in its own folder, nowhere else. Raises ImageError for several volumes in one file and for damaged files.
    """
    with path.open("rb") as file:
        head = file.read(_HEADER)
    nrrd = head.startswith(b"NRRD")
    stored_bytes = path.stat().st_size + _data_file_size(path, head)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("NrrdImageIO" if nrrd else "MetaImageIO")
    try:
        reader.ReadImageInformation()
        size = reader.GetSize()
        empty = sitk.Image([1] * len(size), reader.GetPixelID(), reader.GetNumberOfComponents())
        check_size(path.name, size, empty.GetSizeOfPixelComponent() * empty.GetNumberOfComponentsPerPixel(), stored_bytes)
        image = reader.Execute()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ImageError(f"{path.name} cannot be read as {'NRRD' if nrrd else 'MetaImage'}: {reason}") from error
    warnings = []
    if nrrd and not re.search(rb"^space:", head, re.MULTILINE):
        warnings.append("the file does not name its coordinate system: left-posterior-superior is assumed")
    dimension = image.GetDimension()
    spatial = min(3, dimension)
    directions = np.eye(3)
    directions[:spatial, :spatial] = np.reshape(image.GetDirection(), (dimension, dimension))[:spatial, :spatial]
    spacing, origin = np.ones(3), np.zeros(3)
    spacing[:spatial], origin[:spatial] = image.GetSpacing()[:spatial], image.GetOrigin()[:spatial]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions * spacing, origin
    array = sitk.GetArrayFromImage(image)
    components = image.GetNumberOfComponentsPerPixel()
    axes = tuple(range(dimension))[::-1]
    if components == 1:
        return _volume(path, array.transpose(axes), _LPS_TO_RAS @ affine + 0.0, modality, warnings)
    if components not in (3, 4) or array.dtype != np.uint8:
        raise ImageError(f"{path.name} has {components} values per voxel: give a file with one volume")
    return _volume(path, array.transpose(*axes, dimension)[..., :3], _LPS_TO_RAS @ affine + 0.0, modality, warnings, rgb=True)


def _check_nifti(path: Path, image: Any) -> None:
    shape, dtype = image.shape, image.get_data_dtype()
    check_size(path.name, shape, dtype.itemsize, path.stat().st_size)
    if len(shape) > 3 and int(np.prod(shape[3:])) > 1:
        raise ImageError(f"{path.name} holds {int(np.prod(shape[3:]))} volumes: save the one to segment as a file of its own")
    if dtype.kind not in "iufV" or (dtype.names and dtype.names[:3] != ("R", "G", "B")):
        raise ImageError(f"{path.name} holds {dtype} values: IBIS Label reads real numbers and RGB")


def _nifti_affine(image: Any) -> tuple[np.ndarray, list[str]]:
    """Voxel -> RAS mm, and what is to be said about it."""
    header = image.header
    warnings = []
    sform, qform = header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]
    if sform is not None and not _regular(sform):
        warnings.append("the file's sform is singular: its qform is used")
        sform = None
    affine = sform if sform is not None else qform if qform is not None else header.get_base_affine()
    if sform is None and qform is None:
        warnings.append("the file does not say how it lies in the patient: sides are not to be trusted")
    if not _regular(affine):
        raise ImageError("the file's affine is singular or not finite: it does not say where its voxels are")
    if sform is not None and qform is not None:
        corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)]) * [*(n - 1 for n in _three(image.shape)), 1]
        apart = float(np.linalg.norm(corners @ (sform - qform).T, axis=1).max())
        if apart > 1:
            warnings.append(f"the file's sform and qform differ by up to {apart:.1f} mm: the sform is used")
    scale = np.diag([_MILLIMETRES[header.get_xyzt_units()[0]]] * 3 + [1.0])
    return scale @ affine, warnings


def _regular(affine: np.ndarray) -> bool:
    return bool(np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-12)


def _three(shape: tuple[int, ...]) -> tuple[int, int, int]:
    i, j, k = (*shape[:3], 1, 1)[:3]
    return (i, j, k)


def _volume(
    path: Path,
    stored: np.ndarray,
    affine: np.ndarray,
    modality: Modality | None,
    warnings: list[str],
    slope: float = 1.0,
    inter: float = 0.0,
    rgb: bool = False,
) -> Volume:
    """A volume from stored values of any shape that has three axes longer than 1 at most, and last colour if `rgb`."""
    if stored.dtype.names:
        stored, rgb = np.stack([stored[name] for name in "RGB"], axis=-1), True
    spatial = stored.shape[:-1] if rgb else stored.shape
    if int(np.prod(spatial[3:])) > 1:
        raise ImageError(f"{path.name} holds {int(np.prod(spatial[3:]))} volumes: save the one to segment as a file of its own")
    if rgb:
        colour = np.ascontiguousarray(stored.reshape(*_three(spatial), 3, order="F"))
        return Volume(luminance(colour), affine, modality or Modality.OTHER, path, tuple(warnings), colour=colour)
    data = _scaled(stored.reshape(_three(spatial), order="F"), slope, inter)
    if data.dtype.kind == "f" and not np.isfinite(data).all():
        data, warning = _finite(path, data)
        warnings = [*warnings, warning]
    known = modality or guess_modality(data)
    if modality is None:
        warnings = [*warnings, f"the file does not say its modality: taken as {known} from its values"]
    if known is Modality.CT and data.dtype.kind != "u":
        outside = data < OUTSIDE_CT
        if outside.any():
            data = np.where(outside, data.dtype.type(AIR), data)
            share = 100 * float(outside.mean())
            warnings = [*warnings, f"{share:.1f} % of the voxels are padding outside the field of view: set to {AIR} HU"]
    return Volume(data, affine, known, path, tuple(warnings))


def _scaled(stored: np.ndarray, slope: float, inter: float) -> np.ndarray:
    """Stored values times slope plus inter: integers stay integers while slope and inter are whole, else float32."""
    if stored.dtype.kind == "f" or not (float(slope).is_integer() and float(inter).is_integer()):
        scaled = stored.astype(np.float32)
        if (slope, inter) != (1.0, 0.0):
            scaled *= np.float32(slope)
            scaled += np.float32(inter)
        return scaled
    native = stored.dtype.newbyteorder("=")
    if (slope, inter) == (1.0, 0.0) and native.itemsize < 8:
        return stored.astype(native, copy=False)
    low, high = sorted(int(end) * int(slope) + int(inter) for end in (stored.min(), stored.max()))
    for dtype in (np.int16, np.int32, np.int64):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return (stored.astype(np.int64) * int(slope) + int(inter)).astype(dtype)
    return stored.astype(np.float32) * np.float32(slope) + np.float32(inter)


def _finite(path: Path, data: np.ndarray) -> tuple[np.ndarray, str]:
    good = np.isfinite(data)
    if not good.any():
        raise ImageError(f"{path.name} has no finite value: it holds no image")
    low, high = data[good].min(), data[good].max()
    count = data.size - int(np.count_nonzero(good))
    fixed = np.nan_to_num(data, nan=low, posinf=high, neginf=low)
    return fixed, f"{count} voxels were not finite numbers: set to {low:g}, positive infinity to {high:g}"


def _data_file_size(path: Path, head: bytes) -> int:
    """Bytes in the data file that a header names, 0 when the data follow the header."""
    end = head.find(b"\n\n") if head.startswith(b"NRRD") else -1
    found = _DATA_FILE.search(head if end < 0 else head[:end])
    name = found[1].decode("utf-8", "replace").strip() if found else "LOCAL"
    if name.upper() == "LOCAL":
        return 0
    beside = path.parent / name
    if Path(name).name != name or beside.is_symlink() or not beside.is_file():
        raise ImageError(
            f"{path.name} keeps its voxels in {name!r}, which is not a file in the same folder: give a single file"
        )
    return beside.stat().st_size
