"""Blobs: files named by the SHA-256 of their content. Written whole, never changed.

Shared between threads and processes, without locks: a blob appears whole or not at all, and two writers of the same blob write
the same. `collect` spares what was written or asked for again lately, so that it may run beside writers.
"""

import hashlib
import io
import json
import os
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from lib.errors import InputError
from lib.imaging.rle import Rle

_PNG, _RLE = ".png", ".rle"
_COMPRESSION = 1
GRACE_S = 3600.0


class Blobs:
    """A folder of blobs."""

    def __init__(self, folder: Path):
        self._folder = folder

    def put_picture(self, picture: np.ndarray) -> str:
        """Store uint8 RGB `[height, width, 3]` as PNG, grey where it is grey; the digest."""
        if (picture[..., :1] == picture).all():
            picture = picture[..., 0]
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "png", compress_level=_COMPRESSION)
        return self._put(stream.getvalue(), _PNG)

    def picture(self, digest: str) -> np.ndarray:
        """uint8 RGB `[height, width, 3]`. Raises InputError when the blob is gone or not what it was."""
        with Image.open(io.BytesIO(self._get(digest, _PNG))) as image:
            return np.asarray(image.convert("RGB"))

    def picture_path(self, digest: str) -> Path:
        """Where the PNG of a picture is. Raises InputError as `picture` does."""
        self._get(digest, _PNG)
        return self._path(digest, _PNG)

    def put_mask(self, mask: Rle) -> str:
        """Store COCO run lengths; the digest."""
        return self._put(json.dumps(mask, separators=(",", ":"), sort_keys=True).encode(), _RLE)

    def mask(self, digest: str) -> Rle:
        """Raises InputError when the blob is gone or not what it was."""
        found: Rle = json.loads(self._get(digest, _RLE))
        return found

    def collect(self, named: Collection[str], grace_s: float = GRACE_S) -> int:
        """Remove blobs that are not `named` and older than `grace_s`, and drafts that a killed writer left; how many."""
        kept, removed = set(named), 0
        for path in self._files():
            try:
                if path.stem not in kept and time.time() - path.stat().st_mtime >= grace_s:
                    path.unlink()
                    removed += 1
            except FileNotFoundError:  # another process collects too
                continue
        return removed

    def remove(self, digests: Collection[str]) -> int:
        """Remove these blobs; how many were there."""
        gone = [path for digest in digests for path in (self._path(digest, _PNG), self._path(digest, _RLE)) if path.exists()]
        for path in gone:
            path.unlink(missing_ok=True)
        return len(gone)

    def __contains__(self, digest: str) -> bool:
        return self._path(digest, _RLE).exists() or self._path(digest, _PNG).exists()

    def digests(self) -> set[str]:
        """Of all blobs that are there."""
        return {path.stem for path in self._files() if not path.name.startswith(".")}

    def _files(self) -> Iterator[Path]:
        return (path for path in self._folder.glob("??/*") if path.is_file())

    def _put(self, content: bytes, suffix: str) -> str:
        digest = hashlib.sha256(content).hexdigest()
        path = self._path(digest, suffix)
        try:
            os.utime(path)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f".{digest}.{os.getpid()}.{time.monotonic_ns()}{suffix}")
            with open(draft, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        return digest

    def _get(self, digest: str, suffix: str) -> bytes:
        try:
            content = self._path(digest, suffix).read_bytes()
        except FileNotFoundError as error:
            raise InputError(f"blob {digest[:12]} is gone from {self._folder}", "store") from error
        if hashlib.sha256(content).hexdigest() != digest:
            raise InputError(f"blob {digest[:12]} of {self._folder} is not what was written: the file is damaged", "store")
        return content

    def _path(self, digest: str, suffix: str) -> Path:
        return Path(f"{self._folder}/{digest[:2]}/{digest}{suffix}")
