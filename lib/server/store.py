"""The local datastore: image files and DICOM series side by side in one folder.

MONAI Label's own local store knows single files only. Here each DICOM series below the folder is an image too; viewers get it
as NRRD, converted on first use. Conversions and our own records live under `.ibis/` in the folder.

Shared between request threads. One re-entrant lock covers the table of images (the stock store clears and refills it); it is
never held while a series is read or converted. Series are looked for in a thread of its own, never by a request.
"""

import functools
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException

from lib.errors import ImageError, InputError
from lib.imaging.cache import ImageRef, VolumeCache
from lib.imaging.files import fingerprint, replacing
from lib.imaging.labelmaps import load_labels
from lib.imaging.load import load_volume
from lib.imaging.masks import write_volume
from lib.server.series import StoredSeries, candidates, find_series

logger = logging.getLogger(__name__)

PRIVATE = ".ibis"
FINAL = str(DefaultLabelTag.FINAL.value)
RESCAN_S = 5.0
_CONVERTED = ".nrrd"
_LOCKED = (
    "list_images",
    "get_image_uri",
    "get_image_info",
    "get_label_uri",
    "get_label_info",
    "get_labels_by_image_id",
    "get_labeled_images",
    "get_unlabeled_images",
    "add_image",
    "remove_image",
    "save_label",
    "remove_label",
    "update_image_info",
    "update_label_info",
    "datalist",
    "status",
    "json",
    "_reconcile_datastore",
)


class Table(LocalDatastore):
    """The stock store behind one lock."""

    def __init__(self, *arguments: Any, **options: Any):
        self._table_lock = threading.RLock()
        super().__init__(*arguments, **options)

    def _update_datastore_file(self, lock: bool = True) -> None:
        """As the stock method, but a full disk leaves the old index in place."""
        with self._table_lock, replacing(Path(self._datastore_config_path)) as draft:
            text = json.dumps(self._datastore.model_dump(exclude={"base_path"}), indent=2, default=str)
            draft.write_text(text, encoding="utf-8")
        self._config_ts = os.stat(self._datastore_config_path).st_mtime

    def _keep_label(self, image_id: str, label: Path, tag: str, info: Mapping[str, Any]) -> str:
        """As the stock `save_label`, but the old label stays whole until the new one is, and not beside it.

        The id of the label. Raises ImageNotFoundException for an unknown image.
        """
        suffix = self._to_id(label.name)[1]
        with self._table_lock:
            entry = self._datastore.objects.get(image_id)
            if entry is None:
                raise ImageNotFoundException(f"Image {image_id} not found")
            target = Path(self._datastore.label_path(tag), self._filename(image_id, suffix))
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as draft:
                shutil.copy(label, draft)
            before = entry.labels.get(tag)
            entry.labels[tag] = DataModel(info={**info, "ts": int(time.time()), "name": target.name}, ext=suffix)
            self._update_datastore_file()
            if before is not None and before.ext != suffix:
                target.with_name(self._filename(image_id, before.ext)).unlink(missing_ok=True)
        return image_id


def _locked(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Table, *arguments: Any, **options: Any) -> Any:
        with self._table_lock:
            return method(self, *arguments, **options)

    return call


for _name in _LOCKED:
    setattr(Table, _name, _locked(getattr(LocalDatastore, _name)))


