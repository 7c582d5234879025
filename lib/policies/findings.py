"""What can be seen of a region in a view, in words: its tone, its size, where it lies, how it differs from what is around it.

Masks are bool `[height, width]` of the view, greys uint8 `[height, width]`. Directions are the picture's own.
"""

import numpy as np
from scipy import ndimage

_TONES = ((40, "a very dark"), (95, "a dark"), (160, "a mid-grey"), (215, "a bright"), (256, "a very bright"))
"""Greys below a level, and their name."""
_ALIKE, _CLEAR = 10.0, 35.0
"""Medians that differ by fewer grey levels count as alike, by more as clearly different."""
_RING = 4
"""Pixels around a region that are its surroundings."""
_THIRD = 1 / 6
"""A centre nearer to the middle than this share of the width lies in the middle third."""


def tone(grey: np.ndarray, region: np.ndarray) -> str:
    """Such as "a dark"."""
    level = _median(grey, region)
    return next(name for bound, name in _TONES if level < bound)


def compared(grey: np.ndarray, region: np.ndarray, other: np.ndarray) -> str:
    """How bright `region` is beside `other`, such as "slightly darker than"; "as bright as" also where one is empty."""
    if not region.any() or not other.any():
        return "as bright as"
    difference = _median(grey, region) - _median(grey, other)
    if abs(difference) < _ALIKE:
        return "as bright as"
    return f"{'clearly' if abs(difference) >= _CLEAR else 'slightly'} {'brighter' if difference > 0 else 'darker'} than"


def surroundings(region: np.ndarray) -> np.ndarray:
    """The ring around a region."""
    return ndimage.binary_dilation(region, iterations=_RING) & ~region


def where(region: np.ndarray) -> str:
    """The third of the picture that a region's centre lies in, such as "the upper left"."""
    return _third(np.argwhere(region).mean(axis=0) / np.array(region.shape) - 0.5, "the middle")


def side(part: np.ndarray, target: np.ndarray) -> str:
    """Where a part's centre lies as seen from the middle of a target, such as "the lower left edge"."""
    places = np.argwhere(target if target.any() else part)
    low, high = places.min(axis=0), places.max(axis=0)
    offset = (np.argwhere(part).mean(axis=0) - (low + high) / 2) / (high - low + 1)
    found = _third(offset, "the middle")
    return found if found == "the middle" else f"{found} edge"


def across(region: np.ndarray, pixel_mm: float | None) -> str:
    """The diameter of a circle of the region's area, such as "about 14 mm"; in pixels where the picture has no mm."""
    return _length(2 * float(np.sqrt(np.count_nonzero(region) / np.pi)), pixel_mm)


def thin(radius: float, pixel_mm: float | None) -> str:
    """The width of something of that radius in pixels, such as "about 3 mm"."""
    return _length(2 * radius, pixel_mm)


def share(part: np.ndarray, target: np.ndarray) -> str:
    """A part's area as a share of the target's, such as "about 15 %"."""
    percent = 100 * np.count_nonzero(part) / max(1, np.count_nonzero(target))
    return "less than 5 %" if percent < 5 else f"about {5 * round(percent / 5)} %"


def area(region: np.ndarray, pixel_mm: float | None) -> str:
    """Such as "about 32 cm2"; a share of the picture where it has no mm."""
    pixels = np.count_nonzero(region)
    if pixel_mm is None:
        return f"about {_two_digits(100 * pixels / region.size)} % of the picture"
    return f"about {_two_digits(pixels * pixel_mm**2 / 100)} cm2"


def _length(pixels: float, pixel_mm: float | None) -> str:
    if pixel_mm is None:
        return f"about {max(1, round(pixels))} pixels"
    return f"about {_two_digits(pixels * pixel_mm)} mm"


def _two_digits(value: float) -> str:
    return np.format_float_positional(value, precision=2 if value >= 1 else 1, fractional=False, trim="-")


def _third(offset: np.ndarray, middle: str) -> str:
    """`offset` is (down, right) from the middle, as shares of height and width."""
    down = "upper" if offset[0] < -_THIRD else "lower" if offset[0] > _THIRD else ""
    right = "left" if offset[1] < -_THIRD else "right" if offset[1] > _THIRD else ""
    words = " ".join(word for word in (down, right) if word)
    return f"the {words}" if words else middle


def _median(grey: np.ndarray, region: np.ndarray) -> float:
    return float(np.median(grey[region])) if region.any() else 0.0
