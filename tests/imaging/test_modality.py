"""Telling CT from the rest by values."""

import numpy as np
import pytest

from lib.imaging.load import load_volume
from lib.imaging.modality import guess_modality
from lib.imaging.volume import Modality

RNG = np.random.default_rng(0)
SHAPE = (40, 40, 20)


def test_real_ct_whole_and_cropped_to_soft_tissue(data) -> None:
    values = load_volume(data / "ct_abdomen_ts_small/image.nii.gz").data
    assert guess_modality(values) is Modality.CT
    body = values[30:90, 30:75]
    soft = np.where(body < -150, -100, np.minimum(body, 250))
    assert guess_modality(soft) is Modality.CT
    padded = values.copy()
    padded[:30] = -3024
    assert guess_modality(padded) is Modality.CT
    assert guess_modality(np.clip(values, -160, 240).astype(np.float32)) is Modality.CT


def test_real_mr(data) -> None:
    for name in ("mr_abdomen_ts", "mr_brain1", "mr_cspine_t2", "mr_head_oblique_gd"):
        assert guess_modality(load_volume(data / name / "image.nii.gz").data) is Modality.OTHER


@pytest.mark.parametrize(
    "values",
    [
        RNG.normal(300, 200, SHAPE).clip(-47, None).astype(np.int16),
        RNG.exponential(2, SHAPE).astype(np.float32),
        RNG.integers(0, 256, SHAPE, dtype=np.uint8),
        RNG.normal(0, 60, SHAPE).astype(np.int16),
        RNG.integers(-4096, 4096, SHAPE).astype(np.int16),
        RNG.integers(-4096, 400, SHAPE).astype(np.int16),
        RNG.integers(-1024, 1024, SHAPE).astype(np.int16),
        RNG.normal(0, 1, SHAPE).astype(np.float32),
        np.zeros(SHAPE, dtype=np.int16),
    ],
    ids=["ringing", "uptake", "bytes", "subtraction", "phase", "wrapped phase", "small phase", "normalised", "empty"],
)
def test_not_ct(values: np.ndarray) -> None:
    assert guess_modality(values) is Modality.OTHER
