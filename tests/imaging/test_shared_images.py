"""The real images: geometry against their own headers, pixels against pydicom, and against each other."""

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from lib.errors import ImageError
from lib.imaging.load import list_series, load_volume
from lib.imaging.seg import read_seg
from lib.imaging.volume import Modality

SERIES = [
    "dicom_ct_j2k_ts/series",
    "dicom_ct_j2k_ts/series_fixed_uids",
    "dicom_ct_liver_crlm1004/series",
    "dicom_ct_tilt_phantom/series",
    "dicom_mr_rtstruct_sts001/series",
    "dicom_mr_breast_seg_ucsf06/series",
]


@pytest.mark.parametrize("name", SERIES)
def test_series_agrees_with_its_headers_and_pixels(data: Path, name: str) -> None:
    volume = load_volume(data / name)
    assert volume.data.dtype == np.int16
    assert len(volume.instances) == volume.data.shape[2] == len(list((data / name).glob("*.dcm")))
    for k, instance in enumerate(volume.instances):
        dataset = pydicom.dcmread(instance.path)
        x, y = np.reshape(dataset.ImageOrientationPatient, (2, 3)).astype(float)
        between_rows, between_columns = (float(v) for v in dataset.PixelSpacing)
        for i, j in ((0, 0), (dataset.Columns - 1, 0), (0, dataset.Rows - 1)):
            lps = np.array(dataset.ImagePositionPatient, dtype=float) + i * x * between_columns + j * y * between_rows
            np.testing.assert_allclose((volume.affine @ [i, j, k, 1])[:3] * [-1, -1, 1], lps, atol=1e-3)
        if k % 7 == 0:
            values = dataset.pixel_array * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))
            if volume.modality is Modality.CT:
                values[values < -1500] = -1024
            np.testing.assert_array_equal(volume.data[:, :, k].T, values)


def test_enhanced_equals_classic(data: Path) -> None:
    classic = load_volume(data / "dicom_ct_j2k_ts/series")
    enhanced = load_volume(data / "dicom_ct_j2k_ts/enhanced_multiframe.dcm")
    np.testing.assert_array_equal(enhanced.data, classic.data)
    np.testing.assert_allclose(enhanced.affine, classic.affine, atol=1e-6)
    assert enhanced.content_hash == classic.content_hash
    assert [instance.frame for instance in enhanced.instances] == list(range(20, 0, -1))
    assert all(instance.sop_instance_uid for instance in classic.instances)


def test_series_grid_equals_the_labels_grid(data: Path) -> None:
    volume = load_volume(data / "dicom_ct_j2k_ts/series")
    labels = nibabel.load(data / "dicom_ct_j2k_ts/labels_series_grid.nii.gz")
    assert labels.shape == volume.data.shape
    np.testing.assert_allclose(volume.affine, labels.affine, atol=1e-3)


def test_tilted_series_keeps_its_shear(data: Path) -> None:
    volume = load_volume(data / "dicom_ct_tilt_phantom/series")
    assert volume.sheared
    axes = volume.affine[:3, :3] / volume.spacing
    assert np.degrees(np.arcsin(axes[:, 1] @ axes[:, 2])) == pytest.approx(-18.5, abs=0.01)


def test_padding_outside_the_field_of_view(data: Path) -> None:
    volume = load_volume(data / "dicom_ct_liver_crlm1004/series")
    assert volume.data.min() == -1024
    assert "padding" in volume.warnings[0]


def test_vendor_enhanced_mr(data: Path) -> None:
    path = data / "dicom_mr_enhanced_xa30/enhanced.dcm"
    volume = load_volume(path)
    dataset = pydicom.dcmread(path)
    pixels = dataset.pixel_array
    for k, instance in enumerate(volume.instances):
        groups = dataset.PerFrameFunctionalGroupsSequence[instance.frame - 1]
        np.testing.assert_array_equal(volume.data[:, :, k].T, pixels[instance.frame - 1])
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        np.testing.assert_allclose((volume.affine @ [0, 0, k, 1])[:3] * [-1, -1, 1], position, atol=1e-3)
    assert volume.modality is Modality.MR


