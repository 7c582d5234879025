"""Synthetic DICOM of every odd kind, written by pydicom, read by the loader."""

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    KeyObjectSelectionDocumentStorage,
    RLELossless,
    generate_uid,
)

from lib.errors import ImageError, InputError
from lib.imaging.load import list_series, load_volume
from lib.imaging.volume import Modality
from tests.imaging.synthetic_dicom import LPS_TO_RAS, Recipe, enhanced, image, save, set_pixels, write_series


def check_affine(affine: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(affine, expected, atol=1e-6)


def test_reads_values_geometry_and_instances(tmp_path: Path) -> None:
    recipe = Recipe()
    volume = load_volume(write_series(recipe, tmp_path))
    check_affine(volume.affine, recipe.affine)
    np.testing.assert_array_equal(volume.data, recipe.stored - 1024)
    assert volume.data.dtype == np.int16
    assert volume.modality is Modality.CT
    assert volume.warnings == ()
    assert [instance.path.name for instance in volume.instances] == [f"{k}.dcm" for k in range(6)]
    assert not volume.planar


def test_file_order_does_not_matter(tmp_path: Path) -> None:
    recipe = Recipe()
    volume = load_volume(write_series(recipe, tmp_path, order=[3, 5, 0, 2, 4, 1]))
    check_affine(volume.affine, recipe.affine)
    np.testing.assert_array_equal(volume.data, recipe.stored - 1024)
    assert [instance.path.name for instance in volume.instances] == ["2.dcm", "5.dcm", "3.dcm", "0.dcm", "4.dcm", "1.dcm"]


def test_descending_series_is_turned_to_ascend_along_the_normal(tmp_path: Path) -> None:
    recipe = Recipe(step=(0, 0, -2.5))
    volume = load_volume(write_series(recipe, tmp_path))
    np.testing.assert_array_equal(volume.data, recipe.stored[:, :, ::-1] - 1024)
    np.testing.assert_allclose(volume.affine @ [0, 0, 0, 1], LPS_TO_RAS @ [*recipe.position(5), 1])
    assert volume.axcodes == "LPS"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    permutation=st.permutations([0, 1, 2]),
    signs=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    angles=st.tuples(*[st.floats(-20, 20)] * 2),
    tilt=st.floats(-25, 25),
    step=st.floats(0.3, 9),
)
def test_any_orientation_and_tilt(tmp_path_factory, permutation, signs, angles, tilt, step) -> None:
    axes = np.eye(3)[list(permutation)] * np.array(signs)[:, None]
    a, b = np.deg2rad(angles)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    )
    axes = axes @ turn.T
    recipe = Recipe(count=4, orientation=axes[:2], step=tuple(step * (axes[2] + np.tan(np.deg2rad(tilt)) * axes[1])))
    volume = load_volume(write_series(recipe, tmp_path_factory.mktemp("series")))
    ascending = np.cross(axes[0], axes[1]) @ axes[2] > 0
    flip = slice(None) if ascending else slice(None, None, -1)
    np.testing.assert_array_equal(volume.data[:, :, flip], recipe.stored - 1024)
    for k in range(4):
        index = k if ascending else 3 - k
        for i, j in ((0, 0), (3, 0), (0, 4)):
            np.testing.assert_allclose(volume.affine @ [i, j, index, 1], recipe.affine @ [i, j, k, 1], atol=1e-5)
    assert volume.sheared == (abs(np.sin(np.deg2rad(tilt))) > 1e-3)


def test_missing_slices_are_air_and_said(tmp_path: Path) -> None:
    recipe = Recipe(count=9)
    volume = load_volume(write_series(recipe, tmp_path, order=[0, 1, 2, 5, 6, 8]))
    check_affine(volume.affine, recipe.affine)
    assert volume.missing == {3, 4, 7}
    assert (volume.data[:, :, [3, 4, 7]] == -1024).all()
    assert [k for k, instance in enumerate(volume.instances) if instance is None] == [3, 4, 7]
    np.testing.assert_array_equal(volume.data[:, :, 8], recipe.stored[:, :, 8] - 1024)
    assert "3 slices" in volume.warnings[0]
    assert "3 (at 27.5 mm)" in volume.warnings[0]


