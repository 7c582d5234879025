"""The datastore of a PACS: its image series, and the labels, which are stored here first.

Below the folder: `catalogue.json` (what the PACS has), `dicom/` (series as fetched), `volumes/` (the same as NRRD, for
viewers), `segs/` (segmentations as fetched), `outbox/` (labels on their way), `labels/` and `datastore_v2.json` (stock).

Shared between request threads, the poller and the outbox. The stock table has one lock (`lib.server.store`), which is never
held while the PACS is waited for or an image is read. Listing images and labels asks nobody.
"""

import tempfile
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.utils.others.generic import md5_digest

from lib.errors import ImageError, InputError
from lib.imaging.cache import ImageRef, VolumeCache
from lib.imaging.files import replacing
from lib.imaging.masks import write_mask, write_volume
from lib.server.pacs.catalogue import Catalogue, ImageSeries, SegInstance
from lib.server.pacs.downloads import Downloads
from lib.server.pacs.outbox import Backoff, Item, Outbox
from lib.server.pacs.segs import SegFound, names_of, read_found, read_label, write_label
from lib.server.pacs.settings import PacsSettings
from lib.server.pacs.web import DicomWeb, PacsError
from lib.server.series import StoredSeries
from lib.server.store import Table

_FINAL = str(DefaultLabelTag.FINAL.value)
_LABEL_SUFFIXES = ("*.nrrd", "*.nii.gz", "*.nii")
_CONVERTED = ".nrrd"
_ARRIVED = "seg"
_SENT = "outbox"


