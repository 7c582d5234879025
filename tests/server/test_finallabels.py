"""Final labels: what an accepted run changes in them, and what it leaves."""

import threading
from pathlib import Path

import numpy as np
import pytest

from lib.errors import InputError
from lib.imaging.cache import ImageRef, VolumeCache
from lib.imaging.labelmaps import load_labels
from lib.imaging.load import load_volume
from lib.imaging.masks import write_mask, write_volume
from lib.server.finallabels import FinalLabels, Part
from lib.server.labels import LabelDesk
from lib.server.store import StudiesDatastore
from lib.trajectories.grading import Extent
from lib.trajectories.recorder import Recording
from lib.trajectories.rewards.recipes import recipe_named
from lib.trajectories.selection import Selection
from lib.trajectories.store import TrajectoryStore
from lib.trajectories.trajectory import Source
from tests.trajectories.balls import ball, played, work_on

WHOLE = Extent("axial", frozenset(range(8)))


class Ward:
    """A folder with one image, and the desks that labels go over."""

    def __init__(self, folder: Path):
        volume, self.truth = ball()
        write_volume(folder / "ball.nii.gz", volume)
        self.volume = load_volume(folder / "ball.nii.gz")
        self.datastore = StudiesDatastore(str(folder), ["*.nii.gz", "*.nrrd"], auto_reload=False, read_only=False)
        self.store = TrajectoryStore(folder / "trajectories")
        self.recording = Recording(self.store)
        self.work = work_on(self.volume, self.truth)
        image = ImageRef(folder / "ball.nii.gz")
        volumes = VolumeCache(2**28)
        recipe = recipe_named()
        arguments = (folder / "grading", self.recording, self.work.engine, volumes, recipe, lambda _: image)
        self.desk, self.next_desk = LabelDesk(*arguments), LabelDesk(*arguments)
        self.finals = FinalLabels(lambda: self.datastore, self.desk)

    def label(self) -> dict[str, np.ndarray]:
        """The final label by name."""
        path, info = self.finals.find("ball")
        labels = load_labels(path, self.volume)
        return {entry["name"]: labels == entry["idx"] for entry in info["label_info"]}

    def accept(self, name, mask, extent=WHOLE, user="anna"):
        return self.finals.accept("ball", self.volume, [Part(name, mask, extent)], user)


@pytest.fixture
def ward(tmp_path):
    ward = Ward(tmp_path)
    yield ward
    ward.recording.close()
    ward.store.close()


def test_a_part_of_a_run_replaces_its_slices_and_no_more(ward):
    ward.accept("ball", ward.truth)
    other = np.zeros_like(ward.truth)
    other[2:5, 2:5, :] = True
    ward.accept("rod", other)
    moved = np.roll(ward.truth, 3, axis=0)
    ward.accept("ball", moved, Extent("axial", frozenset({4})))
    found = ward.label()
    assert list(found) == ["ball", "rod"]
    np.testing.assert_array_equal(found["ball"][:, :, 4], moved[:, :, 4])
    np.testing.assert_array_equal(np.delete(found["ball"], 4, axis=2), np.delete(ward.truth, 4, axis=2))
    np.testing.assert_array_equal(found["rod"], other & ~found["ball"])


def test_an_accepted_part_grades_its_own_slices_and_targets(ward):
    ward.desk.start()
    ward.recording.record(ward.work, played(ward.work).outcomes)
    ward.accept("rod", ~ward.truth, user="ben")
    ward.accept("ball", ward.truth, Extent("axial", frozenset({3, 4})))
    assert ward.desk.wait(30)
    graded = {t.origin.index for t in ward.store.select(Selection(graded=True))}
    assert graded == {3, 4}
    assert [report.annotator for report in ward.desk.reports("ball")] == ["ben", "anna"]
    assert any("does not speak for" in note for note in ward.desk.reports("ball")[-1].notes)
    ward.desk.close()


def test_two_who_accept_at_once_both_find_their_structure(ward):
    names = [f"part {number}" for number in range(6)]
    masks = [np.zeros_like(ward.truth) for _ in names]
    for number, mask in enumerate(masks):
        mask[4 * number : 4 * number + 3, :, :] = True
    threads = [threading.Thread(target=ward.accept, args=pair) for pair in zip(names, masks, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = ward.label()
    assert set(found) == set(names)
    for name, mask in zip(names, masks, strict=True):
        np.testing.assert_array_equal(found[name], mask)


def test_a_file_that_is_no_label_of_the_image_leaves_the_earlier_one(ward, tmp_path):
    ward.accept("ball", ward.truth)
    (tmp_path / "bad.nii.gz").write_bytes(b"no label")
    small = load_volume(tmp_path / "ball.nii.gz")
    write_mask(tmp_path / "odd.nii.gz", 3 * ward.truth.astype(np.uint8), small)
    for name, reason in (("bad.nii.gz", "."), ("odd.nii.gz", "value 3 of the label has no name")):
        with pytest.raises(InputError, match=reason):
            ward.finals.store("ball", ward.volume, tmp_path / name, {1: "ball"}, "anna")
    np.testing.assert_array_equal(ward.label()["ball"], ward.truth)


def test_a_label_is_told_once(ward, tmp_path):
    write_mask(tmp_path / "label.nii.gz", ward.truth.astype(np.uint8), ward.volume)
    info = {"label_info": [{"name": "ball", "idx": 1}], "client_id": "anna"}
    ward.datastore.save_label("ball", str(tmp_path / "label.nii.gz"), "final", info)
    ward.finals.saved("ball")
    ward.finals.saved("ball")
    ward.datastore.save_label("ball", str(tmp_path / "label.nii.gz"), "original", info)
    ward.finals.saved("ball")
    assert ward.desk.waiting("ball") == 1


def test_what_a_killed_server_left_is_graded_after_the_next_start(ward):
    ward.recording.record(ward.work, played(ward.work).outcomes)
    ward.accept("ball", ward.truth)
    assert ward.desk.waiting("ball") == 1
    ward.desk.start()
    assert ward.desk.wait(30)
    assert ward.store.count(Selection(graded=True)) == 8
    ward.desk.close()


def test_a_server_that_is_stopped_in_the_middle_of_grading_grades_each_episode_once(ward):
    ward.recording.record(ward.work, played(ward.work).outcomes)
    ward.accept("ball", np.roll(ward.truth, 5, axis=0))
    ward.desk.start()
    while not ward.store.count(Selection(graded=True)):
        pass
    ward.desk.close()
    ward.next_desk.start()
    assert ward.next_desk.wait(30)
    ward.next_desk.close()
    gradings = ward.store.gradings(Selection(source=Source.RUN))
    assert [len(found) for found in gradings.values()] == [1] * 8