def test_missing_slices_of_mr_take_the_lowest_value(tmp_path: Path) -> None:
    volume = load_volume(write_series(Recipe(modality="MR"), tmp_path, order=[0, 1, 3, 4, 5]))
    assert (volume.data[:, :, 2] == 1).all()


def test_more_than_a_third_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="not evenly spaced"):
        load_volume(write_series(Recipe(count=9), tmp_path, order=[0, 1, 7, 8]))


def test_unequal_spacing_is_refused_with_distances(tmp_path: Path) -> None:
    recipe = Recipe()
    for k, z in enumerate([0, 2.5, 5, 8, 10.5, 13]):
        save(image(recipe, k, ImagePositionPatient=[-100, -50, z]), tmp_path / f"{k}.dcm")
    with pytest.raises(ImageError, match=r"not evenly spaced.*2\.5 \(4 times\), 3 \(1 times\).*resample"):
        load_volume(tmp_path)


def test_rounded_positions_load_with_a_warning(tmp_path: Path) -> None:
    recipe = Recipe()
    for k, z in enumerate([0, 2.5, 5.02, 7.5, 9.99, 12.5]):
        save(image(recipe, k, ImagePositionPatient=[-100, -50, z]), tmp_path / f"{k}.dcm")
    volume = load_volume(tmp_path)
    assert volume.missing == frozenset()
    assert "uneven" in volume.warnings[0]


def test_a_sideways_jump_is_refused(tmp_path: Path) -> None:
    recipe = Recipe()
    for k in range(6):
        save(image(recipe, k, ImagePositionPatient=[-100 + 3 * (k > 2), -50, 2.5 * k]), tmp_path / f"{k}.dcm")
    with pytest.raises(ImageError, match="not lie on one grid"):
        load_volume(tmp_path)


@pytest.mark.parametrize("layout", ["AcquisitionNumber", "TemporalPositionIdentifier", "EchoNumbers", "ContentTime"])
def test_repeated_positions_split_by_attribute(tmp_path: Path, layout: str) -> None:
    recipe = Recipe()
    values = ("101500", "101700") if layout == "ContentTime" else (1, 2)
    for part, value in enumerate(values):
        for k in range(6):
            # Instance numbers say nothing here, so that only the attribute can tell the parts apart.
            dataset = image(
                recipe, k, recipe.pixels(k) + 1000 * part, InstanceNumber=(7 * k + 5 * part) % 12, **{layout: value}
            )
            save(dataset, tmp_path / f"{k}_{part}.dcm")
    with pytest.raises(ImageError, match=f"{recipe.series}#1") as error:
        load_volume(tmp_path)
    assert f"{recipe.series}#2" in error.value.message
    infos = list_series(tmp_path)
    assert [info.uid for info in infos] == [f"{recipe.series}#1", f"{recipe.series}#2"]
    assert [info.slices for info in infos] == [6, 6]
    for part, info in enumerate(infos):
        assert layout in info.description
        volume = load_volume(tmp_path, series=info.uid)
        np.testing.assert_array_equal(volume.data, recipe.stored + 1000 * part - 1024)
        check_affine(volume.affine, recipe.affine)


@pytest.mark.parametrize("interleaved", [True, False])
def test_repeated_positions_split_by_instance_number(tmp_path: Path, interleaved: bool) -> None:
    recipe = Recipe()
    for part in range(2):
        for k in range(6):
            number = 2 * k + part + 1 if interleaved else 6 * part + k + 1
            save(image(recipe, k, recipe.pixels(k) + 1000 * part, InstanceNumber=number), tmp_path / f"{number}.dcm")
    for part in range(2):
        volume = load_volume(tmp_path, series=f"{recipe.series[:30]}#{part + 1}")
        np.testing.assert_array_equal(volume.data, recipe.stored + 1000 * part - 1024)


