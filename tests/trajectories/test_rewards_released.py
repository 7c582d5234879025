"""The published reward function, number for number.

The numbers were got by running the released function itself, its mask service answering with the masks named here, in a view of
20 rows and 40 columns.
"""

import pytest

from lib.agent.limits import StopReason
from lib.agent.protocol import Reply, Terminate, render
from lib.trajectories.grade import Dropped, Grade
from lib.trajectories.rewards import Reference, State, grade, recipe_named, score_reply
from lib.trajectories.rewards.released import NotComputable, published_scores
from tests.trajectories.episodes import at, outcome, rect, said

RELEASED = recipe_named("released")
TRUTH, EMPTY = rect(0, 10, 0, 10), rect(0, 0, 0, 0)
HALF, NEARLY, SPILL, OFF = rect(0, 5, 0, 10), rect(0, 9, 0, 10), rect(0, 10, 0, 20), rect(10, 20, 20, 40)
MASKS = {"": None, "empty": EMPTY, "truth": TRUTH, "half": HALF, "0.9": NEARLY, "spill": SPILL, "off": OFF}
MASKS |= {
    "0.2": rect(0, 2, 0, 10),
    "0.6": rect(0, 6, 0, 10),
    "0.8": rect(0, 8, 0, 10),
    "0.84": rect(0, 9, 0, 10) & ~rect(0, 3, 4, 6),
}


def reply(action: str, tail: str = "") -> str:
    return f"<think>\nt\n</think>\n<action>\n{action}\n</action>{tail}"


