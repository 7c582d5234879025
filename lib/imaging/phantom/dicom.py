"""The phantom as files: a DICOM series as a scanner would send it, and its truth as a NIfTI label volume."""

import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian
from pydicom.valuerep import format_number_as_ds

from lib.errors import InputError
from lib.imaging.phantom.model import Phantom
from lib.imaging.phantom.tissues import Phase

_INTERCEPT = -1024
_TIMES = {Phase.NON_CONTRAST: "120000", Phase.ARTERIAL: "120035", Phase.PORTAL_VENOUS: "120110"}


def write_series(phantom: Phantom, folder: Path) -> None:
    """Write one classic CT Image (PS3.3 A.3) per slice into `folder`, `CT0001.dcm` at the feet, explicit VR little endian.

    Every type 1 and 2 attribute of the mandatory modules is set (patient C.7.1.1, study C.7.2.1, series C.7.3.1, frame of
    reference C.7.4.1, equipment C.7.5.1, acquisition C.7.10.1, image C.7.6.1, plane C.7.6.2, pixel C.7.6.3, CT C.8.2.1, SOP
    common C.12.1), and the contrast/bolus module (C.7.6.4) by phase. The UIDs follow from the phantom alone: writing it twice
    gives the same bytes. Raises InputError when the folder holds other files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise InputError(f"{folder} is not empty: name a new folder for the phantom's series")
    for k in range(phantom.volume.data.shape[2]):
        image = _image(phantom, k)
        image.save_as(folder / f"CT{k + 1:04d}.dcm", write_like_original=False)


def write_truth(phantom: Phantom, path: Path) -> None:
    """Write the reference labels as NIfTI, uint8, on the series' grid, and beside it every label number's name as `.json`.

    Raises InputError unless `path` ends in .nii or .nii.gz.
    """
    suffix = next((s for s in (".nii.gz", ".nii") if path.name.endswith(s)), None)
    if suffix is None:
        raise InputError(f"{path} must end in .nii or .nii.gz: the truth is written as NIfTI")
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(phantom.reference, phantom.volume.affine)
    image.set_sform(phantom.volume.affine, code="scanner")
    image.set_qform(phantom.volume.affine, code="scanner")
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    names = {str(number): name for number, name in sorted(phantom.names.items())}
    path.with_name(path.name.removesuffix(suffix) + ".json").write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")


def _uid(*parts: object) -> UID:
    """A UID under 2.25 (PS3.5 B.2) that depends on `parts` alone."""
    digest = hashlib.sha256("\n".join(map(str, parts)).encode()).digest()
    return UID(f"2.25.{int.from_bytes(digest[:16], 'big')}")


def _image(phantom: Phantom, k: int) -> FileDataset:
    volume = phantom.volume
    ni, nj, _ = volume.data.shape
    scan = ("ibis-label phantom", phantom.seed, phantom.phase, volume.data.shape, volume.affine.tolist())
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = _uid(*scan, "image", k)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid("ibis-label implementation")
    image = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    image.is_little_endian, image.is_implicit_VR = True, False

    image.SpecificCharacterSet = "ISO_IR 100"
    image.SOPClassUID = CTImageStorage
    image.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    image.PatientName = f"PHANTOM^SEED{phantom.seed}"
    image.PatientID = f"PHANTOM-{phantom.seed}"
    image.PatientBirthDate = ""
    image.PatientSex = "F" if phantom.female else "M"
    image.StudyInstanceUID = _uid("ibis-label phantom study", phantom.seed)
    image.StudyDate = image.SeriesDate = image.AcquisitionDate = image.ContentDate = "20200101"
    image.StudyTime = "120000"
    image.SeriesTime = image.AcquisitionTime = image.ContentTime = _TIMES[phantom.phase]
    image.StudyID = str(phantom.seed)
    image.StudyDescription = "Phantom thorax abdomen pelvis"
    image.ReferringPhysicianName = ""
    image.AccessionNumber = ""
    image.Modality = "CT"
    image.SeriesInstanceUID = _uid(*scan, "series")
    image.SeriesNumber = list(Phase).index(phantom.phase) + 1
    image.SeriesDescription = f"Phantom {phantom.phase}"
    image.BodyPartExamined = "CHESTABDPELVIS"
    image.PatientPosition = "HFS"
    image.FrameOfReferenceUID = _uid("ibis-label phantom frame of reference", phantom.seed)
    image.PositionReferenceIndicator = ""
    image.Manufacturer = "IBIS Label"
    image.ManufacturerModelName = "Phantom"
    image.DeviceSerialNumber = "0"
    image.SoftwareVersions = "1"

    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    image.InstanceNumber = k + 1
    image.AcquisitionNumber = 1
    image.KVP = "120"
    image.ConvolutionKernel = "SOFT"
    image.RescaleIntercept = str(_INTERCEPT)
    image.RescaleSlope = "1"
    image.RescaleType = "HU"
    image.WindowCenter = "40"
    image.WindowWidth = "400"
    image.WindowCenterWidthExplanation = "ABDOMEN"
    image.BurnedInAnnotation = "NO"
    image.LossyImageCompression = "00"
    if phantom.phase is not Phase.NON_CONTRAST:
        image.ContrastBolusAgent = "IODINE"
        image.ContrastBolusRoute = "INTRAVENOUS"

    si, sj, sk = volume.spacing
    position = np.diag([-1.0, -1.0, 1.0]) @ (volume.affine @ (0, 0, k, 1))[:3]
    image.PixelSpacing = [format_number_as_ds(sj), format_number_as_ds(si)]
    image.SliceThickness = format_number_as_ds(sk)
    image.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    image.ImagePositionPatient = [format_number_as_ds(round(float(p), 4)) for p in position]
    image.SliceLocation = format_number_as_ds(round(float(position[2]), 4))
    image.SamplesPerPixel = 1
    image.PhotometricInterpretation = "MONOCHROME2"
    image.Rows, image.Columns = nj, ni
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
    image.PixelRepresentation = 0
    image.PixelData = (volume.data[:, :, k].T - _INTERCEPT).astype("<u2").tobytes()
    return image
