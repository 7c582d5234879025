"""Masks as COCO run lengths: small enough to keep one for every step of an episode."""

from typing import TypedDict

import numpy as np
from pycocotools import mask as coco


class Rle(TypedDict):
    """COCO's compressed run-length encoding (column-major), JSON-ready."""

    size: list[int]
    """[height, width]"""
    counts: str


def encode(mask: np.ndarray) -> Rle:
    """Bool `[height, width]` to run lengths."""
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return Rle(size=[int(n) for n in rle["size"]], counts=rle["counts"].decode("ascii"))


def decode(rle: Rle) -> np.ndarray:
    """Run lengths to bool `[height, width]`."""
    return coco.decode({"size": rle["size"], "counts": rle["counts"].encode("ascii")}).astype(bool)


def empty(width: int, height: int) -> Rle:
    """The mask without a pixel."""
    return encode(np.zeros((height, width), dtype=bool))


def area(rle: Rle) -> int:
    """How many pixels the mask has."""
    return int(coco.area({"size": rle["size"], "counts": rle["counts"].encode("ascii")}))
