"""The thread that looks what is new in the PACS.

It alone refreshes the catalogue, and it alone hands segmentations on; any thread may `wake` it.
"""

import logging
import threading
import time
from collections.abc import Callable

from lib.errors import EngineError, ImageError, InputError
from lib.server.pacs.attempts import Attempts
from lib.server.pacs.catalogue import SegInstance
from lib.server.pacs.datastore import PacsDatastore
from lib.server.pacs.segs import SegFound
from lib.server.pacs.web import PacsError

logger = logging.getLogger(__name__)

_SHARE = 10
"""A look that takes t seconds is followed by at least so many times t without one."""


class Poller:
    """Looks every `every_s` seconds, and calls `arrived` once for each segmentation that somebody else stored.

    Only for images that were fetched: those of others are handed on once their image is here. `arrived` may raise InputError,
    EngineError and OSError, and then gets the segmentation again at the next look. What was handed on is remembered for good.
    """

    def __init__(self, store: PacsDatastore, every_s: float, arrived: Callable[[SegFound], None] | None = None):
        self._store = store
        self._every_s = every_s
        self._arrived = arrived
        self._attempts = Attempts()
        self._wake = threading.Event()
        self._stopped = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="poller", daemon=True).start()

    def wake(self) -> None:
        """Look now."""
        self._wake.set()

    def stop(self) -> None:
        self._stopped.set()
        self._wake.set()

    @property
    def waiting(self) -> dict[str, str]:
        """The segmentations that could not be handed on yet, by SOP Instance UID, and why."""
        return self._attempts.reasons

    def look(self) -> None:
        """One look. Raises PacsError when the PACS is away; a segmentation that cannot be had holds up no other."""
        away = self._store.web.state.reachable is False
        self._store.look()
        if away:
            self._store.outbox.hurry()
        ours = self._store.outbox.ours()
        new = [
            (image_id, seg)
            for image_id, segs in self._store.catalogue.labels.items()
            if self._store.downloads.here(image_id) is not None
            for seg in reversed(segs)
            if not seg.seen and seg.uid not in ours
        ]
        for image_id, seg in self._attempts.order(new, lambda one: one[1].uid):
            try:
                self._hand_on(seg, image_id)
            except (EngineError, InputError) as error:
                if seg.uid not in self.waiting:
                    logger.warning("A segmentation of the PACS waits: %s", error)
                if self._attempts.failed(seg.uid, error):
                    raise
            else:
                self._attempts.succeeded(seg.uid)

    def _hand_on(self, seg: SegInstance, image_id: str) -> None:
        try:
            found = self._store.arrive(seg, image_id)
        except ImageError as error:
            self._store.catalogue.mark(seg, seen=True, unusable=error.message)
            return
        if self._arrived is not None:
            self._arrived(found)
        self._store.catalogue.mark(seg, seen=True)

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._wake.clear()
            began = time.monotonic()
            try:
                self.look()
            except PacsError:
                logger.debug("The PACS is away")
            except OSError as error:
                logger.error("What was found in the PACS cannot be kept: %s", error.strerror)
            self._wake.wait(max(self._every_s, _SHARE * (time.monotonic() - began)))