def test_echoes_and_time_points_together(tmp_path: Path) -> None:
    recipe = Recipe(modality="MR")
    for time in (1, 2):
        for echo in (1, 2):
            for k in range(6):
                dataset = image(recipe, k, recipe.pixels(k) + 1000 * time + 3000 * echo)
                dataset.TemporalPositionIdentifier, dataset.EchoNumbers = time, echo
                save(dataset, tmp_path / f"{time}{echo}{k}.dcm")
    infos = list_series(tmp_path)
    assert len(infos) == 4
    np.testing.assert_array_equal(load_volume(tmp_path, series=infos[2].uid).data, recipe.stored + 2000 + 3000)


def test_two_series_in_one_folder(tmp_path: Path) -> None:
    one, other = Recipe(series="1.2.3.4"), Recipe(series="1.2.3.5", count=3)
    write_series(one, tmp_path / "a")
    write_series(other, tmp_path / "b" / "c")
    with pytest.raises(ImageError, match="--series UID") as error:
        load_volume(tmp_path)
    assert "1.2.3.4" in error.value.message
    assert "1.2.3.5" in error.value.message
    assert load_volume(tmp_path, series="1.2.3.5").data.shape == (4, 5, 3)
    with pytest.raises(InputError, match="begin with"):
        load_volume(tmp_path, series="1.2.3")
    with pytest.raises(InputError, match="no series"):
        load_volume(tmp_path, series="9")
    with pytest.raises(InputError, match="is none of them"):
        load_volume(tmp_path, series="1.2.3.5#2")


def test_two_regions_in_one_series_split_by_acquisition(tmp_path: Path) -> None:
    recipe = Recipe(count=40)
    for k in [*range(8), *range(30, 40)]:
        save(image(recipe, k, AcquisitionNumber=1 + (k > 20)), tmp_path / f"{k}.dcm")
    infos = list_series(tmp_path)
    assert [info.slices for info in infos] == [8, 10]
    assert load_volume(tmp_path, series=infos[1].uid).missing == frozenset()


