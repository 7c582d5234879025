"""Final labels in the datastore: stored for a run, told to the grading however they came.

Shared between request threads; one lock guards what was told already.
"""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore

from lib.errors import InputError
from lib.imaging.labelmaps import load_labels
from lib.imaging.volume import Volume
from lib.infers.task import user_of
from lib.server.labels import Arrived, LabelDesk
from lib.server.store import Table
from lib.trajectories.matching import label_names

FINAL = "final"


class FinalLabels:
    """The final labels of a datastore, and the desk that grades them."""

    def __init__(self, datastore: Callable[[], Datastore], desk: LabelDesk):
        self._datastore = datastore
        self._desk = desk
        self._lock = threading.Lock()
        self._told: dict[str, int] = {}

    def store(
        self,
        image_id: str,
        file: Path | str,
        names: Mapping[int, str],
        annotator: str,
        source: str,
        aliases: Mapping[str, str] = MappingProxyType({}),
    ) -> str:
        """Store a file as the final label of an image, and have it graded; the label's id.

        Raises InputError for an image that is not of the datastore.
        """
        store = self._datastore()
        if image_id not in store.list_images():
            raise InputError(f"{image_id!r} is no image of this server's store: its label cannot be kept", "image")
        info = {"label_info": [{"name": name, "idx": value} for value, name in sorted(names.items())], "client_id": annotator}
        stored = str(store.save_label(image_id, str(file), FINAL, info))
        self._tell(image_id, stored, source, aliases)
        return stored

    def saved(self, image_id: str, label_id: str) -> None:
        """A client has stored a label by the stock route, of whatever tag."""
        self._tell(image_id, label_id, "api", MappingProxyType({}))

    def find(self, image_id: str) -> tuple[Path, dict[str, Any]] | None:
        """The file of an image's final label as it is here, and what was sent with it; None when it has none. No PACS is asked:
        storing a label must not wait for it."""
        store = self._datastore()
        here = Table if isinstance(store, Table) else type(store)
        label_id = here.get_labels_by_image_id(store, image_id).get(FINAL)
        if label_id is None:
            return None
        return Path(here.get_label_uri(store, label_id, FINAL)), here.get_label_info(store, label_id, FINAL)

    def merged(
        self, image_id: str, volume: Volume, labels: np.ndarray, names: Mapping[int, str]
    ) -> tuple[np.ndarray, dict[int, str]]:
        """`labels`, uint8 `[i, j, k]`, put over the image's final label: structures of other names stay, with values 1..N in
        the order of their coming, those of the same name are replaced. Raises InputError beyond 255 structures."""
        found = self.find(image_id)
        before = label_names(found[1].get("label_info") or []) if found is not None else {}
        kept = {value: name for value, name in before.items() if name not in names.values()}
        if len(kept) + len(names) > 255:
            raise InputError(f"the final label of {image_id!r} would have more than 255 structures", "label")
        result, result_names = np.zeros(volume.data.shape, np.uint8), dict[int, str]()
        if found is not None and kept:
            old = load_labels(found[0], volume)
            for number, (value, name) in enumerate(sorted(kept.items()), start=1):
                result[old == value] = number
                result_names[number] = name
        for number, (value, name) in enumerate(sorted(names.items()), start=len(result_names) + 1):
            result[labels == value] = number
            result_names[number] = name
        return result, result_names

    def _tell(self, image_id: str, label_id: str, source: str, aliases: Mapping[str, str]) -> None:
        """Have an image's final label graded, if it is another than was told before."""
        with self._lock:
            found = self.find(image_id)
            if found is None:
                return
            path, info = found
            written = path.stat().st_mtime_ns
            if self._told.get(image_id) == written:
                return
            names = label_names(info.get("label_info") or [])
            self._desk.arrived(Arrived(image_id, names, user_of(info), source, aliases), path)
            self._told[image_id] = written
