"""The view: the picture of one slice that the agent sees."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lib.imaging.planes import Plane, ViewGrid
from lib.imaging.volume import Volume
from lib.imaging.windows import Window


@dataclass(frozen=True, eq=False)
class View:
    """One slice of a volume through one window. Rendered on demand: a view that nobody looks at costs nothing."""

    grid: ViewGrid
    index: int
    window: Window

    @property
    def volume(self) -> Volume:
        return self.grid.volume

    @property
    def plane(self) -> Plane:
        return self.grid.plane

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.grid.size

    def grey(self) -> np.ndarray:
        """uint8 `[height, width]`, without any mask."""
        return self.window.apply(self.grid.enlarge(self.grid.cut(self.volume.data, self.index), order=1))

    def image(self) -> np.ndarray:
        """uint8 RGB `[height, width, 3]`, without any mask; colour pictures keep their colours. Read-only: it is rendered once,
        for every turn of an episode."""
        return self._image

    @cached_property
    def _image(self) -> np.ndarray:
        if self.volume.colour is not None:
            image = np.ascontiguousarray(self.grid.enlarge(self.grid.cut(self.volume.colour, self.index), order=1))
        else:
            image = np.repeat(self.grey()[:, :, None], 3, axis=2)
        image.setflags(write=False)
        return image
