"""Every part of a grade against values computed by hand."""

import numpy as np
import pytest
from pydantic import ValidationError

from lib.agent.limits import StopReason
from lib.agent.protocol import Click, Terminate
from lib.errors import InputError
from lib.imaging.planes import ViewPoint
from lib.trajectories.grade import Dropped, Grade
from lib.trajectories.rewards import Reference, State, grade, recipe_named, score_reply, useful_error
from lib.trajectories.rewards import parts as part
from lib.trajectories.rewards.recipes import Recipes, Weights
from lib.trajectories.rewards.state import reach
from tests.trajectories.episodes import STOP, at, outcome, rect, said

CORRECTED = recipe_named("corrected")
TRUTH, ABSENT = rect(0, 10, 0, 10), rect(0, 0, 0, 0)
HALF, NEARLY, SPILL = rect(0, 5, 0, 10), rect(0, 9, 0, 10), rect(0, 10, 0, 20)
NONSENSE = "the liver is on the left"


def graded(played, reference=TRUTH, **how) -> Grade:
    result = grade(outcome(played, **how), reference, CORRECTED)
    assert isinstance(result, Grade)
    return result


def test_an_episode_by_hand():
    """IoU 0 -> 0.5 -> 1 -> stop."""
    result = graded([(said(at(5, 2)), HALF), (said(at(5, 7)), TRUTH), (STOP, None)])
    first, second, stop = result.steps
    assert (first.iou_before, first.iou_after, second.iou_after, stop.iou_before) == (0, 0.5, 1, 1)
    assert first.parts == {"format": 1, "length": 0, "answer": 0.5, "overshoot": 0, "placement": 1, "progress": 0.5}
    assert second.parts == {"format": 1, "length": 0, "answer": 1, "overshoot": 0, "placement": 1, "progress": 1}
    assert stop.parts == {"format": 1, "length": 0, "answer": 1, "overshoot": 0, "stop": 1}
    assert [step.total for step in result.steps] == pytest.approx(
        [0.3 + 0.1 + 0.1 + 0.05, 0.3 + 0.2 + 0.1 + 0.1, 0.3 + 0.2 + 0.2]
    )
    assert result.parts == {"format": 1, "placement": 1, "stop": 1, "length": 0, "answer": 1, "overshoot": 0, "progress": 1}
    assert result.total == pytest.approx(0.3 + 0.1 + 0.2 + 0.2 + 0.1)
    assert (result.recipe, result.iou, result.dice) == ("corrected", 1, 1)


def test_a_wrong_click_and_its_recovery_by_hand():
    """IoU 0.5 -> 0.25 -> 0.9: half of it lost, then 0.65 of the missing 0.75 won; the best so far was 0.5."""
    worse = rect(0, 5, 0, 10) | rect(10, 20, 0, 10)
    assert Reference(TRUTH).iou(worse) == 0.25
    result = graded([(said(at(5, 2)), HALF), (said(at(5, 15)), worse), (said(at(5, 15, False)), NEARLY), (STOP, None)])
    _, wrong, recovery, stop = result.steps
    assert wrong.parts["placement"] == -1
    assert wrong.parts["progress"] == pytest.approx(-0.5)
    assert wrong.parts["overshoot"] == pytest.approx(-0.25)
    assert recovery.parts["placement"] == 1
    assert recovery.parts["progress"] == pytest.approx(0.65 / 0.75)
    assert recovery.parts["overshoot"] == 0
    assert stop.parts["stop"] == 1
    assert result.iou == pytest.approx(0.9)
    assert result.dice == pytest.approx(2 * 90 / 190)
    assert result.parts["placement"] == pytest.approx(1 / 3)


def test_the_best_so_far_is_not_forgotten():
    worse, worst = rect(0, 5, 0, 10) | rect(10, 20, 0, 10), rect(0, 2, 0, 10)
    result = graded(
        [(said(at(5, 2)), HALF), (said(at(5, 15)), worse), (said(at(5, 2, False)), worst), (said(at(5, 15)), worst)]
    )
    assert [step.parts["overshoot"] for step in result.steps] == pytest.approx([0, -0.25, -0.3, -0.3])


def test_stopping_on_a_mask_that_was_better_before():
    result = graded([(said(at(5, 2)), NEARLY), (said(at(5, 2, False)), HALF), (STOP, None)])
    needless, stop = result.steps[1:]
    assert needless.parts["stop"] == -1
    assert stop.parts["overshoot"] == pytest.approx(-0.4)
    assert stop.parts["stop"] == pytest.approx(-0.5)
    assert result.parts["overshoot"] == pytest.approx(-0.4)
    assert result.parts["stop"] == pytest.approx(-0.75)


