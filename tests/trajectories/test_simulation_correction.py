"""Corrections from where the agent really was."""

from dataclasses import replace

import numpy as np
import pytest

from lib.agent.engine import Engine
from lib.agent.episode import Actor, Outcome
from lib.agent.limits import Limits, StopReason
from lib.agent.loop import play
from lib.agent.protocol import Click, Terminate
from lib.agent.takeover import Slice, annotate, reopen
from lib.errors import EngineError
from lib.imaging import rle
from lib.imaging.overlays import OVERLAYS
from lib.imaging.planes import Plane, ViewGrid, ViewPoint
from lib.imaging.views import View
from lib.imaging.windows import Window
from lib.segmenters.graphcut import GraphCut
from lib.trajectories.simulation.correction import correct, in_words, useful
from tests.agent.scripted import STOP, Scripted, click

HEIGHT, WIDTH = 80, 100
ROWS, COLUMNS = np.indices((HEIGHT, WIDTH))
ORGAN = (ROWS - 35) ** 2 + (COLUMNS - 35) ** 2 <= 18**2
OTHER = (ROWS - 60) ** 2 + (COLUMNS - 78) ** 2 <= 10**2
NOTHING = np.zeros_like(ORGAN)
ON_ORGAN, ON_OTHER = (0.35, 0.44), (0.785, 0.756)


@pytest.fixture
def slice_(picture) -> Slice:
    pixels = (60 + 90 * ORGAN + 140 * OTHER + np.random.default_rng(0).normal(0, 3, ORGAN.shape)).clip(0, 255)
    view = View(ViewGrid(picture(pixels.astype(np.uint8)), Plane.AXIAL), 0, Window(0, 255, "stored"))
    return Slice(view, "liver", OVERLAYS["inference"])


def agent(*script) -> Engine:
    return Engine("agent", Scripted({0: list(script)}), GraphCut(), 2)


def played(slice_: Slice, engine: Engine, turns: int = 8) -> Outcome:
    (episode,) = play([reopen(slice_, None, engine, Limits(), turns)], engine, Limits())
    return episode.outcome()


def overlap(outcome: Outcome, reference: np.ndarray) -> float:
    mask = rle.decode(outcome.mask)
    union = np.count_nonzero(mask | reference)
    return np.count_nonzero(mask & reference) / union if union else 1.0


def test_an_agent_that_stopped_rightly_needs_no_correction(slice_):
    engine = agent(click(*ON_ORGAN), STOP)
    assert correct(slice_, played(slice_, engine), ORGAN, engine, Limits(), 5) is None
    absent = agent(STOP)
    assert correct(slice_, played(slice_, absent), NOTHING, absent, Limits(), 5) is None


def test_an_agent_on_the_wrong_thing_is_led_to_the_right_one(slice_):
    engine = agent(click(*ON_OTHER), STOP)
    outcome = played(slice_, engine)
    corrected = correct(slice_, outcome, ORGAN, engine, Limits(), 5)
    assert corrected is not None
    kept, added = corrected.steps[:2], corrected.steps[2:]
    assert [step.action for step in kept] == [step.action for step in outcome.steps]
    assert kept[0].mask == outcome.steps[0].mask
    assert [step.undone for step in kept] == [False, True], "the agent's Terminate is taken back"
    assert {step.actor for step in kept} == {Actor.AGENT}
    assert {step.actor for step in added} == {Actor.EXPERT}
    assert isinstance(added[-1].action, Terminate)
    assert [step.turn for step in corrected.steps] == list(range(1, len(corrected.steps) + 1))
    first = added[0].action
    assert isinstance(first, Click)
    assert added[0].details["intent"] in ("recover", "add")
    assert corrected.stop is StopReason.TERMINATED
    assert overlap(corrected, ORGAN) >= 0.9
    assert "the liver" in added[-1].thought


