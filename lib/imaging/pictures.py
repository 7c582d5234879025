"""Pictures: PNG, JPEG, TIFF and BMP files to a volume of one slice."""

import struct
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from lib.errors import ImageError
from lib.imaging.dicom_pixels import luminance
from lib.imaging.limits import check_size
from lib.imaging.volume import Modality, Volume

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
_LARGEST = 100_000_000
_DAMAGED = (EOFError, OSError, SyntaxError, TypeError, ValueError, struct.error, Image.DecompressionBombError)


def is_picture(path: Path) -> bool:
    """Whether Pillow knows the file's content as one of FORMATS."""
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except UnidentifiedImageError:
        return False
    except _DAMAGED:
        return True


def load_picture(path: Path, modality: Modality | None = None) -> Volume:
    """Read a picture as `[i = column, j = row, 1]`, upright as its EXIF orientation says.

    Colours become `colour` with their luminance as `data`; a picture that is grey throughout has no colours. Transparent pixels
    are shown on black. Values beyond 8 bits are spread over 0..255, from the lowest to the highest, as float32. Raises
    ImageError for files of several pictures, beyond 100 million pixels, or damaged.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > _LARGEST:
                raise ImageError(f"{path.name} is {width} x {height} pixels: IBIS Label reads pictures of up to 100 million")
            check_size(path.name, (width, height), len(image.getbands()), path.stat().st_size)
            count = getattr(image, "n_frames", 1)
            if image.format != "JPEG" and count > 1:
                raise ImageError(f"{path.name} holds {count} pictures: save the one to segment as a file of its own")
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
            upright = ImageOps.exif_transpose(image)
            pixels, warnings = _pixels(upright)
    except _DAMAGED as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{path.name} cannot be read as a picture, it is damaged or truncated: {error}") from error
    if turned:
        warnings.append("the picture's EXIF orientation was applied: masks lie on the upright picture")
    colour = None
    if pixels.ndim == 3:
        grey = (pixels[..., :1] == pixels).all()
        colour = None if grey else pixels.transpose(1, 0, 2)[:, :, None]
        pixels = pixels[..., 0] if grey else luminance(pixels)
    return Volume(
        data=pixels.T[:, :, None],
        affine=np.diag([1.0, -1.0, 1.0, 1.0]),
        modality=modality or Modality.OTHER,
        source=path,
        warnings=tuple(warnings),
        colour=colour,
        planar=True,
    )


def _pixels(image: Image.Image) -> tuple[np.ndarray, list[str]]:
    """uint8 or float32 `[row, column]`, or uint8 RGB `[row, column, 3]`."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float32)
        finite = values[np.isfinite(values)]
        if finite.size == 0:
            raise ImageError("the picture has no finite value")
        low, high = float(finite.min()), float(finite.max())
        values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
        if image.mode == "I" and low >= 0 and high <= 255:
            return values.astype(np.uint8), []
        spread = (values - low) * (255.0 / (high - low if high > low else 1.0))
        return spread, [f"grey values from {low:g} to {high:g} are spread over 0 to 255"]
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L")), []
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, (0, 0, 0, 255))
        return np.asarray(Image.alpha_composite(ground, layer).convert("RGB")), []
    return np.asarray(image.convert("RGB")), []
