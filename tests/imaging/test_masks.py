"""Masks and images written on their volume's grid, read back by other readers."""

from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lib.errors import InputError
from lib.imaging.load import load_volume
from lib.imaging.masks import write_mask, write_volume
from lib.imaging.volume import Modality, Volume

SHAPE = (5, 4, 3)


def volume_with(affine: np.ndarray, shape: tuple[int, int, int] = SHAPE, dtype: str = "int16") -> Volume:
    data = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    return Volume(data, affine, Modality.OTHER, Path("made"), planar=shape[2] == 1)


def speckle(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4, shape, dtype=np.uint8)


ORIENTATIONS = st.tuples(st.permutations([0, 1, 2]), st.tuples(*[st.sampled_from([-1, 1])] * 3))
SHEARED = np.array([[-0.5, 0, 0, 3], [0, -0.5, 0, -7], [0, -0.17, 2.5, 11], [0, 0, 0, 1]])


@settings(max_examples=60, deadline=None)
@given(orientation=ORIENTATIONS, turn=st.floats(-30, 30), sheared=st.booleans())
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd"])
def test_every_orientation_returns_exactly(tmp_path_factory, suffix, orientation, turn, sheared) -> None:
    permutation, signs = orientation
    directions = np.eye(3)[:, list(permutation)] * signs * [0.7, 1.3, 2.9]
    angle = np.deg2rad(turn)
    directions = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]) @ directions
    if sheared:
        directions[:, 2] += 0.4 * directions[:, 1]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions, (10, -20, 30)
    volume, mask = volume_with(affine), speckle()
    path = tmp_path_factory.mktemp("masks") / f"mask{suffix}"
    write_mask(path, mask, volume)
    again = load_volume(path)
    np.testing.assert_array_equal(again.data, mask)
    assert again.data.dtype == np.uint8
    np.testing.assert_allclose(again.affine, affine, atol=1e-5)
    if suffix == ".nrrd" or not sheared:
        image = sitk.ReadImage(str(path))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image).T, mask)
        point = np.array(image.TransformIndexToPhysicalPoint((4, 1, 2)))
        np.testing.assert_allclose(point * [-1, -1, 1], (affine @ [4, 1, 2, 1])[:3], atol=1e-4)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_codes_of_nifti(tmp_path: Path) -> None:
    straight = np.diag([-1.0, -1, 2, 1])
    write_mask(tmp_path / "straight.nii.gz", speckle(), volume_with(straight))
    header = nibabel.load(tmp_path / "straight.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(header.get_qform(), straight, atol=1e-6)
    assert header.get_xyzt_units()[0] == "mm"
    write_mask(tmp_path / "sheared.nii.gz", speckle(), volume_with(SHEARED))
    image = nibabel.load(tmp_path / "sheared.nii.gz")
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 0)
    np.testing.assert_allclose(image.affine, SHEARED, atol=1e-6)


def test_nrrd_encoding_and_shear(tmp_path: Path) -> None:
    for compress, encoding in ((True, "gzip"), (False, "raw")):
        path = tmp_path / f"{encoding}.nrrd"
        write_mask(path, speckle(), volume_with(SHEARED), compress=compress)
        array, header = nrrd.read(str(path))
        np.testing.assert_array_equal(array, speckle())
        assert header["encoding"] == encoding
        assert header["space"] == "left-posterior-superior"
        point = sitk.ReadImage(str(path)).TransformIndexToPhysicalPoint((1, 2, 2))
        np.testing.assert_allclose(np.array(point) * [-1, -1, 1], (SHEARED @ [1, 2, 2, 1])[:3])


def test_png_of_a_picture(tmp_path: Path) -> None:
    volume = volume_with(np.diag([1.0, -1, 1, 1]), (5, 4, 1), "uint8")
    mask = np.zeros((5, 4, 1), dtype=np.uint8)
    mask[4, 1] = 1
    write_mask(tmp_path / "mask.png", mask, volume)
    pixels = np.asarray(Image.open(tmp_path / "mask.png"))
    assert pixels.shape == (4, 5)
    assert np.argwhere(pixels == 255).tolist() == [[1, 4]]
    assert pixels.sum() == 255
    mask[0, 0] = 2
    write_mask(tmp_path / "mask.png", mask, volume)
    assert np.asarray(Image.open(tmp_path / "mask.png"))[[1, 0], [4, 0]].tolist() == [1, 2]
    with pytest.raises(InputError, match="holds one slice"):
        write_mask(tmp_path / "no.png", speckle(), volume_with(np.eye(4)))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mask.nii.gz"
    path.write_bytes(b"old")

    def fail(image: object, where: Path) -> None:
        Path(where).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(nibabel.Nifti1Image, "to_filename", fail)
    with pytest.raises(OSError, match="disk full"):
        write_mask(path, speckle(), volume_with(np.eye(4)))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_wrong_masks_are_refused(tmp_path: Path) -> None:
    volume = volume_with(np.eye(4))
    for mask in (speckle().astype(bool), speckle((3, 4, 5))):
        with pytest.raises(InputError, match="uint8"):
            write_mask(tmp_path / "mask.nii.gz", mask, volume)
    with pytest.raises(InputError, match=r"use \.nii\.gz"):
        write_mask(tmp_path / "mask.txt", speckle(), volume)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
@pytest.mark.parametrize("dtype", ["int16", "uint8", "int32", "float32", "int64"])
def test_volume_keeps_its_type(tmp_path: Path, suffix: str, dtype: str) -> None:
    volume = volume_with(SHEARED, dtype=dtype)
    write_volume(tmp_path / f"image{suffix}", volume)
    again = load_volume(tmp_path / f"image{suffix}")
    np.testing.assert_array_equal(again.data, volume.data)
    assert again.data.dtype == ("int32" if dtype == "int64" else dtype)
    np.testing.assert_allclose(again.affine, SHEARED, atol=1e-6)


def test_tilted_series_in_other_readers(data: Path, tmp_path: Path) -> None:
    volume = load_volume(data / "dicom_ct_tilt_phantom/series")
    mask = (volume.data > 300).astype(np.uint8)
    write_mask(tmp_path / "mask.nii.gz", mask, volume)
    write_mask(tmp_path / "mask.nrrd", mask, volume)
    image = nibabel.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), mask)
    np.testing.assert_allclose(image.affine, volume.affine, atol=1e-4)
    other = sitk.ReadImage(str(tmp_path / "mask.nrrd"))
    for index in ((0, 0, 0), (511, 0, 27), (13, 501, 9)):
        point = np.array(other.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
        np.testing.assert_allclose(point, (volume.affine @ [*index, 1])[:3], atol=1e-3)
