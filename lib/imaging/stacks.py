"""Stacks: the raw values of a plane's views, for whoever windows them elsewhere, such as a browser."""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from lib.imaging.planes import ViewGrid
from lib.imaging.volume import Modality, Volume

_LIMITS = np.iinfo(np.int16)


@dataclass(frozen=True)
class Encoding:
    """What a stored number means: grey value = stored * `slope` + `intercept`. One for the whole volume."""

    colour: bool
    """uint8 `[slice, height, width, 3]` RGB as it is; else int16 little-endian `[slice, height, width]`."""
    slope: float
    intercept: float

    @classmethod
    def of(cls, volume: Volume) -> "Encoding":
        """CT and whole numbers travel as they are, rounded; what int16 cannot hold is spread over all of it. Reads every voxel
        where the type does not say its range."""
        if volume.colour is not None:
            return cls(True, 1.0, 0.0)
        if np.can_cast(volume.data.dtype, np.int16):
            return cls(False, 1.0, 0.0)
        low, high = float(volume.data.min()), float(volume.data.max())
        whole = volume.data.dtype.kind in "iu" or volume.modality is Modality.CT
        if whole and _LIMITS.min <= low and high <= _LIMITS.max:
            return cls(False, 1.0, 0.0)
        slope = (high - low) / (_LIMITS.max - _LIMITS.min) or 1.0
        return cls(False, slope, low - _LIMITS.min * slope)


class Stacks:
    """Cuts stacks, and remembers the encoding of volumes that are in use.

    May be used by several threads at once: at worst two of them look for the same encoding. Blocks for as long as reading the
    slices takes.
    """

    def __init__(self) -> None:
        self._encodings: WeakKeyDictionary[Volume, Encoding] = WeakKeyDictionary()

    def encoding(self, volume: Volume) -> Encoding:
        found = self._encodings.get(volume)
        if found is None:
            found = self._encodings[volume] = Encoding.of(volume)
        return found

    def cut(self, grid: ViewGrid, first: int, count: int) -> np.ndarray:
        """The views of slices `first` to `first + count - 1`, or to the last one, before any window, as `encoding` says.

        They are of the grid's size, with square pixels: windowed, each is what `View.grey` shows. Raises InputError with the
        field "slices" unless `first` is a slice of the plane.
        """
        grid.check(first)
        encoding = self.encoding(grid.volume)
        source = grid.volume.data if grid.volume.colour is None else grid.volume.colour
        width, height = grid.size
        slices = range(first, min(first + count, grid.slice_count))
        shape = (len(slices), height, width, 3) if encoding.colour else (len(slices), height, width)
        stack = np.empty(shape, np.uint8 if encoding.colour else np.dtype("<i2"))
        for place, index in enumerate(slices):
            values = grid.enlarge(np.ascontiguousarray(grid.cut(source, index)), order=1)
            if not encoding.colour and not np.can_cast(values.dtype, np.int16):
                stored = np.rint((values.astype(np.float64) - encoding.intercept) / encoding.slope)
                values = np.clip(stored, _LIMITS.min, _LIMITS.max)
            stack[place] = values
        return stack
