"""DICOM Segmentation objects (PS3.3 A.51): writing labels as one, and reading one onto a volume's grid."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from lib.errors import ImageError, InputError
from lib.imaging.dicom_geometry import normal
from lib.imaging.dicom_headers import UNREADABLE, Frame, parse, read_dataset
from lib.imaging.files import replacing
from lib.imaging.limits import check_size
from lib.imaging.volume import Volume

CodeTriple = tuple[str, str, str]
"""(value, coding scheme, meaning), such as ("10200004", "SCT", "Liver")."""

ANATOMY: CodeTriple = ("123037004", "SCT", "Anatomical Structure")
LESION: CodeTriple = ("49755003", "SCT", "Morphologically Abnormal Structure")
TISSUE: CodeTriple = ("85756007", "SCT", "Tissue")
_TYPE_2 = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)
"""Attributes that a series may leave out in practice and a segmentation repeats."""
_ON_GRID = 0.1
"""A segmentation's pixel may miss a voxel's centre by this share of a voxel."""


@dataclass(frozen=True)
class Segment:
    """What one label value means (PS3.3 C.8.20.4)."""

    number: int
    """Segment Number: 1, 2, ... in the file."""
    name: str
    label: int
    """Its value in the label array."""
    code: CodeTriple | None = None
    """Segmented Property Type. None is written as SNOMED CT "Tissue" in both type and category, as 3D Slicer does for
    unknowns."""
    category: CodeTriple = ANATOMY
    modifier: CodeTriple | None = None
    """What tells two of a kind apart, such as the side (CID 244)."""
    algorithm: str = "IBIS Label"
    tracking_uid: str = ""
    """Same for the same structure across segmentations; empty: made from the series and the name, always the same."""
    automatic: bool = True
    """False when a person took part: SEMIAUTOMATIC."""


def write_seg(
    path: Path,
    labels: np.ndarray,
    volume: Volume,
    segments: Sequence[Segment],
    series_description: str,
    version: str = "1.0.0",
    series_number: int = 300,
    creator: str = "",
) -> None:
    """Write `labels`, uint8 `[i, j, k]` of the volume, as a BINARY segmentation of its source series; all or nothing.

    Each frame refers to the source image or frame it was made on and takes over its position, so a tilted series lies right;
    empty frames are left out. `creator` is the person who made it, if one did. Raises InputError when nothing is labelled, when
    a label has no segment, and when the series cannot be referred to: not DICOM, or without the UIDs of study, series, images
    or frame of reference.
    """
    import highdicom  # heavy, and only needed here

    logging.getLogger("highdicom").setLevel(logging.WARNING)
    numbered = _numbered(labels, volume, segments)
    sources, planes = _sources(volume, numbered)
    first = sources[0]
    try:
        segmentation = highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=planes,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[_description(segment, str(first.SeriesInstanceUID), version) for segment in segments],
            series_instance_uid=generate_uid(),
            series_number=series_number,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="IBIS Label",
            manufacturer_model_name="IBIS Label",
            software_versions=version,
            device_serial_number="0",
            content_label="SEGMENTATION",
            content_description=_plain(series_description),
            content_creator_name=_person(creator),
            series_description=_plain(series_description),
            transfer_syntax_uid=ExplicitVRLittleEndian,
            omit_empty_frames=True,
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"a DICOM SEG of this series cannot be written, its headers are not complete: {error}") from error
    _restore_frame_numbers(segmentation, volume)
    segmentation.SpecificCharacterSet = "ISO_IR 192"  # UTF-8 (PS3.3 C.12.1.1.2): names are in any language
    with replacing(path) as temporary:
        segmentation.save_as(temporary)


def read_seg(path: Path, volume: Volume) -> dict[int, np.ndarray]:
    """The segments of a DICOM SEG as bool `[i, j, k]` on the volume's grid, keyed by segment number.

    Frames are placed by their positions (not by references, which some writers leave out); FRACTIONAL segments count from half
    of the maximum. Raises ImageError when the file is damaged, or when its frames lie in another frame of reference, off the
    grid or outside the volume.
    """
    try:
        dataset = read_dataset(path)
        if dataset.get("SegmentSequence") is None:
            raise ImageError(f"{path.name} is not a DICOM SEG")
        frames = parse(path, dataset)
        _check_reference(path, dataset, volume)
        check_size(path.name, (len(frames), int(dataset.Rows), int(dataset.Columns)), 1, path.stat().st_size)
        pixels = dataset.pixel_array.reshape(len(frames), int(dataset.Rows), int(dataset.Columns))
        fractional = dataset.SegmentationType == "FRACTIONAL"
        least = float(dataset.MaximumFractionalValue) / 2 if fractional else 1
        shared = list(dataset.get("SharedFunctionalGroupsSequence") or [])
        numbers = [_segment_number([group, *shared]) for group in dataset.PerFrameFunctionalGroupsSequence]
        segments = {int(item.SegmentNumber): np.zeros(volume.data.shape, dtype=bool) for item in dataset.SegmentSequence}
        for frame, number, plane in zip(frames, numbers, pixels, strict=True):
            _place(path, frame, plane >= least, volume, segments[number])
    except UNREADABLE as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{path.name} cannot be read as a DICOM SEG, it is damaged or truncated: {error}") from error
    return segments


def segments_of(path: Path) -> dict[int, Segment]:
    """What the segments of a DICOM SEG are, keyed by segment number; `label` is that number too.

    Raises ImageError when the file is damaged or no DICOM SEG.
    """
    try:
        dataset = read_dataset(path, stop_before_pixels=True)
        described = [_described(item) for item in dataset.SegmentSequence]
    except UNREADABLE as error:
        raise ImageError(f"{path.name} cannot be read as a DICOM SEG, it is damaged or truncated: {error}") from error
    return {segment.number: segment for segment in described}


def _described(item: Dataset) -> Segment:
    kind, category = _triple(item, "SegmentedPropertyTypeCodeSequence"), _triple(item, "SegmentedPropertyCategoryCodeSequence")
    return Segment(
        number=int(item.SegmentNumber),
        name=str(item.get("SegmentLabel") or ""),
        label=int(item.SegmentNumber),
        code=kind,
        category=category or ANATOMY,
        modifier=None
        if kind is None
        else _triple(item.SegmentedPropertyTypeCodeSequence[0], "SegmentedPropertyTypeModifierCodeSequence"),
        algorithm=str(item.get("SegmentAlgorithmName") or ""),
        tracking_uid=str(item.get("TrackingUID") or ""),
        automatic=item.get("SegmentAlgorithmType") == "AUTOMATIC",
    )


def _triple(item: Dataset, keyword: str) -> CodeTriple | None:
    codes = item.get(keyword)
    if not codes:
        return None
    code = codes[0]
    value = code.get("CodeValue") or code.get("LongCodeValue") or code.get("URNCodeValue")
    return (str(value), str(code.get("CodingSchemeDesignator", "")), str(code.get("CodeMeaning", "")))


def _plain(text: str, most: int | None = 64) -> str:
    """A text as one value of VR LO (PS3.5 6.2): without what separates values, controls or is no character."""
    return re.sub(r"[\\\x00-\x1f\x7f\ud800-\udfff]", " ", text)[:most]


def _person(name: str) -> str:
    """A name as DICOM writes it (PS3.5 6.2.1): one component, without what separates components."""
    plain = re.sub(r"[\^=]+", " ", _plain(name)).strip()[:60]
    return f"{plain}^" if plain else ""


def _numbered(labels: np.ndarray, volume: Volume, segments: Sequence[Segment]) -> np.ndarray:
    """`labels` with segment numbers as values."""
    if labels.dtype != np.uint8 or labels.shape != volume.data.shape:
        raise InputError(f"the labels are {labels.dtype} {labels.shape}: the image needs uint8 {volume.data.shape}")
    if [segment.number for segment in segments] != list(range(1, len(segments) + 1)):
        raise InputError("segments must be numbered 1, 2, ... in order")
    table = np.zeros(256, dtype=np.uint8)
    for segment in segments:
        table[segment.label] = segment.number
    present = np.unique(labels[labels > 0])
    if present.size == 0:
        raise InputError("a DICOM SEG cannot be empty: nothing is labelled")
    unknown = [int(label) for label in present if table[label] == 0]
    if unknown:
        raise InputError(f"labels {unknown} have no segment that says what they are")
    return table[labels]


def _sources(volume: Volume, numbered: np.ndarray) -> tuple[list[Dataset], np.ndarray]:
    """The source data sets without pixels, and the planes `[frame, row, column]` of their images or frames, in order of k."""
    known = [(k, instance) for k, instance in enumerate(volume.instances) if instance is not None]
    if not known:
        raise InputError("a DICOM SEG can only be written for a DICOM image: this image is none")
    if any(numbered[:, :, k].any() for k in volume.missing):
        raise InputError("a DICOM SEG cannot refer to slices that were never received, and some are labelled")
    multi = known[0][1].frame is not None
    if multi and len({instance.path for _, instance in known}) > 1:
        raise InputError("a DICOM SEG cannot refer to several multi-frame images")
    paths = list(dict.fromkeys(instance.path for _, instance in known))
    try:
        sources = [read_dataset(path, stop_before_pixels=True) for path in paths]
    except UNREADABLE as error:
        raise InputError(f"the source images of the segmentation cannot be read again: {error}") from error
    for source in sources:
        _complete(source, volume)
    if multi:
        # highdicom wants every place once: of several time points it sees the frames of this stack only.
        groups = sources[0].PerFrameFunctionalGroupsSequence
        sources[0].PerFrameFunctionalGroupsSequence = [groups[(instance.frame or 1) - 1] for _, instance in known]
        sources[0].NumberOfFrames = len(known)
    return sources, np.stack([numbered[:, :, k].T for k, _ in known])


def _restore_frame_numbers(segmentation: Dataset, volume: Volume) -> None:
    """Put the source's own frame numbers for those counted among the stack's frames."""
    frames = [instance.frame for instance in volume.instances if instance is not None]
    for group in segmentation.PerFrameFunctionalGroupsSequence:
        for derivation in group.DerivationImageSequence:
            for source in derivation.SourceImageSequence:
                if "ReferencedFrameNumber" in source:
                    source.ReferencedFrameNumber = frames[int(source.ReferencedFrameNumber) - 1]


def _complete(source: Dataset, volume: Volume) -> None:
    """Check that a source can be referred to, and fill in what highdicom needs and the series may lack."""
    keywords = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID")
    lacking = [keyword for keyword in keywords if not UID(source.get(keyword) or "").is_valid]
    if lacking:
        raise InputError(f"a DICOM SEG cannot refer to this series: its images have no valid {', '.join(lacking)}")
    for keyword in _TYPE_2:
        if keyword not in source:
            setattr(source, keyword, "")
    first = next(frame for frame in parse(Path(str(source.filename)), source))
    if first.position is None or first.orientation is None:
        raise InputError("a DICOM SEG cannot refer to this series: its images have no position in the patient")
    step = volume.affine[:3, 2] * [-1, -1, 1]
    between = f"{abs(float(normal(first) @ step)):.6g}"
    if "NumberOfFrames" in source:
        shared, own = source.SharedFunctionalGroupsSequence[0], source.PerFrameFunctionalGroupsSequence[0]
        for keyword in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
            if keyword not in shared:
                setattr(shared, keyword, getattr(own, keyword))
    else:
        source.SpacingBetweenSlices = between
        if source.get("SliceThickness") in (None, ""):
            source.SliceThickness = between


def _description(segment: Segment, series_uid: str, version: str) -> Any:
    import highdicom

    code, category = (segment.code, segment.category) if segment.code else (TISSUE, TISSUE)
    kinds = highdicom.seg.SegmentAlgorithmTypeValues
    description = highdicom.seg.SegmentDescription(
        segment_number=segment.number,
        segment_label=_plain(segment.name),
        segmented_property_category=Code(*category),
        segmented_property_type=Code(*code),
        algorithm_type=kinds.AUTOMATIC if segment.automatic else kinds.SEMIAUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=_plain(segment.algorithm), family=Code("123110", "DCM", "Artificial Intelligence"), version=version
        ),
        tracking_uid=segment.tracking_uid or generate_uid(entropy_srcs=["IBIS Label", series_uid, _plain(segment.name, None)]),
        tracking_id=_plain(segment.name),
    )
    if segment.modifier is not None:
        modifier = highdicom.sr.CodedConcept(*segment.modifier)
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
    return description


def _check_reference(path: Path, dataset: Dataset, volume: Volume) -> None:
    instance = next((instance for instance in volume.instances if instance is not None), None)
    if instance is None:
        return
    source = read_dataset(instance.path, stop_before_pixels=True, specific_tags=["FrameOfReferenceUID"])
    here, there = dataset.get("FrameOfReferenceUID"), source.get("FrameOfReferenceUID")
    if here and there and here != there:
        raise ImageError(f"{path.name} lies in another frame of reference than the image: it belongs to another series")


def _segment_number(groups: list[Dataset]) -> int:
    for group in groups:
        if group.get("SegmentIdentificationSequence"):
            return int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
    raise ValueError("a frame does not say its segment")


def _place(path: Path, frame: Frame, mask: np.ndarray, volume: Volume, target: np.ndarray) -> None:
    """Set the voxels of `target` that lie under the pixels of `mask` `[row, column]`."""
    rows, columns = np.nonzero(mask)
    if rows.size == 0:
        return
    if frame.position is None or frame.orientation is None or frame.spacing is None:
        raise ValueError("a frame has no position")
    between_rows, between_columns = frame.spacing
    points = (
        frame.position
        + columns[:, None] * frame.orientation[0] * between_columns
        + rows[:, None] * frame.orientation[1] * between_rows
    )
    inverse = np.linalg.inv(volume.affine)
    voxels = (points * [-1, -1, 1]) @ inverse[:3, :3].T + inverse[:3, 3]
    index = np.round(voxels).astype(int)
    if np.abs(voxels - index).max() > _ON_GRID:
        raise ImageError(f"{path.name}: {frame.name} does not lie on the image's voxel grid: resample the segmentation to it")
    if (index < 0).any() or (index >= target.shape).any():
        raise ImageError(f"{path.name}: {frame.name} reaches outside the image: it belongs to another series")
    target[tuple(index.T)] = True
