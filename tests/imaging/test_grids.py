"""NIfTI, NRRD and MetaImage files as they should and should not be."""

import gzip
import struct
import time
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk

from lib.errors import ImageError
from lib.imaging.load import load_volume
from lib.imaging.volume import Modality

AFFINE = np.array([[-0.5, 0, 0, 3], [0, -0.5, 0.1, -7], [0, 0.2, 2.5, 11], [0, 0, 0, 1]])
VALUES = np.arange(60, dtype=np.int16).reshape(5, 4, 3)


def nifti(path: Path, data: np.ndarray = VALUES, affine: np.ndarray | None = AFFINE, **fields: object) -> Path:
    image = nibabel.Nifti1Image(data, affine)
    if affine is not None:
        image.set_sform(affine, 1)
        image.set_qform(None)
    for name, value in fields.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def test_integers_keep_their_type_and_affine(tmp_path: Path) -> None:
    volume = load_volume(nifti(tmp_path / "a.nii"))
    np.testing.assert_array_equal(volume.data, VALUES)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    assert volume.data.dtype == np.int16
    assert volume.instances == ()


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
def test_what_a_file_is_its_content_says(tmp_path: Path, kind: type, order: str) -> None:
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.int16)
    image = kind(VALUES, AFFINE, header)
    packed = tmp_path / "wrong.png"
    packed.write_bytes(gzip.compress(image.to_bytes()))
    plain = tmp_path / "wrong.dcm"
    plain.write_bytes(image.to_bytes())
    for path in (packed, plain):
        volume = load_volume(path)
        np.testing.assert_array_equal(volume.data, VALUES)
        assert volume.data.dtype == np.int16


@pytest.mark.parametrize(
    ("slope", "inter", "dtype"), [(1, -1024, "int16"), (2, 0, "int16"), (1000, 0, "int32"), (0.5, 10, "float32")]
)
def test_slope_and_intercept(tmp_path: Path, slope: float, inter: float, dtype: str) -> None:
    path = nifti(tmp_path / "a.nii")
    content = bytearray(path.read_bytes())
    content[112:120] = struct.pack("<2f", slope, inter)
    path.write_bytes(content)
    volume = load_volume(path)
    np.testing.assert_array_equal(volume.data, VALUES.astype(float) * slope + inter)
    assert volume.data.dtype == dtype


def test_units(tmp_path: Path) -> None:
    for code, factor in ((1, 1000), (3, 0.001), (0, 1)):
        volume = load_volume(nifti(tmp_path / "a.nii", xyzt_units=code))
        np.testing.assert_allclose(volume.affine[:3], AFFINE[:3] * factor, rtol=1e-5)


def test_four_axes(tmp_path: Path) -> None:
    assert load_volume(nifti(tmp_path / "one.nii", VALUES[..., None])).data.shape == (5, 4, 3)
    assert load_volume(nifti(tmp_path / "flat.nii", VALUES[..., 0])).data.shape == (5, 4, 1)
    with pytest.raises(ImageError, match="holds 7 volumes"):
        load_volume(nifti(tmp_path / "many.nii", np.stack([VALUES] * 7, axis=3)))


def test_values_that_are_not_numbers(tmp_path: Path) -> None:
    data = VALUES.astype(np.float32)
    data[0, 0, 0], data[1, 0, 0], data[2, 0, 0] = np.nan, np.inf, -np.inf
    volume = load_volume(nifti(tmp_path / "a.nii", data))
    assert volume.data[:3, 0, 0].tolist() == [1, 59, 1]
    assert "3 voxels were not finite" in volume.warnings[0]
    with pytest.raises(ImageError, match="no finite value"):
        load_volume(nifti(tmp_path / "b.nii", np.full((2, 2, 2), np.nan, dtype=np.float32)))
    with pytest.raises(ImageError, match="real numbers"):
        load_volume(nifti(tmp_path / "c.nii", VALUES.astype(np.complex64)))


def test_colour_nifti(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (5, 4, 3, 3), dtype=np.uint8)
    packed = np.ascontiguousarray(rgb).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    volume = load_volume(nifti(tmp_path / "a.nii", packed))
    np.testing.assert_array_equal(volume.colour, rgb)


