"""Episodes, the loop and the run, with the real graph cut as the hand and written replies as the mind."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lib.agent.episode import Actor, Episode
from lib.agent.limits import Limits, StopReason
from lib.agent.loop import Observer, place
from lib.agent.protocol import Click
from lib.agent.run import RunRequest, run, select_slices
from lib.agent.targets import merge, split_prompts
from lib.agent.trace import to_trace
from lib.errors import InputError
from lib.imaging.planes import Plane, ViewGrid, ViewPoint
from lib.imaging.rle import decode
from lib.imaging.views import View
from lib.imaging.volume import Modality, Volume
from lib.imaging.windows import Window
from tests.agent.scripted import STOP, click, engine

CENTRE, AWAY = click(0.5, 0.5), click(0.1, 0.1)


@pytest.fixture
def ball() -> Volume:
    """A bright ball of radius 12 in a noisy dark volume `[48, 40, 6]`, stored with j running to posterior."""
    grid = np.indices((48, 40, 6)) - np.array([24, 20, 3])[:, None, None, None]
    noise = np.random.default_rng(0).normal(0, 5, grid.shape[1:])
    data = np.where((grid**2).sum(axis=0) < 144, 100, -80) + noise
    return Volume(data.astype(np.int16), np.diag([1.0, -1.0, 1.0, 1.0]), Modality.CT, Path("ball.nii.gz"))


def play(volume, script, **request):
    chosen = request.pop("slices", "3")
    return run(RunRequest("ball", slices=chosen, **request), volume, engine({i: script for i in range(6)}))


def only(result):
    (outcome,) = result.outcomes
    return outcome


def test_one_click_and_terminate_gives_the_mask_on_the_source_grid(ball):
    result = play(ball, [CENTRE, STOP])
    outcome = only(result)
    assert outcome.stop is StopReason.TERMINATED
    assert outcome.chosen_because == "the agent approved it"
    truth = ball.data[:, :, 3] > 10
    found = result.mask[:, :, 3] > 0
    assert 2 * (truth & found).sum() / (truth.sum() + found.sum()) > 0.95
    assert result.mask.dtype == np.uint8
    assert not result.mask[:, :, [0, 1, 2, 4, 5]].any()
    assert result.status == "complete"


def test_terminate_without_a_mask_is_absent(ball):
    result = play(ball, [STOP])
    assert only(result).stop is StopReason.ABSENT
    assert not result.mask.any()
    assert "absent" in result.answer


def test_the_same_click_three_times_ends_and_the_third_is_not_applied(ball):
    outcome = only(play(ball, [CENTRE]))
    assert outcome.stop is StopReason.REPEATED_ACTION
    assert len(outcome.steps) == 3
    assert outcome.steps[1].mask is not None
    assert outcome.steps[2].mask is None


def test_back_and_forth_between_masks_ends(ball):
    wobble = [click(0.5, 0.5), click(0.52, 0.5), click(0.48, 0.5), click(0.5, 0.52), click(0.5, 0.48)] * 4
    outcome = only(play(ball, wobble))
    assert outcome.stop is StopReason.NO_PROGRESS
    assert len(outcome.steps) < 12


def test_the_turn_limit(ball):
    outcome = only(play(ball, [CENTRE, AWAY, click(0.9, 0.9), click(0.1, 0.9)], max_turns=2))
    assert outcome.stop is StopReason.MAX_TURNS
    assert len(outcome.steps) == 2


def test_a_malformed_reply_is_asked_again_once(ball):
    outcome = only(play(ball, ["Positive Point (0.5, 0.5)", CENTRE, STOP]))
    assert outcome.stop is StopReason.TERMINATED
    assert len(outcome.steps) == 3


def test_two_malformed_replies_end_the_episode_and_never_look_like_an_answer(ball):
    result = play(ball, ["?"])
    assert only(result).stop is StopReason.PROTOCOL_ERROR
    assert result.status == "incomplete"
    assert result.unfinished


def test_after_a_malformed_end_the_mask_so_far_counts(ball):
    result = play(ball, [CENTRE, "?", "?"])
    assert only(result).stop is StopReason.PROTOCOL_ERROR
    assert result.mask.any()
    assert result.status == "complete"


def test_the_best_supported_mask_is_chosen_not_the_last(ball):
    outcome = only(play(ball, [CENTRE, (AWAY, 0.95), (STOP, 0.1)]))
    assert outcome.final_turn == 1
    assert outcome.chosen_because == "the agent supported it best"
    assert outcome.confidence == 0.95
    assert decode(outcome.mask).any()


def test_a_failing_engine_is_data_not_an_empty_mask(ball):
    result = run(RunRequest("ball"), ball, engine({i: [CENTRE, STOP] if i < 4 else [None] for i in range(6)}, batch=1))
    assert [o.stop for o in result.outcomes[4:]] == [StopReason.FAILED] * 2
    assert result.mask[:, :, 3].any()
    assert result.status == "incomplete"
    assert "the model's server is gone" in result.answer


def test_the_deadline_keeps_what_there_is(ball):
    result = run(RunRequest("ball"), ball, engine({i: [STOP] for i in range(6)}), Limits(deadline=time.monotonic() - 1))
    assert {o.stop for o in result.outcomes} == {StopReason.DEADLINE}
    assert result.status == "incomplete"


def test_cancel_between_turns(ball):
    cancelled = threading.Event()

    class Watcher(Observer):
        def stepped(self, episode):
            cancelled.set()

    playing = engine({i: [CENTRE, AWAY, STOP] for i in range(6)}, batch=2)
    result = run(RunRequest("ball"), ball, playing, Limits(cancelled=cancelled), [Watcher()])
    assert {o.stop for o in result.outcomes} == {StopReason.CANCELLED}
    assert len(playing.policy.asked) == 1


def test_batches_are_refilled_and_give_the_same_masks(ball):
    scripts = {i: [CENTRE] * (i % 3) + [AWAY] * (i % 2) + [STOP] for i in range(6)}
    one, many = (run(RunRequest("ball"), ball, engine(scripts, batch)) for batch in (1, 4))
    assert np.array_equal(one.mask, many.mask)
    assert max(len(asked) for asked in many.engine.policy.asked) == 4
    assert [o.stop for o in one.outcomes] == [o.stop for o in many.outcomes]


def test_slices_that_were_never_received_are_not_looked_at(ball):
    holed = Volume(ball.data, ball.affine, ball.modality, ball.source, missing=frozenset({2}))
    result = run(RunRequest("ball"), holed, engine({i: [STOP] for i in range(6)}))
    assert [o.index for o in result.outcomes] == [0, 1, 3, 4, 5]


@pytest.mark.parametrize(
    ("text", "chosen"), [("all", (0, 1, 2, 3, 4, 5)), ("", (0, 1, 2, 3, 4, 5)), ("5", (5,)), (" 3, 0-1 ,1", (0, 1, 3))]
)
def test_slices_are_chosen(ball, text, chosen):
    assert select_slices(text, ViewGrid(ball, Plane.AXIAL)) == chosen


@pytest.mark.parametrize("text", ["6", "2-9", "3-1", "a", "1,,2", "-1", "1.5"])
def test_bad_slices_name_the_field(ball, text):
    with pytest.raises(InputError) as caught:
        select_slices(text, ViewGrid(ball, Plane.AXIAL))
    assert caught.value.field == "slices"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (RunRequest(" "), "prompt"),
        (RunRequest("x" * 2001), "prompt"),
        (RunRequest("x", max_turns=0), "max_turns"),
        (RunRequest("x", overlay="red"), "overlay"),
        (RunRequest("x", window="red"), "window"),
    ],
)
def test_bad_requests_name_the_field(ball, request_, field):
    with pytest.raises(InputError) as caught:
        run(request_, ball, engine({}))
    assert caught.value.field == field


def test_an_annotators_clicks_are_steps_of_the_same_kind(ball):
    view = View(ViewGrid(ball, Plane.AXIAL), 3, Window(-100, 120, "given"))
    episode = Episode(view, "ball", 20)
    clicks = [Click(ViewPoint(0.5, 0.5), True), Click(ViewPoint(0.1, 0.1), False)]
    place(episode, clicks, engine({}), Limits())
    episode.end(StopReason.ANNOTATED)
    outcome = episode.outcome()
    assert [step.actor for step in outcome.steps] == [Actor.ANNOTATOR] * 2
    assert outcome.final_turn == 2
    assert decode(outcome.mask)[20, 24]


def test_a_trace_tells_everything_and_replays(ball):
    result = play(ball, [CENTRE, click(0.5, 0.9, positive=False), STOP])
    trace = to_trace(result)
    (entry,) = trace["slices"]
    assert [step["action"]["kind"] for step in entry["steps"]] == ["positive", "negative", "terminate"]
    assert trace["window"] == {"name": "abdomen", "low": -160, "high": 240}
    view = View(result.grid, entry["index"], result.window)
    replayed = Episode(view, trace["prompt"], trace["max_turns"])
    points = [step["action"] for step in entry["steps"] if step["mask"]]
    place(replayed, [Click(ViewPoint(p["x"], p["y"]), p["kind"] == "positive") for p in points], engine({}), Limits())
    assert [step.mask for step in replayed.steps] == [step["mask"] for step in entry["steps"] if step["mask"]]


def test_several_prompts_make_one_label_map(ball):
    assert split_prompts(" liver;spleen ; liver;") == ("liver", "spleen")
    first, second = play(ball, [CENTRE, STOP], slices="2-3"), play(ball, [CENTRE, STOP], slices="3-4")
    labels, overlap = merge([first, second], [1, 2])
    assert set(np.unique(labels)) == {0, 1, 2}
    assert overlap == np.count_nonzero(first.mask[:, :, 3])
    assert (labels[:, :, 3] != 2).all()
    surer = tuple(replace(outcome, confidence=0.99) for outcome in second.outcomes)
    labels, _ = merge([first, replace(second, outcomes=surer)], [1, 2])
    assert (labels[:, :, 3] != 1).all()
    assert (labels[:, :, 2] != 2).all()
    for text in ("", " ; ", ";".join(map(str, range(21)))):
        with pytest.raises(InputError):
            split_prompts(text)
