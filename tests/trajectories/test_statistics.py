"""Statistics and quality: numbers that can be worked out by hand."""

import numpy as np
import pytest

from lib.agent.limits import StopReason
from lib.imaging import rle
from lib.trajectories.grade import Dropped
from lib.trajectories.plots import write_plot
from lib.trajectories.quality import state, volumes, weekly
from lib.trajectories.rewards import grade, recipe_named
from lib.trajectories.selection import Selection
from lib.trajectories.statistics import belongings, learning_curve, statistics
from lib.trajectories.store import Label, TrajectoryStore
from lib.trajectories.trajectory import Source
from tests.trajectories.episodes import STOP, at, rect, said
from tests.trajectories.templates import record

HALF, WHOLE, NONE = rect(5, 15, 5, 10), rect(5, 15, 5, 15), np.zeros((20, 40), bool)
IDLE_S = 300.0
DAY = "2026-11-22T"


@pytest.fixture
def store(tmp_path):
    opened = TrajectoryStore(tmp_path / "store")
    yield opened
    opened.close()


@pytest.fixture
def clock(monkeypatch):
    """Sets the time of what is recorded from now on."""

    def at_time(text: str) -> None:
        monkeypatch.setattr("lib.trajectories.store.now", lambda: f"{DAY}{text}.000+00:00")

    at_time("10:00:00")
    return at_time


def graded(store, trajectories, reference, annotator="carla", label: Label | None = None) -> Label:
    """A label that arrives now, and the gradings of the trajectories by it."""
    label = label or store.add_label(trajectories[0].origin.image, trajectories[0].label, annotator, "api")
    recipe = recipe_named("corrected")
    for one in trajectories:
        store.add_grading(one.key, label, rle.encode(reference), recipe.name, grade(one.outcome, reference, recipe))
    return label


def drawn(mask, *more):
    return [(said(at(8, 8)), mask), *more, (STOP, None)]


def test_a_volume_has_the_dice_of_the_slices_on_which_something_is(store, clock):
    made = [
        record(store, "a", index=0, played=drawn(HALF), created=f"{DAY}09:00:00.000+00:00"),
        record(store, "a", index=1, played=drawn(WHOLE), created=f"{DAY}09:00:01.000+00:00"),
    ]
    empty = record(store, "a", index=2, played=[(STOP, None)], created=f"{DAY}09:00:02.000+00:00")
    label = graded(store, made, WHOLE)
    graded(store, [empty], NONE, label=label)
    (volume,) = volumes(store, IDLE_S)
    assert volume.slices == 2
    assert volume.dice == pytest.approx((2 * 50 / 150 + 1) / 2)
    assert (volume.turns, volume.clicks, volume.week) == (5, 0, "2026-W47")
    gradings = [one.grade.total for found in store.gradings(Selection()).values() for one in found]
    assert volume.reward == pytest.approx(np.mean(gradings))


def test_the_agents_own_end_counts_where_an_annotator_went_on(store, clock):
    played = [(said(at(8, 8)), HALF), (STOP, None), (at(12, 8), WHOLE), (at(13, 8), WHOLE)]
    made = record(store, "a", played=played, stop=StopReason.ANNOTATED, undone=(4,))
    graded(store, [made], WHOLE)
    (volume,) = volumes(store, IDLE_S)
    assert volume.dice == pytest.approx(2 * 50 / 150)
    assert (volume.turns, volume.clicks) == (2, 2)


def test_what_a_person_drew_alone_is_no_quality_of_the_agent(store, clock):
    made = record(store, "a", played=[(at(12, 8), WHOLE)], stop=StopReason.ANNOTATED)
    graded(store, [made], WHOLE)
    (volume,) = volumes(store, IDLE_S)
    assert (volume.dice, volume.slices, volume.clicks) == (None, 0, 1)
    assert weekly([volume])[0].dice is None


def test_a_label_that_is_sent_again_replaces_the_one_before(store, clock):
    made = [record(store, "a", played=drawn(HALF))]
    graded(store, made, WHOLE)
    clock("10:10:00")
    graded(store, made, HALF)
    graded(store, made, WHOLE, annotator="dora")
    found = {one.annotator: one.dice for one in volumes(store, IDLE_S)}
    assert found == {"carla": pytest.approx(1.0), "dora": pytest.approx(2 * 50 / 150)}


def test_simulations_and_corrections_are_no_quality(store, clock):
    for source in (Source.SIMULATION, Source.CORRECTION):
        graded(store, [record(store, source.value, source=source)], WHOLE)
    assert volumes(store, IDLE_S) == []