def test_file_without_orientation_says_so(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii", affine=None, sform_code=0, qform_code=0)
    assert "does not say how it lies" in load_volume(path).warnings[0]


def test_forms_that_differ(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(VALUES, np.eye(4))
    image.set_sform(AFFINE, 1)
    image.set_qform(np.eye(4), 1)
    nibabel.save(image, tmp_path / "a.nii")
    volume = load_volume(tmp_path / "a.nii")
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    assert "sform and qform differ" in volume.warnings[0]
    image.set_sform(np.diag([0.0, 0, 0, 1]), 1)
    nibabel.save(image, tmp_path / "b.nii")
    volume = load_volume(tmp_path / "b.nii")
    np.testing.assert_allclose(volume.affine, np.eye(4), atol=1e-6)
    assert "singular" in volume.warnings[0]


def test_padding_of_a_ct(tmp_path: Path) -> None:
    data = VALUES.copy()
    data[0, 0, 0], data[0, 0, 1] = -3024, -1207
    path = nifti(tmp_path / "a.nii", data)
    volume = load_volume(path, modality=Modality.CT)
    assert volume.data[0, 0, :2].tolist() == [-1024, -1207]
    assert load_volume(path, modality=Modality.MR).data[0, 0, 0] == -3024


def test_nrrd_spaces_and_shear(tmp_path: Path) -> None:
    for space, signs in (("left-posterior-superior", [-1, -1, 1]), ("right-anterior-superior", [1, 1, 1]), ("LAS", [-1, 1, 1])):
        signs = np.array(signs)
        header = {
            "space": space,
            "space directions": (np.diag(signs) @ AFFINE[:3, :3]).T,
            "space origin": signs * AFFINE[:3, 3],
        }
        for encoding in ("raw", "gzip", "ascii"):
            nrrd.write(str(tmp_path / "a.nrrd"), VALUES, header | {"encoding": encoding})
            volume = load_volume(tmp_path / "a.nrrd")
            np.testing.assert_array_equal(volume.data, VALUES)
            np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-9)
            assert volume.data.dtype == np.int16
    nrrd.write(str(tmp_path / "a.nrrd"), VALUES, {"encoding": "bzip2"})
    with pytest.raises(ImageError, match="bzip2 encoding not available"):
        load_volume(tmp_path / "a.nrrd")
    nrrd.write(str(tmp_path / "b.nrrd"), VALUES, {"spacings": [1, 2, 3]})
    volume = load_volume(tmp_path / "b.nrrd")
    assert volume.spacing == (1, 2, 3)
    assert "left-posterior-superior is assumed" in volume.warnings[0]


@pytest.mark.parametrize("compressed", [True, False])
def test_metaimage(tmp_path: Path, compressed: bool) -> None:
    image = sitk.GetImageFromArray(VALUES.T)
    image.SetSpacing((0.5, 0.75, 2))
    image.SetOrigin((1, 2, 3))
    image.SetDirection((0, 1, 0, 1, 0, 0, 0, 0.2, 1))
    path = tmp_path / "a.mha"
    sitk.WriteImage(image, str(path), useCompression=compressed)
    path = path.rename(tmp_path / "renamed.bin")
    volume = load_volume(path)
    np.testing.assert_array_equal(volume.data, VALUES)
    for index in ((0, 0, 0), (4, 3, 2), (1, 2, 0)):
        point = np.array(image.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
        np.testing.assert_allclose((volume.affine @ [*index, 1])[:3], point, atol=1e-9)


def test_data_files_outside_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "voxels.raw").write_bytes(VALUES.tobytes(order="F"))
    (tmp_path / "in" / "voxels.raw").write_bytes(VALUES.tobytes(order="F"))
    text = "NRRD0004\ntype: short\ndimension: 3\nsizes: 5 4 3\nencoding: raw\nendian: little\ndata file: {}\n"
    meta = "ObjectType = Image\nNDims = 3\nDimSize = 5 4 3\nElementType = MET_SHORT\nElementDataFile = {}\n"
    for template in (text, meta):
        path = tmp_path / "in" / "head"
        path.write_text(template.format("voxels.raw"))
        np.testing.assert_array_equal(load_volume(path).data, VALUES)
        for where in ("../voxels.raw", str(tmp_path / "voxels.raw"), "nothing.raw", "LIST"):
            path.write_text(template.format(where))
            with pytest.raises(ImageError, match="not a file in the same folder"):
                load_volume(path)


def nrrd_file(path: Path) -> None:
    nrrd.write(str(path), VALUES, {"encoding": "gzip"})


def meta_file(path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(VALUES.T), str(path), useCompression=True)


def nifti_file(path: Path) -> None:
    nifti(path)


@pytest.mark.parametrize(
    ("name", "write"), [("a.nrrd", nrrd_file), ("a.mha", meta_file), ("a.nii", nifti_file), ("a.nii.gz", nifti_file)]
)
def test_truncated_files(tmp_path: Path, name: str, write) -> None:
    path = tmp_path / name
    write(path)
    whole = path.read_bytes()
    for size in (0, 1, 10, len(whole) // 3, len(whole) // 2, len(whole) - 15):
        path.write_bytes(whole[:size])
        with pytest.raises(ImageError):
            load_volume(path)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_headers_that_lie_about_the_size(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii")
    content = bytearray(path.read_bytes())
    content[40:56] = struct.pack("<8h", 3, 32767, 32767, 32767, 1, 1, 1, 1)
    liars = {"plain.nii": bytes(content), "packed.nii.gz": gzip.compress(content)}
    content[40:56] = struct.pack("<8h", 3, -5, 4, 3, 1, 1, 1, 1)
    liars["negative.nii"] = bytes(content)
    content[40:56] = struct.pack("<8h", 3, 50, 40, 30, 1, 1, 1, 1)
    liars["short.nii.gz"] = gzip.compress(content)
    liars["a.nrrd"] = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 30000 30000 300\nencoding: raw\nendian: little\n\nxx"
    liars["b.nrrd"] = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 30 30 30\nencoding: gzip\nendian: little\n\nxx"
    liars["a.mha"] = (
        b"ObjectType = Image\nNDims = 3\nDimSize = 30000 30000 300\nElementType = MET_SHORT\nElementDataFile = LOCAL\nxx"
    )
    liars["b.mha"] = b"ObjectType = Image\nNDims = 3\nDimSize = 30 30 30\nElementType = MET_SHORT\nElementDataFile = LOCAL\nxx"
    for name, content_ in liars.items():
        path = tmp_path / name
        path.write_bytes(content_)
        start = time.perf_counter()
        with pytest.raises(ImageError):
            load_volume(path)
        assert time.perf_counter() - start < 2, name
