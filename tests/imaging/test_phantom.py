"""The phantom: plausible anatomy for every seed, HU by phase, and files that every reader understands alike."""

import itertools
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from scipy import ndimage

from lib.errors import InputError
from lib.imaging.phantom.dicom import write_series, write_truth
from lib.imaging.phantom.model import GROUPS, Phantom, make_phantom
from lib.imaging.phantom.shapes import Field, Grid, Waves, coverage, smooth_max, smooth_min
from lib.imaging.phantom.tissues import Phase, tissues

COARSE = (4.2, 4.0, 6.0)
SEEDS = (0, 1, 5)

# Adult range in ml, wider than the middle 95 % of people.
VOLUMES = {
    "liver": (1000, 2100),
    "spleen": (100, 350),
    "kidney_left": (100, 230),
    "kidney_right": (100, 230),
    "lung_left": (1300, 3600),
    "lung_right": (1500, 4000),
    "heart": (400, 900),
    "stomach": (150, 700),
    "gallbladder": (12, 70),
    "urinary_bladder": (80, 500),
    "pancreas": (20, 110),
    "aorta": (110, 330),
    "inferior_vena_cava": (50, 140),
    "vertebrae": (330, 700),
    "hip_left": (220, 450),
    "hip_right": (220, 450),
    "sacrum": (120, 280),
    "colon": (400, 1600),
    "small_bowel": (300, 1200),
    "trachea": (20, 80),
    "body": (30000, 75000),
}


@pytest.fixture(scope="module")
def people() -> dict[int, Phantom]:
    return {seed: make_phantom(seed, COARSE) for seed in SEEDS}


@pytest.fixture(scope="module")
def again() -> Phantom:
    return make_phantom(0, COARSE)


