"""The local datastore: image files and DICOM series side by side in one folder.

MONAI Label's own local store knows single files only. Here each DICOM series below the folder is an image too; viewers get it
as NRRD, converted on first use. Conversions and our own records live under `.ibis/` in the folder.
"""

import logging
import os
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore

from lib.errors import ImageError
from lib.imaging.load import list_series, load_volume
from lib.imaging.masks import write_volume

logger = logging.getLogger(__name__)

PRIVATE = ".ibis"
_CONVERTED = ".nrrd"
_SUFFIXES = re.compile(r"\.(nii|nii\.gz|nrrd|mha|png|jpe?g|tiff?|bmp|json|txt|md|csv|xml|svs|html)$", re.IGNORECASE)
_SKIPPED = ("labels",)
_RESCAN_S = 5.0


@dataclass(frozen=True)
class StoredSeries:
    """A DICOM series below the studies folder."""

    folder: Path
    uid: str


class StudiesDatastore(LocalDatastore):
    """`LocalDatastore` plus DICOM series. Shared between request threads: conversions of one series wait for each other,
    everything else is the stock store's own locking."""

    def __init__(self, folder: str, extensions: list[str], auto_reload: bool, read_only: bool):
        self._series: dict[str, StoredSeries] = {}
        self._scanned = 0.0
        self._fingerprint: tuple[tuple[str, int], ...] = ()
        self._scan_lock = threading.Lock()
        self._conversions: dict[str, threading.Lock] = {}
        self._root = Path(folder)
        self._scan()
        super().__init__(folder, extensions=extensions, auto_reload=auto_reload, read_only=read_only)

    def list_images(self) -> list[str]:
        self._look()
        return super().list_images()

    def json(self) -> Any:
        self._look()
        return super().json()

    def get_image_uri(self, image_id: str) -> str:
        """Path of the image file; a DICOM series is converted on first use. Empty for an unknown id."""
        series = self._series.get(image_id)
        if series is None:
            return super().get_image_uri(image_id)
        path = self._converted(image_id)
        with self._scan_lock:
            lock = self._conversions.setdefault(image_id, threading.Lock())
        with lock:
            if not path.exists() or path.stat().st_mtime_ns < series.folder.stat().st_mtime_ns:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_volume(path, load_volume(series.folder, series=series.uid))
        return str(path)

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        info = super().get_image_info(image_id)
        if image_id in self._series:
            info["path"] = str(self._converted(image_id))
        return info

    def series(self, image_id: str) -> StoredSeries | None:
        """The DICOM series behind an image id, or None for a plain file."""
        return self._series.get(image_id)

    def _look(self) -> None:
        """Take in series that have come since the last look, at most every few seconds."""
        if time.monotonic() - self._scanned > _RESCAN_S and self._scan():
            self._reconcile_datastore()

    def _converted(self, image_id: str) -> Path:
        return self._root / PRIVATE / "volumes" / f"{image_id}{_CONVERTED}"

    def _add_non_existing_images(self) -> int:
        added = super()._add_non_existing_images()
        for image_id, series in self._series.items():
            if image_id not in self._datastore.objects:
                info = {"ts": int(time.time()), "name": str(series.folder.relative_to(self._root))}
                self._datastore.objects[image_id] = ImageLabelModel(image=DataModel(info=info, ext=_CONVERTED))
                added += 1
        return added

    def _remove_non_existing(self) -> int:
        """The stock method drops entries without an image file; a series has none until it is converted."""
        kept = {key: entry for key, entry in self._datastore.objects.items() if key in self._series}
        removed = super()._remove_non_existing()
        for key, entry in kept.items():
            entry.labels = {
                tag: label
                for tag, label in entry.labels.items()
                if os.path.exists(os.path.join(self._datastore.label_path(tag), self._filename(key, label.ext)))
            }
            self._datastore.objects[key] = entry
        return removed

    def _scan(self) -> bool:
        """Look for DICOM series; True when something changed since the last look."""
        with self._scan_lock:
            self._scanned = time.monotonic()
            folders = sorted({path.parent for path in _candidates(self._root)})
            fingerprint = tuple((str(folder), folder.stat().st_mtime_ns) for folder in folders)
            if fingerprint == self._fingerprint:
                return False
            self._fingerprint = fingerprint
            found: dict[str, StoredSeries] = {}
            for folder in folders:
                for uid in _series_uids(folder):
                    found[_identifier(folder.relative_to(self._root), uid, found)] = StoredSeries(folder, uid)
            changed = found != self._series
            self._series = found
            return changed


def _candidates(root: Path) -> list[Path]:
    """Files that may be DICOM: below `root`, not in hidden or label folders, without the suffix of another format."""
    files = []
    for folder, names, entries in os.walk(root):
        names[:] = [name for name in names if not name.startswith(".") and not (Path(folder) == root and name in _SKIPPED)]
        files += [Path(folder, name) for name in entries if not name.startswith(".") and not _SUFFIXES.search(name)]
    return files


def _series_uids(folder: Path) -> list[str]:
    try:
        return [series.uid for series in list_series(folder)]
    except ImageError as error:
        logger.warning("Not read as DICOM: %s", error.message)
        return []


def _identifier(folder: Path, uid: str, taken: dict[str, StoredSeries]) -> str:
    """A readable id from the folder's name; several series of one folder are told apart by the end of their UID."""
    base = re.sub(r"[^A-Za-z0-9_-]+", "_", "_".join(folder.parts)).strip("_") or "dicom"
    if base not in taken:
        return base
    tail = re.sub(r"[^0-9A-Za-z]+", "_", uid)[-12:].strip("_")
    name, number = f"{base}_{tail}", 2
    while name in taken:
        name, number = f"{base}_{tail}_{number}", number + 1
    return name
