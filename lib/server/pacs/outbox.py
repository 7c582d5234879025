"""Labels on their way to the PACS: each is on disk before anybody is told that it was taken, and goes on after a crash.

An item is `ID.json`, the label as it came (`ID.label.nrrd` or another suffix), and, once it could be made, `ID.seg.dcm`, whose
SOP Instance UID never changes again: however often it is sent, the PACS has it once.

Shared between request threads and the one thread that delivers. One lock covers the tables, never while the disk or the PACS is
waited for; each item has a lock of its own, held while its DICOM SEG is made or sent.
"""

import json
import logging
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from lib.errors import EngineError, InputError
from lib.imaging.dicom_headers import read_dataset
from lib.imaging.files import replacing
from lib.server.pacs.segs import EmptyLabel
from lib.server.pacs.web import DicomWeb, PacsRefused, PacsUnreachable

logger = logging.getLogger(__name__)

_SCHEMA = 1
_SEG = ".seg.dcm"


class Delivery(StrEnum):
    """Where a label is."""

    QUEUED = "queued"
    """Here, and on its way to the PACS."""
    DELIVERED = "delivered"
    """Here and in the PACS."""
    REFUSED = "refused"
    """Here; the PACS, or DICOM, does not take it. `error` says why."""
    LOCAL = "local"
    """Here only: there is nothing to send."""


@dataclass(frozen=True)
class Item:
    """One label."""

    key: str
    image: str
    """Series Instance UID."""
    annotator: str
    info: Mapping[str, Any]
    """What came with the label."""
    suffix: str
    """Of the label file."""
    created: float
    """Seconds since the epoch, as all times here."""
    state: Delivery = Delivery.QUEUED
    attempts: int = 0
    error: str = ""
    study: str = ""
    series: str = ""
    instance: str = ""
    """UIDs of the DICOM SEG; empty until it is made."""
    delivered: float | None = None


@dataclass
class Backoff:
    """Seconds before the next attempt: `first_s`, doubled each time up to `most_s`."""

    first_s: float
    most_s: float
    clock: Callable[[], float] = field(default=time.time)

    def due(self, attempts: int) -> float:
        return self.clock() + min(self.most_s, self.first_s * 2 ** min(attempts - 1, 30))


