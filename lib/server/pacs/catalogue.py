"""What the PACS holds: the image series, and the segmentations that refer to them.

Shared between request threads, the poller and the outbox. The tables are replaced whole under one lock and never changed in
place, so that a reader never waits for the PACS; another lock covers the file. One thread at a time calls `refresh`.
"""

import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from lib.imaging.files import replacing
from lib.server.pacs.attempts import Attempts
from lib.server.pacs.web import COUNT, INSTANCE, MODALITY, SERIES, STUDY, UID, DicomWeb, PacsError, sequence, text

_SCHEMA = 1
_REFERENCED_SERIES = "00081115"
_CREATOR, _OPERATOR = "00700084", "00081070"
_ZONE = "00080201"
_TIMES = (("00080023", "00080033"), ("00080012", "00080013"), ("00080021", "00080031"))
"""Content, instance creation, series: date and time."""
_SHOWN = {"StudyDate": "00080020", "StudyTime": "00080030", "PatientID": "00100020"}
"""What viewers show of the next sample."""


@dataclass(frozen=True)
class ImageSeries:
    """A series of images; its UID is the image's id."""

    uid: str
    study: str
    modality: str
    info: Mapping[str, str]
    """What viewers show of it."""


@dataclass(frozen=True)
class SegInstance:
    """A DICOM SEG in the PACS."""

    uid: str
    """SOP Instance UID."""
    series: str
    study: str
    refers: tuple[str, ...]
    """Series that it says it was made on; some writers leave that out."""
    time: float
    """When it was made, seconds since the epoch; 0 when it does not say."""
    annotator: str
    """Content Creator's Name, or Operators' Name; may be empty."""
    seen: bool = False
    """Whether it was handed on."""
    unusable: str = ""
    """Why it cannot be a label; empty when it can."""


