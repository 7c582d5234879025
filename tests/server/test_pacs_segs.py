"""Labels between viewers and DICOM SEG."""

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, inv_ornt_aff

from lib.agent.anatomy import anatomy
from lib.agent.labels import write_label_seg
from lib.errors import ImageError, InputError
from lib.imaging.load import load_volume
from lib.imaging.masks import write_mask
from lib.imaging.phantom import make_phantom, write_series
from lib.server.pacs.segs import EmptyLabel, names_of, read_found, read_label, write_label
from tests.imaging.synthetic_dicom import Recipe
from tests.imaging.synthetic_dicom import write_series as write_synthetic


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    folder = tmp_path_factory.mktemp("series")
    write_series(make_phantom(1, spacing=(8.0, 9.0, 40.0)), folder)
    return load_volume(folder)


@pytest.fixture(scope="module")
def labels(volume) -> np.ndarray:
    labels = np.zeros(volume.data.shape, dtype=np.uint8)
    labels[4:9, 5:11, 1:3] = 1
    labels[12:14, 5:8, 2] = 2
    labels[20, 20, 0] = 5
    return labels


@settings(max_examples=48, deadline=None)
@given(axes=st.permutations(range(3)), flips=st.tuples(*[st.sampled_from((1, -1))] * 3))
def test_a_label_in_any_axis_order_comes_onto_the_images_grid(tmp_path_factory, volume, labels, axes, flips):
    orientation = np.array(list(zip(axes, flips, strict=True)), dtype=float)
    turned = apply_orientation(labels, orientation)
    affine = volume.affine @ inv_ornt_aff(orientation, labels.shape)
    path = tmp_path_factory.mktemp("label") / "label.nii.gz"
    nibabel.save(nibabel.Nifti1Image(turned, affine), path)
    np.testing.assert_array_equal(read_label(path, volume), labels)


def test_a_label_on_a_tilted_series_keeps_its_shear(tmp_path):
    angle = np.deg2rad(20)
    recipe = Recipe(orientation=np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)]]), step=(0, 0, 2.5))
    tilted = load_volume(write_synthetic(recipe, tmp_path / "series"))
    labels = np.zeros(tilted.data.shape, dtype=np.uint8)
    labels[1:3, 1:4, 2:4] = 3
    write_mask(tmp_path / "label.nrrd", labels, tilted)
    np.testing.assert_array_equal(read_label(tmp_path / "label.nrrd", tilted), labels)


@pytest.mark.parametrize("change", ["shift", "scale", "crop", "value", "fraction", "junk"])
def test_what_is_no_label_of_the_image_is_refused(tmp_path, volume, labels, change):
    affine, array = volume.affine.copy(), labels.astype(np.float32)
    if change == "shift":
        affine[0, 3] += 3
    elif change == "scale":
        affine[:3, :3] *= 1.02
    elif change == "crop":
        array = array[:-1]
    elif change == "value":
        array[0, 0, 0] = 300
    elif change == "fraction":
        array[0, 0, 0] = 0.5
    path = tmp_path / "label.nii.gz"
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    if change == "junk":
        path.write_bytes(b"NRRD")
    with pytest.raises(InputError) as refusal:
        read_label(path, volume)
    assert refusal.value.field == "label"


def test_names_of_values():
    labels = np.array([0, 1, 2, 5], dtype=np.uint8)
    info = {"label_info": [{"name": "spleen", "idx": 2}, {"name": "liver", "idx": 1}, {"name": "liver", "idx": 9}]}
    assert names_of(info, labels) == {"spleen": 2, "liver": 1, "liver (2)": 9, "segment 5": 5}
    assert names_of({"label_info": [{"name": "a"}, {}]}, labels) == {"a": 1, "segment 2": 2, "segment 5": 5}
    assert names_of({}, labels) == {"segment 1": 1, "segment 2": 2, "segment 5": 5}
    for bad in ("liver", [1], [{"name": "liver", "idx": "x"}], [{"name": "liver", "idx": 0}], [{"name": "x", "idx": True}]):
        with pytest.raises(InputError):
            names_of({"label_info": bad}, labels)


def test_there_and_back(tmp_path, volume, labels):
    write_mask(tmp_path / "label.nrrd", labels, volume)
    spoken = {"left kidney": 1, "weird thing": 2, "liver tumour": 5}
    info = {"label_info": [{"name": name, "idx": value} for name, value in spoken.items()]}
    write_label(tmp_path / "a.dcm", tmp_path / "label.nrrd", info, volume, "Ann ^= B\\C")
    found = read_found(tmp_path / "a.dcm", volume, "1.2", "ann", "1.3", 7.0)
    np.testing.assert_array_equal(found.label, np.select([labels == 1, labels == 2, labels == 5], [1, 2, 3]).astype(np.uint8))
    assert found.names == {1: "left kidney", 2: "weird thing", 3: "liver tumour"}
    tumour = anatomy().find("liver tumour")
    assert tumour.category == "lesion"
    assert found.codes == {
        1: ("64033007", "SCT", "Kidney"),
        2: ("85756007", "SCT", "Tissue"),
        3: (tumour.code.value, "SCT", tumour.code.meaning),
    }


def test_every_structure_keeps_its_code(tmp_path, volume):
    structures = anatomy().structures
    labels = np.zeros(volume.data.shape, dtype=np.uint8)
    labels.reshape(-1)[: len(structures)] = np.arange(1, len(structures) + 1)
    write_label_seg(tmp_path / "a.dcm", labels, volume, {s.name: i + 1 for i, s in enumerate(structures)})
    found = read_found(tmp_path / "a.dcm", volume, "", "", "", 0)
    assert [found.codes[i + 1][0] for i in range(len(structures))] == [s.code.value for s in structures]


def test_an_empty_label_is_no_segmentation(tmp_path, volume, labels):
    write_mask(tmp_path / "label.nrrd", np.zeros_like(labels), volume)
    with pytest.raises(EmptyLabel):
        write_label(tmp_path / "a.dcm", tmp_path / "label.nrrd", {}, volume, "")
    assert not (tmp_path / "a.dcm").exists()


def test_a_segmentation_of_another_image_is_refused(tmp_path, volume, labels):
    write_mask(tmp_path / "label.nrrd", labels, volume)
    write_label(tmp_path / "a.dcm", tmp_path / "label.nrrd", {}, volume, "")
    write_series(make_phantom(2, spacing=(8.0, 9.0, 40.0)), tmp_path / "other")
    with pytest.raises(ImageError, match="frame of reference"):
        read_found(tmp_path / "a.dcm", load_volume(tmp_path / "other"), "", "", "", 0)
    (tmp_path / "b.dcm").write_bytes((tmp_path / "a.dcm").read_bytes()[:3000])
    with pytest.raises(ImageError):
        read_found(tmp_path / "b.dcm", volume, "", "", "", 0)
