import itertools
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lib.agent.anatomy import anatomy
from lib.imaging.load import load_volume
from lib.imaging.planes import Plane, ViewGrid
from lib.imaging.volume import Modality, Volume
from lib.policies.evidence import Evidence, EvidenceStore
from lib.policies.scan import FINDERS, Scan

_UPPER = ("lungs", "liver", "spleen", "kidney_left", "kidney_right")


def _find(volume: Volume, name: str) -> np.ndarray:
    return EvidenceStore().get(volume, anatomy()[name]).mask()


def _dice(mask: np.ndarray, reference: np.ndarray) -> float:
    return 2 * np.count_nonzero(mask & reference) / (np.count_nonzero(mask) + np.count_nonzero(reference))


def _case(data: Path, folder: str) -> tuple[Volume, np.ndarray]:
    """The image, and its labels in canonical order."""
    labels = load_volume(data / folder / "labels.nii.gz", modality=Modality.OTHER)
    return load_volume(data / folder / "image.nii.gz", modality=Modality.CT), labels.orientation.canonical(labels.data)


def _phantom(table: bool = True) -> Volume:
    """A soft-tissue cylinder with an arm beside it and two curved shells under it."""
    i, j = np.indices((120, 100))
    body = ((i - 60) / 40) ** 2 + ((j - 50) / 28) ** 2 <= 1
    arm = (i - 111) ** 2 + (j - 50) ** 2 <= 36
    hu = np.full((120, 100, 8), -1000, np.int16)
    hu[body | arm] = 40
    if table:
        hu[:, 15:16], hu[:, 8:9] = 200, 200
    return Volume(hu, np.diag([3.0, 3, 5, 1]), Modality.CT, Path("phantom"))


def test_every_rule_has_a_finder():
    assert set(FINDERS) == set(anatomy().findable)


def test_the_body_is_found_with_its_arm_and_without_the_table():
    bare = _phantom(table=False).data > -500
    assert _dice(_find(_phantom(), "body"), bare) > 0.99


@pytest.mark.parametrize("name", sorted(set(anatomy().findable) - {"body", "subcutaneous_fat"}))
def test_a_cylinder_of_soft_tissue_holds_no_organ(name: str):
    assert not _find(_phantom(), name).any()


@pytest.mark.parametrize("value", [0, -1024, 3000])
def test_a_uniform_image_holds_no_organ(value: int):
    volume = Volume(np.full((30, 30, 5), value, np.int16), np.diag([3.0, 3, 3, 1]), Modality.CT, Path("flat"))
    for name in _UPPER:
        assert not _find(volume, name).any()


@pytest.mark.parametrize(
    ("folder", "goals"),
    [
        ("ct_abdomen_pelvis_ts", {"liver": 0.85, "spleen": 0.85, "kidney_left": 0.85, "kidney_right": 0.75, "bones": 0.85}),
        ("ct_abdomen_ts_small", {"liver": 0.85, "spleen": 0.85, "kidney_left": 0.85, "kidney_right": 0.75, "lungs": 0.92}),
    ],
)
def test_structures_of_a_real_scan(data: Path, folder: str, goals: dict[str, float]):
    volume, labels = _case(data, folder)
    ids = {"liver": [5], "spleen": [1], "kidney_right": [2], "kidney_left": [3], "lungs": range(10, 15)}
    ids["bones"] = [*range(25, 51), *range(69, 79), *range(92, 117)]
    store = EvidenceStore()
    for name, goal in goals.items():
        found = store.get(volume, anatomy()[name]).mask()
        assert _dice(found, np.isin(labels, list(ids[name]))) > goal, name


def test_organs_out_of_view_are_not_found(data: Path):
    volume, _ = _case(data, "ct_abdomen_pelvis_ts")
    pelvis = replace(volume, data=volume.data[:, :, :50])
    phantom = load_volume(data / "dicom_ct_tilt_phantom" / "series")
    for scan, name in itertools.product((pelvis, phantom), _UPPER):
        assert not _find(scan, name).any(), name


