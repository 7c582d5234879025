"""Volumes kept in memory for the next request on the same image.

Shared between threads. One lock guards the table and is never held while a file is read; a volume that two threads want at once
is read by one of them while the other waits for it.
"""

import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from lib.imaging.files import fingerprint
from lib.imaging.load import load_volume
from lib.imaging.volume import Modality, Volume


@dataclass(frozen=True)
class ImageRef:
    """Where an image is and how to read it: the arguments of `load_volume`."""

    path: Path
    series: str | None = None
    modality: Modality | None = None


_Key = tuple[ImageRef, str]


class VolumeCache:
    """The most recently used volumes, up to `max_bytes` of voxels; a file that changed on disk is read again."""

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._volumes: OrderedDict[_Key, Future[Volume]] = OrderedDict()

    def get(self, image: ImageRef) -> Volume:
        """The image's volume. Raises ImageError as `load_volume` does, FileNotFoundError when it is gone."""
        if not image.path.exists():
            raise FileNotFoundError(f"{image.path.name} does not exist")
        files = image.path.rglob("*") if image.path.is_dir() else (image.path,)
        key = (image, fingerprint(files))
        with self._lock:
            future = self._volumes.get(key)
            mine = future is None
            if future is None:
                future = self._volumes[key] = Future()
            self._volumes.move_to_end(key)
        if not mine:
            return future.result()
        try:
            volume = load_volume(image.path, series=image.series, modality=image.modality)
        except BaseException as error:
            with self._lock:
                del self._volumes[key]
            future.set_exception(error)
            raise
        future.set_result(volume)
        with self._lock:
            self._evict()
        return volume

    def _evict(self) -> None:
        done = [key for key, future in self._volumes.items() if future.done()]
        total = sum(_bytes(self._volumes[key].result()) for key in done)
        for key in done[:-1]:
            if total <= self._max_bytes:
                return
            total -= _bytes(self._volumes.pop(key).result())


def _bytes(volume: Volume) -> int:
    return volume.data.nbytes + (0 if volume.colour is None else volume.colour.nbytes)