def test_compressed_multi_frame_without_positions(data: Path) -> None:
    volumes = [load_volume(path) for path in sorted((data / "syntaxes_pydicom").glob("*.dcm"))]
    assert len(volumes) == 3
    reference = pydicom.dcmread(data / "syntaxes_pydicom/emri_small_RLE.dcm").pixel_array
    for volume in volumes:
        np.testing.assert_array_equal(volume.data.transpose(2, 1, 0), reference)
        assert "no position" in volume.warnings[0]


def test_folder_of_several_series_lists_them(data: Path) -> None:
    with pytest.raises(ImageError, match="3 series"):
        load_volume(data / "dicom_ct_j2k_ts")
    infos = list_series(data / "dicom_ct_j2k_ts")
    assert {(info.modality, info.slices, info.size) for info in infos} == {("CT", 20, (512, 512))}
    assert load_volume(data / "dicom_ct_j2k_ts", series=infos[0].uid).data.shape == (512, 512, 20)


def test_other_dicom_objects_are_named(data: Path) -> None:
    with pytest.raises(ImageError, match="RT Structure Set"):
        load_volume(data / "dicom_mr_rtstruct_sts001/rtstruct.dcm")
    with pytest.raises(ImageError, match="Segmentation"):
        load_volume(data / "dicom_ct_j2k_ts/labels.seg.dcm")


@pytest.mark.parametrize(
    ("name", "modality", "dtype"),
    [
        ("ct_abdomen_pelvis_ts", Modality.CT, "int32"),
        ("ct_abdomen_ts_small", Modality.CT, "int16"),
        ("ct_oblique_ts", Modality.CT, "int16"),
        ("mr_abdomen_ts", Modality.OTHER, "int16"),
        ("mr_brain1", Modality.OTHER, "int16"),
        ("mr_cspine_t2", Modality.OTHER, "int16"),
        ("mr_head_oblique_gd", Modality.OTHER, "float32"),
    ],
)
def test_nifti(data: Path, name: str, modality: Modality, dtype: str) -> None:
    path = data / name / "image.nii.gz"
    volume, image = load_volume(path), nibabel.load(path)
    assert volume.modality is modality
    assert volume.data.dtype == dtype
    np.testing.assert_allclose(volume.data, image.get_fdata(), rtol=1e-6)
    np.testing.assert_allclose(volume.affine, image.affine)


def test_seg_of_the_ct(data: Path) -> None:
    folder = data / "dicom_ct_j2k_ts"
    segments = read_seg(folder / "labels.seg.dcm", load_volume(folder / "series"))
    labels = np.asarray(nibabel.load(folder / "labels_series_grid.nii.gz").dataobj)
    names = [item.SegmentLabel for item in pydicom.dcmread(folder / "labels.seg.dcm").SegmentSequence]
    for number, label in (("spleen", 1), ("liver", 5), ("aorta", 52)):
        np.testing.assert_array_equal(segments[names.index(number) + 1], labels == label)


def test_fractional_seg_without_references(data: Path) -> None:
    folder = data / "dicom_mr_breast_seg_ucsf06"
    volume = load_volume(folder / "series")
    segments = read_seg(folder / "seg.dcm", volume)
    assert list(segments) == [1]
    dataset = pydicom.dcmread(folder / "seg.dcm")
    assert segments[1].sum() == (dataset.pixel_array >= 128).sum()
    first = dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient
    k = round(float((np.linalg.inv(volume.affine) @ [-first[0], -first[1], first[2], 1])[2]))
    np.testing.assert_array_equal(segments[1][:, :, k].T, dataset.pixel_array[0] > 0)


def test_seg_of_another_patient_is_refused(data: Path) -> None:
    volume = load_volume(data / "dicom_ct_tilt_phantom/series")
    with pytest.raises(ImageError, match="another frame of reference"):
        read_seg(data / "dicom_ct_j2k_ts/labels.seg.dcm", volume)