def test_all_orientations_find_the_same_voxels(data: Path):
    volume, _ = _case(data, "ct_abdomen_ts_small")
    array = volume.data[:, :, 14:24]
    upright = np.diag([3.0, 3, 3, 1])
    expected = _find(Volume(array, upright, Modality.CT, Path("a")), "liver")
    assert expected.any()
    for axes in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            turned = array.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]
            affine = np.eye(4)
            affine[:3, :3] = upright[:3, :3][:, axes] * signs
            assert np.array_equal(_find(Volume(turned, affine, Modality.CT, Path("b")), "liver"), expected)


def test_an_oblique_affine_finds_the_same_voxels(data: Path):
    upright, _ = _case(data, "ct_abdomen_ts_small")
    oblique, _ = _case(data, "ct_oblique_ts")
    assert np.array_equal(_find(upright, "kidney_left"), _find(oblique, "kidney_left"))


def test_missing_slices_are_empty_and_do_not_cut_the_organ(data: Path):
    volume, labels = _case(data, "ct_abdomen_ts_small")
    holes = volume.data.copy()
    holes[:, :, [12, 13]] = -1024
    found = _find(replace(volume, data=holes, missing=frozenset({12, 13})), "liver")
    assert not found[:, :, 12:14].any()
    rest = np.setdiff1d(np.arange(30), [12, 13])
    assert _dice(found[:, :, rest], labels[:, :, rest] == 5) > 0.85


def test_a_radiological_picture_has_the_liver_on_its_left(data: Path, picture):
    from PIL import Image

    folder = data / "png2d"
    volume = picture(np.asarray(Image.open(folder / "ct_liver_ts.png").convert("L")))
    for name, goal in (("liver", 0.9), ("spleen", 0.8)):
        truth = np.asarray(Image.open(folder / f"ct_liver_ts_mask_{name}.png").convert("L")) > 0
        found = EvidenceStore().get(volume, anatomy()[name]).view(ViewGrid(volume, Plane.AXIAL), 0)
        assert _dice(found, truth) > goal


@settings(max_examples=40, deadline=None)
@given(
    arrays(bool, (9, 11, 7)),
    st.permutations(range(3)),
    st.tuples(*[st.sampled_from((1, -1))] * 3),
    st.sampled_from(list(Plane)),
    st.sampled_from([(3.0, 3.0, 3.0), (1.0, 1.5, 4.0)]),
)
def test_a_view_of_the_evidence_is_what_the_grid_would_show(canonical, axes, signs, plane, spacing):
    affine = np.eye(4)
    affine[:3, :3] = np.diag(spacing)[:, axes] * signs
    array = canonical.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]
    grid = ViewGrid(Volume(array, affine, Modality.CT, Path("x")), plane)
    for index in range(grid.slice_count):
        expected = grid.enlarge(grid.cut(array, index), order=0)
        assert np.array_equal(Evidence(canonical).view(grid, index), expected)


def test_threads_share_one_computation(monkeypatch: pytest.MonkeyPatch):
    counted: list[str] = []
    find = Scan.find

    def counting(scan: Scan, structure):
        counted.append(structure.name)
        return find(scan, structure)

    monkeypatch.setattr(Scan, "find", counting)
    store, volume = EvidenceStore(), _phantom()
    threads = [threading.Thread(target=store.get, args=(volume, anatomy()["body"])) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted == ["body"]


def test_a_failure_is_not_kept(monkeypatch: pytest.MonkeyPatch):
    store, volume = EvidenceStore(), _phantom()
    with monkeypatch.context() as broken:
        broken.setattr(Scan, "find", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            store.get(volume, anatomy()["body"])
    assert store.get(volume, anatomy()["body"]).mask().any()


def test_the_store_stays_within_its_bytes():
    volume = _phantom()
    one = EvidenceStore().get(volume, anatomy()["body"]).nbytes
    store = EvidenceStore(max_bytes=2 * one)
    for name in ("body", "liver", "spleen", "bones"):
        store.get(volume, anatomy()[name])
    assert store.nbytes <= 2 * one
