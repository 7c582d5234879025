"""A DICOM image is recorded without saying whose it is, and is forgotten wholly."""

from dataclasses import replace

import pytest
from pydicom import dcmread

from lib.agent.engine import Engine
from lib.agent.run import RunRequest, run
from lib.imaging.load import load_volume
from lib.imaging.phantom import make_phantom, write_series
from lib.segmenters.graphcut import GraphCut
from lib.trajectories.privacy import patient_of, read_salt
from lib.trajectories.recorder import Recording, RunRecorder, Work
from lib.trajectories.selection import Selection
from lib.trajectories.store import TrajectoryStore
from tests.engines.expert import Expert

PATIENT = "ID-4711-SECRET"


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """Two series of one patient and one of another."""
    root = tmp_path_factory.mktemp("series")
    phantom = make_phantom(3, spacing=(6.0, 6.0, 20.0))
    for number, patient in enumerate((PATIENT, PATIENT, "SOMEONE-ELSE")):
        write_series(phantom, root / str(number))
        for path in (root / str(number)).iterdir():
            header = dcmread(path)
            header.PatientID, header.PatientName, header.BurnedInAnnotation = patient, "DOE^JANE", "YES"
            header.save_as(path)
    return root


@pytest.fixture
def recorded(series, tmp_path):
    """A store with a run on each of them, and the UIDs."""
    store = TrajectoryStore(tmp_path / "store")
    recording = Recording(store)
    uids = []
    for number in range(3):
        volume = load_volume(series / str(number))
        header = dcmread(next((series / str(number)).iterdir()))
        uids += [header.SeriesInstanceUID, header.StudyInstanceUID, header.SOPInstanceUID]
        engine = Engine("expert", Expert(volume.data > 20, enough=0.5), GraphCut(), 4)
        request = RunRequest("body", slices="3-5", max_turns=3)
        work = Work(f"run{number}", 1, "body", "anna", f"series {number}", request, volume, engine)
        run(request, volume, engine, observers=[RunRecorder(recording, work)])
    recording.close()
    yield store, uids
    store.close()


def test_no_identifier_of_the_patient_is_kept(recorded, tmp_path):
    _, uids = recorded
    content = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
    for secret in (PATIENT, "DOE", *map(str, uids), "series 0"):
        assert secret.encode() not in content


def test_images_of_one_patient_are_one_patient(recorded):
    store, _ = recorded
    origins = {t.origin.image: t.origin for t in store.select(Selection())}
    assert len(origins) == 3
    assert len({origin.patient for origin in origins.values()}) == 2
    assert store.hashed("patient", PATIENT) in {origin.patient for origin in origins.values()}
    assert {origin.burned_in for origin in origins.values()} == {"YES"}


def test_forgetting_a_patient_removes_every_image_of_hers_and_no_other(recorded):
    store, _ = recorded
    gone = store.forget(patient=store.hashed("patient", PATIENT))
    assert gone.images == 2
    assert {t.run for t in store.select(Selection(newest=False))} == {"run2"}
    assert store.blobs.digests() == store.named()
    assert store.forget(patient=store.hashed("patient", "nobody")).trajectories == 0


def test_the_issuer_tells_two_patients_with_one_id_apart(series, tmp_path):
    volume = load_volume(series / "0")
    path = tmp_path / "a.dcm"
    header = dcmread(volume.instances[0].path)
    header.IssuerOfPatientID = "HOSPITAL B"
    header.save_as(path)
    other = replace(volume, instances=(replace(volume.instances[0], path=path),))
    assert patient_of(volume)[0] == PATIENT
    assert patient_of(other)[0] not in ("", PATIENT)


def test_a_volume_that_is_no_dicom_has_no_patient(series):
    assert patient_of(replace(load_volume(series / "0"), instances=())) == ("", "")


def test_stores_make_different_hashes_and_one_store_always_the_same(tmp_path):
    assert read_salt(tmp_path / "a") == read_salt(tmp_path / "a") != read_salt(tmp_path / "b")
