"""Turns as conversations: the messages that a policy is shown at inference, and the reply that is right."""

from collections.abc import Sequence

from lib.agent.policy import Observation, Past
from lib.agent.prompts import IMAGE_MARK
from lib.imaging.overlays import overlay_named
from lib.policies.conversation import Message, conversation
from lib.trajectories.exports.turns import Sample, Turn

RESERVED = (IMAGE_MARK, "<video>", "<audio>", "<|")
"""What frameworks take for pictures, films, sounds, or for the tokens that part messages, wherever it stands in a text."""


def prompt(sample: Sample, turns: Sequence[Turn], position: int, history: bool, since: int = 0) -> list[Message]:
    """What the policy is shown before the reply of `turns[position]`; with `history` the turns from `since` on stand before.

    The picture's mark is no part of the texts: frameworks write theirs.
    """
    turn = turns[position]
    observation = Observation(
        prompt=sample.trajectory.prompt,
        view=sample.view,
        mask=turn.mask,
        actions=turn.actions,
        overlay=overlay_named(sample.trajectory.overlay),
        past=tuple(Past(past.shown, past.text) for past in turns[since:position]),
    )
    return conversation(observation, history, image_mark=False)


def lessons(sample: Sample, turns: Sequence[Turn], history: bool) -> list[tuple[list[Message], tuple[Turn, ...]]]:
    """Conversations in which every reply is right, each with the turns whose replies it holds.

    Each right turn stands in exactly one of them. Without `history` they are one turn long; with it they go on from turn to
    turn and begin anew after a wrong one, because LLaMA-Factory learns every reply of a conversation.
    """
    found = []
    for start, end in _stretches(turns, history):
        messages = [*prompt(sample, turns, end, history, start), Message("assistant", turns[end].text)]
        found.append((messages, tuple(turns[start : end + 1])))
    return found


def supervised(turn: Turn) -> bool:
    """Whether a turn's reply is to be learned from this trajectory."""
    return not turn.fault and turn.own


def reserved(messages: Sequence[Message]) -> bool:
    """Whether a text holds what a framework would take for something else."""
    return any(word in message.text for message in messages for word in RESERVED)


def _stretches(turns: Sequence[Turn], history: bool) -> list[tuple[int, int]]:
    """(first, last) of each unbroken row of turns to be learned."""
    stretches: list[tuple[int, int]] = []
    for position, turn in enumerate(turns):
        if not supervised(turn):
            continue
        if history and stretches and stretches[-1][1] == position - 1:
            stretches[-1] = (stretches[-1][0], position)
        else:
            stretches.append((position, position))
    return stretches
