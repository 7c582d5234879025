"""The grammar: what is rendered is parsed again, and nothing makes the parser fail."""

import hashlib
import random
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.agent.prompts import SYSTEM, turn_prompt
from lib.agent.protocol import Click, ProtocolError, ProtocolFault, Reply, Terminate, parse, render
from lib.imaging.planes import ViewPoint

EXAMPLE = """<think>
The mask misses the upper pole.
</think>
<action>
Positive Point (0.5000, 0.2500)
</action>"""

texts = st.text(st.characters(exclude_characters="<>", exclude_categories=("Cs",)), max_size=200).map(str.strip)
units = st.floats(0, 1)
clicks = st.builds(Click, st.builds(ViewPoint, units, units), st.booleans())
replies = st.builds(Reply, texts, clicks | st.builds(Terminate, texts))


def test_the_texts_of_the_released_weights_byte_for_byte():
    digest = hashlib.sha256(SYSTEM.encode()).hexdigest()
    assert digest == "b66bf2610051bec64a77670e69e4a7db211e8aff53df31398c9f0f6cdd38c69c"
    refinement = turn_prompt("{query}", refining=True).user
    assert hashlib.sha256(refinement.encode()).hexdigest() == "a4799a62bfa53732a0d4e0a8cbb978b98e22d332990307cea064b45ad2ad843d"
    assert turn_prompt("liver", refining=False).user == "<image>liver"
    assert turn_prompt("liver", refining=False, image_mark=False).user == "liver"
    assert turn_prompt('a "{query}" liver', refining=True).user.count("{query}") == 1


def test_the_example_both_ways():
    reply = Reply("The mask misses the upper pole.", Click(ViewPoint(0.5, 0.25), positive=True))
    assert render(reply) == EXAMPLE
    assert parse(EXAMPLE) == reply


@given(replies)
@settings(max_examples=300)
def test_rendered_replies_are_parsed_again(reply):
    again = parse(render(reply))
    assert isinstance(again, Reply)
    assert again.thought == reply.thought
    if isinstance(reply.action, Terminate):
        assert again.action == reply.action
    else:
        assert again.action.positive == reply.action.positive
        assert abs(again.action.point.x - reply.action.point.x) <= 0.00005 + 1e-12
        assert render(again) == render(parse(render(again)))


@pytest.mark.parametrize("word", ["Terminate", "Termination", " Terminate\n"])
@pytest.mark.parametrize("answer", ["", "<answer>a liver</answer>", "\n<answer>\na liver\n</answer>\n"])
def test_both_stop_words_with_and_without_answer(word, answer):
    reply = parse(f"<think>done</think><action>{word}</action>{answer}")
    assert isinstance(reply, Reply)
    assert reply.action == Terminate("a liver" if answer else "")


@pytest.mark.parametrize(
    "coordinates", ["(0.5,0.25)", "( 0.5 , 0.25 )", "(0, 1)", "(1.000, 0.0)", "(0.12345678901234567, 0.5)"]
)
def test_layouts_of_a_point(coordinates):
    assert isinstance(parse(f"<think>a</think>\n\n<action>Negative Point {coordinates}</action>"), Reply)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", ProtocolFault.EMPTY),
        (" \n", ProtocolFault.EMPTY),
        ("x" * 20_001, ProtocolFault.TOO_LONG),
        ("Positive Point (0.5, 0.5)", ProtocolFault.LAYOUT),
        ("<think>a</think>", ProtocolFault.LAYOUT),
        ("junk <think>a</think><action>Terminate</action>", ProtocolFault.LAYOUT),
        ("<think>a</think><action>Terminate</action> junk", ProtocolFault.LAYOUT),
        ("<think>a</think><action>Terminate</action><action>Terminate</action>", ProtocolFault.LAYOUT),
        ("<think>a<think>b</think></think><action>Terminate</action>", ProtocolFault.LAYOUT),
        ("<think>a</think><action>Positive Point (0.5, 0.5)</action><answer>b</answer>", ProtocolFault.LAYOUT),
        ("<think>a</think><action>Do not Terminate yet</action>", ProtocolFault.ACTION),
        ("<think>a</think><action>Positive Point (0.5, 0.5) Negative Point (0.1, 0.1)</action>", ProtocolFault.ACTION),
        ("<think>a</think><action>Positive Point (.,.)</action>", ProtocolFault.ACTION),
        ("<think>a</think><action>Positive Point (0.5.1, 0.2)</action>", ProtocolFault.ACTION),
        ("<think>a</think><action>Positive Point (1e-1, 0.2)</action>", ProtocolFault.ACTION),
        ("<think>a</think><action>Positive Point (٠.٥, 0.2)</action>", ProtocolFault.ACTION),
        ("<think>a</think><action></action>", ProtocolFault.ACTION),
        ("<think>a</think><action>Positive Point (0.5, 1.7)</action>", ProtocolFault.RANGE),
        ("<think>a</think><action>Positive Point (-0.5, 0.7)</action>", ProtocolFault.RANGE),
    ],
)
def test_anything_else_says_why(text, fault):
    error = parse(text)
    assert isinstance(error, ProtocolError)
    assert error.fault is fault
    assert error.text == text


def test_a_thousand_malformed_replies_never_crash_the_parser():
    chance = random.Random(0)
    pieces = ["<think>", "</think>", "<action>", "</action>", "<answer>", "</answer>", "Terminate", "Positive Point (0.5, 0.5)"]
    pieces += ["(", ")", "0.", ",", "\n", "\0", "é", "𝟘", "<", " "]
    seen = set()
    for number in range(1000):
        if number % 2:
            text = "".join(chance.choice(pieces) for _ in range(chance.randrange(12)))
        else:
            letters = list(EXAMPLE)
            for _ in range(chance.randrange(1, 6)):
                letters[chance.randrange(len(letters))] = chance.choice(string.printable)
            text = "".join(letters)
        result = parse(text)
        assert isinstance(result, Reply | ProtocolError)
        seen.add(type(result))
    assert seen == {Reply, ProtocolError}


@given(st.text())
@settings(max_examples=300)
def test_any_text_is_a_reply_or_an_error(text):
    assert isinstance(parse(text), Reply | ProtocolError)


def test_hostile_length_is_fast():
    assert isinstance(parse("<think>" * 2500), ProtocolError)
    assert isinstance(parse("<think>" + "<" * 19_900), ProtocolError)
