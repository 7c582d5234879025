"""What one reply is worth in a state: for rollouts and single-turn rows, and step by step for whole episodes."""

import numpy as np

from lib.agent.protocol import Action, Click, ProtocolError, Reply, parse, render
from lib.trajectories.grade import StepGrade
from lib.trajectories.rewards import parts as part
from lib.trajectories.rewards.recipes import Parts, Recipe
from lib.trajectories.rewards.released import published_scores
from lib.trajectories.rewards.state import State, reach, useful_error

PUBLISHED = ("format", "answer", "placement", "progress", "length")
"""The five scores that the published function averages."""
Said = str | Action | ProtocolError
"""A policy's reply as it came, or what a person did, who writes none."""


def score_reply(said: Said, state: State, after: np.ndarray | None, recipe: Recipe) -> StepGrade:
    """The reward of one reply.

    `after` is the mask that the reply's click made, bool `[height, width]`; None when nothing was drawn. The part `format`
    stands only where a policy wrote. A reply that cannot be read has the parts `format` and `length` alone, and the lowest
    total that there is in its state. A click on a mask that needs none gets no credit for what it wins.

    Raises NotComputable when the published function needs a mask that was not drawn.
    """
    iou_after = state.iou if after is None else state.reference.iou(after)
    if isinstance(recipe, Parts):
        values = _values(said, state, iou_after, recipe)
        worth = part.total(values, recipe.weights)
    else:
        values = _published(said, state, after, recipe.optimal_turns)
        worth = sum(values.values()) / len(PUBLISHED)
    return StepGrade(state.turn, state.iou, iou_after, values, worth)


def _values(said: Said, state: State, iou_after: float, recipe: Parts) -> dict[str, float]:
    values: dict[str, float] = {}
    action = said
    if isinstance(said, str):
        read = parse(said)
        action = read.action if isinstance(read, Reply) else read
        values["format"] = 1.0 if isinstance(read, Reply) else -1.0
    elif isinstance(said, ProtocolError):
        values["format"] = -1.0
    values["length"] = part.length(state.turn, recipe.turns)
    if isinstance(action, str | ProtocolError):
        return values
    useful = useful_error(state.mask, state.reference, recipe) is not None
    credited = iou_after if useful else min(iou_after, state.iou)
    values["answer"] = credited
    values["overshoot"] = part.overshoot(state.best, credited)
    if isinstance(action, Click):
        values["placement"] = part.placement(action, state, reach(state.reference, recipe), useful)
        values["progress"] = part.progress(state.iou, credited)
    return values | part.ending(action, state, useful)


def _published(said: Said, state: State, after: np.ndarray | None, optimal_turns: int) -> dict[str, float]:
    written = isinstance(said, str | ProtocolError)
    text = said if isinstance(said, str) else said.text if isinstance(said, ProtocolError) else render(Reply("", said))
    scores = published_scores(text, state.reference.mask, state.mask, after, state.iou, state.turn, optimal_turns)
    return {name: scores[name] for name in PUBLISHED if written or name != "format"}