def test_scout_is_left_out_with_a_warning(tmp_path: Path) -> None:
    recipe = Recipe()
    write_series(recipe, tmp_path)
    scout = image(recipe, 0, np.ones((7, 9), dtype=np.int16), ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    save(scout, tmp_path / "scout.dcm")
    volume = load_volume(tmp_path)
    np.testing.assert_array_equal(volume.data, recipe.stored - 1024)
    assert "1 images of another size or orientation" in volume.warnings[0]
    assert load_volume(tmp_path, series=f"{recipe.series}#2").data.shape == (9, 7, 1)


def test_duplicates_are_dropped(tmp_path: Path) -> None:
    recipe = Recipe()
    write_series(recipe, tmp_path)
    (tmp_path / "copy.dcm").write_bytes((tmp_path / "3.dcm").read_bytes())
    volume = load_volume(tmp_path)
    np.testing.assert_array_equal(volume.data, recipe.stored - 1024)
    assert volume.warnings == ("1 duplicates of images in the series were left out",)


def test_one_uid_for_all_images_does_not_drop_any(tmp_path: Path) -> None:
    recipe = Recipe()
    volume = load_volume(write_series(recipe, tmp_path, SOPInstanceUID="1.2.3"))
    assert volume.data.shape[2] == 6
    assert "same SOP Instance UID" in volume.warnings[0]


def test_empty_uids_fall_back_to_file_meta(tmp_path: Path) -> None:
    recipe = Recipe()
    for k in range(6):
        dataset = image(recipe, k, SOPInstanceUID="", StudyInstanceUID="", SeriesInstanceUID="")
        dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{k + 1}"
        dataset.save_as(tmp_path / f"{k}.dcm", write_like_original=True)
    volume = load_volume(tmp_path)
    np.testing.assert_array_equal(volume.data, recipe.stored - 1024)
    assert volume.instances[4].sop_instance_uid == "1.2.3.5"
    assert list_series(tmp_path)[0].uid.startswith("no-uid")


def test_other_files_in_the_folder_are_noted(tmp_path: Path) -> None:
    write_series(Recipe(), tmp_path)
    (tmp_path / "readme.txt").write_text("hello")
    (tmp_path / "DICOMDIR").write_bytes((tmp_path / "0.dcm").read_bytes())
    (tmp_path / "empty.dcm").touch()
    report = image(Recipe(), 0, Rows=None, Columns=None, PixelData=None, SOPClassUID=KeyObjectSelectionDocumentStorage)
    save(report, tmp_path / "ko.dcm")
    volume = load_volume(tmp_path / "DICOMDIR")
    assert volume.data.shape[2] == 6
    assert "2 files that are not DICOM were ignored: empty.dcm, readme.txt" in volume.warnings[0]
    assert "Key Object" in volume.warnings[1]
    with pytest.raises(ImageError, match="Key Object Selection"):
        load_volume(tmp_path / "ko.dcm")


def test_padding_of_a_ct_becomes_air(tmp_path: Path) -> None:
    recipe = Recipe()
    for k in range(6):
        pixels = recipe.pixels(k)
        pixels[0, 0], pixels[0, 1], pixels[0, 2] = -2000, -1990, -2048
        save(image(recipe, k, pixels, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1990), tmp_path / f"{k}.dcm")
    volume = load_volume(tmp_path)
    assert (volume.data[:3, 0] == -1024).all()
    np.testing.assert_array_equal(volume.data[:, 1:], recipe.stored[:, 1:] - 1024)
    assert "15.0 % of the voxels are padding" in volume.warnings[0]


def test_padding_of_mr_becomes_the_lowest_real_value(tmp_path: Path) -> None:
    recipe = Recipe(modality="MR")
    for k in range(6):
        pixels = recipe.pixels(k)
        pixels[2, 1] = -32768
        dataset = image(recipe, k, pixels)
        # Some writers store it as unsigned although the pixels are signed.
        dataset.add_new("PixelPaddingValue", *(("US", 32768) if k < 3 else ("SS", -32768)))
        save(dataset, tmp_path / f"{k}.dcm")
    volume = load_volume(tmp_path)
    assert (volume.data[1, 2] == 1).all()
    assert volume.data.min() == 1


def test_rescale_per_slice_gives_floats(tmp_path: Path) -> None:
    recipe = Recipe(modality="PT")
    for k in range(6):
        save(image(recipe, k, RescaleSlope=0.5 + k, RescaleIntercept=0), tmp_path / f"{k}.dcm")
    volume = load_volume(tmp_path)
    assert volume.data.dtype == np.float32
    np.testing.assert_allclose(volume.data, recipe.stored * (0.5 + np.arange(6)), rtol=1e-6)


def test_values_beyond_16_bits_widen(tmp_path: Path) -> None:
    recipe = Recipe(modality="MR")
    for k in range(6):
        pixels = recipe.pixels(k).astype(np.uint16)
        pixels[0, 0] = 65535 if k == 4 else 1
        save(image(recipe, k, pixels), tmp_path / f"{k}.dcm")
    volume = load_volume(tmp_path)
    assert volume.data.dtype == np.int32
    assert volume.data[0, 0].tolist() == [1, 1, 1, 1, 65535, 1]
    np.testing.assert_array_equal(volume.data[1:], recipe.stored[1:])


def test_monochrome1_is_inverted_but_not_hounsfield_units(tmp_path: Path) -> None:
    recipe = Recipe(modality="MR", count=2)
    attributes = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0}
    volume = load_volume(write_series(recipe, tmp_path / "mr", **attributes))
    np.testing.assert_array_equal(volume.data, 4095 - recipe.stored)
    assert "MONOCHROME1" in volume.warnings[0]
    ct = Recipe(count=2)
    volume = load_volume(write_series(ct, tmp_path / "ct", **attributes))
    np.testing.assert_array_equal(volume.data, ct.stored - 1024)
    assert "MONOCHROME1" in volume.warnings[0]


