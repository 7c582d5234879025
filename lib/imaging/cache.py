"""Volumes kept in memory for the next request on the same image; safe to use from several threads."""

from dataclasses import dataclass
from pathlib import Path

from lib.imaging.bytecache import ByteCache
from lib.imaging.files import fingerprint
from lib.imaging.load import load_volume
from lib.imaging.volume import Modality, Volume


@dataclass(frozen=True)
class ImageRef:
    """Where an image is and how to read it: the arguments of `load_volume`."""

    path: Path
    series: str | None = None
    modality: Modality | None = None


class VolumeCache:
    """The most recently used volumes, up to `max_bytes` of voxels; an image that changed on disk is read again."""

    def __init__(self, max_bytes: int):
        self._volumes: ByteCache[tuple[ImageRef, str], Volume] = ByteCache(max_bytes, _bytes)

    def get(self, image: ImageRef) -> Volume:
        """The image's volume. Raises ImageError as `load_volume` does, FileNotFoundError when it is gone."""
        if not image.path.exists():
            raise FileNotFoundError(f"{image.path.name} does not exist")
        files = image.path.rglob("*") if image.path.is_dir() else (image.path,)
        return self._volumes.get(
            (image, fingerprint(files)), lambda: load_volume(image.path, series=image.series, modality=image.modality)
        )


def _bytes(volume: Volume) -> int:
    return volume.data.nbytes + (0 if volume.colour is None else volume.colour.nbytes)