def test_what_a_needless_click_wins_is_not_credited():
    result = graded([(said(at(5, 2)), NEARLY), (said(at(5, 9)), TRUTH), (STOP, None)])
    needless = result.steps[1]
    assert needless.parts == {
        "format": 1,
        "length": 0,
        "answer": pytest.approx(0.9),
        "overshoot": 0,
        "placement": -1,
        "progress": 0,
        "stop": -1,
    }
    assert result.iou == 1
    assert result.parts["answer"] == pytest.approx(0.9)
    assert result.parts["overshoot"] == pytest.approx(-0.1)


def test_an_absent_target():
    right = graded([(STOP, None)], ABSENT)
    assert right.parts == {"format": 1, "absence": 1, "length": 0, "answer": 1, "overshoot": 0}
    assert right.total == pytest.approx(0.3 + 0.2 + 0.2)
    assert (right.iou, right.dice) == (1, 1)
    wrong = graded([(said(at(5, 2)), HALF), (STOP, None)], ABSENT)
    assert wrong.steps[0].parts == {
        "format": 1,
        "length": 0,
        "answer": 0,
        "overshoot": -1,
        "placement": -1,
        "progress": -1,
        "absence": -1,
    }
    assert wrong.steps[1].parts["absence"] == -1
    assert "stop" not in wrong.parts
    cleared = graded([(said(at(5, 2, False)), ABSENT), (STOP, None)], ABSENT, given=HALF)
    assert cleared.steps[0].parts["placement"] == 1
    assert cleared.steps[0].parts["progress"] == 1
    assert "absence" not in cleared.steps[0].parts
    assert cleared.steps[1].parts["absence"] == 1


def test_declaring_a_present_target_absent():
    result = graded([(STOP, None)])
    assert result.parts == {"format": 1, "absence": -1, "length": 0, "answer": 0, "overshoot": 0}
    emptied = graded([(said(at(5, 2, False)), ABSENT), (STOP, None)])
    assert emptied.steps[1].parts["absence"] == -1


def test_an_early_stop_costs_what_is_missing():
    result = graded([(said(at(5, 2)), HALF), (STOP, None)])
    assert result.steps[1].parts["stop"] == pytest.approx(-0.5)


def test_a_reply_that_cannot_be_read():
    result = graded([(NONSENSE, None), (said(at(5, 2)), HALF), (STOP, None)])
    assert result.steps[0].parts == {"format": -1, "length": 0}
    assert result.steps[0].total == pytest.approx(-0.3)
    assert result.steps[0].iou_after == 0
    assert result.parts["format"] == pytest.approx(1 / 3)


def test_an_episode_without_a_usable_reply_has_no_answer_even_where_empty_is_right():
    for stop in (StopReason.PROTOCOL_ERROR, StopReason.MAX_TURNS):
        result = graded([(NONSENSE, None), (NONSENSE, None)], ABSENT, stop=stop)
        assert result.parts == {"format": -1, "length": 0}
        assert result.total == pytest.approx(-0.3)


def test_a_person_writes_nothing():
    result = graded([(said(at(5, 2)), HALF), (at(5, 7), TRUTH)], stop=StopReason.ANNOTATED)
    assert "format" not in result.steps[1].parts
    assert result.steps[1].parts["placement"] == 1
    assert result.parts["format"] == 1


def test_steps_that_were_taken_back_have_no_grade():
    kept = [(said(at(5, 2)), HALF), (at(5, 7), TRUTH)]
    result = graded([kept[0], (at(30, 15), SPILL), kept[1]], stop=StopReason.ANNOTATED, undone=(2,))
    plain = graded(kept, stop=StopReason.ANNOTATED)
    assert [step.turn for step in result.steps] == [1, 3]
    assert result.steps[1].parts == plain.steps[1].parts
    assert result.total == plain.total
    assert grade(outcome([(at(5, 2), HALF)], StopReason.ANNOTATED, undone=(1,)), TRUTH, CORRECTED) == Dropped(
        "no step of it counts"
    )


def test_an_episode_starts_from_its_given_mask():
    result = graded([(said(at(5, 7)), TRUTH), (STOP, None)], given=HALF)
    assert result.steps[0].iou_before == 0.5
    assert result.parts["progress"] == 1
    approved = graded([(STOP, None)], given=NEARLY)
    assert approved.parts == {"format": 1, "stop": 1, "length": 0, "answer": pytest.approx(0.9), "overshoot": 0}


@pytest.mark.parametrize("stop", [StopReason.FAILED, StopReason.DEADLINE, StopReason.CANCELLED])
@pytest.mark.parametrize("name", ["corrected", "released"])
def test_what_was_interrupted_is_dropped_with_its_reason(stop, name):
    dropped = grade(outcome([(said(at(5, 2)), TRUTH)], stop, detail="the server is gone"), TRUTH, recipe_named(name))
    assert dropped == Dropped(f"{stop.value}: the server is gone")


def test_a_mask_that_was_brought_from_another_slice_is_no_episode():
    assert grade(outcome([], StopReason.PROPAGATED), TRUTH, CORRECTED) == Dropped("no step of it counts")


