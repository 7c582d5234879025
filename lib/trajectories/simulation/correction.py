"""Corrections: a simulated expert goes on from where the agent really was, towards the right mask (as DAgger asks the expert
in the states that the learner reaches: Ross et al., AISTATS 2011)."""

from dataclasses import replace

import numpy as np

from lib.agent.anatomy import anatomy
from lib.agent.engine import Engine
from lib.agent.episode import Actor, Outcome, Step
from lib.agent.limits import Limits
from lib.agent.loop import play
from lib.agent.protocol import ProtocolError, Terminate
from lib.agent.takeover import Slice, reopen
from lib.imaging import rle
from lib.policies.simulated import NOT_TO_LEARN, SimulatedPolicy, Task
from lib.trajectories.rewards import Reference, recipe_named, useful_error
from lib.trajectories.rewards.recipes import Parts

_NAME_WORDS = 4
"""Longer prompts are sentences."""


def correct(
    slice_: Slice, outcome: Outcome, reference: np.ndarray, engine: Engine, limits: Limits, most: int
) -> Outcome | None:
    """The episode gone on by an expert with at most `most` clicks towards `reference`, bool `[height, width]` of the view, and
    a Terminate at its end; None when there is nothing to correct: the agent itself stopped, and no useful click was left.

    The agent's steps stay as they are, but for a Terminate that ended it too early: that is taken back. The expert's steps are
    those of Actor.EXPERT; a Terminate only because its clicks ran out has Actor.AGENT, since nobody should learn from it.
    Raises EngineError when the segmenter cannot do its work. When the limits are reached the outcome is not conclusive.
    """
    mask = _last_mask(outcome)
    stopped = outcome.steps[-1] if outcome.steps and isinstance(outcome.steps[-1].action, Terminate) else None
    if stopped is not None and not useful(mask, reference):
        return None
    taken = [step for step in outcome.steps if not step.undone and not isinstance(step.action, ProtocolError)]
    begin = len(taken) - (stopped is not None)
    task = Task(in_words(slice_.prompt), reference, most, begin=begin)
    expert = replace(engine, policy=SimulatedPolicy({slice_.view: task}, useful))
    without = None if stopped is None else stopped.turn
    episode = reopen(slice_, outcome, expert, limits, most + 1, without, Actor.EXPERT)
    (ended,) = play([episode], expert, limits)
    return exemplary(ended.outcome())


def in_words(prompt: str) -> str:
    """What a prompt asks for, without an article: a structure's name where it means one, the prompt where that is a name
    itself, else "target"."""
    structure = anatomy().find(prompt)
    if structure is not None:
        return structure.label
    words = prompt.lower().split()
    return " ".join(words) if len(words) <= _NAME_WORDS and words[-1].isalnum() else "target"


def useful(mask: np.ndarray | None, reference: np.ndarray) -> bool:
    """Whether a click on the mask is still useful, as the default rewards say."""
    recipe = recipe_named()
    assert isinstance(recipe, Parts)
    return useful_error(mask, Reference(reference), recipe) is not None


def exemplary(outcome: Outcome) -> Outcome:
    """The outcome with the expert's steps that nobody should learn from ascribed to the agent."""
    return replace(outcome, steps=tuple(_ascribed(step) for step in outcome.steps))


def _ascribed(step: Step) -> Step:
    if step.actor is Actor.EXPERT and step.details.get("intent") in NOT_TO_LEARN:
        return replace(step, actor=Actor.AGENT)
    return step


def _last_mask(outcome: Outcome) -> np.ndarray | None:
    """What the agent left; None when nothing was ever drawn."""
    masks = [step.mask for step in outcome.steps if step.mask is not None and not step.undone]
    if not masks and outcome.given is not None:
        masks = [outcome.given.mask]
    return rle.decode(masks[-1]) if masks else None
