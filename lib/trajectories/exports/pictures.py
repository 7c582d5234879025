"""The pictures of an export: PNG files named by what they show, each written once."""

import io
from hashlib import blake2b
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = "images"


class Pictures:
    """The folder `images` in `root`, made when the first picture comes."""

    def __init__(self, root: Path):
        self._root = root
        self._written: set[str] = set()

    def put(self, picture: np.ndarray) -> str:
        """Write uint8 RGB `[height, width, 3]`; its path, relative to the root, with forward slashes."""
        digest = blake2b(f"{picture.shape}".encode() + np.ascontiguousarray(picture).tobytes(), digest_size=16).hexdigest()
        name = f"{FOLDER}/{digest}.png"
        if name not in self._written:
            (self._root / FOLDER).mkdir(parents=True, exist_ok=True)
            (self._root / name).write_bytes(encode(picture))
            self._written.add(name)
        return name

    def __len__(self) -> int:
        return len(self._written)


def encode(picture: np.ndarray) -> bytes:
    """uint8 RGB `[height, width, 3]` as PNG."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "png", compress_level=3)
    return stream.getvalue()
