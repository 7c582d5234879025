"""Guessing the modality of files that do not say it: only CT can be told by its values."""

import numpy as np

from lib.imaging.volume import Modality

_SAMPLE = 500_000


def guess_modality(data: np.ndarray) -> Modality:
    """CT when the values of `data` `[i, j, k]` look like Hounsfield units, else OTHER.

    Looks like HU: signed; nothing varied below -1500 (a single fill value may be there); under a quarter above 400; and either
    air (0.5 % below -800) with soft tissue (5 % in -200 to 300), or, in a crop without air, a fat peak (in -140 to -60) that a
    valley parts from water (in -60 to 0). The small negative ringing of resampled MR, uptake in PET, subtraction and phase
    images do not pass; a crop of muscle alone neither: then the user says `modality=`.
    """
    if data.dtype.kind == "u" or data.size == 0:
        return Modality.OTHER
    step = max(1, int(np.ceil((data.size / _SAMPLE) ** (1 / 3))))
    values = data[::step, ::step, ::step].ravel().astype(np.float64)
    fill = np.unique(values[values < -1500])
    values = values[values >= -1500]
    if len(fill) > 2 or values.size == 0 or (values > 400).mean() > 0.25:
        return Modality.OTHER
    air = (values < -800).mean() > 0.005
    soft = ((values > -200) & (values < 300)).mean() > 0.05
    return Modality.CT if soft and (air or _fat_and_water(values)) else Modality.OTHER


def _fat_and_water(values: np.ndarray) -> bool:
    fat, water = ((values >= -140) & (values < -60)).mean(), ((values >= 0) & (values < 100)).mean()
    if fat < 0.02 or water < 0.1:
        return False
    counts = np.histogram(values, bins=20, range=(-140, 60))[0]
    peak, valley = counts[:8].max(), counts[8:14].min()
    return bool(peak > 1.2 * valley and counts[14:].max() > 1.2 * valley)
