"""Final labels in the datastore: stored for a run, told to the grading however they came.

Shared between request threads. One lock keeps two who store labels from undoing each other's work; it is held while a label is
read, put together and stored.
"""

import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore

from lib.errors import InputError
from lib.imaging.labelmaps import load_labels
from lib.imaging.masks import write_mask
from lib.imaging.planes import Plane, ViewGrid
from lib.imaging.volume import Volume
from lib.infers.task import user_of
from lib.server.labels import Arrived, LabelDesk
from lib.server.store import Table
from lib.trajectories.grading import Extent
from lib.trajectories.matching import label_names

FINAL = "final"
_MOST = 255


@dataclass(frozen=True, eq=False)
class Part:
    """A structure of a label that somebody accepts."""

    name: str
    mask: np.ndarray
    """bool `[i, j, k]` on the image's grid."""
    extent: Extent
    """The slices that it speaks for."""


class FinalLabels:
    """The final labels of a datastore, and the desk that grades them."""

    def __init__(self, datastore: Callable[[], Datastore], desk: LabelDesk):
        self._datastore = datastore
        self._desk = desk
        self._lock = threading.RLock()
        self._began = time.time_ns()
        self._told: dict[str, int] = {}

    def store(
        self,
        image_id: str,
        volume: Volume,
        file: Path,
        names: Mapping[int, str],
        annotator: str,
        aliases: Mapping[str, str] = MappingProxyType({}),
    ) -> str:
        """Store a file as the whole final label of an image, and have it graded; the label's id.

        Raises InputError for an image that is not of the datastore, a file that is no label map on the image's grid, and a
        value without a name.
        """
        nameless = sorted(set(np.unique(load_labels(file, volume)).tolist()) - {0} - names.keys())
        if nameless:
            raise InputError(f"value {nameless[0]} of the label has no name", "label_info")
        with self._lock:
            stored = self._save(image_id, file, names, annotator)
            self._tell(image_id, Arrived(image_id, names, annotator, "review", aliases), file)
        return stored

    def accept(self, image_id: str, volume: Volume, parts: Sequence[Part], annotator: str) -> str:
        """Put structures over the final label of an image, each on the slices that it speaks for, and have these graded; the
        label's id. What the label has besides stays. Raises InputError as `store`, and beyond 255 structures."""
        with self._lock, tempfile.TemporaryDirectory(prefix="ibis-label-") as folder:
            labels, names = self._merged(image_id, volume, parts)
            path = Path(folder, "label.nrrd")
            write_mask(path, labels, volume)
            stored = self._save(image_id, path, names, annotator)
            mine = {value: name for value, name in names.items() if name in {part.name for part in parts}}
            extents = {part.name: part.extent for part in parts if not _whole(part.extent, volume)}
            self._tell(image_id, Arrived(image_id, mine, annotator, "review", {}, extents), path)
        return stored

    def saved(self, image_id: str) -> None:
        """A client has stored a label of the image by the stock route, of whatever tag: a new final one is graded."""
        with self._lock:
            found = self.find(image_id)
            if found is None or found[0].stat().st_mtime_ns <= self._told.get(image_id, self._began):
                return
            path, info = found
            names = label_names(info.get("label_info") or [])
            self._tell(image_id, Arrived(image_id, names, user_of(info), "api"), path)

    def find(self, image_id: str) -> tuple[Path, dict[str, Any]] | None:
        """The file of an image's final label as it is here, and what was sent with it; None when it has none. No PACS is asked:
        storing a label must not wait for it."""
        store = self._datastore()
        here = Table if isinstance(store, Table) else type(store)
        label_id = here.get_labels_by_image_id(store, image_id).get(FINAL)
        if label_id is None:
            return None
        return Path(here.get_label_uri(store, label_id, FINAL)), here.get_label_info(store, label_id, FINAL)

    def _merged(self, image_id: str, volume: Volume, parts: Sequence[Part]) -> tuple[np.ndarray, dict[int, str]]:
        """The label, uint8 `[i, j, k]`, and the names of its values 1..N, in the order of their coming."""
        found = self.find(image_id)
        before = {} if found is None else label_names(found[1].get("label_info") or [])
        old = np.zeros(volume.data.shape, np.uint16) if found is None or not before else load_labels(found[0], volume)
        names = list(dict.fromkeys([*(name for _, name in sorted(before.items())), *(part.name for part in parts)]))
        if len(names) > _MOST:
            raise InputError(f"the final label of {image_id!r} would have more than {_MOST} structures", "label")
        values = {name: value for value, name in enumerate(names, start=1)}
        result = np.zeros(volume.data.shape, np.uint8)
        for value, name in sorted(before.items()):
            result[old == value] = values[name]
        for part in parts:
            result[_covered(part.extent, volume) & (result == values[part.name])] = 0
        for part in parts:
            result[_covered(part.extent, volume) & part.mask] = values[part.name]
        return result, {value: name for name, value in values.items()}

    def _save(self, image_id: str, file: Path, names: Mapping[int, str], annotator: str) -> str:
        store = self._datastore()
        if image_id not in store.list_images():
            raise InputError(f"{image_id!r} is no image of this server's store: its label cannot be kept", "image")
        info = {"label_info": [{"name": name, "idx": value} for value, name in sorted(names.items())], "client_id": annotator}
        return str(store.save_label(image_id, os.fspath(file), FINAL, info))

    def _tell(self, image_id: str, label: Arrived, file: Path) -> None:
        """Have a label graded that was just stored."""
        found = self.find(image_id)
        if found is not None:
            self._told[image_id] = found[0].stat().st_mtime_ns
        self._desk.arrived(label, file)


def _whole(extent: Extent, volume: Volume) -> bool:
    return extent.slices.issuperset(ViewGrid(volume, Plane(extent.plane)).acquired)


def _covered(extent: Extent, volume: Volume) -> np.ndarray:
    """bool `[i, j, k]`: the voxels that the extent speaks for."""
    grid = ViewGrid(volume, Plane(extent.plane))
    covered = np.zeros(volume.data.shape, bool)
    for index in extent.slices:
        grid.cut(covered, index)[...] = True
    return covered
