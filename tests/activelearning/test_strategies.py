"""The strategies, on the datastores that the server has."""

from collections import Counter
from datetime import UTC, datetime

import nibabel
import numpy as np
import pytest
from monailabel.datastore.dicom import DICOMWebDatastore

from lib.activelearning.strategies import strategies
from lib.server.store import StudiesDatastore
from lib.trajectories.gain import gain_config
from lib.trajectories.store import TrajectoryStore
from tests.trajectories.templates import record

NAMES = [f"case{n}" for n in range(4)]


def write(path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), path)


@pytest.fixture
def datastore(tmp_path):
    folder = tmp_path / "studies"
    folder.mkdir()
    for name in NAMES:
        write(folder / f"{name}.nii.gz")
    return StudiesDatastore(str(folder), ["*.nii.gz"], auto_reload=False, read_only=False)


@pytest.fixture
def store(tmp_path):
    opened = TrajectoryStore(tmp_path / "trajectories")
    yield opened
    opened.close()


def label(datastore, tmp_path, name: str) -> None:
    write(tmp_path / "label.nii.gz")
    datastore.save_label(name, str(tmp_path / "label.nii.gz"), "final", {})


def ask(strategy, datastore, user="anna", **request):
    return strategy({"strategy": "any", "client_id": user, **request}, datastore)


def test_next_sample_of_ohif_is_the_expected_gain_where_there_is_a_store(store):
    found = strategies(store)
    assert list(found) == ["ibis_gain", "random", "random_uniform", "first"]
    assert found["random"] is found["ibis_gain"]
    assert list(strategies(None)) == ["random", "random_uniform", "first"]


def test_the_image_with_the_most_doubtful_run_is_next_and_it_is_told_why(datastore, store):
    for number, name in enumerate(NAMES):
        record(store, name, confidence=0.9 - 0.2 * (number == 2))
    answer = ask(strategies(store)["ibis_gain"], datastore)
    assert answer["id"] == "case2"
    assert answer["evidence"]["doubt"] == pytest.approx(0.3)
    assert answer["labelled"] is False
    assert 0 < answer["weight"] < 1


@pytest.mark.parametrize("name", ["ibis_gain", "random_uniform", "first"])
def test_labelled_images_are_left_out_until_all_are(name, datastore, store, tmp_path):
    for image in NAMES:
        record(store, image)
    for image in NAMES[:3]:
        label(datastore, tmp_path, image)
    config = gain_config().model_copy(update={"lease_minutes": 0, "skip_minutes": 0})
    strategy = strategies(store, config)[name]
    assert {ask(strategy, datastore)["id"] for _ in range(8)} == {NAMES[3]}
    label(datastore, tmp_path, NAMES[3])
    answer = ask(strategy, datastore)
    assert answer["id"] in NAMES
    assert answer["labelled"] is True


def test_a_label_that_came_through_the_runs_route_or_the_pacs_counts(datastore, store):
    key = record(store, "case0").origin.image
    store.add_label(key, "liver", "anna", "pacs")
    assert ask(strategies(store)["first"], datastore)["id"] == "case1"


def test_annotators_share_the_work_whatever_strategy_they_ask_for(datastore, store):
    found = strategies(store)
    asked = ["first", "ibis_gain", "random_uniform", "random"]
    assert sorted(ask(found[name], datastore, user=name)["id"] for name in asked) == NAMES


def test_an_image_that_someone_runs_the_agent_on_is_theirs(datastore, store):
    record(store, "case0", user="ben", created=datetime.now(UTC).isoformat(timespec="milliseconds"))
    assert ask(strategies(store)["first"], datastore, user="anna")["id"] == "case1"


def test_chance_is_even(datastore):
    config = gain_config().model_copy(update={"lease_minutes": 0, "skip_minutes": 0})
    strategy = strategies(None, config)["random"]
    counts = Counter(ask(strategy, datastore)["id"] for _ in range(400))
    assert set(counts) == set(NAMES)
    assert min(counts.values()) > 60


def test_an_empty_datastore_has_no_next_image(tmp_path, store):
    (tmp_path / "empty").mkdir()
    nothing = StudiesDatastore(str(tmp_path / "empty"), ["*.nii.gz"], auto_reload=False, read_only=False)
    assert ask(strategies(store)["ibis_gain"], nothing) is None


class Pacs:
    """What the DICOMweb datastore asks a PACS for: two series, one with a SEG."""

    base_url = "http://127.0.0.1:1/dicom-web"

    def search_for_series(self, search_filters):
        if search_filters.get("Modality") == "SEG":
            return [{"0020000D": {"vr": "UI", "Value": ["1.9"]}, "0020000E": {"vr": "UI", "Value": ["1.9.9"]}}]
        return [{"0020000E": {"vr": "UI", "Value": [uid]}} for uid in ("1.2", "1.3")]

    def retrieve_series_metadata(self, study, series):
        referenced = [{"0020000E": {"vr": "UI", "Value": ["1.3"]}}]
        return [{"00081115": {"vr": "SQ", "Value": referenced}}]


def test_series_of_a_pacs_are_given_out_too(tmp_path, store):
    datastore = DICOMWebDatastore(Pacs(), {"Modality": "CT"}, cache_path=str(tmp_path / "cache"))
    record(store, "1.3", confidence=0.1)
    assert ask(strategies(store)["ibis_gain"], datastore)["id"] == "1.2"
