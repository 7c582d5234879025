"""DICOM SEG, written for classic, tilted and enhanced series, read by highdicom and by us."""

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

from lib.errors import InputError
from lib.imaging.load import load_volume
from lib.imaging.seg import LESION, TISSUE, Segment, read_seg, write_seg
from lib.imaging.volume import Modality, Volume
from tests.imaging.synthetic_dicom import AXIAL, Recipe, enhanced, save, write_series

SEGMENTS = [
    Segment(1, "liver", 1, ("10200004", "SCT", "Liver")),
    Segment(2, "thing", 7, algorithm="rules"),
    Segment(3, "tumour", 9, ("108369006", "SCT", "Neoplasm"), LESION, automatic=False),
]


def some_labels(volume: Volume) -> np.ndarray:
    labels = np.zeros(volume.data.shape, dtype=np.uint8)
    labels[1:3, 1:4, 1:4] = 1
    labels[0, 2, 3] = 7
    return labels


def tilted() -> Recipe:
    angle = np.deg2rad(20)
    return Recipe(orientation=np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)]]), step=(0, 0, 2.5))


@pytest.mark.parametrize("recipe", [Recipe(), tilted(), Recipe(step=(0, 0, -3), orientation=AXIAL[::-1])])
def test_round_trip_and_references(tmp_path: Path, recipe: Recipe) -> None:
    volume = load_volume(write_series(recipe, tmp_path / "series", order=[4, 2, 0, 1, 3, 5]))
    labels = some_labels(volume)
    write_seg(tmp_path / "out.dcm", labels, volume, SEGMENTS, "made by a test")
    segments = read_seg(tmp_path / "out.dcm", volume)
    for segment in SEGMENTS:
        np.testing.assert_array_equal(segments[segment.number], labels == segment.label)
    seg = highdicom.seg.segread(str(tmp_path / "out.dcm"))
    assert int(seg.NumberOfFrames) == 4
    assert seg.SegmentationType == "BINARY"
    assert seg.SeriesDescription == "made by a test"
    assert {uid for *_, uid in seg.get_source_image_uids()} == {instance.sop_instance_uid for instance in volume.instances}
    for group in seg.PerFrameFunctionalGroupsSequence:
        reference = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        source = next(instance for instance in volume.instances if instance.sop_instance_uid == reference)
        position = group.PlanePositionSequence[0].ImagePositionPatient
        assert position == pydicom.dcmread(source.path).ImagePositionPatient
    uids = [instance.sop_instance_uid for instance in volume.instances]
    pixels = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
    np.testing.assert_array_equal(pixels[..., 0].transpose(2, 1, 0) > 0, labels == 1)


def test_descriptions(tmp_path: Path) -> None:
    volume = load_volume(write_series(Recipe(), tmp_path / "series"))
    for name in ("a.dcm", "b.dcm"):
        write_seg(tmp_path / name, some_labels(volume), volume, SEGMENTS, "x", version="1.2")
    a, b = (pydicom.dcmread(tmp_path / name) for name in ("a.dcm", "b.dcm"))
    liver, thing, tumour = a.SegmentSequence
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert liver.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Anatomical Structure"
    assert liver.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "IBIS Label"
    assert liver.SegmentAlgorithmType == "AUTOMATIC"
    assert thing.SegmentedPropertyTypeCodeSequence[0].CodeValue == TISSUE[0]
    assert thing.SegmentedPropertyCategoryCodeSequence[0].CodeValue == TISSUE[0]
    assert thing.SegmentAlgorithmName == "rules"
    assert tumour.SegmentedPropertyCategoryCodeSequence[0].CodeValue == LESION[0]
    assert tumour.SegmentAlgorithmType == "SEMIAUTOMATIC"
    assert [s.TrackingUID for s in a.SegmentSequence] == [s.TrackingUID for s in b.SegmentSequence]
    assert liver.TrackingUID != thing.TrackingUID
    assert a.SOPInstanceUID != b.SOPInstanceUID
    assert a.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices == 2.5


@pytest.mark.parametrize("times", [1, 3])
def test_enhanced_frames_are_referred_to(tmp_path: Path, times: int) -> None:
    recipe = Recipe(modality="MR")
    path = save(enhanced(recipe, [2, 0, 5, 4, 1, 3], times=times), tmp_path / "enhanced.dcm")
    volume = load_volume(path, series=f"{recipe.series}#{times}" if times > 1 else None)
    labels = some_labels(volume)
    write_seg(tmp_path / "out.dcm", labels, volume, SEGMENTS, "x")
    np.testing.assert_array_equal(read_seg(tmp_path / "out.dcm", volume)[1], labels == 1)
    seg = highdicom.seg.segread(str(tmp_path / "out.dcm"))
    frames = [volume.instances[k].frame for k in range(6)]
    pixels = seg.get_pixels_by_source_frame(volume.instances[0].sop_instance_uid, frames, assert_missing_frames_are_empty=True)
    np.testing.assert_array_equal(pixels[..., 0].transpose(2, 1, 0) > 0, labels == 1)