ANSWER = "\n<answer>\nok\n</answer>"
STOP = reply("Termination", ANSWER)
WRONG, RIGHT, FIRST = (
    reply(f"Positive Point {where}") for where in ("(0.9000, 0.9000)", "(0.0125, 0.4750)", "(0.0125, 0.0250)")
)
STEP3, STEP10 = {"current_step": 3}, {"current_step": 10}
"""Case: reply, mask before, mask after, what the row says; then score, (think, point, answer) format, and the five terms."""
CASES = {
    "perfect, stopping, a row as published": (STOP, "truth", "", {}, 0.8, (1, 1, 1), (1, 3, 0, 0, 0)),
    "perfect, the prompt's stop word": (reply("Terminate", ANSWER), "truth", "", {}, 0.0, (1, 0, 1), (0, 0, 0, 0, 0)),
    "perfect, a wrong click, a row as published": (WRONG, "truth", "truth", {}, 0.8, (1, 1, 1), (1, 3, -1, 1, 0)),
    "perfect, stopping at step 3": (STOP, "truth", "", STEP3, 1.0, (1, 1, 1), (1, 3, 0, 0, 1)),
    "perfect, a wrong click at step 3": (WRONG, "truth", "truth", STEP3, 1.0, (1, 1, 1), (1, 3, -1, 1, 1)),
    "perfect, stopping, pre_iou": (STOP, "truth", "", STEP3 | {"pre_iou": 1.0}, 1.0, (1, 1, 1), (1, 3, 0, 0, 1)),
    "perfect, a wrong click, pre_iou": (WRONG, "truth", "truth", STEP3 | {"pre_iou": 1.0}, 0.8, (1, 1, 1), (1, 3, -1, 0, 1)),
    "0.84, stopping at step 3": (STOP, "0.84", "", STEP3 | {"pre_iou": 0.84}, 1.0, (1, 1, 1), (1, 3, 0, 0, 1)),
    "0.84, a good click at step 3": (RIGHT, "0.84", "truth", STEP3 | {"pre_iou": 0.84}, 1.4, (1, 1, 1), (1, 3, 1, 1, 1)),
    "0.84, stopping at step 10": (STOP, "0.84", "", STEP10 | {"pre_iou": 0.84}, 0.6, (1, 1, 1), (1, 3, 0, 0, -1)),
    "0.84, a good click at step 10": (RIGHT, "0.84", "truth", STEP10 | {"pre_iou": 0.84}, 1.0, (1, 1, 1), (1, 3, 1, 1, -1)),
    "step 25, right place, nothing won": (
        RIGHT,
        "half",
        "half",
        {"current_step": 25, "pre_iou": 0.5},
        -0.4,
        (1, 1, 1),
        (1, 0, 1, 0, -4),
    ),
    "step 25, wrong place": (WRONG, "half", "half", {"current_step": 25, "pre_iou": 0.5}, -0.8, (1, 1, 1), (1, 0, -1, 0, -4)),
    "step 5 costs nothing": (STOP, "half", "", {"current_step": 5}, 0.4, (1, 1, 1), (1, 0, 0, 0, 1)),
    "step 6": (STOP, "half", "", {"current_step": 6}, 0.16, (1, 1, 1), (1, 0, 0, 0, -0.2)),
    "another optimal step": (STOP, "half", "", {"current_step": 4, "optimal_step": 2}, 0.12, (1, 1, 1), (1, 0, 0, 0, -0.4)),
    "0.9 to 0.5 without pre_iou is paid": (WRONG, "0.9", "half", {}, 0.2, (1, 1, 1), (1, 0, -1, 1, 0)),
    "0.9 to 0.5 with pre_iou": (WRONG, "0.9", "half", {"pre_iou": 0.9}, 0.0, (1, 1, 1), (1, 0, -1, 0, 0)),
    "0.9": (FIRST, "", "0.9", {}, 1.2, (1, 1, 1), (1, 3, 1, 1, 0)),
    "exactly 0.8 has two points": (FIRST, "", "0.8", {}, 1.0, (1, 1, 1), (1, 2, 1, 1, 0)),
    "0.6": (FIRST, "", "0.6", {}, 0.8, (1, 1, 1), (1, 1, 1, 1, 0)),
    "exactly 0.5 has none": (FIRST, "", "half", {}, 0.6, (1, 1, 1), (1, 0, 1, 1, 0)),
    "a first click off the target": (WRONG, "", "off", {}, 0.0, (1, 1, 1), (1, 0, -1, 0, 0)),
    "negative in a false area": (
        reply("Negative Point (0.3500, 0.2000)"),
        "spill",
        "truth",
        {"current_step": 2, "pre_iou": 0.5},
        1.4,
        (1, 1, 1),
        (1, 3, 1, 1, 1),
    ),
    "negative on the target": (
        reply("Negative Point (0.1000, 0.2000)"),
        "spill",
        "0.2",
        {"current_step": 2, "pre_iou": 0.5},
        0.2,
        (1, 1, 1),
        (1, 0, -1, 0, 1),
    ),
    "positive on what is covered": (
        reply("Positive Point (0.1, 0.2)"),
        "half",
        "half",
        {"pre_iou": 0.5},
        0.0,
        (1, 1, 1),
        (1, 0, -1, 0, 0),
    ),
    "one line": (FIRST.replace("\n", ""), "", "truth", {}, 0.0, (0, 0, 1), (0, 0, 0, 0, 0)),
    "blanks in the action": (reply(" Positive Point (0.0125, 0.0250) "), "", "truth", {}, 0.2, (1, 1, 1), (1, 0, 0, 0, 0)),
    "blanks around the stop word": (reply(" Termination ", ANSWER), "truth", "", {}, 0.8, (1, 1, 1), (1, 3, 0, 0, 0)),
    "blanks in the parentheses": (
        reply("Positive Point ( 0.0125 , 0.0250 )"),
        "",
        "truth",
        {},
        1.2,
        (1, 1, 1),
        (1, 3, 1, 1, 0),
    ),
    "stopping without an answer": (reply("Termination"), "truth", "", {}, 0.6, (1, 1, 0), (0, 3, 0, 0, 0)),
    "an answer left open": (reply("Termination", "\n<answer>\nok"), "truth", "", {}, 0.6, (1, 1, 0), (0, 3, 0, 0, 0)),
    "an answer inside out": (reply("Termination", "</answer><answer>"), "truth", "", {}, 0.6, (1, 1, 0), (0, 3, 0, 0, 0)),
    "an answer to a click is not punished": (FIRST + ANSWER, "", "truth", {}, 1.2, (1, 1, 1), (1, 3, 1, 1, 0)),
    "junk around the tags": (f"well {FIRST} there", "", "truth", {}, 1.2, (1, 1, 1), (1, 3, 1, 1, 0)),
    "two actions": (
        f"{FIRST}\n<action>\nNegative Point (0.9, 0.9)\n</action>",
        "",
        "truth",
        {},
        1.2,
        (1, 1, 1),
        (1, 3, 1, 1, 0),
    ),
    "a click and a stop": (
        f"{FIRST}\n<action>\nTermination\n</action>{ANSWER}",
        "",
        "truth",
        {},
        1.0,
        (1, 1, 1),
        (1, 3, 1, 0, 0),
    ),
    "scientific notation": (reply("Positive Point (1e-1, 0.2)"), "", "truth", {}, 0.0, (1, 0, 1), (0, 0, 0, 0, 0)),
    "whole numbers": (reply("Positive Point (0, 0)"), "", "truth", {}, 1.2, (1, 1, 1), (1, 3, 1, 1, 0)),
    "the far corner is the last pixel": (reply("Positive Point (1, 1.000)"), "", "truth", {}, 0.8, (1, 1, 1), (1, 3, -1, 1, 0)),
    "beyond the picture": (reply("Positive Point (0.5, 1.7)"), "", "", {}, 0.0, (1, 0, 1), (0, 0, 0, 0, 0)),
    "no thinking": (FIRST.split("</think>\n")[1], "", "truth", {}, 1.0, (0, 1, 1), (0, 3, 1, 1, 0)),
    "nothing said": ("", "", "", {}, 0.0, (0, 0, 1), (0, 0, 0, 0, 0)),
    "stopping before any click": (STOP, "", "", {}, 0.2, (1, 1, 1), (1, 0, 0, 0, 0)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_golden_table(case):
    text, before, after, row, score, formats, terms = case
    scores = published_scores(text, TRUTH, MASKS[before], MASKS[after], **row)
    assert scores["score"] == pytest.approx(score)
    assert (scores["think_format"], scores["point_format"], scores["answer_format"]) == formats
    assert tuple(scores[name] for name in ("format", "answer", "placement", "progress", "length")) == pytest.approx(terms)


def test_an_absent_target_as_published():
    assert published_scores(STOP, EMPTY, None, None)["answer"] == 0
    assert published_scores(WRONG, EMPTY, None, OFF)["score"] == 0
    assert published_scores(WRONG, EMPTY, None, EMPTY)["score"] == 0


def test_a_dead_segmenter_is_not_scored():
    with pytest.raises(NotComputable):
        published_scores(FIRST, TRUTH, None, None)


def test_a_state_gives_the_row_what_the_published_data_left_out():
    state = State(Reference(TRUTH), NEARLY, 10)
    result = score_reply(WRONG, state, HALF, RELEASED)
    assert result.parts == {"format": 1, "answer": 0, "placement": -1, "progress": 0, "length": -1}
    assert result.total == pytest.approx(-0.2)
    absent = State(Reference(EMPTY), None, 1)
    assert score_reply(WRONG, absent, EMPTY, RELEASED).parts["progress"] == 0


def test_an_episode_is_the_mean_of_its_turns():
    played = [(said(at(5, 2)), HALF), (said(at(5, 7)), TRUTH), (render(Reply("so", Terminate("done"))), None)]
    result = grade(outcome(played), TRUTH, RELEASED)
    assert isinstance(result, Grade)
    assert [step.total for step in result.steps] == pytest.approx([0.8, 1.4, 0.2])
    assert result.total == pytest.approx(0.8)
    assert result.parts == pytest.approx({"format": 2 / 3, "answer": 1, "placement": 2 / 3, "progress": 2 / 3, "length": 1})
    assert result.iou == 1


def test_a_person_has_no_format_score():
    result = grade(outcome([(at(5, 2), TRUTH)], StopReason.ANNOTATED), TRUTH, RELEASED)
    assert isinstance(result, Grade)
    assert result.steps[0].parts == {"answer": 3, "placement": 1, "progress": 1, "length": 1}


def test_a_click_that_was_not_drawn_cannot_be_scored():
    click = said(at(5, 2))
    repeated = outcome([(click, HALF), (click, HALF), (click, None)], StopReason.REPEATED_ACTION)
    assert isinstance(grade(repeated, TRUTH, RELEASED), Dropped)
    assert isinstance(grade(repeated, TRUTH, recipe_named("corrected")), Grade)
