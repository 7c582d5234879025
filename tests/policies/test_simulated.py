import re
from dataclasses import replace
from string import Formatter

import numpy as np
import pytest

from lib.agent.engine import Engine
from lib.agent.episode import Actor, Episode, Given, Outcome
from lib.agent.limits import Limits, StopReason
from lib.agent.loop import play
from lib.agent.policy import Observation
from lib.agent.protocol import GRAMMAR, Click, Terminate
from lib.errors import EngineError
from lib.imaging import rle
from lib.imaging.planes import Plane, ViewGrid
from lib.imaging.views import View
from lib.imaging.windows import Window
from lib.policies.openai import OpenAIConfig, OpenAIPolicy
from lib.policies.reasoning import Scene, reasoning
from lib.policies.simulated import Intent, SimulatedPolicy, Task
from lib.policies.strategies import Strategy
from lib.policies.teacher import Teacher, checked
from lib.segmenters.graphcut import GraphCut
from tests.policies.faults import FaultyServer, says

HEIGHT, WIDTH = 96, 120


def _disc(row: float, column: float, radius: float) -> np.ndarray:
    rows, columns = np.indices((HEIGHT, WIDTH))
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


ORGAN, OTHER, NOTHING = _disc(40, 40, 20), _disc(70, 92, 14), np.zeros((HEIGHT, WIDTH), bool)


def useful(mask: np.ndarray | None, reference: np.ndarray) -> bool:
    mask = np.zeros_like(reference) if mask is None else mask
    union = np.count_nonzero(mask | reference)
    return bool(union) and np.count_nonzero(mask & reference) / union < 0.9


@pytest.fixture
def view(picture):
    noise = np.random.default_rng(0).normal(0, 3, (HEIGHT, WIDTH))
    pixels = np.clip(60 + 90 * ORGAN + 140 * OTHER + noise, 0, 255).astype(np.uint8)

    def make() -> View:
        return View(ViewGrid(picture(pixels), Plane.AXIAL), 0, Window(0, 255, "stored"))

    return make


def show(view: View, task: Task, given=None, state=None, strategy=Strategy.CENTER, segmenter=None, teacher=None) -> Outcome:
    engine = Engine("test", SimulatedPolicy({view: task}, useful, strategy, teacher), segmenter or GraphCut(), 2)
    episode = Episode(view, task.target, task.most + 1, given=given, state=state, actor=Actor.EXPERT)
    (ended,) = play([episode], engine, Limits())
    return ended.outcome()


def intents(outcome: Outcome) -> list[str]:
    return [step.details["intent"] for step in outcome.steps]


def overlap(outcome: Outcome, reference: np.ndarray) -> float:
    mask = rle.decode(outcome.mask)
    return np.count_nonzero(mask & reference) / np.count_nonzero(mask | reference)


@pytest.mark.parametrize("strategy", Strategy)
def test_it_clicks_until_the_mask_is_right_and_terminates(view, strategy):
    outcome = show(view(), Task("organ", ORGAN, 11), strategy=strategy)
    assert outcome.stop is StopReason.TERMINATED
    assert overlap(outcome, ORGAN) >= 0.9
    assert intents(outcome)[-1] == Intent.APPROVE
    assert all(re.fullmatch(GRAMMAR, step.reply) for step in outcome.steps)
    assert {step.actor for step in outcome.steps} == {Actor.EXPERT}
    assert isinstance(outcome.steps[-1].action, Terminate)


def test_equal_seeds_give_equal_episodes_and_other_seeds_others(view):
    def played(seed: int) -> list[str]:
        return [step.reply for step in show(view(), Task("organ", ORGAN, 11, seed), strategy=Strategy.RANDOM).steps]

    assert played(1) == played(1)
    assert len({tuple(played(seed)) for seed in range(5)}) > 1


def test_a_target_that_is_not_there_is_said_to_be_absent_at_once(view):
    outcome = show(view(), Task("organ", NOTHING, 11))
    assert outcome.stop is StopReason.ABSENT
    assert intents(outcome) == [Intent.ABSENT]
    assert "organ" in outcome.answer
    assert not outcome.found


@pytest.mark.parametrize("seed", range(9))
def test_a_deliberate_error_is_taken_back_by_the_next_click(view, seed):
    outcome = show(view(), Task("organ", ORGAN, 15, seed, errs=True))
    said = intents(outcome)
    assert said.count(Intent.WRONG) == 1
    wrong = said.index(Intent.WRONG)
    assert wrong < 3
    assert said[wrong + 1] == Intent.RECOVER
    bad, good = outcome.steps[wrong].action, outcome.steps[wrong + 1].action
    assert isinstance(bad, Click)
    assert isinstance(good, Click)
    column, row = bad.point.pixel(WIDTH, HEIGHT)
    assert ORGAN[row, column] != bad.positive
    assert good.positive != bad.positive
    assert outcome.stop is StopReason.TERMINATED
    assert overlap(outcome, ORGAN) >= 0.9


def _begun(view: View, reference: np.ndarray) -> tuple[Given, object]:
    """A mask drawn by clicks, and the segmenter's state after them."""
    drawn = show(view, Task("it", reference, 8))
    clicks = tuple(step.action for step in drawn.steps if isinstance(step.action, Click))
    segmenter = GraphCut()
    (state,) = segmenter.start([view])
    for click in clicks:
        (prediction,) = segmenter.click([state], [click])
        state = prediction.state
    return Given(rle.encode(prediction.mask), prediction.score, clicks), state


