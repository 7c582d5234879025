"""Windows and overlays."""

from pathlib import Path

import numpy as np
import pytest

from lib.errors import InputError
from lib.imaging.overlays import OVERLAYS, blend, overlay_named
from lib.imaging.planes import Plane, ViewGrid
from lib.imaging.rle import decode, empty, encode
from lib.imaging.views import View
from lib.imaging.volume import Modality, Volume
from lib.imaging.windows import Window, choose_window


def volume(data: np.ndarray, modality=Modality.CT, flip=False) -> Volume:
    affine = np.diag([-1.0 if flip else 1.0, 1, 1, 1])
    return Volume(data[::-1] if flip else data, affine, modality, Path("x.nii"))


@pytest.mark.parametrize(
    ("name", "grey", "painted"),
    [
        ("inference", 100, (73, 115, 73)),
        ("inference", 120, (85, 127, 85)),
        ("training", 100, (50, 178, 50)),
        ("training", 120, (60, 188, 60)),
    ],
)
def test_overlay_colours(name, grey, painted):
    image = np.full((2, 2, 3), grey, np.uint8)
    mask = np.array([[True, False], [False, False]])
    result = blend(image, mask, OVERLAYS[name])
    assert tuple(result[0, 0].tolist()) == painted
    assert (result[~mask] == grey).all()
    assert (image == grey).all()


def test_overlays_are_named():
    with pytest.raises(InputError, match="inference or training"):
        overlay_named("red")


def test_a_ct_target_brings_its_preset_and_a_request_wins():
    ct = volume(np.zeros((2, 2, 2), np.int16))
    assert choose_window(ct) == Window(-160, 240, "abdomen")
    assert choose_window(ct, target_preset="lung") == Window(-1350, 150, "lung")
    assert choose_window(ct, "bone", "lung").name == "bone"
    assert choose_window(ct, " -20, 90.5 ") == Window(-20, 90.5, "given")


@pytest.mark.parametrize("text", ["soft", "1,2,3", "9,1", "nan,1", "1,", "inf,2"])
def test_bad_windows_name_the_field(text):
    with pytest.raises(InputError) as caught:
        choose_window(volume(np.zeros((2, 2, 2), np.int16)), text)
    assert caught.value.field == "window"


def test_percentiles_are_the_volumes_own_whatever_its_storage_order():
    data = np.random.default_rng(0).normal(300, 90, (40, 41, 42)).clip(0).astype(np.int16)
    one = choose_window(volume(data, Modality.MR))
    other = choose_window(volume(data, Modality.MR, flip=True))
    assert one == other
    assert one.name == "percentile"
    assert one.low == pytest.approx(np.percentile(data[data > data.min()], 1), abs=1)


def test_a_flat_volume_has_a_window():
    window = choose_window(volume(np.full((3, 3, 3), 5, np.int16), Modality.MR))
    assert (window.apply(np.array([5])) == 0).all()


def test_grey_levels_truncate_as_released():
    window = Window(-160, 240, "abdomen")
    assert window.apply(np.array([-1000, -160, 40, 240, 3000])).tolist() == [0, 0, 127, 255, 255]


def test_a_picture_keeps_its_colours(picture):
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    shown = View(ViewGrid(picture(grey), Plane.AXIAL), 0, Window(0, 255, "stored"))
    assert np.array_equal(shown.grey(), grey)
    assert shown.image().shape == (3, 4, 3)


def test_run_lengths_return_the_mask():
    mask = np.random.default_rng(1).random((17, 23)) > 0.6
    rle = encode(mask)
    assert rle["size"] == [17, 23]
    assert np.array_equal(decode(rle), mask)
    assert not decode(empty(23, 17)).any()
