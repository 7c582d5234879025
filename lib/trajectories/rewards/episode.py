"""What an episode is worth: its steps one by one, and as a whole."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lib.agent.episode import Outcome
from lib.agent.limits import StopReason
from lib.imaging import rle
from lib.trajectories.grade import Dropped, Grade, StepGrade
from lib.trajectories.rewards import parts as part
from lib.trajectories.rewards.recipes import Parts, Recipe
from lib.trajectories.rewards.released import NotComputable
from lib.trajectories.rewards.reply import PUBLISHED, score_reply
from lib.trajectories.rewards.state import Reference, State

_INTERRUPTED = (StopReason.FAILED, StopReason.DEADLINE, StopReason.CANCELLED)
_JUDGED = (StopReason.TERMINATED, StopReason.ABSENT)


def grade(outcome: Outcome, reference: np.ndarray, recipe: Recipe) -> Grade | Dropped:
    """Grade an episode against `reference`, bool `[height, width]` of its view; all False: the target is absent.

    An episode that a failure, a deadline or a cancellation ended is dropped: its end is not the agent's doing. So is one of
    which no step counts, and, by the recipe `released`, one with a click whose mask was not drawn. Steps that were taken back
    have no grade. Raises InputError with the field "label" for a reference of another type or size.
    """
    right = Reference(reference)
    iou = right.iou(rle.decode(outcome.mask))
    if outcome.stop in _INTERRUPTED:
        return Dropped(": ".join(filter(None, (outcome.stop.value, outcome.detail))))
    states = _states(outcome, right)
    if not states:
        return Dropped("no step of it counts")
    kept = [step for step in outcome.steps if not step.undone]
    try:
        steps = tuple(
            replace(
                score_reply(step.reply or step.action, state, None if step.mask is None else rle.decode(step.mask), recipe),
                turn=step.turn,
            )
            for step, state in zip(kept, states, strict=True)
        )
    except NotComputable as error:
        return Dropped(str(error))
    if isinstance(recipe, Parts):
        parts = _whole(outcome, states, steps, iou, recipe)
        worth = part.total(parts, recipe.weights)
    else:
        parts = {name: value for name in PUBLISHED if (value := _mean(name, steps)) is not None}
        worth = sum(step.total for step in steps) / len(steps)
    return Grade(recipe.name, iou, 2 * iou / (1 + iou), parts, worth, steps)


def _states(outcome: Outcome, reference: Reference) -> list[State]:
    """What each step that counts was taken in."""
    mask = None if outcome.given is None else rle.decode(outcome.given.mask)
    states: list[State] = []
    best = 0.0
    for step in outcome.steps:
        if step.undone:
            continue
        states.append(State(reference, mask, len(states) + 1, best))
        best = states[-1].best
        mask = mask if step.mask is None else rle.decode(step.mask)
    return states


def _whole(
    outcome: Outcome, states: Sequence[State], steps: Sequence[StepGrade], iou: float, recipe: Parts
) -> dict[str, float]:
    """The parts of the episode. What comes after a click where none was useful adds nothing to the chosen mask's IoU."""
    means = {name: _mean(name, steps) for name in ("format", "placement", "absence", "stop")}
    parts = {name: value for name, value in means.items() if value is not None}
    parts["length"] = part.length(len(steps), recipe.turns)
    if not (outcome.stop in _JUDGED or outcome.final_turn is not None or outcome.given is not None):
        return parts
    needless = [step.iou_before for step in steps if "placement" in step.parts and {"stop", "absence"} & step.parts.keys()]
    credited = min([iou, *needless])
    best = max([iou, *(max(step.iou_before, step.iou_after) for step in steps)])
    parts["answer"] = credited
    parts["overshoot"] = part.overshoot(best, credited)
    if "placement" in parts:
        parts["progress"] = part.progress(states[0].iou, credited)
    return parts


def _mean(name: str, steps: Sequence[StepGrade]) -> float | None:
    """Of a part over the steps that have it; None when none has."""
    values = [step.parts[name] for step in steps if name in step.parts]
    return sum(values) / len(values) if values else None