@pytest.fixture(scope="module")
def series(people: dict[int, Phantom], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("series") / "new"
    write_series(people[0], folder)
    return folder


def centre(phantom: Phantom, name: str) -> np.ndarray:
    """Centre of mass in RAS mm."""
    return phantom.volume.affine[:3] @ [*ndimage.center_of_mass(phantom.labels[name]), 1]


@pytest.mark.parametrize("seed", SEEDS)
def test_volumes_are_an_adults(people, seed):
    person = people[seed]
    voxel = np.prod(person.volume.spacing) / 1000
    found = {name: person.labels[name].sum() * voxel for name in VOLUMES}
    wrong = {name: ml for name, ml in found.items() if not VOLUMES[name][0] <= ml <= VOLUMES[name][1]}
    assert not wrong


@pytest.mark.parametrize("seed", SEEDS)
def test_organs_lie_where_they_belong(people, seed):
    person = people[seed]
    names = (
        "liver spleen kidney_left kidney_right aorta inferior_vena_cava heart gallbladder lung_left lung_right urinary_bladder"
    )
    at = {
        name: centre(person, name) for name in [*names.split(), "vertebrae_L1", "vertebrae_T6", "sternum", "sacrum", "stomach"]
    }
    right, anterior, superior = 0, 1, 2
    assert at["liver"][right] > at["inferior_vena_cava"][right] > at["aorta"][right] > at["spleen"][right]
    assert at["kidney_right"][right] > at["vertebrae_L1"][right] > at["kidney_left"][right]
    assert at["lung_right"][right] > at["heart"][right] > at["lung_left"][right]
    assert at["stomach"][right] < at["gallbladder"][right]
    assert at["kidney_right"][superior] < at["kidney_left"][superior]
    assert at["sacrum"][superior] < at["vertebrae_L1"][superior] < at["liver"][superior] < at["heart"][superior]
    assert at["urinary_bladder"][anterior] > at["sacrum"][anterior]
    assert at["sternum"][anterior] > at["heart"][anterior] > at["vertebrae_T6"][anterior]
    columns = np.flatnonzero(person.labels["liver"].any(axis=(1, 2)))
    spine = ndimage.center_of_mass(person.labels["vertebrae_L1"])[0]
    assert columns[0] < spine < columns[-1], "the left lobe crosses the midline"


def test_every_structure_is_present_and_in_one_place(people):
    for person in people.values():
        assert person.volume.data.dtype == np.int16
        assert person.reference.dtype == np.uint8
        assert person.reference.shape == person.volume.data.shape
        assert person.volume.axcodes == "LPS"
        assert set(np.unique(person.reference)) == {0, *person.names}
        for side in ("left", "right"):
            assert {f"rib_{side}_{n}" for n in range(1, 13)} <= set(person.labels)
        for name in ("liver", "spleen", "heart", "urinary_bladder", "kidney_left", "kidney_right", "sacrum"):
            parts, count = ndimage.label(person.labels[name])
            assert np.bincount(parts.ravel())[1:].max() > 0.97 * person.labels[name].sum(), (name, count)


def test_groups_are_unions_of_their_parts(people):
    person = people[0]
    for group, beginnings in GROUPS.items():
        parts = [number for number, name in person.names.items() if name.startswith(beginnings)]
        np.testing.assert_array_equal(person.labels[group], np.isin(person.reference, parts))
    assert person.labels["liver_lesion"].any()
    assert (person.labels["liver"] >= person.labels["liver_lesion"]).all()
    with pytest.raises(KeyError):
        person.labels["third kidney"]


def test_sexes_and_arms_follow_the_seed(people):
    assert {person.female for person in people.values()} == {True, False}
    assert {person.arms_down for person in people.values()} == {True, False}
    for person in people.values():
        assert ("uterus" in person.labels) == person.female
        assert ("prostate" in person.labels) != person.female
        assert ("ulna_left" in person.labels) == person.arms_down


def test_the_seed_alone_decides(people, again):
    assert again.volume.content_hash == people[0].volume.content_hash
    np.testing.assert_array_equal(again.reference, people[0].reference)
    assert again.names == people[0].names
    offsets = [centre(person, "liver") - centre(person, "vertebrae_L1") for person in people.values()]
    for one, other in itertools.combinations(offsets, 2):
        assert 0.5 < np.linalg.norm(one - other) < 40


def test_phase_and_spacing_keep_the_individual(people):
    arterial = make_phantom(0, (5.0, 4.0, 5.0), phase=Phase.ARTERIAL)
    for name in ("liver", "kidney_left", "liver_lesion", "small_bowel", "colon"):
        assert np.linalg.norm(centre(arterial, name) - centre(people[0], name)) < 3.5, name


@pytest.mark.parametrize("phase", list(Phase))
def test_hounsfield_units_by_phase(phase):
    person = make_phantom(0, (3.0, 3.0, 6.0), (130, 95, 46), phase)
    expected = tissues(phase)
    for name, tissue, tolerance in (
        ("liver", "liver", 9),
        ("spleen", "spleen", 9),
        ("aorta", "blood_artery", 15),
        ("inferior_vena_cava", "blood_vein", 9),
        ("liver_lesion", "liver_lesion", 14),
        ("urinary_bladder", "urine", 8),
        ("gallbladder", "gallbladder", 9),
        ("autochthon_left", "muscle", 6),
        ("subcutaneous_fat", "subcutaneous_fat", 8),
        ("lung_right", "lung", 60),
    ):
        inside = ndimage.binary_erosion(person.labels[name], np.ones((3, 3, 1)))
        if name == "liver":
            inside &= ~person.labels["liver_lesion"]
        if inside.sum() > 20:
            assert np.median(person.volume.data[inside]) == pytest.approx(expected[tissue], abs=tolerance), name
    assert np.median(person.volume.data[:2]) == pytest.approx(-1000, abs=5), "air beside the patient"
    noise = person.volume.data[ndimage.binary_erosion(person.labels["liver"] & ~person.labels["liver_lesion"], iterations=3)]
    assert 7 < 1.4826 * np.median(np.abs(noise - np.median(noise))) < 18


def test_contrast_medium_changes_what_it_should():
    plain, arterial, portal = (tissues(phase) for phase in (Phase.NON_CONTRAST, Phase.ARTERIAL, Phase.PORTAL_VENOUS))
    assert arterial["blood_artery"] > portal["blood_artery"] > plain["blood_artery"]
    assert portal["liver"] > arterial["liver"] > plain["liver"]
    assert portal["liver"] - portal["liver_lesion"] > 40
    assert arterial["renal_cortex"] - arterial["renal_medulla"] > 60
    assert plain["torso_fat"] == portal["torso_fat"]


def test_dicom_holds_the_volume(people, series):
    volume = people[0].volume
    files = sorted(series.iterdir())
    assert len(files) == volume.data.shape[2]
    images = [pydicom.dcmread(file) for file in files]
    for k, image in enumerate(images):
        np.testing.assert_array_equal(image.pixel_array.T + float(image.RescaleIntercept), volume.data[:, :, k])
        assert image.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert image.SOPClassUID == CTImageStorage
        corner = np.diag([-1, -1, 1]) @ (volume.affine @ [0, 0, k, 1])[:3]
        np.testing.assert_allclose(image.ImagePositionPatient, corner, atol=1e-3)
    first = images[0]
    assert (first.PatientName, first.PatientPosition, first.BurnedInAnnotation) == ("PHANTOM^SEED0", "HFS", "NO")
    assert first.ContrastBolusAgent
    assert len({image.SOPInstanceUID for image in images}) == len(images)
    assert len({image.SeriesInstanceUID for image in images}) == 1
    for image in images[:1]:
        for element in image.iterall():
            if element.VR == "UI" and element.keyword not in ("SOPClassUID",):
                assert element.value.is_valid
                assert element.value.startswith("2.25.")


def test_dicom_has_every_required_attribute(series):
    image = pydicom.dcmread(sorted(series.iterdir())[3])
    type_1 = """ImageType SOPClassUID SOPInstanceUID Modality StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID
        PixelSpacing ImageOrientationPatient ImagePositionPatient SamplesPerPixel PhotometricInterpretation Rows Columns
        BitsAllocated BitsStored HighBit PixelRepresentation PixelData RescaleIntercept RescaleSlope RescaleType
        PatientPosition"""
    type_2 = """PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime ReferringPhysicianName StudyID
        AccessionNumber SeriesNumber PositionReferenceIndicator Manufacturer InstanceNumber AcquisitionNumber KVP
        SliceThickness"""
    assert all(image[keyword].value not in ("", None) for keyword in type_1.split())
    assert all(keyword in image for keyword in type_2.split())


def test_simpleitk_reads_the_same_series(people, series):
    volume = people[0].volume
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series)))
    image = reader.Execute()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), volume.data)
    np.testing.assert_allclose(image.GetSpacing(), volume.spacing, atol=1e-4)
    for index in ((0, 0, 0), (10, 20, 30), tuple(n - 1 for n in volume.data.shape)):
        point = np.diag([-1, -1, 1]) @ (volume.affine @ [*index, 1])[:3]
        np.testing.assert_allclose(image.TransformIndexToPhysicalPoint(index), point, atol=2e-3)


