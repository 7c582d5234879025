"""What must be worth more than what, over random masks."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lib.agent.protocol import Click
from lib.imaging.planes import ViewPoint
from lib.policies.clicks import next_click
from lib.trajectories.grade import Grade
from lib.trajectories.rewards import Reference, State, grade, recipe_named, score_reply, useful_error
from lib.trajectories.rewards.parts import BOUNDS
from tests.trajectories.episodes import STOP, outcome, said

CORRECTED = recipe_named("corrected")
SHAPE = (14, 18)
MALFORMED = "Positive Point (0.5, 0.5)"


@st.composite
def shapes(draw: st.DrawFn) -> np.ndarray:
    """A few rectangles, with or without noise; often empty."""
    mask = np.zeros(SHAPE, bool)
    for _ in range(draw(st.integers(0, 3))):
        top, left = draw(st.integers(0, SHAPE[0] - 1)), draw(st.integers(0, SHAPE[1] - 1))
        mask[top : top + draw(st.integers(1, 9)), left : left + draw(st.integers(1, 9))] = True
    return mask ^ draw(arrays(bool, SHAPE)) if draw(st.integers(0, 9)) == 0 else mask


units = st.floats(0, 1)
clicks = st.builds(Click, st.builds(ViewPoint, units, units), st.booleans())
turns = st.integers(1, 30)
masks = shapes() | st.none()
recipes = st.sampled_from(
    [CORRECTED, CORRECTED.model_copy(update={"reach": 0.1}), CORRECTED.model_copy(update={"enough_iou": 0.6})]
)
thorough = settings(max_examples=100, deadline=None)


def corrected(mask, error):
    """`mask` with the circle inside `error` put right."""
    column, row = error.click.point.pixel(SHAPE[1], SHAPE[0])
    rows, columns = np.indices(SHAPE)
    disc = np.hypot(rows - row, columns - column) < error.radius - 1e-6
    current = np.zeros(SHAPE, bool) if mask is None else mask
    return current | disc if error.click.positive else current & ~disc


def settled(mask, right, recipe):
    """`mask` corrected until no useful click is left."""
    while (error := useful_error(mask, right, recipe)) is not None:
        mask = corrected(mask, error)
    return mask


def worth(words, state, after=None, recipe=CORRECTED):
    return score_reply(words, state, after, recipe).total


@thorough
@given(shapes(), clicks, shapes(), turns)
def test_at_a_perfect_mask_stopping_beats_every_click(reference, click, after, turn):
    state = State(Reference(reference), reference, turn)
    assert worth(STOP, state) > worth(said(click), state, after)
    assert worth(STOP, state) > worth(said(click), state)


@thorough
@given(shapes(), masks, clicks, shapes(), turns, units, recipes)
def test_where_no_useful_click_is_left_stopping_beats_every_click(reference, mask, click, after, turn, best, recipe):
    right = Reference(reference)
    state = State(right, settled(mask, right, recipe), turn, best)
    for made in (after, None, reference):
        assert worth(STOP, state, recipe=recipe) > worth(said(click), state, made, recipe)


@thorough
@given(shapes(), masks, turns, units, recipes, st.booleans())
def test_a_useful_click_beats_an_early_stop(reference, mask, turn, best, recipe, works):
    right = Reference(reference)
    assume(useful_error(mask, right, recipe) is not None)
    state = State(right, mask, turn, best)
    click = next_click(mask, reference)
    after = reference if works else np.zeros_like(reference) if mask is None else mask
    assert worth(said(click), state, after, recipe) > worth(STOP, state, recipe=recipe)


@thorough
@given(shapes(), masks, shapes(), clicks, turns, units)
def test_a_good_click_beats_a_wrong_one_and_that_a_malformed_reply(reference, mask, after, click, turn, best):
    right = Reference(reference)
    assume(useful_error(mask, right, CORRECTED) is not None)
    state = State(right, mask, turn, best)
    made = after if right.iou(after) <= state.iou else None
    wrong = score_reply(said(click), state, made, CORRECTED)
    if wrong.parts["placement"] == 1:
        wrong = score_reply(said(replace(click, positive=not click.positive)), state, made, CORRECTED)
    assert worth(said(next_click(mask, reference)), state, reference) > wrong.total
    assert wrong.total > worth(MALFORMED, state)


@thorough
@given(shapes(), masks, shapes(), clicks, turns, units)
def test_a_malformed_reply_is_the_worst_that_one_can_say(reference, mask, after, click, turn, best):
    state = State(Reference(reference), mask, turn, best)
    lowest = worth(MALFORMED, state)
    assert lowest < worth(STOP, state)
    assert lowest < worth(said(click), state, after)


@thorough
@given(shapes(), masks, shapes(), clicks, turns)
def test_of_equally_placed_clicks_the_better_mask_decides(reference, mask, after, click, turn):
    right = Reference(reference)
    assume(useful_error(mask, right, CORRECTED) is not None)
    state = State(right, mask, turn)
    assert worth(said(click), state, after) < worth(said(click), state, reference) or right.iou(after) == 1


episodes = st.lists(st.tuples(clicks, shapes() | st.none()), max_size=6)


def graded(played, reference, start=None) -> Grade:
    result = grade(outcome(played, given=start, shape=SHAPE), reference, CORRECTED)
    assert isinstance(result, Grade)
    return result


def spoken(pairs):
    return [(said(click), mask) for click, mask in pairs]


@thorough
@given(shapes(), masks, episodes, st.integers(0, 3), st.booleans())
def test_every_part_within_its_bounds_and_the_total_too(reference, start, pairs, nonsense, stops):
    played = [(MALFORMED, None)] * nonsense + spoken(pairs) + ([(STOP, None)] if stops else [])
    assume(played)
    result = graded(played, reference, start)
    for values, total in [(result.parts, result.total), *((step.parts, step.total) for step in result.steps)]:
        for name, value in values.items():
            assert BOUNDS[name][0] <= value <= BOUNDS[name][1], name
        assert -1 <= total <= 1
        assert not {"stop", "absence"} <= values.keys() or values is result.parts
    assert len(result.steps) == len(played)
    assert graded(played, reference, start) == result


@thorough
@given(shapes(), masks, episodes, st.lists(st.tuples(clicks, shapes() | st.none()), min_size=1, max_size=5), st.booleans())
def test_the_first_time_that_no_useful_click_is_left_no_way_on_beats_stopping(reference, start, before, later, stops):
    right = Reference(reference)
    played, mask = [], start
    for click, made in before:
        if useful_error(mask, right, CORRECTED) is None:
            break
        played.append((said(click), made))
        mask = mask if made is None else made
    if useful_error(mask, right, CORRECTED) is not None:
        played.append((said(next_click(mask, reference)), settled(mask, right, CORRECTED)))
    best = graded([*played, (STOP, None)], reference, start)
    on = graded([*played, *spoken(later), *([(STOP, None)] if stops else [])], reference, start)
    assert best.total > on.total


@thorough
@given(shapes(), episodes, st.integers(1, 4))
def test_an_episode_without_one_usable_reply_is_worst(reference, pairs, nonsense):
    worst = graded([(MALFORMED, None)] * nonsense, reference)
    assert graded([*spoken(pairs), (STOP, None)], reference).total > worst.total


@thorough
@given(shapes(), masks)
def test_following_the_expert_pays_at_every_step(reference, start):
    """Clicks at the centre of the largest error, drawn as discs by an ideal segmenter, until no useful click is left."""
    right, mask = Reference(reference), start
    for turn in range(1, 200):
        error = useful_error(mask, right, CORRECTED)
        state = State(right, mask, turn)
        if error is None:
            break
        mask = corrected(mask, error)
        step = score_reply(said(error.click), state, mask, CORRECTED)
        assert step.parts["placement"] == 1
        assert step.parts["progress"] >= 0
        assert step.total > worth(STOP, state)
    else:
        pytest.fail("the expert never came to an end")
