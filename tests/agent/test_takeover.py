"""Agent and annotator in turns on one slice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.agent.engine import Engine
from lib.agent.episode import Actor
from lib.agent.limits import UNLIMITED, Limits, StopReason
from lib.agent.protocol import Click
from lib.agent.record import from_record, to_record
from lib.agent.takeover import Slice, annotate, annotator_clicks, go_on, undo
from lib.errors import InputError
from lib.imaging.overlays import OVERLAYS
from lib.imaging.planes import Plane, ViewGrid, ViewPoint
from lib.imaging.views import View
from lib.imaging.windows import choose_window
from lib.segmenters.graphcut import GraphCut
from tests.agent.scripted import STOP, Scripted, click


@pytest.fixture
def slice_(picture):
    rng = np.random.default_rng(0)
    pixels = rng.normal(40, 5, (96, 96))
    pixels[20:45, 20:45] += 100
    pixels[50:80, 55:85] += 100
    volume = picture(pixels.clip(0, 255).astype(np.uint8))
    return Slice(View(ViewGrid(volume, Plane.AXIAL), 0, choose_window(volume)), "square", OVERLAYS["inference"])


def engine(*replies):
    return Engine("test", Scripted({0: list(replies)}), GraphCut(), 4)


ONE, TWO, OUT = (
    Click(ViewPoint(x, y), positive) for x, y, positive in ((0.33, 0.33, True), (0.7, 0.7, True), (0.4, 0.4, False))
)
AGENT = click(0.3, 0.3)


def test_agent_annotator_agent_and_undo_leave_a_record_that_replays(slice_):
    (first,) = go_on([(slice_, None)], 1, engine(AGENT), UNLIMITED)
    assert (first.stop, len(first.steps)) == (StopReason.MAX_TURNS, 1)
    then = annotate(slice_, first, [OUT, TWO], engine(), UNLIMITED)
    assert then.stop is StopReason.ANNOTATED
    (again,) = go_on([(slice_, then)], 3, engine(click(0.31, 0.41), STOP), UNLIMITED)
    assert [step.actor for step in again.steps] == [*(Actor.AGENT, Actor.ANNOTATOR, Actor.ANNOTATOR, Actor.AGENT, Actor.AGENT)]
    assert again.stop is StopReason.TERMINATED
    assert [step.turn for step in again.steps] == [1, 2, 3, 4, 5]
    back = undo(slice_, again, 2, engine(), UNLIMITED)
    assert [step.undone for step in back.steps] == [False, True, False, False, False]
    assert back.steps[1].mask == again.steps[1].mask
    assert annotator_clicks(back) == [TWO]
    alone = annotate(slice_, None, [step.action for step in again.steps if step.turn in (1, 3, 4)], engine(), UNLIMITED)
    assert back.mask == alone.mask
    assert back.mask != again.mask
    restored = from_record(to_record(back), slice_.view.size)
    assert to_record(restored) == to_record(back)
    (replayed,) = go_on([(slice_, restored)], 1, engine(STOP), UNLIMITED)
    assert replayed.mask == back.mask


def test_the_agent_sees_what_the_annotator_left(slice_):
    first = annotate(slice_, None, [ONE, TWO], engine(), UNLIMITED)
    (second,) = go_on([(slice_, undo(slice_, first, 2, engine(), UNLIMITED))], 2, engine(STOP), UNLIMITED)
    only = annotate(slice_, None, [ONE], engine(), UNLIMITED)
    assert second.mask == only.mask
    assert second.final_turn == 1


@pytest.mark.parametrize("turn", [0, 3, 9])
def test_only_a_click_that_counts_can_be_taken_back(slice_, turn):
    outcome = annotate(slice_, None, [ONE, TWO], engine(), UNLIMITED)
    if turn == 3:
        (outcome,) = go_on([(slice_, outcome)], 1, engine(STOP), UNLIMITED)
    with pytest.raises(InputError, match=f"turn {turn}"):
        undo(slice_, outcome, turn, engine(), UNLIMITED)
    once = undo(slice_, outcome, 1, engine(), UNLIMITED)
    with pytest.raises(InputError, match="turn 1"):
        undo(slice_, once, 1, engine(), UNLIMITED)


def test_all_clicks_taken_back_leave_an_empty_mask(slice_):
    outcome = annotate(slice_, None, [ONE], engine(), UNLIMITED)
    assert outcome.found
    assert not undo(slice_, outcome, 1, engine(), UNLIMITED).found


def test_a_cancelled_continuation_keeps_what_there_was(slice_):
    outcome = annotate(slice_, None, [ONE], engine(), UNLIMITED)
    limits = Limits()
    limits.cancelled.set()
    (left,) = go_on([(slice_, outcome)], 3, engine(AGENT), limits)
    assert left.stop is StopReason.CANCELLED
    assert left.mask == outcome.mask


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.floats(0.05, 0.95), st.floats(0.05, 0.95), st.booleans()), min_size=1, max_size=4), st.data())
def test_undo_is_as_if_the_click_had_never_been(clicks, data):
    rng = np.random.default_rng(1)
    from pathlib import Path

    from lib.imaging.volume import Modality, Volume

    pixels = rng.normal(90, 30, (48, 48, 1)).clip(0, 255).astype(np.uint8)
    volume = Volume(pixels, np.diag([1.0, -1, 1, 1]), Modality.OTHER, Path("p.png"), planar=True)
    where = Slice(View(ViewGrid(volume, Plane.AXIAL), 0, choose_window(volume)), "x", OVERLAYS["inference"])
    placed = [Click(ViewPoint(round(x, 4), round(y, 4)), positive) for x, y, positive in clicks]
    turn = data.draw(st.integers(1, len(placed)))
    taken = undo(where, annotate(where, None, placed, engine(), UNLIMITED), turn, engine(), UNLIMITED)
    rest = placed[: turn - 1] + placed[turn:]
    if rest:
        assert taken.mask == annotate(where, None, rest, engine(), UNLIMITED).mask
    else:
        assert not taken.found
