"""Finding DICOM series below a folder, and the names that they keep."""

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lib.errors import ImageError
from lib.imaging.files import fingerprint, replacing
from lib.imaging.load import list_series

logger = logging.getLogger(__name__)

_OTHER_FORMATS = re.compile(
    r"\.(nii|nii\.gz|nrrd|mha|mhd|png|jpe?g|tiff?|bmp|gz|zip|json|ya?ml|txt|md|csv|xml|svs|html)$", re.IGNORECASE
)
_LABELS = "labels"


@dataclass(frozen=True)
class StoredSeries:
    """A DICOM series in a folder."""

    folder: Path
    uid: str
    fingerprint: str
    """Changes when a file of the folder does."""


def find_series(root: Path, record: Path, files: set[str], known: Mapping[str, StoredSeries]) -> dict[str, StoredSeries]:
    """The DICOM series below `root` by their image ids.

    An id comes from the folder's name and is kept for good: `record`, a JSON file, says which series it belongs to, so that
    labels never move to another. `files` are the ids of plain image files, which a series never takes. Folders that have not
    changed since `known` are not read again.
    """
    names = _recorded(record)
    taken = files | set(names.values())
    found: dict[str, StoredSeries] = {}
    before: dict[Path, list[StoredSeries]] = {}
    for series in known.values():
        before.setdefault(series.folder, []).append(series)
    for folder in _folders(root):
        mark = fingerprint(candidates(folder))
        unchanged = [series for series in before.get(folder, []) if series.fingerprint == mark]
        for series in unchanged or [StoredSeries(folder, uid, mark) for uid in _uids(folder)]:
            key = f"{folder.relative_to(root)}\t{series.uid}"
            if key not in names:
                names[key] = _name(folder.relative_to(root), series.uid, taken)
                taken.add(names[key])
            found[names[key]] = series
    if names != _recorded(record):
        record.parent.mkdir(parents=True, exist_ok=True)
        with replacing(record) as draft:
            draft.write_text(json.dumps(names, indent=1), encoding="utf-8")
    return found


def candidates(folder: Path) -> list[Path]:
    """The files directly in `folder` that may be DICOM: not hidden, without the suffix of another format."""
    return [path for path in folder.iterdir() if _may_be_dicom(path.name) and path.is_file()]


def _may_be_dicom(name: str) -> bool:
    return not name.startswith(".") and not _OTHER_FORMATS.search(name)


def _recorded(record: Path) -> dict[str, str]:
    try:
        return dict(json.loads(record.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}


def _folders(root: Path) -> list[Path]:
    """Folders with files that may be DICOM; hidden ones and the labels are left out."""
    folders = []
    for folder, names, entries in os.walk(root):
        names[:] = sorted(n for n in names if not n.startswith(".") and not (Path(folder) == root and n == _LABELS))
        if any(_may_be_dicom(name) for name in entries):
            folders.append(Path(folder))
    return folders


def _uids(folder: Path) -> list[str]:
    """The series whose files lie in `folder` itself: those of folders below are listed there."""
    try:
        return [series.uid for series in list_series(folder) if all(path.parent == folder for path in series.files)]
    except ImageError as error:
        logger.warning("Not read as DICOM: %s", error.message)
        return []


def _name(folder: Path, uid: str, taken: set[str]) -> str:
    """A readable id from the folder's name; what would clash is told apart by the end of its UID, then by a number."""
    base = re.sub(r"[^A-Za-z0-9_-]+", "_", "_".join(folder.parts)).strip("_") or "dicom"
    tail = re.sub(r"[^0-9A-Za-z]+", "_", uid)[-12:].strip("_")
    candidates = [base, f"{base}_{tail}", *(f"{base}_{tail}_{number}" for number in range(2, 10_000))]
    return next(name for name in candidates if name not in taken)
