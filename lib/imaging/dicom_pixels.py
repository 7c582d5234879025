"""DICOM pixels: decode the frames of a stack, slice by slice, into one array of physical values."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_pixel_data_frame
from pydicom.pixel_data_handlers.util import apply_color_lut, apply_modality_lut, convert_color_space
from pydicom.uid import DeflatedExplicitVRLittleEndian

from lib.errors import ImageError
from lib.imaging.dicom_headers import UNREADABLE, Frame, Header, read_dataset
from lib.imaging.limits import check_size

AIR = -1024
"""HU of air, as CT scanners store it."""
OUTSIDE_CT = -1500
"""A CT value below this was never measured (nothing is thinner than air, bar noise): fill outside the field of view."""

_PIXEL_MODULE = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "ModalityLUTSequence",
)
"""What pydicom needs to decode a frame (PS3.3 C.7.6.3), and the tables that give its values a meaning."""
_LADDER = (np.int16, np.int32, np.int64)


@dataclass(frozen=True, eq=False)
class Pixels:
    """The decoded slices, in the order of `k`."""

    data: np.ndarray
    """`[k, row, column]`; integers where slope and intercept are whole numbers (int16 if they fit), else float32."""
    colour: np.ndarray | None
    """`[k, row, column, 3]` uint8 for colour images, whose `data` is their luminance."""
    warnings: tuple[str, ...]


def read_pixels(frames: Sequence[Frame | None], ct: bool, physical: bool) -> Pixels:
    """Decode the frames of a stack in the order of its slices; None is a missing slice, filled with air.

    Rescale (PS3.3 C.11.1) applies per frame. Padding (C.7.5.1.1.2), missing slices and, in a CT, values below OUTSIDE_CT become
    -1024 in a CT (`ct`) and the lowest real value elsewhere. MONOCHROME1 is inverted unless the values are `physical` (HU,
    uptake), which it does not change. Raises ImageError naming the file that cannot be decoded.
    """
    known = [(k, frame) for k, frame in enumerate(frames) if frame is not None]
    headers = {frame.header.path: frame.header for _, frame in known}
    first = known[0][1].header
    shape = (len(frames), first.rows, first.columns)
    check_size(first.path.parent.name, shape, first.samples * max(1, first.bits // 8), sum(h.stored for h in headers.values()))
    whole = all(float(frame.slope).is_integer() and float(frame.intercept).is_integer() for _, frame in known)
    data = np.empty(shape, dtype=np.int16 if whole else np.float32)
    colour: np.ndarray | None = None
    blank: dict[int, np.ndarray] = {}
    inverted = kept_inverse = False
    for k, frame, stored, dataset in _decoded(known):
        if stored.ndim == 3:
            if colour is None:
                colour = np.zeros((*shape, 3), dtype=np.uint8)
            colour[k] = stored
            continue
        outside = _padded(stored, frame.header)
        monochrome1 = dataset.get("PhotometricInterpretation") == "MONOCHROME1"
        inverted, kept_inverse = inverted or (monochrome1 and not physical), kept_inverse or (monochrome1 and physical)
        values = _physical(stored, frame, dataset, monochrome1 and not physical)
        if ct:
            below = values < OUTSIDE_CT
            outside = below if outside is None else outside | below
        if outside is not None and outside.any():
            values = np.where(outside, AIR if ct else values.dtype.type(0), values)
            blank[k] = np.packbits(outside)
        data = _fitting(data, values)
        data[k] = values
    if colour is not None:
        return Pixels(luminance(colour), colour, ())
    missing = [k for k, frame in enumerate(frames) if frame is None]
    warnings = _fill(data, missing, blank, ct)
    if inverted:
        warnings.append("the images are stored with bright as low (MONOCHROME1): their values are inverted")
    if kept_inverse:
        warnings.append("the images ask to be shown inverted (MONOCHROME1): their physical values are kept")
    return Pixels(data, colour, tuple(warnings))


def luminance(colour: np.ndarray) -> np.ndarray:
    """uint8 `[..., 3]` RGB as uint8 luma (ITU-R BT.601)."""
    return (colour @ np.array([299, 587, 114]) // 1000).astype(np.uint8)


def _fill(data: np.ndarray, missing: list[int], blank: dict[int, np.ndarray], ct: bool) -> list[str]:
    """Put air into missing slices and, where air is not fixed, into the voxels of `blank`, a packed mask per slice."""
    air: float = AIR
    if not ct:
        real = (data[k][_unpacked(blank[k], data[k])] if k in blank else data[k] for k in range(len(data)) if k not in missing)
        air = min((values.min() for values in real if values.size), default=0)
        for k, packed in blank.items():
            data[k][~_unpacked(packed, data[k])] = air
    data[missing] = air
    if not blank:
        return []
    count = sum(int(np.count_nonzero(~_unpacked(packed, data[k]))) for k, packed in blank.items())
    share = 100 * count / data.size
    return [f"{share:.1f} % of the voxels are padding outside the field of view: set to {air:g}{' HU' if ct else ''}"]


def _unpacked(packed: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The voxels that are real, bool of the shape of `like`."""
    return np.unpackbits(packed, count=like.size).reshape(like.shape) == 0


