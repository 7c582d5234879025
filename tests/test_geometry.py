"""However a file stores its voxels, the engine gives the same mask in the same place."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lib.agent.run import RunRequest, run
from lib.engines.build import build_engine
from lib.imaging.load import load_volume
from lib.imaging.phantom import make_phantom
from lib.imaging.volume import Volume
from tests.imaging.test_planes import ORIENTATIONS, stored


def segment(volume: Volume, prompt: str, slices: str = "all") -> np.ndarray:
    return run(RunRequest(prompt, slices=slices), volume, build_engine()).mask


@pytest.fixture(scope="module")
def canonical():
    """A small phantom as `[r, a, s]`, with its masks of a paired organ and of one in the middle."""
    volume = make_phantom(3, spacing=(7.0, 7.0, 14.0)).volume
    data = np.ascontiguousarray(volume.orientation.canonical(volume.data))
    plain = stored(data, (7.0, 7.0, 14.0), (0, 1, 2), (1, 1, 1))
    truth = make_phantom(3, spacing=(7.0, 7.0, 14.0)).labels["liver"]
    k = int(truth.sum(axis=(0, 1)).argmax())
    slices = f"{k}-{k + 1}"
    masks = {prompt: segment(plain, prompt, slices) for prompt in ("left lung", "liver")}
    assert all(mask.any() for mask in masks.values())
    return data, slices, masks


@pytest.mark.parametrize(
    "orientation", ORIENTATIONS, ids=lambda o: "".join(map(str, o[0])) + "".join("+-"[s < 0] for s in o[1])
)
def test_all_48_orientations_give_voxel_for_voxel_the_same_mask(canonical, orientation):
    data, slices, masks = canonical
    volume = stored(data, (7.0, 7.0, 14.0), *orientation)
    for prompt, expected in masks.items():
        assert np.array_equal(volume.orientation.canonical(segment(volume, prompt, slices)), expected)


def test_an_oblique_affine_gives_the_same_voxels(data):
    straight = load_volume(data / "ct_abdomen_ts_small" / "image.nii.gz")
    oblique = load_volume(data / "ct_oblique_ts" / "image.nii.gz")
    assert not np.allclose(straight.affine, oblique.affine)
    for prompt in ("liver", "left kidney"):
        mask = segment(straight, prompt, "6-9")
        assert mask.any()
        assert np.array_equal(segment(oblique, prompt, "6-9"), mask)


def test_the_enhanced_copy_gives_the_same_mask_as_its_series(data):
    series = load_volume(data / "dicom_ct_j2k_ts" / "series")
    enhanced = load_volume(data / "dicom_ct_j2k_ts" / "enhanced_multiframe.dcm")
    mask = segment(series, "spleen", "8-11")
    assert mask.any()
    assert np.array_equal(segment(enhanced, "spleen", "8-11"), mask)


def test_missing_slices_stay_empty():
    phantom = make_phantom(3, spacing=(7.0, 7.0, 14.0))
    k = int(phantom.labels["liver"].sum(axis=(0, 1)).argmax())
    data = phantom.volume.data.copy()
    data[:, :, k] = -1024
    holed = replace(phantom.volume, data=data, missing=frozenset({k}), source=Path("holed"))
    mask = segment(holed, "liver")
    assert mask.any()
    assert not mask[:, :, k].any()
