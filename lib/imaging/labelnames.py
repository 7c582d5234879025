"""The names that a label file itself gives to its values."""

import re
from pathlib import Path

import nrrd

from lib.errors import ImageError
from lib.imaging.dicom_headers import UNREADABLE, is_dicom, read_dataset

_HEAD = 132


def names_in(path: Path) -> dict[int, str]:
    """Voxel value -> name: of a DICOM SEG its segments' labels, of a 3D Slicer .seg.nrrd its segments' names; empty for files
    that name nothing. Raises ImageError when the file cannot be read."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
        if is_dicom(head):
            segments = read_dataset(path).get("SegmentSequence") or []
            return {int(item.SegmentNumber): str(item.get("SegmentLabel", "")) for item in segments}
        if not head.startswith(b"NRRD"):
            return {}
        header = nrrd.read_header(str(path))
    except (*UNREADABLE, nrrd.NRRDError) as error:
        raise ImageError(f"{path.name} cannot be read as a label file, it is damaged or truncated: {error}") from error
    found = {}
    for key, name in header.items():
        segment = re.fullmatch(r"(Segment\d+)_Name", key)
        value = str(header.get(f"{segment[1]}_LabelValue", "")) if segment else ""
        if value.isdigit():
            found[int(value)] = str(name)
    return found