class StudiesDatastore(Table):
    """`LocalDatastore` plus the DICOM series below its folder."""

    def __init__(
        self, folder: str, extensions: list[str], auto_reload: bool, read_only: bool, volumes: VolumeCache | None = None
    ):
        self._root = Path(folder)
        self._volumes = volumes or VolumeCache(0)
        self._suffixes = tuple(extension.replace("*", "") for extension in extensions)
        self._series: dict[str, StoredSeries] = {}
        self._looked = 0.0
        self._looking = threading.Lock()
        self._conversions: dict[str, threading.Lock] = {}
        self._find()
        super().__init__(folder, extensions=extensions, auto_reload=auto_reload, read_only=read_only)

    def list_images(self) -> list[str]:
        self._look_soon()
        return super().list_images()

    def json(self) -> Any:
        self._look_soon()
        return super().json()

    def rescan(self) -> None:
        """Take in series that have come or gone since the last look."""
        if self._find():
            self._reconcile_datastore()

    def series(self, image_id: str) -> StoredSeries | None:
        """The DICOM series behind an image id, or None for a plain file."""
        return self._series.get(image_id)

    def get_image_uri(self, image_id: str) -> str:
        """Path of the image file; a DICOM series is converted on first use. Empty for an unknown id."""
        series = self._series.get(image_id)
        if series is None:
            return super().get_image_uri(image_id)
        with self._conversions.setdefault(image_id, threading.Lock()):
            path = self._converted(image_id, series)
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                volume = load_volume(series.folder, series=series.uid)
                for outdated in path.parent.glob(f"{image_id}.*{_CONVERTED}"):
                    outdated.unlink()
                write_volume(path, volume)
        return str(path)

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        info: dict[str, Any] = super().get_image_info(image_id)
        series = self._series.get(image_id)
        if series is not None:
            info["path"] = str(self._converted(image_id, series))
        return info

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Images with their final labels, as paths; a DICOM series is converted for it."""
        pairs: list[dict[str, Any]] = super().datalist(full_path)
        named = {self._filename(key, _CONVERTED): key for key in self._series}
        for pair in pairs:
            key = named.get(os.path.basename(pair["image"]))
            if key is not None:
                pair["image"] = self.get_image_uri(key)
        return pairs

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Raises InputError for a file that cannot be an image here, or a name that is taken by something else."""
        name, suffix = self._to_id(os.path.basename(image_filename))
        image_id = image_id or name
        if suffix not in self._suffixes:
            raise InputError(f"{suffix or 'a file without suffix'} cannot be stored: use {', '.join(self._suffixes)}", "file")
        if image_id in self._series or (self._root / f"{image_id}{suffix}").name == os.path.basename(
            self._datastore_config_path
        ):
            raise InputError(f"{image_id!r} is taken: choose another name", "image")
        return str(super().add_image(image_id, image_filename, image_info))

    def remove_image(self, image_id: str) -> None:
        """Raises InputError for a DICOM series: its files are not ours."""
        if image_id in self._series:
            raise InputError(f"{image_id!r} is a DICOM series: remove its files from the studies folder", "id")
        super().remove_image(image_id)

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Keep a label.

        Raises ImageNotFoundException for an unknown image, InputError for a final label that is no label map on its image's
        grid, and then the earlier one stays.
        """
        label = Path(label_filename)
        if label_tag == FINAL:
            series = self._series.get(image_id)
            image = ImageRef(series.folder, series.uid) if series else ImageRef(Path(self.get_image_uri(image_id)))
            if series or image.path.is_file():
                volume = self._volumes.get(image)
                try:
                    load_labels(label, volume)
                except ImageError as error:
                    raise InputError(f"the label cannot be used: {error.message}", "label") from error
        return self._keep_label(image_id, label, label_tag, label_info or {})

    def _converted(self, image_id: str, series: StoredSeries) -> Path:
        return self._root / PRIVATE / "volumes" / f"{image_id}.{fingerprint(candidates(series.folder))}{_CONVERTED}"

    def _look_soon(self) -> None:
        if time.monotonic() - self._looked > RESCAN_S and not self._looking.locked():
            threading.Thread(target=self.rescan, name="rescan", daemon=True).start()

    def _find(self) -> bool:
        """Look for DICOM series; True when there are others than before."""
        with self._looking:
            files = {_stem(entry.name, self._suffixes) for entry in self._root.iterdir()} - {""}
            found = find_series(self._root, self._root / PRIVATE / "series.json", files, self._series)
            self._looked = time.monotonic()
            changed = found != self._series
            self._series = found
            return changed

    def _add_non_existing_images(self) -> int:
        added = int(super()._add_non_existing_images())
        for image_id, series in self._series.items():
            if image_id not in self._datastore.objects:
                info = {"ts": int(time.time()), "name": str(series.folder.relative_to(self._root))}
                self._datastore.objects[image_id] = ImageLabelModel(image=DataModel(info=info, ext=_CONVERTED))
                added += 1
        return added

    def _remove_non_existing(self) -> int:
        """The stock method drops entries without an image file; a series has none until it is converted."""
        self._init_from_datastore_file()
        kept = {key: entry for key, entry in self._datastore.objects.items() if key in self._series}
        removed = int(super()._remove_non_existing())
        for key, entry in kept.items():
            entry.labels = {
                tag: label
                for tag, label in entry.labels.items()
                if os.path.exists(os.path.join(self._datastore.label_path(tag), self._filename(key, label.ext)))
            }
            self._datastore.objects[key] = entry
        return removed


def _stem(name: str, suffixes: tuple[str, ...]) -> str:
    """The id that the stock store gives an image file; empty for a file that is none."""
    found = max((suffix for suffix in suffixes if name.endswith(suffix)), key=len, default="")
    return name.removesuffix(found) if found else ""
