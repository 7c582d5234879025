"""Where the rules see a structure in a volume: one mask per volume and structure, computed once.

Shared between threads. One lock guards the tables and is held for look-ups only; a mask that several threads want is computed
by one of them while the others wait for it; one volume is worked on by one thread at a time.
"""

import threading
from collections import OrderedDict

import numpy as np

from lib.agent.anatomy import Structure
from lib.imaging.bytecache import ByteCache
from lib.imaging.planes import Plane, ViewGrid
from lib.imaging.volume import Volume
from lib.policies.scan import Scan

MAX_BYTES = 256 * 2**20
"""Masks kept."""
MAX_SCANS = 2
"""Volumes whose landmarks are kept for their next structure."""


class Evidence:
    """A structure in a volume: bool `[r, a, s]` on the volume's canonical grid, kept at one bit a voxel."""

    def __init__(self, mask: np.ndarray):
        self.shape: tuple[int, ...] = mask.shape
        self._bits = np.packbits(mask, axis=0)

    @property
    def nbytes(self) -> int:
        return self._bits.nbytes

    def mask(self) -> np.ndarray:
        """The whole array, unpacked."""
        return np.unpackbits(self._bits, axis=0, count=self.shape[0]).view(bool)

    def view(self, grid: ViewGrid, index: int) -> np.ndarray:
        """bool `[height, width]`: slice `index` of the volume's `grid` at view resolution, as its `cut` and `enlarge` do."""
        if grid.plane is Plane.SAGITTAL:
            byte, bit = divmod(index, 8)
            plane = (self._bits[byte] >> (7 - bit)) & 1
        else:
            packed = self._bits[:, index] if grid.plane is Plane.CORONAL else self._bits[:, :, index]
            plane = np.unpackbits(packed, axis=0, count=self.shape[0])
        return grid.enlarge(plane.view(bool).T[::-1], order=0)


class EvidenceStore:
    """The most recently used masks, up to `max_bytes`."""

    def __init__(self, max_bytes: int = MAX_BYTES):
        self._lock = threading.Lock()
        self._masks: ByteCache[tuple[str, str], Evidence] = ByteCache(max_bytes, lambda evidence: evidence.nbytes)
        self._scans: OrderedDict[str, tuple[threading.Lock, list[Scan]]] = OrderedDict()

    def get(self, volume: Volume, structure: Structure) -> Evidence:
        """Where the structure is. Depends on the voxels in canonical order and on the spacing only: other orientations of the
        same scan give the same voxels."""
        return self._masks.get((volume.content_hash, structure.name), lambda: Evidence(self._compute(volume, structure)))

    def _compute(self, volume: Volume, structure: Structure) -> np.ndarray:
        with self._lock:
            busy, scans = self._scans.setdefault(volume.content_hash, (threading.Lock(), []))
            self._scans.move_to_end(volume.content_hash)
            while len(self._scans) > MAX_SCANS:
                self._scans.popitem(last=False)
        with busy:
            if not scans:
                scans.append(Scan(volume))
            mask = scans[0].find(structure)
        if volume.missing:
            volume.orientation.restore(mask)[:, :, sorted(volume.missing)] = False
        return mask

    @property
    def nbytes(self) -> int:
        """Bytes of the masks kept."""
        return self._masks.nbytes


_STORE = EvidenceStore()


def evidence(volume: Volume, structure: Structure) -> Evidence:
    """As `EvidenceStore.get`, from the store of this process."""
    return _STORE.get(volume, structure)
