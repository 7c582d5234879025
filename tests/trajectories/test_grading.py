"""A final label arrives: what was recorded is graded against it, and corrected."""

from dataclasses import replace

import numpy as np
import pytest

from lib.agent.episode import Actor
from lib.agent.limits import StopReason
from lib.agent.protocol import Terminate
from lib.imaging import rle
from lib.imaging.planes import Plane, ViewGrid
from lib.imaging.views import View
from lib.trajectories.grade import Dropped
from lib.trajectories.grading import Extent, FinalLabel, counting, grade_label
from lib.trajectories.recorder import build_trajectory
from lib.trajectories.replay import replay
from lib.trajectories.rewards.recipes import recipe_named
from lib.trajectories.selection import Selection
from lib.trajectories.trajectory import Source
from tests.trajectories.balls import ball, played, recorded, work_on

RECIPE = recipe_named("corrected")


def final(annotator="carla", names=None, labels=None, image="ball", **about):
    volume, truth = ball()
    labels = truth.astype(np.uint8) if labels is None else labels
    return FinalLabel(image, volume, labels, names or {1: "ball"}, annotator, "api", **about)


def test_every_open_episode_of_image_and_target_is_graded(store):
    recorded(store, "mine")
    recorded(store, "other", image="elsewhere")
    recorded(store, "another", prompt="cube")
    report = grade_label(final(), store, RECIPE)
    assert (report.targets, report.graded, report.unmatched_targets, report.unused_names) == (("ball",), 8, ("cube",), ())
    gradings = store.gradings(Selection())
    graded = {t.key: t for t in store.select(Selection(run="mine"))}
    assert gradings.keys() == graded.keys()
    _, truth = ball()
    for key, (grading,) in gradings.items():
        outcome = graded[key].outcome
        grid = ViewGrid(ball()[0], Plane.AXIAL)
        right = grid.enlarge(grid.cut(truth, outcome.index), 0)
        drawn = rle.decode(outcome.mask)
        union = (right | drawn).sum()
        assert grading.grade.iou == pytest.approx((right & drawn).sum() / union if union else 1.0)
        assert (rle.decode(store.blobs.mask(grading.reference)) == right).all()
        assert [step.turn for step in grading.grade.steps] == [step.turn for step in outcome.steps]


def test_two_annotators_are_two_gradings_and_the_newest_of_each_counts(store):
    recorded(store)
    shifted = np.roll(ball()[1], 4, axis=0).astype(np.uint8)
    for label in (final("carla"), final("dora", labels=shifted), final("carla", labels=shifted)):
        assert grade_label(label, store, RECIPE).graded == 8
    found = next(t for t in store.select(Selection()) if t.outcome.found)
    gradings = store.gradings(Selection(keys=(found.key,)))[found.key]
    assert [one.label.annotator for one in gradings] == ["carla", "dora", "carla"]
    assert gradings[0].grade.iou > gradings[1].grade.iou == gradings[2].grade.iou
    assert [one.key for one in counting(gradings, "corrected")] == [gradings[1].key, gradings[2].key]
    assert [one.key for one in counting(gradings[:2], "corrected")] == [gradings[0].key, gradings[1].key]
    assert counting(gradings, "released") == []


def test_a_label_of_another_name_grades_nothing_unless_someone_says_what_it_means(store):
    recorded(store)
    report = grade_label(final(names={1: "Segment_1"}), store, RECIPE)
    assert (report.graded, report.unmatched_targets, report.unused_names) == (0, ("ball",), ("Segment_1",))
    assert store.gradings(Selection()) == {}
    assert grade_label(final(names={1: "Segment_1"}, aliases={"Segment_1": "ball"}), store, RECIPE).graded == 8


def test_a_name_without_a_voxel_says_absent(store):
    recorded(store)
    grade_label(final(labels=np.zeros(ball()[0].data.shape, np.uint8)), store, RECIPE)
    for trajectory in store.select(Selection()):
        (grading,) = store.gradings(Selection(keys=(trajectory.key,)))[trajectory.key]
        assert grading.grade.iou == (0.0 if trajectory.outcome.found else 1.0)


def test_a_failure_is_no_reward_and_another_content_is_left_out(store):
    volume, truth = ball()
    work = work_on(volume, truth)
    result = played(work)
    outcome = replace(next(o for o in result.outcomes if o.found), stop=StopReason.FAILED, detail="the model's server is gone")
    store.add([build_trajectory(View(result.grid, outcome.index, outcome.window), outcome, work, store)])
    old = work_on(ball(seed=5)[0], truth, "old")
    view = View(ViewGrid(old.volume, Plane.AXIAL), 4, outcome.window)
    store.add([build_trajectory(view, replace(outcome, index=4), old, store)])
    report = grade_label(final(), store, RECIPE)
    assert (report.graded, report.dropped, report.changed) == (0, {"failed: the model's server is gone": 1}, 1)
    ((grading,),) = store.gradings(Selection()).values()
    assert isinstance(grading.grade, Dropped)


def test_a_simulated_expert_goes_on_from_where_the_agent_was(store):
    recorded(store)
    volume, truth = ball()
    i, j = np.ogrid[:48, :40]
    larger = truth.copy()
    larger[:, :, 4] |= (i - 34) ** 2 + (j - 18) ** 2 < 5**2
    engine = work_on(volume, truth).engine
    report = grade_label(final(labels=larger.astype(np.uint8)), store, RECIPE, engine)
    assert (report.graded, report.corrections) == (8, 1)
    (correction,) = store.select(Selection(source=Source.CORRECTION))
    agent = next(t for t in store.select(Selection(run="run", source=Source.RUN)) if t.origin.index == 4)
    steps = correction.outcome.steps
    own = [step for step in steps if step.turn >= correction.kept_from]
    assert [step.action for step in steps[: len(agent.outcome.steps)]] == [step.action for step in agent.outcome.steps]
    assert own[0].actor is Actor.EXPERT
    assert isinstance(own[-1].action, Terminate)
    assert all(one.identical for one in replay(correction, store.blobs, engine.segmenter))
    (before,), (after,) = (store.gradings(Selection(keys=(t.key,)))[t.key] for t in (agent, correction))
    assert after.grade.iou > before.grade.iou


def test_a_label_speaks_only_for_its_slices(store):
    recorded(store)
    extents = {"ball": Extent("axial", frozenset({3, 4}))}
    report = grade_label(final(extents=extents), store, RECIPE)
    assert (report.graded, report.unspoken) == (2, 6)
    graded = {t.origin.index for t in store.select(Selection(graded=True))}
    assert graded == {3, 4}
    elsewhere = {"ball": Extent("coronal", frozenset({3, 4}))}
    assert grade_label(final(extents=elsewhere), store, RECIPE).graded == 0


def test_grading_that_was_interrupted_goes_on_with_the_same_label(store):
    recorded(store)
    for _ in range(2):
        grade_label(final(key="one"), store, RECIPE)
    assert [len(gradings) for gradings in store.gradings(Selection()).values()] == [1] * 8


def test_a_forgotten_trajectory_is_not_graded_any_more(store):
    trajectory = recorded(store)[4]
    label = store.add_label(trajectory.origin.image, "ball", "carla", "api")
    store.forget(image=trajectory.origin.image)
    assert not store.add_grading(trajectory.key, label, rle.empty(3, 3), "corrected", Dropped("no"))
    assert store.missing() == set()
