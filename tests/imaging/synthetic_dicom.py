"""Writes DICOM files of every odd kind, for the tests of the readers."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
AXIAL = np.array([[1.0, 0, 0], [0, 1, 0]])


@dataclass
class Recipe:
    """A regular series; `positions`, LPS mm, follow from origin and step unless given."""

    count: int = 6
    rows: int = 5
    columns: int = 4
    orientation: np.ndarray = field(default_factory=lambda: AXIAL)
    origin: tuple[float, float, float] = (-100.0, -50.0, 20.0)
    step: tuple[float, float, float] = (0.0, 0.0, 2.5)
    spacing: tuple[float, float] = (0.75, 0.5)
    """mm between rows, between columns."""
    modality: str = "CT"
    series: str = field(default_factory=generate_uid)
    study: str = field(default_factory=generate_uid)
    frame_of_reference: str = field(default_factory=generate_uid)

    def position(self, k: float) -> np.ndarray:
        return np.array(self.origin) + k * np.array(self.step)

    @property
    def affine(self) -> np.ndarray:
        """Voxel -> RAS mm of the whole series, by the formula of PS3.3 C.7.6.2.1.1."""
        affine = np.eye(4)
        affine[:3, 0] = self.orientation[0] * self.spacing[1]
        affine[:3, 1] = self.orientation[1] * self.spacing[0]
        affine[:3, 2] = self.step
        affine[:3, 3] = self.origin
        return LPS_TO_RAS @ affine

    def pixels(self, k: int) -> np.ndarray:
        """Stored values `[row, column]` of slice k, all different."""
        return (np.arange(self.rows * self.columns).reshape(self.rows, self.columns) + 100 * k + 1).astype(np.int16)

    @property
    def stored(self) -> np.ndarray:
        """Stored values `[i, j, k]` of the whole series."""
        return np.stack([self.pixels(k) for k in range(self.count)]).transpose(2, 1, 0)


def image(recipe: Recipe, k: int, pixels: np.ndarray | None = None, **attributes: Any) -> FileDataset:
    """Slice `k` as a data set; `attributes` replace what it would have, None deletes."""
    pixels = recipe.pixels(k) if pixels is None else pixels
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage if recipe.modality == "CT" else MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.is_little_endian, dataset.is_implicit_VR = True, False
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID = recipe.study
    dataset.SeriesInstanceUID = recipe.series
    dataset.FrameOfReferenceUID = recipe.frame_of_reference
    dataset.Modality = recipe.modality
    dataset.SeriesDescription = "synthetic"
    dataset.InstanceNumber = k + 1
    dataset.ImageOrientationPatient = [float(f"{v:.10f}") for v in recipe.orientation.ravel()]
    dataset.ImagePositionPatient = [float(f"{v:.8f}") for v in recipe.position(k)]
    dataset.PixelSpacing = list(recipe.spacing)
    dataset.SliceThickness = 1.0
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024 if recipe.modality == "CT" else 0
    set_pixels(dataset, pixels)
    for keyword, value in attributes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def set_pixels(dataset: Dataset, pixels: np.ndarray) -> None:
    """`[row, column]` or `[row, column, 3]`."""
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    dataset["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"


def save(dataset: FileDataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, write_like_original=False)
    return path


def write_series(recipe: Recipe, folder: Path, order: list[int] | None = None, **attributes: Any) -> Path:
    """The slices of `recipe` in `order` (all, ascending) as files 0.dcm, 1.dcm, ..."""
    for number, k in enumerate(range(recipe.count) if order is None else order):
        save(image(recipe, k, **attributes), folder / f"{number}.dcm")
    return folder


def enhanced(recipe: Recipe, order: list[int], rescale: list[tuple[float, float]] | None = None, times: int = 1) -> FileDataset:
    """An enhanced MR of the slices in `order`, `times` time points one after the other."""
    frames = [recipe.pixels(k) + 1000 * time for time in range(times) for k in order]
    dataset = image(recipe, 0, ImagePositionPatient=None, ImageOrientationPatient=None, PixelSpacing=None)
    del dataset.RescaleSlope, dataset.RescaleIntercept, dataset.SliceThickness
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    dataset.NumberOfFrames = len(frames)
    dataset.PixelData = np.stack(frames).astype(np.int16).tobytes()
    shared = Dataset()
    shared.PlaneOrientationSequence = [_item(ImageOrientationPatient=[float(f"{v:.10f}") for v in recipe.orientation.ravel()])]
    shared.PixelMeasuresSequence = [_item(PixelSpacing=list(recipe.spacing), SliceThickness=1.0)]
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for time in range(times):
        for number, k in enumerate(order):
            group = _item(PlanePositionSequence=[_item(ImagePositionPatient=[float(f"{v:.8f}") for v in recipe.position(k)])])
            group.FrameContentSequence = [_item(TemporalPositionIndex=time + 1, StackID="1", InStackPositionNumber=number + 1)]
            slope, intercept = rescale[number] if rescale else (1, 0)
            group.PixelValueTransformationSequence = [_item(RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="US")]
            groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    return dataset


def _item(**attributes: Any) -> Dataset:
    item = Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, Sequence(value) if keyword.endswith("Sequence") else value)
    return item