def test_writing_twice_gives_the_same_bytes(people, again, series, tmp_path):
    write_series(again, tmp_path / "again")
    for file in sorted(series.iterdir())[::20]:
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    other = pydicom.dcmread(sorted(series.iterdir())[0])
    write_series(people[1], tmp_path / "other")
    assert pydicom.dcmread(tmp_path / "other" / "CT0001.dcm").SeriesInstanceUID != other.SeriesInstanceUID


def test_a_folder_with_files_is_left_alone(people, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        write_series(people[0], tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["note.txt"]


def test_truth_is_read_back_with_its_names(people, tmp_path):
    person = people[5]
    write_truth(person, tmp_path / "new" / "truth.nii.gz")
    image = nib.load(tmp_path / "new" / "truth.nii.gz")
    names = json.loads((tmp_path / "new" / "truth.json").read_text())
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(image.dataobj), person.reference)
    np.testing.assert_allclose(image.affine, person.volume.affine, atol=1e-3)
    assert {int(number): name for number, name in names.items()} == person.names
    with pytest.raises(InputError, match=r"\.nii"):
        write_truth(person, tmp_path / "truth.nrrd")


@pytest.mark.parametrize(("spacing", "size"), [((0, 1, 1), None), ((4, 4, 4), (0, 10, 10))])
def test_impossible_grids_are_refused(spacing, size):
    with pytest.raises(InputError, match="positive"):
        make_phantom(0, spacing, size)


@pytest.mark.parametrize("size", [(40, 40, 1), (1, 40, 3), (300, 16, 2)])
def test_any_size_of_grid_is_drawn(size):
    person = make_phantom(0, (5.0, 5.0, 5.0), size)
    assert person.volume.data.shape == size
    assert person.labels["body"].any()


def straight(spacing: tuple[float, float, float]) -> Grid:
    still = Waves(np.ones((1, 3)), np.zeros((1, 3)), 0.0)
    shape = tuple(int(80 / s) for s in spacing)
    return Grid(shape, spacing, tuple(-0.5 * (n - 1) * s for n, s in zip(shape, spacing, strict=True)), (1, 1, 1), (still,) * 3)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.5, 1.5, 5.0), (4.0, 1.0, 2.0)])
def test_partial_volume_keeps_the_volume_of_a_ball(spacing):
    field = Field(straight(spacing), (-39, -39, -39), (39, 39, 39))
    for distance in (field.ellipsoid((0.3, -0.7, 0.2), (20, 20, 20)), field.tube([(0.3, -0.7, 0.2), (0.3, -0.7, 0.21)], 20)):
        volume = coverage(distance).sum() * np.prod(spacing)
        assert volume == pytest.approx(4 / 3 * np.pi * 20**3, rel=0.02)


def test_ellipsoid_turns_with_its_long_axis():
    field = Field(straight((1.0, 1.0, 1.0)), (-39, -39, -39), (39, 39, 39))
    i, j, k = np.nonzero(field.ellipsoid((0, 0, 0), (8, 10, 30), (1, 0, 1)) < 0)
    points = np.stack([i, j, k]) - np.array([[i.mean()], [j.mean()], [k.mean()]])
    _, vectors = np.linalg.eigh(np.cov(points))
    np.testing.assert_allclose(np.abs(vectors[:, 2]), [0.707, 0, 0.707], atol=0.02)


def test_smooth_seams_only_add_or_only_remove():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 10, (2, 1000))
    assert (smooth_min(a, b, 5) <= np.minimum(a, b)).all()
    assert (smooth_max(a, b, 5) >= np.maximum(a, b)).all()
    far = np.abs(a - b) > 5
    np.testing.assert_array_equal(smooth_min(a, b, 5)[far], np.minimum(a, b)[far])