def test_the_experts_mask_is_the_corrections_mask_although_the_agent_supported_its_own(slice_):
    engine = agent(click(*ON_OTHER), (STOP, 0.99))
    corrected = correct(slice_, played(slice_, engine), ORGAN, engine, Limits(), 5)
    assert corrected is not None
    assert overlap(corrected, ORGAN) >= 0.9
    assert corrected.chosen_because == "the expert approved it"


def test_an_agent_that_said_absent_wrongly_is_corrected(slice_):
    engine = agent(STOP)
    corrected = correct(slice_, played(slice_, engine), ORGAN, engine, Limits(), 5)
    assert corrected is not None
    assert corrected.steps[0].undone
    assert overlap(corrected, ORGAN) >= 0.9


def test_an_agent_that_did_not_stop_on_a_right_mask_is_told_to(slice_):
    engine = agent(click(*ON_ORGAN))
    outcome = played(slice_, engine, turns=1)
    assert outcome.stop is StopReason.MAX_TURNS
    corrected = correct(slice_, outcome, ORGAN, engine, Limits(), 5)
    assert corrected is not None
    assert [step.details.get("intent") for step in corrected.steps[1:]] == ["approve"]


def test_a_mask_of_an_absent_target_is_taken_out(slice_):
    engine = agent(click(*ON_OTHER), STOP)
    corrected = correct(slice_, played(slice_, engine), NOTHING, engine, Limits(), 5)
    assert corrected is not None
    assert corrected.stop is StopReason.ABSENT
    assert not corrected.found


def test_an_agent_that_ran_in_circles_is_gone_on_with(slice_):
    off = click(*ON_OTHER, positive=False)
    engine = agent(click(*ON_OTHER), off, click(*ON_OTHER), off)
    outcome = played(slice_, engine)
    corrected = correct(slice_, outcome, ORGAN, engine, Limits(), 5)
    assert corrected is not None
    assert overlap(corrected, ORGAN) >= 0.9


def test_an_annotators_clicks_are_gone_on_from(slice_):
    engine = agent(STOP)
    outcome = annotate(slice_, None, [Click(ViewPoint(*ON_OTHER), True)], engine, Limits())
    corrected = correct(slice_, outcome, ORGAN, engine, Limits(), 5)
    assert corrected is not None
    assert corrected.steps[0].actor is Actor.ANNOTATOR
    assert overlap(corrected, ORGAN) >= 0.9


def test_it_ends_after_its_clicks_and_that_end_is_no_experts(slice_):
    engine = agent(click(*ON_OTHER), STOP)
    corrected = correct(slice_, played(slice_, engine), ORGAN, engine, Limits(), 1)
    assert corrected is not None
    added = corrected.steps[2:]
    assert [isinstance(step.action, Click) for step in added] == [True, False]
    assert [step.actor for step in added] == [Actor.EXPERT, Actor.AGENT]


def test_limits_and_failures_are_told(slice_):
    engine = agent(click(*ON_OTHER), STOP)
    outcome = played(slice_, engine)
    limits = Limits()
    limits.cancelled.set()
    corrected = correct(slice_, outcome, ORGAN, engine, limits, 5)
    assert corrected is not None
    assert not corrected.conclusive

    class Broken(GraphCut):
        def click(self, states, clicks, limits=None):
            raise EngineError("out of memory")

    with pytest.raises(EngineError, match="memory"):
        correct(slice_, outcome, ORGAN, replace(engine, segmenter=Broken()), Limits(), 5)


def test_a_useful_click_is_what_the_rewards_mean():
    assert useful(None, ORGAN)
    assert not useful(ORGAN, ORGAN)
    assert not useful(None, NOTHING)
    assert useful(ORGAN, NOTHING)


def test_what_a_prompt_asks_for_in_words():
    assert in_words("Can you find the patient's right lung?") == "right lung"
    assert in_words("Odontoid process") == "odontoid process"
    assert in_words("is there anything here that should not be?") == "target"