def test_a_mask_of_something_else_is_discarded_first(view):
    here = view()
    given, state = _begun(here, OTHER)
    outcome = show(here, Task("organ", ORGAN, 11, other="lesion"), given, state)
    first = outcome.steps[0]
    assert first.details["intent"] == Intent.DISCARD
    assert isinstance(first.action, Click)
    assert not first.action.positive
    column, row = first.action.point.pixel(WIDTH, HEIGHT)
    assert OTHER[row, column]
    assert "lesion" in first.thought
    assert outcome.stop is StopReason.TERMINATED
    assert overlap(outcome, ORGAN) >= 0.9


def test_a_mask_of_something_else_goes_wholly_where_the_target_is_absent(view):
    here = view()
    given, state = _begun(here, OTHER)
    outcome = show(here, Task("organ", NOTHING, 11, other="lesion"), given, state)
    assert outcome.stop is StopReason.ABSENT
    assert intents(outcome)[0] == Intent.DISCARD
    assert intents(outcome)[-1] == Intent.ABSENT


def test_a_mask_that_is_right_is_approved_without_a_click(view):
    here = view()
    given, state = _begun(here, ORGAN)
    outcome = show(here, Task("organ", ORGAN, 11), given, state)
    assert intents(outcome) == [Intent.APPROVE]
    assert outcome.mask == given.mask


class Stubborn(GraphCut):
    """Draws the same wrong mask whatever the clicks."""

    def click(self, states, clicks, limits=None):
        return [replace(one, mask=_disc(40, 60, 10)) for one in super().click(states, clicks)]


def test_it_stops_where_clicks_change_nothing_and_says_that_this_is_no_example(view):
    outcome = show(view(), Task("organ", ORGAN, 11), segmenter=Stubborn())
    assert outcome.stop is StopReason.TERMINATED
    assert intents(outcome)[-1] == Intent.SPENT
    assert len(outcome.steps) == 3


def test_it_terminates_when_its_clicks_are_spent(view):
    outcome = show(view(), Task("organ", ORGAN | OTHER, 1))
    assert intents(outcome) == [Intent.ADD, Intent.SPENT]


@pytest.mark.parametrize("kind", reasoning().kinds)
def test_every_phrase_can_stand_in_a_reply_and_tells_nothing_of_the_reference(view, kind):
    scene = Scene(view(), "left kidney", _disc(44, 44, 20), ORGAN, "spleen")
    part = scene.mask & ~scene.reference
    for phrase in reasoning().kinds[kind]:
        words = scene._said((phrase,), part, np.random.default_rng(0), 1.0)
        assert not {name for _, name, _, _ in Formatter().parse(words) if name}
        assert 20 <= len(words) <= 600
        assert not checked(words.ljust(60, ".")).fault
        assert words[0].isupper()
        assert "about about" not in words
        assert not re.search(r"\biou\b|reference|truth", words, re.IGNORECASE)


def test_what_is_said_is_measured_in_the_picture(view):
    outcome = show(view(), Task("organ", ORGAN, 11, seed=3))
    first = outcome.steps[0].thought
    assert "the upper left" in first or "the left" in first
    assert "clearly brighter than" in first
    dark = 255 - view().image()[..., 0]
    assert dark[40, 40] < dark[5, 5]


def teach(text: str, view: View):
    with FaultyServer(says(text)) as server:
        client = OpenAIPolicy(OpenAIConfig(endpoints=(server.url,), model="teacher", retries=0))
        try:
            return show(view, Task("organ", ORGAN, 11), teacher=Teacher(client)), server.calls
        finally:
            client.close()


@pytest.mark.parametrize("thinking", ["", "<think>They want one sentence.</think>"])
def test_a_teachers_words_replace_the_template(view, thinking):
    words = "The round bright structure on the upper left is not covered yet, so it needs a positive point."
    outcome, calls = teach(thinking + words, view())
    assert all(step.thought == words for step in outcome.steps)
    assert {step.details["reasoner"] for step in outcome.steps} == {"teacher"}
    (system, user) = calls[0]["messages"]
    assert "radiologist" in system["content"][0]["text"]
    assert [part["type"] for part in user["content"]] == ["image_url", "text"]
    assert "positive point" in user["content"][1]["text"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<b>The bright round structure is not covered by the mask yet.</b>", "tags"),
        ("<think>The bright round structure is not covered by the mask yet.</think>", "too short"),
        ("Add it.", "too short"),
        ("bright " * 200, "too long"),
        ("By the reference the mask misses the upper part of the structure on the left.", "cannot be seen"),
        ("The structure lies around (0.5000, 0.2500), and the mask does not cover it there.", "cannot be seen"),
    ],
)
def test_a_teachers_words_that_cannot_stand_are_not_used_and_the_step_says_so(view, text, why):
    outcome, _ = teach(text, view())
    assert all(why in step.details["reasoner"] for step in outcome.steps)
    assert all(step.details["reasoner"].startswith("templates: ") for step in outcome.steps)
    assert outcome.stop is StopReason.TERMINATED
    assert all(re.fullmatch(GRAMMAR, step.reply) for step in outcome.steps)


def test_a_teacher_that_does_not_answer_is_told_on_the_steps(view):
    class Gone:
        about = {"model": "teacher"}  # noqa: RUF012

        def converse(self, conversations, limits=None):
            return [EngineError("connection refused")] * len(conversations)

    outcome = show(view(), Task("organ", ORGAN, 11), teacher=Teacher(Gone()))
    assert {step.details["reasoner"] for step in outcome.steps} == {"templates: the teacher did not answer"}


def test_the_details_of_a_step_say_what_it_is_for(view):
    here = view()
    policy = SimulatedPolicy({here: Task("organ", ORGAN, 5)}, useful)
    (decision,) = policy.decide([Observation("organ", here, None, ())])
    assert decision.details == {"intent": "add", "reasoner": "templates"}
