"""Limits on what a header may promise: a file of a few bytes must not make the reader allocate gigabytes."""

from lib.errors import ImageError

_ALWAYS = 256 * 2**20
_RATIO = 200
_VOXELS = 2**31


def budget(stored: int) -> int:
    """Bytes that `stored` bytes of file may unpack to: 256 MiB, or 200 times the file if that is more.

    Medical images compress 2 to 20 times and label maps some 100 times; only decompression bombs come near 1000.
    """
    return max(_ALWAYS, _RATIO * stored)


def check_size(name: str, shape: tuple[int, ...], itemsize: int, stored: int) -> None:
    """Raise ImageError when an image of `shape` voxels of `itemsize` bytes cannot honestly come from `stored` bytes of file."""
    if not shape or any(size < 1 for size in shape):
        raise ImageError(f"{name} is not a valid image: its header gives the size {_text(shape)}")
    voxels = 1
    for size in shape:
        voxels *= int(size)
    if voxels > _VOXELS or voxels * itemsize > budget(stored):
        raise ImageError(
            f"{name} is not loaded: its header announces {_text(shape)} voxels, but the file has only {stored:,} bytes; "
            "it is damaged, or larger than IBIS Label reads (2 billion voxels)"
        )


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape) or "nothing"