def test_modality_lut_sequence_is_applied(tmp_path: Path) -> None:
    dataset = image(
        Recipe(modality="MR"), 0, np.array([[0, 1], [2, 3]], dtype=np.uint16), RescaleSlope=None, RescaleIntercept=None
    )
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData, table.ModalityLUTType = [4, 0, 16], [10, 20, 40, 80], "US"
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "US"
    dataset.ModalityLUTSequence = [table]
    save(dataset, tmp_path / "0.dcm")
    assert load_volume(tmp_path).data[:, :, 0].T.tolist() == [[10, 20], [40, 80]]


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless])
def test_transfer_syntaxes(tmp_path: Path, syntax: str) -> None:
    recipe = Recipe(count=3)
    for k in range(3):
        dataset = image(recipe, k)
        if syntax == RLELossless:
            dataset.compress(RLELossless)
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.is_implicit_VR = syntax == ImplicitVRLittleEndian
        save(dataset, tmp_path / f"{k}.dcm")
    np.testing.assert_array_equal(load_volume(tmp_path).data, recipe.stored - 1024)


def test_file_without_preamble(tmp_path: Path) -> None:
    recipe = Recipe()
    dataset = image(recipe, 2)
    dataset.is_implicit_VR, dataset.preamble, dataset.file_meta = True, None, pydicom.dataset.FileMetaDataset()
    dataset.save_as(tmp_path / "bare")
    np.testing.assert_array_equal(load_volume(tmp_path / "bare").data[:, :, 0], recipe.stored[:, :, 2] - 1024)


def test_single_slice_takes_its_thickness(tmp_path: Path) -> None:
    path = save(image(Recipe(), 0, SliceThickness=4), tmp_path / "one.dcm")
    volume = load_volume(path)
    assert volume.data.shape == (4, 5, 1)
    assert volume.spacing == (0.5, 0.75, 4)


def test_enhanced_multi_frame_in_any_order_with_rescale_per_frame(tmp_path: Path) -> None:
    recipe = Recipe(modality="MR", step=(0.3, 0.9, 2.5))
    order = [2, 0, 5, 4, 1, 3]
    rescale = [(1.0 + k, -10.0 * k) for k in order]
    path = save(enhanced(recipe, order, rescale), tmp_path / "enhanced.dcm")
    volume = load_volume(path)
    check_affine(volume.affine, recipe.affine)
    np.testing.assert_array_equal(volume.data, recipe.stored * (1 + np.arange(6)) - 10 * np.arange(6))
    assert [instance.frame for instance in volume.instances] == [2, 5, 1, 6, 4, 3]


def test_enhanced_time_series_splits(tmp_path: Path) -> None:
    recipe = Recipe(modality="MR")
    path = save(enhanced(recipe, list(range(6)), times=3), tmp_path / "enhanced.dcm")
    with pytest.raises(ImageError, match="TemporalPositionIndex 3"):
        load_volume(path)
    np.testing.assert_array_equal(load_volume(path, series=f"{recipe.series}#3").data, recipe.stored + 2000)


def test_multi_frame_without_positions_says_so(tmp_path: Path) -> None:
    dataset = enhanced(Recipe(modality="MR"), [0, 1, 2])
    del dataset.PerFrameFunctionalGroupsSequence, dataset.SharedFunctionalGroupsSequence
    volume = load_volume(save(dataset, tmp_path / "cine.dcm"))
    assert volume.data.shape == (4, 5, 3)
    assert "no position" in volume.warnings[0]