class Outbox:
    """The items of `folder`. `make(item, label, seg)` writes the DICOM SEG of a label file.

    It may raise EmptyLabel (nothing to send), another InputError (refused) and EngineError (not now).
    """

    def __init__(self, web: DicomWeb, folder: Path, make: Callable[[Item, Path, Path], None], backoff: Backoff):
        self._web = web
        self._folder = folder
        self._make = make
        self._backoff = backoff
        self._lock = threading.Lock()
        self._working: dict[str, threading.Lock] = {}
        self._due: dict[str, float] = {}
        self._wake = threading.Event()
        self._stopped = threading.Event()
        folder.mkdir(parents=True, exist_ok=True)
        found = [_recovered(path) for path in folder.glob("[!.]*.json")]
        self._items = {item.key: item for item in sorted(found, key=lambda item: item.created)}

    @staticmethod
    def new_key() -> str:
        return secrets.token_hex(8)

    @property
    def items(self) -> list[Item]:
        """In the order in which they came."""
        with self._lock:
            return list(self._items.values())

    def get(self, key: str) -> Item | None:
        with self._lock:
            return self._items.get(key)

    def shown(self, key: str) -> dict[str, Any] | None:
        """An item as JSON for clients; None for an unknown id."""
        with self._lock:
            item, due = self._items.get(key), self._due.get(key)
        if item is None:
            return None
        return {
            "id": item.key,
            "image": item.image,
            "state": item.state,
            "created": item.created,
            "delivered": item.delivered,
            "attempts": item.attempts,
            "next_attempt": due if item.state is Delivery.QUEUED else None,
            "error": item.error,
            "series": item.series,
            "instance": item.instance,
        }

    def ours(self) -> dict[str, Item]:
        """What was made here, by SOP Instance UID."""
        return {item.instance: item for item in self.items if item.instance}

    def add(self, key: str, image: str, label: Path, info: Mapping[str, Any], annotator: str, now: bool) -> Item:
        """Take a label in, under a `new_key`. With `now` its DICOM SEG is made at once: the answer says what it lacks."""
        suffix = ".nii.gz" if label.name.endswith(".nii.gz") else label.suffix
        item = Item(key, image, annotator, info, suffix, self._backoff.clock())
        with self._working_on(key):
            with replacing(self._label(item)) as draft:
                shutil.copy(label, draft)
            self._keep(item)
            if now:
                item = self._made(item)
        self._wake.set()
        return item

    def retry(self, key: str) -> None:
        """Send a refused or waiting item again, now.

        Raises KeyError for an unknown id, InputError when there is nothing to send.
        """
        item = self._items[key]
        if item.state not in (Delivery.QUEUED, Delivery.REFUSED):
            raise InputError(f"this label is {item.state}: there is nothing to send", "id")
        if item.state is Delivery.REFUSED:
            self._keep(replace(item, state=Delivery.QUEUED))
        with self._lock:
            self._due.pop(key, None)
        self._wake.set()

    def hurry(self) -> None:
        """The PACS is back: what waits for its next attempt is due now."""
        with self._lock:
            self._due.clear()
        self._wake.set()

    def start(self) -> None:
        """Deliver in a thread of its own until `stop`."""
        threading.Thread(target=self._deliver, name="outbox", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()
        self._wake.set()

    def deliver_due(self) -> None:
        """Send what is due, once. Ends at the first item that the PACS does not answer to."""
        for key in [item.key for item in self.items if self._is_due(item)]:
            with self._working_on(key):
                item = self._read(key)
                if item.state is Delivery.QUEUED and not self._step(item):
                    return

    def _deliver(self) -> None:
        while not self._stopped.is_set():
            self._wake.clear()
            try:
                self.deliver_due()
            except OSError as error:
                logger.error("The outbox cannot be written: %s", error.strerror)
            self._wake.wait(self._pause())

    def _pause(self) -> float | None:
        """Seconds until something is due; None when nothing waits."""
        with self._lock:
            waiting = [self._due.get(item.key, 0.0) for item in self._items.values() if item.state is Delivery.QUEUED]
        return max(self._backoff.first_s / 10, min(waiting) - self._backoff.clock()) if waiting else None

    def _is_due(self, item: Item) -> bool:
        with self._lock:
            due = self._due.get(item.key, 0.0)
        return item.state is Delivery.QUEUED and due <= self._backoff.clock()

    def _working_on(self, key: str) -> threading.Lock:
        with self._lock:
            return self._working.setdefault(key, threading.Lock())

    def _step(self, item: Item) -> bool:
        """Bring one item further; False when the PACS is away."""
        item = self._made(item)
        if item.state is not Delivery.QUEUED or not item.instance:
            return True
        try:
            # After an attempt without an answer the PACS may have it: only it can tell.
            if not (item.attempts and self._web.holds(item.study, item.series, item.instance)):
                self._web.store(item.instance, self._seg(item).read_bytes())
        except PacsRefused as refusal:
            if refusal.final:
                self._keep(replace(item, state=Delivery.REFUSED, attempts=item.attempts + 1, error=str(refusal)))
                logger.warning("Label %s: refused by the PACS", item.key)
            else:
                self._later(item, str(refusal))
            return True
        except PacsUnreachable as error:
            self._later(item, str(error))
            return False
        self._keep(
            replace(item, state=Delivery.DELIVERED, attempts=item.attempts + 1, error="", delivered=self._backoff.clock())
        )
        self._label(item).unlink(missing_ok=True)
        self._seg(item).unlink(missing_ok=True)
        logger.info("Label %s: delivered", item.key)
        return True

    def _made(self, item: Item) -> Item:
        """With its DICOM SEG, or with the reason why there is none."""
        if item.instance or item.state is not Delivery.QUEUED:
            return item
        path = self._seg(item)
        try:
            if not path.exists():
                self._make(item, self._label(item), path)
        except EmptyLabel as error:
            return self._keep(replace(item, state=Delivery.LOCAL, error=error.message))
        except InputError as error:
            return self._keep(replace(item, state=Delivery.REFUSED, error=error.message))
        except EngineError as error:
            return self._later(item, str(error))
        header = read_dataset(path, stop_before_pixels=True)
        study, series, instance = (
            str(header[keyword].value) for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        )
        return self._keep(replace(item, study=study, series=series, instance=instance))

    def _later(self, item: Item, error: str) -> Item:
        attempts = item.attempts + 1
        with self._lock:
            self._due[item.key] = self._backoff.due(attempts)
        return self._keep(replace(item, attempts=attempts, error=error))

    def _keep(self, item: Item) -> Item:
        with replacing(self._folder / f"{item.key}.json") as draft:
            draft.write_text(json.dumps({"schema": _SCHEMA, **asdict(item)}), encoding="utf-8")
        with self._lock:
            self._items[item.key] = item
        return item

    def _read(self, key: str) -> Item:
        """The item as it is on disk: another process with this folder may have delivered it."""
        item = _recovered(self._folder / f"{key}.json")
        with self._lock:
            self._items[key] = item
        return item

    def _label(self, item: Item) -> Path:
        return self._folder / f"{item.key}.label{item.suffix}"

    def _seg(self, item: Item) -> Path:
        return self._folder / f"{item.key}{_SEG}"


def _recovered(path: Path) -> Item:
    record = json.loads(path.read_text(encoding="utf-8"))
    del record["schema"]
    return Item(**{**record, "state": Delivery(record["state"])})