def test_headers_with_less_than_they_should_have(tmp_path: Path) -> None:
    volume = load_volume(write_series(Recipe(), tmp_path / "series", SliceThickness=None))
    write_seg(tmp_path / "out.dcm", some_labels(volume), volume, SEGMENTS, "x")
    assert pydicom.dcmread(tmp_path / "out.dcm").PatientID == ""


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"])
def test_series_without_uids_is_refused(tmp_path: Path, keyword: str) -> None:
    volume = load_volume(write_series(Recipe(), tmp_path / "series", **{keyword: ""}))
    with pytest.raises(InputError, match=f"cannot refer to this series.*{keyword}"):
        write_seg(tmp_path / "out.dcm", some_labels(volume), volume, SEGMENTS, "x")
    assert not (tmp_path / "out.dcm").exists()


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    volume = load_volume(write_series(Recipe(), tmp_path / "series", order=[0, 1, 3, 4, 5]))
    out = tmp_path / "out.dcm"
    empty = np.zeros(volume.data.shape, dtype=np.uint8)
    with pytest.raises(InputError, match="nothing is labelled"):
        write_seg(out, empty, volume, SEGMENTS, "x")
    with pytest.raises(InputError, match="have no segment"):
        write_seg(out, empty + np.uint8(4), volume, SEGMENTS, "x")
    with pytest.raises(InputError, match="never received"):
        write_seg(out, some_labels(volume), volume, SEGMENTS, "x")
    other = Volume(volume.data, volume.affine, Modality.CT, Path("x.nii"))
    with pytest.raises(InputError, match="only be written for a DICOM image"):
        write_seg(out, some_labels(volume), other, SEGMENTS, "x")
    labels = some_labels(volume)
    labels[:, :, 2] = 0
    write_seg(out, labels, volume, SEGMENTS, "x")
    np.testing.assert_array_equal(read_seg(out, volume)[1], labels == 1)


def test_real_tilted_and_enhanced_series(data: Path, tmp_path: Path) -> None:
    for name, level in (("dicom_ct_tilt_phantom/series", 300), ("dicom_mr_enhanced_xa30/enhanced.dcm", 800)):
        volume = load_volume(data / name)
        labels = (volume.data > level).astype(np.uint8)
        write_seg(tmp_path / "out.dcm", labels, volume, SEGMENTS[:1], "x")
        np.testing.assert_array_equal(read_seg(tmp_path / "out.dcm", volume)[1], labels == 1)
        seg = highdicom.seg.segread(str(tmp_path / "out.dcm"))
        for group in seg.PerFrameFunctionalGroupsSequence[::9]:
            lps = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
            voxel = np.linalg.inv(volume.affine) @ [-lps[0], -lps[1], lps[2], 1]
            np.testing.assert_allclose(voxel[:2], 0, atol=1e-2)
            np.testing.assert_allclose(voxel[2], round(voxel[2]), atol=1e-3)


def test_real_series_without_uids_is_refused(data: Path, tmp_path: Path) -> None:
    volume = load_volume(data / "dicom_ct_j2k_ts/series")
    with pytest.raises(InputError, match="cannot refer to this series"):
        write_seg(tmp_path / "out.dcm", (volume.data > 100).astype(np.uint8), volume, SEGMENTS[:1], "x")


@pytest.mark.parametrize(
    ("charset", "patient"), [("ISO_IR 100", "Müller^Jürgen"), ("ISO_IR 192", "山田^太郎"), (None, "Smith")]
)
def test_names_in_any_language(tmp_path: Path, charset: str | None, patient: str) -> None:
    extra = {"PatientName": patient} if charset is None else {"SpecificCharacterSet": charset, "PatientName": patient}
    volume = load_volume(write_series(Recipe(), tmp_path / "series", **extra))
    segments = [Segment(1, "肝臓", 1), Segment(2, "a\\b\nc", 7), Segment(3, "é\ud800" + "x" * 70, 9)]
    labels = some_labels(volume)
    labels[0, 0, 0] = 9
    write_seg(tmp_path / "out.dcm", labels, volume, segments, "IBIS Label: 肝臓, a\\b", creator="Jürgen 肝")
    seg = pydicom.dcmread(tmp_path / "out.dcm")
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == ["肝臓", "a b c", "é " + "x" * 62]
    assert [segment.TrackingID for segment in seg.SegmentSequence] == ["肝臓", "a b c", "é " + "x" * 62]
    assert str(seg.ContentCreatorName) == "Jürgen 肝^"
    assert seg.SeriesDescription == "IBIS Label: 肝臓, a b"
    assert str(seg.PatientName) == patient
