"""Expected gain: each kind of evidence moves an image the way it should, and what is remembered is what a fresh look finds."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib.agent.limits import StopReason
from lib.trajectories.gain import Evidence, Gain, GainConfig, Weights, gain_config
from lib.trajectories.store import TrajectoryStore
from lib.trajectories.trajectory import Source
from tests.trajectories.balls import recorded
from tests.trajectories.episodes import STOP, at, rect, said
from tests.trajectories.templates import record

NOTHING = Weights(doubt=0, disagreement=0, errors=0, length=0, diversity=0)


@pytest.fixture
def store(tmp_path):
    opened = TrajectoryStore(tmp_path / "store")
    yield opened
    opened.close()


def config(**weights: float) -> GainConfig:
    return gain_config().model_copy(update={"weights": NOTHING.model_copy(update=weights)})


def order(store, images=("a", "b"), done=(), **weights) -> list[str]:
    """The names of the images, best first, where only these kinds of evidence count."""
    gain = Gain(store, config(**weights) if weights else None)
    names = {gain.key(image): image for image in images}
    return [names[one.image] for one in gain.rank(names, [gain.key(image) for image in done])]


def only(store, image="a", **more):
    """What is known of the image."""
    gain = Gain(store)
    (candidate,) = gain.rank([gain.key(image)], **more)
    return candidate.evidence


def test_of_confident_and_doubtful_runs_the_doubtful_is_next(store):
    record(store, "a", confidence=0.9)
    record(store, "b", confidence=0.4)
    assert order(store, doubt=1) == ["b", "a"]
    assert only(store, "b").doubt == pytest.approx(0.6)


def test_only_the_newest_run_of_each_target_counts(store):
    record(store, "a", "old", confidence=0.1, created="2026-11-01T10:00:00.000+00:00")
    record(store, "a", "new", confidence=0.9, created="2026-11-02T10:00:00.000+00:00")
    assert only(store).doubt == pytest.approx(0.1)
    record(store, "a", "other", confidence=0.5, label="spleen", created="2026-11-01T09:00:00.000+00:00")
    assert only(store).doubt == pytest.approx(0.3)
    assert only(store).runs == 2


def test_an_episode_that_went_on_counts_as_it_is_now(store):
    record(store, "a", "run", confidence=0.1)
    record(store, "a", "run", confidence=0.8, created="2026-11-22T11:00:00.000+00:00")
    assert only(store).doubt == pytest.approx(0.2)


@pytest.mark.parametrize("stop", [StopReason.PROTOCOL_ERROR, StopReason.REPEATED_ACTION, StopReason.NO_PROGRESS])
def test_episodes_that_broke_off_are_errors(store, stop):
    record(store, "a", stop=stop)
    record(store, "a", index=1)
    record(store, "b")
    assert order(store, errors=1) == ["a", "b"]
    assert only(store).errors == pytest.approx(0.5)


@pytest.mark.parametrize("stop", [StopReason.FAILED, StopReason.DEADLINE, StopReason.CANCELLED])
def test_what_was_cut_short_tells_nothing(store, stop):
    record(store, "a", stop=stop, confidence=0.1)
    assert only(store) is None


def test_long_episodes_before_short_ones(store):
    record(store, "a", played=[(STOP, None)])
    mask = rect(5, 15, 5, 15)
    record(store, "b", played=[(said(at(8, 8)), mask), (said(at(9, 9)), mask), (said(at(7, 7)), mask), (STOP, None)])
    assert order(store, length=1) == ["b", "a"]
    assert only(store, "b").length == pytest.approx(4 / 8)


def test_disagreement_is_one_minus_the_mean_pairwise_iou_of_the_runs_on_a_slice(store):
    masks = [rect(0, 10, 0, 10), rect(0, 10, 5, 15), rect(0, 10, 0, 10)]
    for number, mask in enumerate(masks):
        record(store, "a", f"run{number}", played=[(said(at(5, 5)), mask), (STOP, None)])
        record(store, "b", f"run b{number}", played=[(said(at(5, 5)), masks[0]), (STOP, None)])
    ious = [5 / 15, 1.0, 5 / 15]
    assert only(store).disagreement == pytest.approx(1 - np.mean(ious))
    assert only(store, "b").disagreement == 0
    assert order(store, disagreement=1) == ["a", "b"]


def test_two_runs_that_find_nothing_agree_and_one_that_does_disagrees(store):
    for number in range(2):
        record(store, "a", f"run{number}", played=[(STOP, None)])
    assert only(store).disagreement == 0
    record(store, "a", "run2", played=[(said(at(5, 5)), rect(0, 10, 0, 10)), (STOP, None)])
    assert only(store).disagreement == pytest.approx(2 / 3)


def test_other_slices_targets_and_what_a_person_drew_are_no_disagreement(store):
    left, right = ([(said(at(5, 5)), rect(0, 10, side, side + 10)), (STOP, None)] for side in (0, 20))
    record(store, "a", "one", played=left)
    record(store, "a", "two", played=right, index=1)
    record(store, "a", "three", played=right, label="spleen")
    record(store, "a", "four", played=[(at(25, 5), rect(0, 10, 20, 30))], stop=StopReason.ANNOTATED)
    assert only(store).disagreement == 0


def test_an_image_like_the_labelled_ones_comes_after_one_unlike_them(store):
    dark = np.zeros((20, 40, 3), np.uint8)
    record(store, "done", picture=dark)
    record(store, "a", picture=dark)
    record(store, "b", picture=255 - dark)
    record(store, "c", picture=dark, modality="MR")
    assert order(store, ("a", "b", "c"), done=["done"], diversity=1) == ["b", "c", "a"]
    assert only(store, "a").diversity == 1.0
    gain = Gain(store)
    (like,) = gain.rank([gain.key("a")], [gain.key("done")])
    assert like.evidence.diversity == pytest.approx(0)


def test_an_image_without_a_run_is_worth_the_configured_guess(store):
    record(store, "a", confidence=0.99)
    record(store, "c", stop=StopReason.PROTOCOL_ERROR, confidence=0.01)
    gain = Gain(store)
    ranked = gain.rank([gain.key(name) for name in "abc"], [gain.key("a")])
    assert [one.image for one in ranked] == [gain.key(name) for name in "cba"]
    assert ranked[1].evidence is None
    assert ranked[1].gain == gain_config().unseen


def test_of_equals_the_one_without_a_label_is_next(store):
    for image in "ab":
        record(store, image)
    gain = Gain(store)
    first, second = (one.image for one in gain.rank([gain.key("a"), gain.key("b")]))
    store.add_label(first, "liver", "anna", "api")
    assert [one.image for one in gain.rank([first, second])] == [second, first]
    assert gain.labels() == {first: 1}


def test_simulations_and_corrections_tell_nothing_about_the_agent(store):
    record(store, "a", source=Source.SIMULATION, confidence=0.1)
    record(store, "a", "other", source=Source.CORRECTION, confidence=0.1)
    assert only(store) is None


def test_who_runs_the_agent_on_an_image_is_busy_with_it(store):
    record(store, "a", user="anna", created="2026-11-22T10:00:00.000+00:00")
    record(store, "b", user="ben", created="2026-11-22T08:00:00.000+00:00")
    gain = Gain(store)
    assert gain.busy("2026-11-22T09:00:00.000+00:00") == [(gain.key("a"), "anna", "2026-11-22T10:00:00.000+00:00")]


def test_what_was_forgotten_is_no_evidence_any_more(store):
    record(store, "a", confidence=0.1)
    record(store, "b", confidence=0.2)
    gain = Gain(store)
    keys = [gain.key("a"), gain.key("b")]
    assert all(one.evidence for one in gain.rank(keys))
    store.forget(image=keys[0])
    assert {one.image: one.evidence is None for one in gain.rank(keys)} == {keys[0]: True, keys[1]: False}


events = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.integers(0, 59), st.sampled_from([0.1, 0.5, 0.9]), st.booleans()),
    min_size=1,
    max_size=12,
)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=events)
def test_remembering_is_looking_again(tmp_path_factory, events):
    """Whatever is recorded in whatever order, even with an older time than what was seen: the ranking is a fresh one's."""
    store = TrajectoryStore(tmp_path_factory.mktemp("store"))
    lasting = Gain(store)
    keys = [lasting.key(image) for image in "abc"]
    for image, run, minute, confidence, look in events:
        created = f"2026-11-22T10:{minute // 6:02d}:{minute % 6:02d}.000+00:00"
        record(store, image, f"{image}{run}", confidence=confidence, created=created)
        if look:
            assert lasting.rank(keys) == Gain(store).rank(keys)
    assert lasting.rank(keys) == Gain(store).rank(keys)
    store.close()


def test_every_database_tells_the_same(tmp_path, database):
    store = TrajectoryStore(tmp_path / "store", database)
    for number, side in enumerate((0, 5)):
        record(store, "a", f"run{number}", played=[(said(at(5, 5)), rect(0, 10, side, side + 10)), (STOP, None)])
    record(store, "b", stop=StopReason.NO_PROGRESS, confidence=None)
    store.add_label(store.hashed("image", "b"), "liver", "anna", "api")
    gain = Gain(store)
    first, second = gain.rank([gain.key("a"), gain.key("b")], [gain.key("b")])
    assert first.evidence == Evidence(1, pytest.approx(0.3), 0, 0.25, pytest.approx(2 / 3), pytest.approx(0))
    assert (second.evidence, second.labels) == (Evidence(1, 0, 1, 0.25, 0, pytest.approx(0)), 1)
    assert {image: user for image, user, _ in gain.busy("2026")} == {gain.key("a"): "anna", gain.key("b"): "anna"}
    store.close()


def test_a_real_run_gives_evidence(store):
    recorded(store)
    evidence = only(store, "ball")
    assert evidence.runs == 1
    assert 0 < evidence.length < 1
    assert evidence.errors == 0