@pytest.mark.parametrize(
    ("turn", "value"), [(1, 0), (5, 0), (6, -1 / 15), (10, -1 / 3), (20, -1), (21, -1), (1000, -1)], ids=str
)
def test_the_length_is_free_at_first_and_bounded(turn, value):
    assert part.length(turn, (5, 20)) == pytest.approx(value)


@pytest.mark.parametrize(
    ("click", "value"),
    [
        (at(100, 100, True, (500, 500)), 1),
        (at(149, 100, True, (500, 500)), 1),
        (at(151, 100, True, (500, 500)), 0),
        (at(152, 100, True, (500, 500)), -1),
        (at(100, 100, False, (500, 500)), -1),
        (at(300, 300, False, (500, 500)), 1),
        (at(400, 400, False, (500, 500)), -1),
        (Click(ViewPoint(1.2, 0.2), True), -1),
        (Click(ViewPoint(-0.1, 0.2), True), -1),
    ],
    ids=[
        "inside",
        "at the edge",
        "2 px beside",
        "3 px beside",
        "polarity",
        "false area",
        "nowhere",
        "right of it",
        "left of it",
    ],
)
def test_where_a_click_lies(click, value):
    shape = (500, 500)
    reference, mask = rect(50, 150, 50, 150, shape), rect(250, 350, 250, 350, shape)
    assert reach(Reference(reference), CORRECTED) == 2
    assert part.placement(click, State(Reference(reference), mask, 1), 2, useful=True) == value


def test_which_clicks_are_useful():
    shape = (500, 500)
    whole = Reference(rect(100, 200, 100, 200, shape))
    assert useful_error(None, whole, CORRECTED).click.point.pixel(500, 500) in {(149, 149), (150, 150), (149, 150), (150, 149)}
    assert useful_error(whole.mask, whole, CORRECTED) is None
    frayed = whole.mask & (np.indices(shape)[1] % 8 != 0)
    assert whole.iou(frayed) < 0.9
    assert useful_error(frayed, whole, CORRECTED) is None, "lines of one pixel are too thin to click on"
    holed = whole.mask & (np.indices(shape)[1] % 20 > 6)
    assert useful_error(holed, whole, CORRECTED) is not None
    assert useful_error(rect(100, 191, 100, 200, shape), whole, CORRECTED) is None, "IoU 0.91 is enough"
    dot = Reference(rect(100, 101, 100, 101, shape))
    assert useful_error(None, dot, CORRECTED) is not None, "a target of one pixel is judged to the pixel"
    nothing = Reference(np.zeros(shape, bool))
    assert useful_error(None, nothing, CORRECTED) is None
    assert useful_error(dot.mask, nothing, CORRECTED) is not None


def test_one_reply_is_worth_the_same_alone_and_in_its_episode():
    result = graded([(said(at(5, 2)), NEARLY), (said(at(5, 2, False)), HALF), (said(at(5, 7)), TRUTH), (STOP, None)])
    right = Reference(TRUTH)
    assert score_reply(said(at(5, 7)), State(right, HALF, 3, 0.9), TRUTH, CORRECTED) == result.steps[2]
    assert score_reply(STOP, State(right, TRUTH, 4, 0.9), None, CORRECTED) == result.steps[3]
    assert score_reply(Terminate(), State(right, TRUTH, 4), None, CORRECTED).parts == {
        name: value for name, value in result.steps[3].parts.items() if name != "format"
    }


@pytest.mark.parametrize(
    "reference", [TRUTH.astype(np.uint8) * 255, TRUTH[None], rect(0, 5, 0, 5, (21, 40))], ids=["grey", "three axes", "size"]
)
def test_a_reference_must_be_one_binary_mask_of_the_view(reference):
    with pytest.raises(InputError) as error:
        grade(outcome([(said(at(5, 2)), HALF), (STOP, None)]), reference, CORRECTED)
    assert error.value.field == "label"


def test_recipes_have_names():
    assert recipe_named() == recipe_named("corrected")
    assert recipe_named("released").name == "released"
    with pytest.raises(InputError, match="corrected or released") as error:
        recipe_named("best")
    assert error.value.field == "rewards"


WEIGHTS = CORRECTED.weights.model_dump()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"answer": 0.3}, "more than 1"),
        ({"format": 0.2}, "cannot be read is worst"),
        ({"placement": 0.15, "answer": 0.1}, "twice as much as placement"),
        ({"stop": 0.0}, "greater than 0"),
        ({"style": 0.1}, "Extra inputs"),
    ],
)
def test_weights_that_break_the_order_are_refused(change, why):
    with pytest.raises(ValidationError, match=why):
        Weights(**{**WEIGHTS, **change})


def test_a_default_must_exist():
    with pytest.raises(ValidationError, match="not among the recipes"):
        Recipes(default="best", recipes={"released": {"rule": "released", "optimal_turns": 5}})