class PacsDatastore(Table, DICOMWebDatastore):
    """MONAI Label's DICOMweb datastore; an image's id is its Series Instance UID.

    `cache` is the folder below which everything is kept; `filters` as in Catalogue. The constructor does not ask the PACS.
    """

    def __init__(self, web: DicomWeb, cache: Path, settings: PacsSettings, filters: Mapping[str, str], volumes: VolumeCache):
        self._root = cache / md5_digest(web.base_url)
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._root.chmod(0o700)  # patients: nobody else's
        self._volumes = volumes
        self.web = web
        self.catalogue = Catalogue(web, self._root / "catalogue.json", settings.modalities, filters)
        self.downloads = Downloads(web, self._root / "dicom", settings.expiry_s, settings.parallel)
        self.outbox = Outbox(web, self._root / "outbox", self._make_seg, Backoff(settings.retry_s, settings.retry_most_s))
        self._conversions: dict[str, threading.Lock] = {}
        self._table_lock = threading.RLock()
        # Not the stock DICOMweb constructor, which watches every file below the folder, also those being fetched.
        LocalDatastore.__init__(self, str(self._root), extensions=_LABEL_SUFFIXES)

    def name(self) -> str:
        return self.web.base_url

    def look(self) -> None:
        """Take in what the PACS has now. Raises PacsError as `Catalogue.refresh`."""
        before = self.catalogue.images
        try:
            self.catalogue.refresh()
        finally:
            if self.catalogue.images.keys() != before.keys():
                self._reconcile_datastore()

    # Images

    def list_images(self) -> list[str]:
        return list(self.catalogue.images)

    def series(self, image_id: str) -> StoredSeries | None:
        """The image's DICOM series, fetched if it is not here; None for an unknown id. Raises PacsError."""
        image = self.catalogue.images.get(image_id)
        if image is None:
            return None
        folder = self.downloads.get(image)
        return StoredSeries(folder, image_id, folder.name)

    def get_image_uri(self, image_id: str) -> str:
        """Path of the image as NRRD, in the array order of the DICOM series; fetched and converted on first use.

        Empty for an unknown id. Raises PacsError when it cannot be fetched, ImageError when it cannot be read.
        """
        series = self.series(image_id)
        if series is None:
            return ""
        path = self._root / "volumes" / f"{image_id}.{series.fingerprint}{_CONVERTED}"
        with self._conversions.setdefault(image_id, threading.Lock()):
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                volume = self._volumes.get(ImageRef(series.folder, series.uid))
                for outdated in path.parent.glob(f"{image_id}.*{_CONVERTED}"):
                    outdated.unlink()
                write_volume(path, volume)
        return str(path)

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        info: dict[str, Any] = super().get_image_info(image_id)
        info.pop("path", None)
        image = self.catalogue.images.get(image_id)
        return info if image is None else {**info, **_shown(image)}

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        raise InputError("images of a PACS are added in the PACS: send the DICOM files there", "image")

    def remove_image(self, image_id: str) -> None:
        raise InputError("images of a PACS are removed in the PACS", "id")

    # Labels

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Keep a label here; a final one then goes to the PACS as DICOM SEG, by the outbox.

        `delivery` says where it is. Raises ImageNotFoundException for an unknown image, InputError for a final label that is
        none of its image, and then the earlier one stays; while the image is not here, only the outbox can tell.
        """
        info, label = dict(label_info or {}), Path(label_filename)
        if label_tag != _FINAL:
            return self._keep_label(image_id, label, label_tag, info)
        here = self.downloads.here(image_id)
        if here is not None:
            names_of(info, read_label(label, self._volumes.get(ImageRef(here, image_id))))
        key = self.outbox.new_key()
        label_id = self._keep_label(image_id, label, label_tag, {**info, _SENT: key})
        self._queue(key, image_id, label, info)
        return label_id

    def delivery(self, image_id: str) -> dict[str, Any] | None:
        """Where the image's final label is; None when it did not come through here."""
        return self.outbox.shown(super().get_label_info(image_id, _FINAL).get(_SENT, ""))

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """Path of the label; one that lies in the PACS is fetched and converted. Raises PacsError when it cannot be."""
        if label_tag == _FINAL:
            self._bring_newest(label_id)
        return str(super().get_label_uri(label_id, label_tag))

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        found: dict[str, str] = super().get_labels_by_image_id(image_id)
        return {**found, _FINAL: image_id} if image_id in self.catalogue.labels else found

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        there = self.catalogue.labels
        here = set(super().get_labeled_images())
        return [image for image in self.list_images() if image in here or image in there]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        labelled = set(self.get_labeled_images())
        return [image for image in self.list_images() if image not in labelled]

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Images with their final labels, as paths; fetches what is not here. Raises PacsError when that fails."""
        pairs = []
        for image in self.get_labeled_images():
            label = self.get_label_uri(image, _FINAL)
            if label:
                pairs.append({"image": self.get_image_uri(image), "label": label})
        if full_path:
            return pairs
        return [{key: str(Path(path).relative_to(self._root)) for key, path in pair.items()} for pair in pairs]

    def arrive(self, seg: SegInstance, image_id: str) -> SegFound:
        """Fetch a segmentation as a label of its image, and make it the image's final label when it is the newest one.

        Raises PacsError, and ImageError when it is no label of that image.
        """
        path = self._root / "segs" / f"{seg.uid}.dcm"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            content = self.web.retrieve(seg.study, seg.series, seg.uid)
            with replacing(path) as draft:
                draft.write_bytes(content)
        series = self.series(image_id)
        if series is None:
            raise ImageError(f"image {image_id} is not in the PACS any more")
        volume = self._volumes.get(ImageRef(series.folder, series.uid))
        found = read_found(path, volume, image_id, seg.annotator, seg.uid, seg.time)
        if self._is_newest(seg, image_id):
            with tempfile.TemporaryDirectory(prefix="ibis-seg-") as scratch:
                label = Path(scratch, f"{image_id}{_CONVERTED}")
                write_mask(label, found.label, volume)
                names = [{"name": name, "idx": value} for value, name in found.names.items()]
                info = {"label_info": names, _ARRIVED: seg.uid, "annotator": seg.annotator}
                with self._table_lock:
                    if self._is_newest(seg, image_id):  # still: somebody may have stored a label meanwhile
                        self._keep_label(image_id, label, _FINAL, info)
        return found

    def status(self) -> dict[str, Any]:
        """The stock counts, from what is known here, and whether the PACS answers."""
        with self._table_lock:
            tags = Counter(tag for entry in self._datastore.objects.values() for tag in entry.labels)
        tags[_FINAL] = len(self.get_labeled_images())
        state = self.web.state
        return {
            "total": len(self.catalogue.images),
            "completed": tags[_FINAL],
            "label_tags": dict(+tags),
            "pacs": {"reachable": state.reachable, "error": state.error},
        }

    def json(self) -> Any:
        table = super().json()
        for image in self.catalogue.labels:
            if image in table["objects"]:
                table["objects"][image]["labels"].setdefault(_FINAL, {"ext": _CONVERTED, "info": {}})
        return table

    def _bring_newest(self, image_id: str) -> None:
        for seg in self.catalogue.labels.get(image_id, []):
            info = super().get_label_info(image_id, _FINAL)
            sent = self.outbox.get(info.get(_SENT, ""))
            if seg.uid in (info.get(_ARRIVED), sent and sent.instance) or not self._is_newest(seg, image_id):
                return
            try:
                self.arrive(seg, image_id)
                return
            except ImageError as error:
                self.catalogue.mark(seg, unusable=error.message)
            except PacsError:
                if super().get_label_uri(image_id, _FINAL):
                    return
                raise

    def _is_newest(self, seg: SegInstance, image_id: str) -> bool:
        """Whether the label that is here, if any, is older: within a second the one that was stored here counts."""
        info = super().get_label_info(image_id, _FINAL)
        here = self.catalogue.segs.get(info.get(_ARRIVED, ""))
        if not info or here is not None:
            return here is None or seg.time >= here.time
        mine = self.outbox.ours().get(seg.uid)  # made when its image was fetched, stored before
        return (seg.time if mine is None else int(mine.created)) > int(info.get("ts", 0))

    def _queue(self, key: str, image_id: str, label: Path, info: Mapping[str, Any]) -> Item:
        annotator = str(info.get("client_id") or info.get("annotator") or "")
        return self.outbox.add(key, image_id, label, info, annotator, now=self.downloads.here(image_id) is not None)

    def start(self) -> None:
        """Deliver labels from now on, also those that were kept when the server was killed before it could queue them."""
        for image_id, entry in list(self._datastore.objects.items()):
            label = entry.labels.get(_FINAL)
            key = label.info.get(_SENT) if label else None
            if key and self.outbox.get(key) is None:
                path = Path(super().get_label_uri(image_id, _FINAL))
                self._queue(key, image_id, path, {name: value for name, value in label.info.items() if name != _SENT})
        self.outbox.start()

    def _make_seg(self, item: Item, label: Path, seg: Path) -> None:
        """The outbox's `make`."""
        here = self.downloads.here(item.image)
        image = self.catalogue.images.get(item.image)
        if here is None and image is None:
            raise InputError("its image is not in the PACS any more", "image")
        folder = self.downloads.get(image) if here is None and image is not None else here
        assert folder is not None
        write_label(seg, label, item.info, self._volumes.get(ImageRef(folder, item.image)), item.annotator)

    def _add_non_existing_images(self) -> int:
        added = 0
        self._init_from_datastore_file()
        for image_id in self.catalogue.images:
            if image_id not in self._datastore.objects:
                self._datastore.objects[image_id] = ImageLabelModel(image=DataModel(ext=_CONVERTED))
                added += 1
        return added

    def _remove_non_existing(self) -> int:
        """An image goes when it is neither in the PACS nor labelled here; a label goes when its file does."""
        self._init_from_datastore_file()
        removed = 0
        for image_id, entry in list(self._datastore.objects.items()):
            labels = {tag: label for tag, label in entry.labels.items() if self._exists(image_id, tag, label.ext)}
            removed += len(entry.labels) - len(labels)
            entry.labels = labels
            if not labels and image_id not in self.catalogue.images:
                del self._datastore.objects[image_id]
                removed += 1
        return removed

    def _exists(self, image_id: str, tag: str, suffix: str) -> bool:
        return Path(self._datastore.label_path(tag), self._filename(image_id, suffix)).exists()


def _shown(image: ImageSeries) -> dict[str, str]:
    return {"SeriesInstanceUID": image.uid, "StudyInstanceUID": image.study, "Modality": image.modality, **image.info}