def test_colour_image(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    dataset = image(Recipe(modality="US"), 0, pixels)
    del dataset.ImagePositionPatient, dataset.ImageOrientationPatient
    volume = load_volume(save(dataset, tmp_path / "us.dcm"))
    np.testing.assert_array_equal(volume.colour[:, :, 0], pixels.transpose(1, 0, 2))
    assert volume.planar
    assert volume.data.dtype == np.uint8
    assert volume.modality is Modality.US
    ycc = pydicom.pixel_data_handlers.util.convert_color_space(pixels, "RGB", "YBR_FULL")
    set_pixels(dataset, ycc)
    dataset.PhotometricInterpretation = "YBR_FULL"
    volume = load_volume(save(dataset, tmp_path / "ybr.dcm"))
    assert np.abs(volume.colour[:, :, 0].astype(int) - pixels.transpose(1, 0, 2)).max() <= 2


@pytest.mark.parametrize("space", ["YBR_FULL_422", "RGB"])
def test_jpeg_baseline_colour(tmp_path: Path, space: str) -> None:
    smooth = np.stack(np.broadcast_arrays(*np.ogrid[0:160:5, 0:128:4], np.uint8(77)), axis=-1).astype(np.uint8)
    dataset = image(Recipe(modality="US"), 0, smooth, ImagePositionPatient=None)
    stream = io.BytesIO()
    Image.fromarray(smooth).save(stream, "JPEG", quality=95, **({"keep_rgb": True} if space == "RGB" else {}))
    dataset.PixelData = encapsulate([stream.getvalue()])
    dataset["PixelData"].is_undefined_length = True
    dataset.PhotometricInterpretation, dataset.file_meta.TransferSyntaxUID = space, JPEGBaseline8Bit
    volume = load_volume(save(dataset, tmp_path / "jpeg.dcm"))
    assert np.abs(volume.colour[:, :, 0].transpose(1, 0, 2).astype(int) - smooth).max() < 12


def test_palette_colour(tmp_path: Path) -> None:
    dataset = image(Recipe(modality="US"), 0, np.array([[0, 1], [2, 3]], dtype=np.uint8), ImagePositionPatient=None)
    dataset.PhotometricInterpretation = "PALETTE COLOR"
    for name, table in (("Red", [0, 255, 0, 9]), ("Green", [0, 0, 255, 8]), ("Blue", [1, 2, 3, 7])):
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [4, 0, 8])
        setattr(dataset, f"{name}PaletteColorLookupTableData", bytes(table))
        dataset[f"{name}PaletteColorLookupTableDescriptor"].VR = "US"
    volume = load_volume(save(dataset, tmp_path / "palette.dcm"))
    assert volume.colour[:, :, 0].transpose(1, 0, 2).tolist() == [[[0, 0, 1], [255, 0, 2]], [[0, 255, 3], [9, 8, 7]]]


def test_truncated_files(tmp_path: Path) -> None:
    whole = save(image(Recipe(), 0), tmp_path / "whole.dcm").read_bytes()
    for size in (0, 100, 140, 300, 700, len(whole) - 30):
        path = tmp_path / f"{size}.dcm"
        path.write_bytes(whole[:size])
        with pytest.raises(ImageError):
            load_volume(path)


def test_a_truncated_slice_is_named(tmp_path: Path) -> None:
    write_series(Recipe(), tmp_path)
    path = tmp_path / "3.dcm"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ImageError, match=r"3\.dcm"):
        load_volume(tmp_path)


def test_hostile_sizes_are_refused(tmp_path: Path) -> None:
    for size in (20000, 65535):
        path = save(image(Recipe(), 0, Rows=size, Columns=size), tmp_path / "huge.dcm")
        with pytest.raises(ImageError, match=f"{size} x {size} voxels"):
            load_volume(path)
    dataset = enhanced(Recipe(modality="MR"), [0, 1])
    del dataset.PerFrameFunctionalGroupsSequence
    dataset.NumberOfFrames = 2_000_000_000
    with pytest.raises(ImageError, match="2000000000 frames"):
        load_volume(save(dataset, tmp_path / "frames.dcm"))


def test_deflate_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib.imaging.limits._ALWAYS", 2**20)
    dataset = image(Recipe(), 0)
    dataset.PixelData = bytes(2**20 * 5)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = save(dataset, tmp_path / "bomb.dcm")
    with pytest.raises(ImageError, match="inflates"):
        load_volume(path)


@pytest.mark.parametrize(
    ("keyword", "value", "message"),
    [
        ("RescaleSlope", 0, "slope of 0"),
        ("PixelSpacing", [0, 1], "pixel spacing"),
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0], "perpendicular"),
    ],
)
def test_impossible_headers_are_refused(tmp_path: Path, keyword: str, value: object, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_volume(save(image(Recipe(), 0, **{keyword: value}), tmp_path / "bad.dcm"))


def test_folder_without_dicom(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ImageError, match="no DICOM image"):
        load_volume(tmp_path)


def test_uid_prefix_of_a_part_must_be_unique(tmp_path: Path) -> None:
    recipe = Recipe(series=generate_uid())
    volume = load_volume(write_series(recipe, tmp_path), series=recipe.series[:40])
    assert volume.data.shape[2] == 6
