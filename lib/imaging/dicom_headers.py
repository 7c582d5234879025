"""DICOM headers: what one pass over a file or folder learns about its images, without touching a pixel."""

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL.Image import DecompressionBombError
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from lib.errors import ImageError
from lib.imaging.limits import budget

UNREADABLE = (
    BytesLengthException,
    DecompressionBombError,
    InvalidDicomError,
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What pydicom and its decoders raise on damaged files."""

_NOT_IMAGES = {"Segmentation Storage", "RT Dose Storage", "Parametric Map Storage", "Real World Value Mapping Storage"}
"""Objects with rows and columns that are not images of a patient to segment; those without rows are refused anyway."""

_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "Modality",
    "FrameOfReferenceUID",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "PhotometricInterpretation",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "RescaleSlope",
    "RescaleIntercept",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "InstanceNumber",
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "EchoNumbers",
    "EchoTime",
    "DiffusionBValue",
    "DiffusionGradientOrientation",
    "TriggerTime",
    "ImageType",
    "ContentTime",
    "AcquisitionTime",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]

_FUNCTIONAL_GROUPS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "SpacingBetweenSlices": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "TemporalPositionIndex": "FrameContentSequence",
    "FrameAcquisitionNumber": "FrameContentSequence",
    "FrameAcquisitionDateTime": "FrameContentSequence",
    "StackID": "FrameContentSequence",
    "EffectiveEchoTime": "MREchoSequence",
    "DiffusionBValue": "MRDiffusionSequence",
    "NominalCardiacTriggerDelayTime": "CardiacSynchronizationSequence",
    "FrameType": "MRImageFrameTypeSequence",
}
"""Where a multi-frame file keeps an attribute, per frame or shared (PS3.3 C.7.6.16)."""

KEYS = (
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "AcquisitionNumber",
    "FrameAcquisitionNumber",
    "EchoNumbers",
    "EchoTime",
    "EffectiveEchoTime",
    "DiffusionBValue",
    "DiffusionGradientOrientation",
    "TriggerTime",
    "NominalCardiacTriggerDelayTime",
    "StackID",
    "ImageType",
    "FrameType",
)
"""What may tell the sub-stacks of one series apart, most telling first."""
_UNIT = 2e-3
"""Rounded direction cosines miss length 1 and right angles by less."""
TIMES = ("ContentTime", "AcquisitionTime", "FrameAcquisitionDateTime")
"""Times tell sub-stacks apart only where all of a sub-stack's images share one."""


@dataclass(frozen=True, eq=False)
class Header:
    """What all frames of one DICOM image file share."""

    path: Path
    stored: int
    """Size of the file in bytes."""
    sop_instance_uid: str
    series_uid: str
    """Series Instance UID; "no-uid" with the series number where the file has none."""
    description: str
    modality: str
    rows: int
    columns: int
    samples: int
    bits: int
    """Bits Allocated."""
    frames: int | None
    """Number of Frames of a multi-frame file; None for a single-frame file."""
    padding: tuple[int, int] | None
    """Lowest and highest stored value that mean "no data" (PS3.3 C.7.5.1.1.2)."""
    instance_number: int


@dataclass(frozen=True, eq=False)
class Frame:
    """One image plane. Positions and directions are DICOM patient coordinates: LPS, mm."""

    header: Header
    number: int | None
    """1-based frame number in a multi-frame file; None otherwise."""
    position: np.ndarray | None
    """Centre of the first pixel (Image Position Patient)."""
    orientation: np.ndarray | None
    """`[2, 3]`: direction of growing column index, direction of growing row index (Image Orientation Patient)."""
    spacing: tuple[float, float] | None
    """mm between rows, mm between columns (Pixel Spacing)."""
    thickness: float | None
    """Spacing Between Slices, else Slice Thickness: the depth of a slice that stands alone."""
    slope: float
    intercept: float
    keys: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.header.path.name if self.number is None else f"{self.header.path.name} frame {self.number}"


@dataclass(frozen=True)
class Scan:
    """All image frames under a path, and what was left out."""

    frames: tuple[Frame, ...]
    notes: tuple[str, ...]


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins with `head` (at least 132 bytes) is DICOM: with preamble (PS3.10 7.1), or a bare data set that
    begins with group 0002 or 0008."""
    if head[128:132] == b"DICM":
        return True
    if len(head) < 132 or head[:2] not in (b"\x02\x00", b"\x08\x00"):
        return False
    element = int.from_bytes(head[2:4], "little")
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return element <= 0x0070 and (explicit or int.from_bytes(head[4:8], "little") <= 256)


def read_dataset(path: Path, **options: Any) -> Dataset:
    """`pydicom.dcmread`, after a check that a deflated data set does not inflate beyond its budget.

    Raises ImageError, or one of UNREADABLE.
    """
    with path.open("rb") as file:
        head = file.read(1024)
    if DeflatedExplicitVRLittleEndian.encode() in head:
        _check_deflated(path)
    dataset = pydicom.dcmread(path, force=head[128:132] != b"DICM", **options)
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if dataset.is_implicit_VR else ExplicitVRLittleEndian
    return dataset


def scan(path: Path) -> Scan:
    """The image frames of a DICOM file, or of all DICOM files in a folder and its subfolders.

    Files that are not DICOM, and objects that are not images, are noted and left out. Raises ImageError when no image is left.
    """
    if path.is_file():
        return Scan(tuple(_frames(path)), ())
    frames: list[Frame] = []
    foreign: list[str] = []
    refused: list[str] = []
    for file in _files(path):
        with file.open("rb") as stream:
            head = stream.read(132)
        if not is_dicom(head):
            foreign.append(file.name)
        elif file.name != "DICOMDIR":
            try:
                frames.extend(_frames(file))
            except ImageError as error:
                refused.append(error.message)
    if not frames:
        reason = refused[0] if refused else "give a folder of DICOM files, or an image file itself"
        raise ImageError(f"{path.name} holds no DICOM image: {reason}")
    notes = [f"{len(foreign)} files that are not DICOM were ignored: {_some(foreign)}"] if foreign else []
    return Scan(tuple(frames), (*notes, *refused[:5], *([f"{len(refused) - 5} more files left out"] if refused[5:] else [])))


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            file = Path(parent, name)
            if file.is_file():
                yield file


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if names[3:] else "")


def _frames(path: Path) -> list[Frame]:
    try:
        dataset = read_dataset(path, stop_before_pixels=True, specific_tags=_TAGS)
        _refuse_other_objects(path, dataset)
        return parse(path, dataset)
    except UNREADABLE as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{path.name} cannot be read as DICOM, it is damaged or truncated: {error}") from error


def _refuse_other_objects(path: Path, dataset: Dataset) -> None:
    kind = UID(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or "").name or "DICOM object"
    if dataset.get("Rows") and dataset.get("Columns") and kind not in _NOT_IMAGES:
        return
    if "Image Storage" in kind:
        raise ImageError(f"{path.name} is a {kind} without rows and columns: it is damaged or truncated")
    raise ImageError(f"{path.name} is a {kind}, not an image to segment: give the image series that it belongs to")


def parse(path: Path, dataset: Dataset) -> list[Frame]:
    """The frames of one image object, read up to its pixels. Raises ImageError, or one of UNREADABLE."""
    meta = dataset.file_meta
    count = int(dataset.get("NumberOfFrames") or 1)
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    multi = "NumberOfFrames" in dataset and (count > 1 or bool(per_frame))
    if multi and per_frame and len(per_frame) != count:
        raise ImageError(f"{path.name} says it has {count} frames but describes {len(per_frame)}: it is damaged")
    series = str(dataset.get("SeriesInstanceUID") or "").strip()
    header = Header(
        path=path,
        stored=path.stat().st_size,
        sop_instance_uid=str(dataset.get("SOPInstanceUID") or meta.get("MediaStorageSOPInstanceUID") or ""),
        series_uid=series or f"no-uid-{dataset.get('SeriesNumber') or 0}",
        description=str(dataset.get("SeriesDescription") or ""),
        modality=str(dataset.get("Modality") or ""),
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        samples=int(dataset.get("SamplesPerPixel") or 1),
        bits=int(dataset.get("BitsAllocated") or 16),
        frames=count if multi else None,
        padding=_padding(dataset),
        instance_number=int(dataset.get("InstanceNumber") or 0),
    )
    if not multi:
        return [_frame(header, None, [], dataset)]
    if count > header.stored:
        raise ImageError(f"{path.name} announces {count} frames in {header.stored} bytes: it is damaged")
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or [])
    groups = [[item, *shared] for item in per_frame] or [shared] * count
    return [_frame(header, number, places, dataset) for number, places in enumerate(groups, start=1)]


def _frame(header: Header, number: int | None, groups: list[Dataset], dataset: Dataset) -> Frame:
    """`groups`: the frame's own functional groups, then the shared ones."""
    places = [*groups, dataset]
    # One position for a whole file of many frames is no frame's position.
    position = _numbers(places if (header.frames or 1) == 1 else groups, "ImagePositionPatient", 3)
    orientation = _numbers(places, "ImageOrientationPatient", 6)
    spacing = _numbers(places, "PixelSpacing", 2)
    thickness = _number(places, "SpacingBetweenSlices") or _number(places, "SliceThickness")
    slope = _number(places, "RescaleSlope")
    if slope == 0:
        raise ImageError(f"{header.path.name} has a rescale slope of 0: its values cannot be restored")
    if spacing is not None and not (spacing > 0).all():
        raise ImageError(f"{header.path.name} has the pixel spacing {spacing.tolist()}: it must be above 0")
    directions = None if orientation is None else orientation.reshape(2, 3)
    if directions is not None and np.abs(directions @ directions.T - np.eye(2)).max() > _UNIT:
        raise ImageError(
            f"{header.path.name}: the image orientation {directions.tolist()} is not two perpendicular unit vectors"
        )
    return Frame(
        header=header,
        number=number,
        position=position,
        orientation=directions,
        spacing=None if spacing is None else (float(spacing[0]), float(spacing[1])),
        thickness=abs(thickness) if thickness else None,
        slope=1.0 if slope is None else slope,
        intercept=_number(places, "RescaleIntercept") or 0.0,
        keys={key: str(value) for key in (*KEYS, *TIMES) if (value := _look_up(places, key)) not in (None, "")},
    )


def _look_up(places: list[Dataset], keyword: str) -> Any:
    """The attribute's value in the first of `places` that has it, directly or in its functional group."""
    group = _FUNCTIONAL_GROUPS.get(keyword)
    for place in places:
        items = place.get(group) if group else None
        value = items[0].get(keyword) if items else place.get(keyword)
        if value is not None:
            return value
    return None


def _number(places: list[Dataset], keyword: str) -> float | None:
    value = _look_up(places, keyword)
    if value is None or value == "":
        return None
    number = float(value)
    if not np.isfinite(number):
        raise ValueError(f"{keyword} is {value}")
    return number


def _numbers(places: list[Dataset], keyword: str, count: int) -> np.ndarray | None:
    value = _look_up(places, keyword)
    if value is None or len(value) == 0:
        return None
    numbers = np.array([float(number) for number in value])
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise ValueError(f"{keyword} is {value}")
    return numbers


def _padding(dataset: Dataset) -> tuple[int, int] | None:
    value = dataset.get("PixelPaddingValue")
    if value is None or value == "" or isinstance(value, bytes):
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    ends = [int(value), int(value if limit is None or limit == "" or isinstance(limit, bytes) else limit)]
    bits = int(dataset.get("BitsAllocated") or 16)
    if dataset.get("PixelRepresentation"):
        # Some writers store the value as unsigned although the pixels are signed.
        ends = [end - 2**bits if end >= 2 ** (bits - 1) else end for end in ends]
    return min(ends), max(ends)


def _check_deflated(path: Path) -> None:
    meta = read_file_meta_info(path)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    size, limit = 0, budget(path.stat().st_size)
    with path.open("rb") as file:
        file.seek(128 + 4 + 12 + int(meta.FileMetaInformationGroupLength))
        chunk = file.read(2**16)
        while chunk and not inflater.eof:
            size += len(inflater.decompress(chunk, 2**20))
            if size > limit:
                raise ImageError(f"{path.name} is not loaded: it inflates to more than {limit // 2**20} MiB")
            chunk = inflater.unconsumed_tail or file.read(2**16)
