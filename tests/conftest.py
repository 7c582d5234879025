"""Shared by all tests: where the real images are, and one thread per process."""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

from pathlib import Path

import numpy as np
import pytest

from lib.imaging.volume import Modality, Volume

DATA = Path(os.environ.get("IBIS_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real images with reference masks."""
    if not (DATA / "manifest.json").is_file():
        pytest.skip(f"the real images are not here: {DATA} has no manifest.json (set IBIS_DATA to their folder)")
    return DATA


@pytest.fixture
def picture():
    """Makes a 2-D picture volume from a uint8 array `[row, column]`."""

    def make(pixels: np.ndarray) -> Volume:
        return Volume(
            data=np.ascontiguousarray(pixels.T[:, :, None]),
            affine=np.diag([1.0, -1.0, 1.0, 1.0]),
            modality=Modality.OTHER,
            source=Path("picture.png"),
            planar=True,
        )

    return make


@pytest.fixture(scope="session")
def tiny_qwen() -> Path:
    """A tiny Qwen2.5-VL checkpoint that writes the protocol; taught once, then kept in the user's cache folder."""
    from lib.engines.tiny.lesson import tiny_agent

    return tiny_agent()