def test_an_annotators_time_runs_from_the_first_run_to_the_label_and_long_pauses_are_cut(store, clock):
    times = ("10:00:00", "10:00:30", "10:02:00", "11:00:00")
    made = [record(store, "a", index=n, played=drawn(WHOLE), created=f"{DAY}{time}.000+00:00") for n, time in enumerate(times)]
    clock("11:01:00")
    graded(store, made, WHOLE)
    (volume,) = volumes(store, IDLE_S)
    assert volume.seconds == 30 + 90 + IDLE_S + 60
    clock("11:01:40")
    graded(store, made, HALF)
    (again,) = volumes(store, IDLE_S)
    assert again.seconds == 40


def test_weeks_keep_the_weights_apart(store, clock):
    for image, weights, mask in (("a", "old", HALF), ("b", "new", WHOLE), ("c", "new", HALF)):
        graded(store, [record(store, image, weights=weights, played=drawn(mask))], WHOLE)
    rows = {(one.week, one.volumes): one.dice for one in weekly(volumes(store, IDLE_S))}
    third = 2 * 50 / 150
    assert rows == {("2026-W47", 1): pytest.approx(third), ("2026-W47", 2): pytest.approx((1 + third) / 2)}


def test_the_state_differs_when_the_quality_may(store, clock):
    before = state(store)
    made = record(store, "a")
    assert state(store) == before
    graded(store, [made], WHOLE)
    assert state(store) != before


def test_counts_histograms_and_curve(store, clock):
    first = record(store, "a", played=drawn(HALF, (said(at(12, 8)), WHOLE)))
    second = record(store, "b", played=drawn(WHOLE), source=Source.SIMULATION)
    third = record(store, "b", "other", played=[("nonsense", None)], stop=StopReason.PROTOCOL_ERROR)
    graded(store, [first, second], WHOLE)
    label = store.add_label(third.origin.image, "liver", "carla", "api")
    store.add_grading(third.key, label, rle.encode(WHOLE), "corrected", Dropped("failed"))
    found = statistics(store, Selection())
    assert (found.trajectories, found.images, found.patients, found.runs, found.labels) == (3, 2, 2, 3, 2)
    assert found.steps == {"agent": 6}
    assert found.by["source"] == {"run": 2, "simulation": 1}
    assert found.by["stop"] == {"terminated": 2, "protocol_error": 1}
    assert found.dice.tolist() == [1.0, 1.0]
    rewards = found.rewards["corrected"]
    assert (rewards.gradings, rewards.dropped, len(rewards.totals)) == (3, {"failed": 1}, 2)
    assert rewards.parts["format"] == 1.0
    assert [point.iou for point in found.curve] == pytest.approx([0, 0.75, 1, 1])
    assert statistics(store, Selection(source=Source.SIMULATION)).trajectories == 1


def test_an_episode_that_has_ended_stays_in_the_curve_as_it_was():
    curve = learning_curve([[0.0, 0.4], [0.2, 0.6, 0.8], []])
    assert [point.iou for point in curve] == pytest.approx([0.1, 0.5, 0.6])
    assert [point.turn for point in curve] == [0, 1, 2]
    assert learning_curve([]) == []


def test_an_empty_store_has_numbers_and_plots_too(store, tmp_path):
    found = statistics(store, Selection())
    assert (found.trajectories, found.curve, found.dice.size) == (0, [], 0)
    write_plot(tmp_path / "plots" / "empty.png", found, [])
    assert (tmp_path / "plots" / "empty.png").read_bytes().startswith(b"\x89PNG")


def test_belongings_of_an_image_and_a_patient(store):
    made = record(store, "a")
    record(store, "a", index=1)
    record(store, "b")
    assert belongings(store, image=made.origin.image) == (1, 2)
    assert belongings(store, patient=made.origin.patient) == (1, 2)
    assert belongings(store, patient="0" * 32) == (0, 0)


def test_every_database_counts_the_same(tmp_path, database):
    store = TrajectoryStore(tmp_path / "other", database)
    made = record(store, "a", played=[(said(at(8, 8)), HALF), (at(12, 8), WHOLE)], stop=StopReason.ANNOTATED)
    graded(store, [made], WHOLE)
    found = statistics(store, Selection(label="liver", graded=True))
    assert (found.trajectories, found.steps, found.labels) == (1, {"agent": 1, "annotator": 1}, 1)
    (volume,) = volumes(store, IDLE_S)
    assert (volume.dice, volume.clicks) == (pytest.approx(2 * 50 / 150), 1)
    assert state(store)[:2] == (1, 1)
    assert belongings(store, image=made.origin.image) == (1, 1)
    store.close()