def _fitting(data: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`data`, as a wider integer type if `values` need one."""
    if data.dtype == np.float32:
        return data
    if values.dtype.kind == "f":
        return data.astype(np.float32)
    low, high = int(values.min()), int(values.max())
    for dtype in _LADDER:
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return data.astype(dtype) if np.dtype(dtype).itemsize > data.itemsize else data
    return data.astype(np.float32)


def _padded(stored: np.ndarray, header: Header) -> np.ndarray | None:
    if header.padding is None:
        return None
    low, high = header.padding
    return (stored >= low) & (stored <= high)


def _physical(stored: np.ndarray, frame: Frame, dataset: Dataset, invert: bool) -> np.ndarray:
    """Stored values as modality values: integers where they can be, else float64."""
    if stored.dtype.kind == "f":
        return stored * frame.slope + frame.intercept
    if invert:
        bits = int(dataset.BitsStored)
        stored = (-1 if stored.dtype.kind == "i" else 2**bits - 1) - stored.astype(np.int64)
    if dataset.get("ModalityLUTSequence"):
        return apply_modality_lut(stored, dataset)
    if (frame.slope, frame.intercept) == (1.0, 0.0):
        return stored
    if float(frame.slope).is_integer() and float(frame.intercept).is_integer():
        return stored.astype(np.int64) * int(frame.slope) + int(frame.intercept)
    return stored * frame.slope + frame.intercept


def _decoded(known: Iterable[tuple[int, Frame]]) -> Iterator[tuple[int, Frame, np.ndarray, Dataset]]:
    """The frames file by file: slice number, frame, `[row, column]` stored values or `[row, column, 3]` uint8 RGB, data set."""
    by_file: dict[Path, list[tuple[int, Frame]]] = {}
    for k, frame in known:
        by_file.setdefault(frame.header.path, []).append((k, frame))
    for path, members in by_file.items():
        try:
            for (k, frame), (stored, dataset) in zip(members, _file(path, [f.number for _, f in members]), strict=True):
                size = (frame.header.rows, frame.header.columns)
                if stored.shape[:2] != size:
                    raise ValueError(f"a frame is {stored.shape[1]} x {stored.shape[0]}, the header says {size[1]} x {size[0]}")
                yield k, frame, _rgb(stored, dataset), dataset
        except UNREADABLE as error:
            if isinstance(error, ImageError):
                raise
            raise ImageError(f"the pixels of {path.name} cannot be decoded, it is damaged or truncated: {error}") from error


def _file(path: Path, numbers: list[int | None]) -> Iterator[tuple[np.ndarray, Dataset]]:
    """The wanted frames of one file, and the data set that describes them. `numbers`: 1-based frame numbers, or `[None]`."""
    if numbers == [None]:
        dataset = read_dataset(path)
        yield dataset.pixel_array, dataset
        return
    dataset = read_dataset(path, stop_before_pixels=True)
    syntax = dataset.file_meta.TransferSyntaxUID
    template = Dataset()
    template.file_meta = dataset.file_meta
    template.is_little_endian, template.is_implicit_VR = dataset.is_little_endian, dataset.is_implicit_VR
    for keyword in _PIXEL_MODULE:
        if keyword in dataset:
            template[keyword] = dataset[keyword]
    wanted = [number for number in numbers if number is not None]
    encoded = _compressed(path, wanted) if syntax.is_encapsulated else _native(path, dataset, wanted)
    for frame in encoded:
        template.PixelData = encapsulate([frame]) if syntax.is_encapsulated else frame
        template["PixelData"].is_undefined_length = syntax.is_encapsulated
        yield template.pixel_array, template


def _compressed(path: Path, numbers: list[int]) -> Iterator[bytes]:
    dataset = read_dataset(path)
    frames = dict(enumerate(generate_pixel_data_frame(dataset.PixelData, int(dataset.NumberOfFrames)), start=1))
    yield from (frames[number] for number in numbers)


def _native(path: Path, dataset: Dataset, numbers: list[int]) -> Iterator[bytes]:
    """Frames read from the file one at a time; `dataset` is the file's, read up to its pixels."""
    samples = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("SamplesPerPixel") or 1)
    if dataset.PhotometricInterpretation == "YBR_FULL_422":
        samples = samples * 2 // 3
    if samples * int(dataset.BitsAllocated) % 8:
        raise ValueError("frames of single bits that do not end at a byte are not supported")
    length = samples * int(dataset.BitsAllocated) // 8
    if dataset.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
        pixels = read_dataset(path).PixelData
        yield from (pixels[(number - 1) * length : number * length] for number in numbers)
        return
    with path.open("rb") as file:
        pydicom.dcmread(file, stop_before_pixels=True, force=True)
        # Tag and length, with a VR and two reserved bytes between them where VRs are explicit (PS3.5 7.1).
        start = file.tell() + (8 if dataset.is_implicit_VR else 12)
        for number in numbers:
            file.seek(start + (number - 1) * length)
            yield file.read(length)


def _rgb(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Colour as uint8 RGB; grey values unchanged."""
    interpretation = dataset.PhotometricInterpretation
    if interpretation == "PALETTE COLOR":
        rgb = apply_color_lut(stored, dataset)[..., :3]
        return (rgb >> (8 * (rgb.itemsize - 1))).astype(np.uint8)
    if stored.ndim == 2:
        return stored
    if interpretation.startswith("YBR_FULL"):
        stored = convert_color_space(stored, interpretation, "RGB")
    shift = max(0, int(dataset.BitsStored) - 8)
    return (stored >> shift).astype(np.uint8)