class Catalogue:
    """The last known list, kept in the file `record`: it is there after a restart, also while the PACS is away.

    `filters` are QIDO-RS attributes that every image series must match, beside one of `modalities`.
    """

    def __init__(self, web: DicomWeb, record: Path, modalities: Sequence[str], filters: Mapping[str, str]):
        self._web = web
        self._record = record
        self._modalities = tuple(modalities)
        self._filters = dict(filters)
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._images: dict[str, ImageSeries] = {}
        self._segs: dict[str, SegInstance] = {}
        self._counts: dict[str, str] = {}
        self._labels: dict[str, list[SegInstance]] = {}
        self._attempts = Attempts()
        self.looked = 0.0
        """When the list was last complete, seconds since the epoch; 0: never."""
        self._recover()

    @property
    def undescribed(self) -> dict[str, str]:
        """The segmentation series that the PACS does not describe, by UID, and why; not to be changed."""
        return self._attempts.reasons

    @property
    def images(self) -> dict[str, ImageSeries]:
        """By id; not to be changed."""
        with self._lock:
            return self._images

    @property
    def segs(self) -> dict[str, SegInstance]:
        """By SOP Instance UID; not to be changed."""
        with self._lock:
            return self._segs

    @property
    def labels(self) -> dict[str, list[SegInstance]]:
        """The usable segmentations of each image that has some, newest first; not to be changed.

        One that does not name its series belongs to the only image series of its study.
        """
        with self._lock:
            return self._labels

    def refresh(self) -> None:
        """Ask the PACS for everything, the images first.

        A segmentation series that the PACS does not describe stays as it was, and is asked for again at the next look. Raises
        PacsError when the PACS does not list its series; what came before that is kept.
        """
        self._publish(self._find_images(), self.segs, self._counts)
        segs, counts, complete = self._find_segs()
        self._publish(self.images, segs, counts)
        if complete:
            self.looked = time.time()

    def _find_images(self) -> dict[str, ImageSeries]:
        images = {}
        for modality in self._modalities:
            for item in self._web.series(**self._filters, Modality=modality):
                uid, study = text(item, SERIES), text(item, STUDY)
                if UID.fullmatch(uid) and UID.fullmatch(study) and text(item, MODALITY) in ("", modality):
                    info = {key: text(item, tag) for key, tag in _SHOWN.items()}
                    images[uid] = ImageSeries(uid, study, modality, info)
        return images

    def _find_segs(self) -> tuple[dict[str, SegInstance], dict[str, str], bool]:
        """The segmentations, how many are in each series that was described, and whether none was left for the next look."""
        there: dict[str, tuple[str, str]] = {}
        for item in self._web.series(Modality="SEG"):
            uid, study = text(item, SERIES), text(item, STUDY)
            if UID.fullmatch(uid) and UID.fullmatch(study) and text(item, MODALITY) in ("", "SEG"):
                there[uid] = study, text(item, COUNT)
        known: dict[str, list[SegInstance]] = {}
        for seg in self.segs.values():
            if seg.series in there:
                known.setdefault(seg.series, []).append(seg)
        counts = {uid: count for uid, (_, count) in there.items() if uid in known and self._counts.get(uid) == count}
        for uid in self._attempts.order([uid for uid in there if uid not in counts], str):
            study, count = there[uid]
            try:
                found = [_seg(header, uid, study) for header in self._web.metadata(study, uid)]
            except PacsError as error:
                if self._attempts.failed(uid, error):
                    break
            else:
                self._attempts.succeeded(uid)
                known[uid] = [seg for seg in found if UID.fullmatch(seg.uid)]
                counts[uid] = count
        return {seg.uid: seg for segs in known.values() for seg in segs}, counts, counts.keys() == there.keys()

    def _publish(self, images: dict[str, ImageSeries], segs: Mapping[str, SegInstance], counts: dict[str, str]) -> None:
        with self._lock:
            marked = {uid: self._segs.get(uid, seg) for uid, seg in segs.items()}
            changed = (images, marked, counts) != (self._images, self._segs, self._counts)
            self._images, self._segs, self._counts = images, marked, counts
            self._labels = _labels(images, marked)
        if changed:
            self._keep()

    def mark(self, seg: SegInstance, seen: bool = False, unusable: str = "") -> None:
        """Note for good what became of a segmentation."""
        with self._lock:
            now = self._segs.get(seg.uid, seg)
            noted = replace(now, seen=now.seen or seen, unusable=unusable or now.unusable)
            self._segs = {**self._segs, seg.uid: noted}
            self._labels = _labels(self._images, self._segs)
        self._keep()

    def _keep(self) -> None:
        with self._writing:
            record = {
                "schema": _SCHEMA,
                "looked": self.looked,
                "images": [asdict(image) for image in self.images.values()],
                "segs": [asdict(seg) for seg in self.segs.values()],
                "counts": self._counts,
            }
            self._record.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._record) as draft:
                draft.write_text(json.dumps(record), encoding="utf-8")

    def _recover(self) -> None:
        try:
            record = json.loads(self._record.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        self._images = {item["uid"]: ImageSeries(**item) for item in record["images"]}
        self._segs = {item["uid"]: SegInstance(**{**item, "refers": tuple(item["refers"])}) for item in record["segs"]}
        self._counts = record["counts"]
        self._labels = _labels(self._images, self._segs)
        self.looked = record["looked"]


def _labels(images: Mapping[str, ImageSeries], segs: Mapping[str, SegInstance]) -> dict[str, list[SegInstance]]:
    by_study: dict[str, list[str]] = {}
    for image in images.values():
        by_study.setdefault(image.study, []).append(image.uid)
    found: dict[str, list[SegInstance]] = {}
    for seg in sorted(segs.values(), key=lambda seg: seg.time, reverse=True):
        beside = by_study.get(seg.study, [])
        of = next((uid for uid in seg.refers if uid in images), "") if seg.refers else beside[0] if len(beside) == 1 else ""
        if of and not seg.unusable:
            found.setdefault(of, []).append(seg)
    return found


def _seg(header: Mapping[str, Any], series: str, study: str) -> SegInstance:
    return SegInstance(
        uid=text(header, INSTANCE),
        series=series,
        study=study,
        refers=tuple(text(item, SERIES) for item in sequence(header, _REFERENCED_SERIES)),
        time=_time(header),
        annotator=(text(header, _CREATOR) or text(header, _OPERATOR)).replace("^", " ").strip(),
    )


def _time(header: Mapping[str, Any]) -> float:
    """When an instance was made (PS3.3 C.12.1, PS3.5 6.2 DA and TM), in the server's time zone where it names none."""
    for day, clock in _TIMES:
        digits = text(header, day).replace(".", "")
        if not digits:
            continue
        moment = text(header, clock).replace(":", "").partition(".")[0].ljust(6, "0")
        try:
            made = datetime.strptime(digits + moment[:6], "%Y%m%d%H%M%S")
            zone = datetime.strptime(text(header, _ZONE), "%z").tzinfo if text(header, _ZONE) else None
            return made.replace(tzinfo=zone).timestamp()
        except (ValueError, OverflowError):
            continue
    return 0.0
