"""Image series fetched from the PACS: the original DICOM files, whole series only.

`folder/SERIES/DIGEST/` holds a series as it was when the PACS listed exactly these instances; it appears by one rename and is
never changed, so that a run keeps the images it was made on while the series grows. What has been fetched of an unfinished
series waits in `folder/SERIES/incoming/`, each file whole.

Shared between threads and processes: one file lock per series, held while its images are fetched; at most `_WAITING` threads
fetch or wait for it, so that a silent PACS leaves the server's other threads alone. A lock of this process covers the tables of
what is going on.
"""

import os
import shutil
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

from filelock import FileLock, Timeout

from lib.imaging.dicom_headers import UNREADABLE, read_dataset
from lib.imaging.files import replacing
from lib.server.pacs.catalogue import ImageSeries
from lib.server.pacs.web import DicomWeb, PacsError, PacsRefused, PacsUnreachable

_CURRENT = "current"
_INCOMING = "incoming"
_SUFFIX = ".dcm"
_WAITING = 16
"""Threads; the server's requests have 40."""
_KEPT_S = 86_400
"""Seconds for which a series is kept after it was superseded: runs that began earlier read it."""


class Downloads:
    """Series under `folder`; a list of instances is believed for `expiry_s`, `parallel` images are fetched at a time."""

    def __init__(self, web: DicomWeb, folder: Path, expiry_s: float, parallel: int):
        self._web = web
        self._folder = folder
        self._expiry_s = expiry_s
        self._parallel = parallel
        self._lock = threading.Lock()
        self._waiting = threading.BoundedSemaphore(_WAITING)
        self._checked: dict[str, float] = {}
        self._failures: dict[str, tuple[float, PacsError]] = {}
        self._progress: dict[str, tuple[int, int]] = {}

    @property
    def progress(self) -> dict[str, tuple[int, int]]:
        """The series being fetched: images here, images in all."""
        with self._lock:
            return dict(self._progress)

    def here(self, uid: str) -> Path | None:
        """The newest complete folder of a series, without asking the PACS; None when there is none."""
        try:
            path = self._folder / uid / (self._folder / uid / _CURRENT).read_text(encoding="ascii")
        except FileNotFoundError:
            return None
        return path if path.is_dir() else None

    def get(self, series: ImageSeries) -> Path:
        """The folder with the whole series as the PACS lists it now; fetches what is not here.

        While the PACS is away, a series that was fetched before stays as it is. Raises PacsError when it was not, also when
        nothing comes of a fetch that somebody else began, and when too many wait.
        """
        began = time.monotonic()
        ready = self._ready(series.uid)
        if ready is not None:
            return ready
        if not self._waiting.acquire(blocking=False):
            raise PacsUnreachable(f"the PACS: {_WAITING} requests wait for its images already, ask again later")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self._folder / f"{series.uid}.lock")
            self._acquire(lock, series.uid)
            try:
                return self._ready(series.uid) or self._try(series, began)
            finally:
                lock.release()
        finally:
            self._waiting.release()

    def _ready(self, uid: str) -> Path | None:
        """What is here, when the PACS need not or cannot be asked."""
        current = self.here(uid)
        fresh = time.monotonic() - self._checked.get(uid, -1e9) < self._expiry_s
        return current if fresh or self._web.state.reachable is False else None

    def _acquire(self, lock: FileLock, uid: str) -> None:
        """Waits as long as images keep coming to the one who holds the lock."""
        while True:
            before = self.progress.get(uid)
            try:
                lock.acquire(timeout=self._web.timeout.read)
                return
            except Timeout as error:
                if self.progress.get(uid) in (None, before):
                    raise PacsUnreachable("the PACS: others wait for this series too, and nothing comes") from error

    def _try(self, series: ImageSeries, began: float) -> Path:
        """Bring the series, unless somebody who asked while we waited got nothing."""
        current = self.here(series.uid)
        failed, failure = self._failures.get(series.uid, (-1e9, None))
        try:
            if failure is not None and failed >= began:
                raise PacsUnreachable(str(failure)) from failure
            path = self._bring(series, current)
        except PacsError as error:
            self._failures[series.uid] = time.monotonic(), error
            if current is None:
                raise
            return current
        self._checked[series.uid] = time.monotonic()
        return path

    def _bring(self, series: ImageSeries, current: Path | None) -> Path:
        wanted = self._web.instances(series.study, series.uid)
        if not wanted:
            raise PacsRefused(404, "it lists no images of this series")
        base = self._folder / series.uid
        target = base / blake2b("\n".join(wanted).encode(), digest_size=8).hexdigest()
        if not target.is_dir():
            self._fetch(series, wanted, base / _INCOMING, current)
            os.replace(base / _INCOMING, target)
        if target != current:
            if current is not None:
                os.utime(current)
            with replacing(base / _CURRENT) as draft:
                draft.write_text(target.name, encoding="ascii")
        _tidy(base, target)
        return target

    def _fetch(self, series: ImageSeries, wanted: Sequence[str], incoming: Path, current: Path | None) -> None:
        incoming.mkdir(parents=True, exist_ok=True)
        names = {f"{instance}{_SUFFIX}" for instance in wanted}
        for path in incoming.iterdir():
            if path.name not in names:
                path.unlink()
        for path in current.iterdir() if current is not None else ():
            if path.name in names and not (incoming / path.name).exists():
                os.link(path, incoming / path.name)
        missing = [instance for instance in wanted if not (incoming / f"{instance}{_SUFFIX}").exists()]
        pool = ThreadPoolExecutor(self._parallel, thread_name_prefix="fetching")
        try:
            jobs = [pool.submit(self._retrieve, series, instance, incoming) for instance in missing]
            for done, job in enumerate(jobs):
                with self._lock:
                    self._progress[series.uid] = (len(wanted) - len(missing) + done, len(wanted))
                job.result()
        finally:
            pool.shutdown(cancel_futures=True)
            with self._lock:
                self._progress.pop(series.uid, None)

    def _retrieve(self, series: ImageSeries, instance: str, folder: Path) -> None:
        content = self._web.retrieve(series.study, series.uid, instance)
        with replacing(folder / f"{instance}{_SUFFIX}") as draft:
            draft.write_bytes(content)
            try:
                found = read_dataset(draft, stop_before_pixels=True, specific_tags=["SOPInstanceUID"])
            except UNREADABLE as error:
                raise PacsUnreachable("the PACS sent a damaged image; it will be asked for again") from error
            if str(found.get("SOPInstanceUID")) != instance:
                raise PacsUnreachable("the PACS sent another image than the one that was asked for")


def _tidy(base: Path, current: Path) -> None:
    """Remove what was superseded long ago; a superseded folder's time is when that happened."""
    for path in base.glob("[!.]*/"):
        if path.name not in (current.name, _INCOMING) and time.time() - path.stat().st_mtime > _KEPT_S:
            os.replace(path, path.with_name(f".{path.name}"))  # nobody ever sees half of one
    for path in base.glob(".*/"):
        shutil.rmtree(path)
