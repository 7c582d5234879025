"""Image series fetched from the PACS: the original DICOM files, whole series only.

`folder/SERIES/DIGEST/` holds a series as it was when the PACS listed exactly these instances; it appears by one rename and is
never changed, so that a run keeps the images it was made on while the series grows. What has been fetched of an unfinished
series waits in `folder/SERIES/incoming/`, each file whole.

Shared between threads and processes: one file lock per series, held while its images are fetched. A lock of this process covers
the tables of what is going on.
"""

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

from filelock import FileLock

from lib.imaging.dicom_headers import UNREADABLE, read_dataset
from lib.imaging.files import replacing
from lib.server.pacs.catalogue import ImageSeries
from lib.server.pacs.web import DicomWeb, PacsError, PacsRefused, PacsUnreachable

_CURRENT = "current"
_INCOMING = "incoming"
_SUFFIX = ".dcm"


class Downloads:
    """Series under `folder`; a list of instances is believed for `expiry_s`, `parallel` images are fetched at a time."""

    def __init__(self, web: DicomWeb, folder: Path, expiry_s: float, parallel: int):
        self._web = web
        self._folder = folder
        self._expiry_s = expiry_s
        self._parallel = parallel
        self._lock = threading.Lock()
        self._checked: dict[str, float] = {}
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

        While the PACS is away, a series that was fetched before stays as it is. Raises PacsError when it was not.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._folder / f"{series.uid}.lock"):
            current = self.here(series.uid)
            fresh = time.monotonic() - self._checked.get(series.uid, -1e9) < self._expiry_s
            if current is not None and (fresh or self._web.state.reachable is False):
                return current
            try:
                path = self._bring(series, current)
            except PacsError:
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
            with replacing(base / _CURRENT) as draft:
                draft.write_text(target.name, encoding="ascii")
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
