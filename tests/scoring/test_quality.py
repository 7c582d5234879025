"""The scoring method: what the labels tell about the agent stands where MONAI Label shows it."""

import nibabel
import numpy as np
import pytest

from lib.imaging import rle
from lib.scoring.quality import METHOD, QualityScoring
from lib.server.store import StudiesDatastore
from lib.trajectories.rewards import grade, recipe_named
from lib.trajectories.store import TrajectoryStore
from tests.trajectories.episodes import STOP, at, rect, said
from tests.trajectories.templates import record

WHOLE, HALF = rect(5, 15, 5, 15), rect(5, 15, 5, 10)


@pytest.fixture
def datastore(tmp_path):
    folder = tmp_path / "studies"
    folder.mkdir()
    for name in ("a", "b"):
        nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), folder / f"{name}.nii.gz")
    return StudiesDatastore(str(folder), ["*.nii.gz"], auto_reload=False, read_only=False)


@pytest.fixture
def store(tmp_path):
    opened = TrajectoryStore(tmp_path / "trajectories")
    yield opened
    opened.close()


def graded(store, image: str, drawn: np.ndarray) -> None:
    made = record(store, image, played=[(said(at(8, 8)), drawn), (STOP, None)])
    label = store.add_label(made.origin.image, "liver", "carla", "api")
    recipe = recipe_named("corrected")
    store.add_grading(made.key, label, rle.encode(WHOLE), recipe.name, grade(made.outcome, WHOLE, recipe))


def test_quality_stands_with_the_image_and_in_info(datastore, store):
    scoring = QualityScoring(store)
    assert scoring({}, datastore) == {"weeks": [], "images": 0}
    graded(store, "a", HALF)
    (week,) = scoring({}, datastore)["weeks"]
    assert week["dice"] == pytest.approx(2 * 50 / 150, abs=1e-4)
    assert (week["volumes"], week["clicks"], week["turns"]) == (1, 0, 2)
    assert scoring.info()["weeks"] == [week]
    assert datastore.get_image_info("a")[METHOD]["dice"] == week["dice"]
    assert METHOD not in datastore.get_image_info("b")


def test_only_what_changed_is_written_again(datastore, store, monkeypatch):
    scoring = QualityScoring(store)
    graded(store, "a", HALF)
    scoring({}, datastore)
    written: list[str] = []
    update = datastore.update_image_info
    monkeypatch.setattr(datastore, "update_image_info", lambda image, info: (written.append(image), update(image, info)))
    scoring({}, datastore)
    assert written == []
    graded(store, "b", WHOLE)
    scoring({}, datastore)
    assert written == ["b"]
    QualityScoring(store)({}, datastore)  # the next process finds it written
    assert written == ["b"]


def test_an_image_that_left_the_datastore_is_passed_over(datastore, store):
    graded(store, "gone", WHOLE)
    assert QualityScoring(store)({}, datastore)["images"] == 1
