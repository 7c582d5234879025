"""Labels with their meaning: the segments of a DICOM SEG, coded as far as the anatomy knows their names."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lib.agent.anatomy import Code, anatomy
from lib.imaging.seg import CodeTriple, Segment, write_seg
from lib.imaging.volume import Volume


def write_label_seg(
    path: Path, labels: np.ndarray, volume: Volume, names: Mapping[str, int], automatic: bool = True, creator: str = ""
) -> None:
    """Write `labels`, uint8 `[i, j, k]`, as a DICOM SEG of the volume's series.

    `names` gives the label value of each prompt or structure; those without a voxel are left out. `creator` is the person who
    made it, if one did. Raises InputError as `write_seg` does, also when nothing is labelled.
    """
    present = [(name, value) for name, value in names.items() if (labels == value).any()]
    segments = [_segment(number, name, value, automatic) for number, (name, value) in enumerate(present, start=1)]
    description = "IBIS Label: " + ", ".join(name for name, _ in present)
    write_seg(path, labels, volume, segments, series_description=description, creator=creator)


def _segment(number: int, name: str, value: int, automatic: bool) -> Segment:
    structure = anatomy().find(name.replace("_", " "))
    if structure is None:
        return Segment(number, name, value, automatic=automatic)
    side = structure.laterality_code
    return Segment(
        number,
        structure.label,
        value,
        code=_triple(structure.code),
        category=_triple(structure.category_code),
        modifier=None if side is None else _triple(side),
        automatic=automatic,
    )


def _triple(code: Code) -> CodeTriple:
    return (code.value, "SCT", code.meaning)
