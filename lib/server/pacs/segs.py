"""Labels as the viewers send them and as DICOM SEG, on the grid of the image that they belong to."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from lib.agent.labels import write_label_seg
from lib.errors import ImageError, InputError
from lib.imaging.labelmaps import load_labels
from lib.imaging.seg import CodeTriple, read_seg, segments_of
from lib.imaging.volume import Volume


class EmptyLabel(InputError):
    """Nothing is labelled: a DICOM SEG cannot say that."""


@dataclass(frozen=True, eq=False)
class SegFound:
    """A segmentation that somebody else stored in the PACS, as a label of its image."""

    image_id: str
    label: np.ndarray
    """uint8 `[i, j, k]` on the image's grid; where segments overlap, the later one."""
    names: dict[int, str]
    """What the values mean."""
    codes: dict[int, CodeTriple]
    """Segmented Property Type of the values that have one."""
    annotator: str
    """As the PACS names the content's creator or the operator; may be empty."""
    seg_uid: str
    """SOP Instance UID."""
    time: float
    """When it was made, seconds since the epoch; 0 when it does not say."""


def write_label(path: Path, label: Path, info: Mapping[str, Any], volume: Volume, annotator: str) -> None:
    """Write the label file that a viewer submitted for `volume` as a DICOM SEG; all or nothing.

    `info` is what came with it; its `label_info` names the values. Raises EmptyLabel when nothing is labelled, InputError when
    the file is no label of this image.
    """
    labels = read_label(label, volume)
    if not labels.any():
        raise EmptyLabel("nothing is labelled, and a DICOM SEG cannot be empty", "label")
    write_label_seg(path, labels, volume, names_of(info, labels), automatic=False, creator=annotator)


def read_label(path: Path, volume: Volume) -> np.ndarray:
    """The label file as uint8 `[i, j, k]` on the volume's grid; other axis orders are turned to it.

    Raises InputError when it lies on another grid, or holds something else than the values 0 to 255.
    """
    try:
        labels = load_labels(path, volume)
    except ImageError as error:
        raise InputError(f"the label cannot be used: {error.message}", "label") from error
    if labels.max(initial=0) > 255:
        raise InputError("a label's voxels must be whole numbers from 0 to 255", "label")
    return labels.astype(np.uint8)


def names_of(info: Mapping[str, Any], labels: np.ndarray) -> dict[str, int]:
    """The value of each name in `label_info`, `[{"name": ..., "idx": ...}, ...]`; without `idx` they count from 1.

    Every value that is present gets a name, and every name is used once. Raises InputError for another form.
    """
    entries = info.get("label_info") or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError('label_info: must be a list such as [{"name": "liver", "idx": 1}]', "params")
    names: dict[str, int] = {}
    named: set[int] = set()
    for position, entry in enumerate(entries, start=1):
        value = entry.get("idx", position)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 255:
            raise InputError(f"label_info: idx {str(value)[:20]!r} is not a label value from 1 to 255", "params")
        if value not in named:
            names[_unused(str(entry.get("name") or f"segment {value}").strip(), names)] = value
            named.add(value)
    for value in np.unique(labels[labels > 0]).tolist():
        if value not in named:
            names[_unused(f"segment {value}", names)] = value
    return names


def read_found(path: Path, volume: Volume, image_id: str, annotator: str, uid: str, time: float) -> SegFound:
    """A DICOM SEG file as a label of the volume, values 1..N in the order of its segments.

    Raises ImageError when it is damaged or does not lie on the volume's grid.
    """
    masks = read_seg(path, volume)
    if len(masks) > 255:
        raise ImageError(f"the segmentation has {len(masks)} segments: a label holds 255")
    label = np.zeros(volume.data.shape, dtype=np.uint8)
    names: dict[int, str] = {}
    codes: dict[int, CodeTriple] = {}
    described = segments_of(path)
    for value, number in enumerate(sorted(masks), start=1):
        label[masks[number]] = value
        names[value] = described[number].name or f"segment {number}"
        code = described[number].code
        if code is not None:
            codes[value] = code
    return SegFound(image_id, label, names, codes, annotator, uid, time)


def _unused(name: str, names: Mapping[str, int]) -> str:
    if name not in names:
        return name
    return next(other for number in count(2) if (other := f"{name} ({number})") not in names)
