"""DICOM images: a file or folder to a volume."""

from pathlib import Path

from lib.imaging.dicom_geometry import arrange
from lib.imaging.dicom_headers import scan
from lib.imaging.dicom_pixels import read_pixels
from lib.imaging.dicom_series import SeriesInfo, choose, group
from lib.imaging.volume import Instance, Modality, Volume


def list_dicom(path: Path) -> list[SeriesInfo]:
    """The volumes under a DICOM file or folder. Raises ImageError when there is none."""
    return [stack.info for series in group(scan(path)) for stack in series.stacks]


def load_dicom(path: Path, series: str | None = None, modality: Modality | None = None) -> Volume:
    """Read one volume from a DICOM file or folder in two passes: all headers, then the pixels of the chosen stack.

    i runs along the columns, j along the rows, k along the slice normal, ascending. `series`: a UID from `list_dicom`, or a
    unique beginning of one. Raises ImageError when the images cannot be represented truly, and InputError for an unknown
    `series`.
    """
    stack = choose(group(scan(path)), series, path.name)
    arrangement = arrange(stack.frames)
    known = modality or _modality(stack.info.modality)
    pixels = read_pixels(arrangement.frames, ct=known is Modality.CT, physical=known in (Modality.CT, Modality.PT))
    first = stack.frames[0]
    return Volume(
        data=pixels.data.transpose(2, 1, 0),
        affine=arrangement.affine,
        modality=known,
        source=path,
        warnings=(*stack.warnings, *arrangement.warnings, *pixels.warnings),
        missing=frozenset(k for k, frame in enumerate(arrangement.frames) if frame is None),
        instances=tuple(
            None if frame is None else Instance(frame.header.path, frame.header.sop_instance_uid, frame.number)
            for frame in arrangement.frames
        ),
        colour=None if pixels.colour is None else pixels.colour.transpose(2, 1, 0, 3),
        planar=first.position is None and len(stack.frames) == 1 and (pixels.colour is not None or first.header.bits == 8),
    )


def _modality(text: str) -> Modality:
    return Modality(text) if text in tuple(Modality) else Modality.OTHER
