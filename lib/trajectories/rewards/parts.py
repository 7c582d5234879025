"""The parts of a reward: what each judges, and its formula. A part that does not apply is left out of a grade."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from lib.agent.protocol import Action, Click
from lib.trajectories.rewards.recipes import Weights
from lib.trajectories.rewards.state import State

BOUNDS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "format": (-1.0, 1.0),
        "answer": (0.0, 1.0),
        "placement": (-1.0, 1.0),
        "progress": (-1.0, 1.0),
        "overshoot": (-1.0, 0.0),
        "length": (-1.0, 0.0),
        "absence": (-1.0, 1.0),
        "stop": (-1.0, 1.0),
    }
)
"""Least and greatest value of every part."""


def total(parts: Mapping[str, float], weights: Weights) -> float:
    """The weighted sum, within -1..1; a part that is left out counts nothing."""
    return sum(getattr(weights, name) * value for name, value in parts.items())


def placement(click: Click, state: State, reach: float, useful: bool) -> float:
    """Where a click lies: 1 in what the mask misses (positive) or wrongly includes (negative), 0 beside such a region, within
    `reach` pixels, -1 elsewhere. Where no click is useful, none is well placed."""
    point = click.point
    if not useful or not (0 <= point.x <= 1 and 0 <= point.y <= 1):
        return -1.0
    reference = state.reference.mask
    mask = np.zeros_like(reference) if state.mask is None else state.mask
    height, width = reference.shape
    column, row = point.pixel(width, height)
    margin = int(reach)
    top, left = max(0, row - margin), max(0, column - margin)
    around = (slice(top, row + margin + 1), slice(left, column + margin + 1))
    region = reference[around] & ~mask[around] if click.positive else mask[around] & ~reference[around]
    if region[row - top, column - left]:
        return 1.0
    rows, columns = np.nonzero(region)
    near = (rows + top - row) ** 2 + (columns + left - column) ** 2 <= reach**2
    return 0.0 if near.any() else -1.0


def progress(before: float, after: float) -> float:
    """IoU won, as a share of what was missing, or lost, as a share of what was there."""
    if after > before:
        return (after - before) / (1 - before)
    return (after - before) / before if after < before else 0.0


def overshoot(best: float, after: float) -> float:
    """How far the IoU is below the best that the episode had."""
    return min(0.0, after - best)


def length(turn: int, turns: tuple[int, int]) -> float:
    """0 up to turn `turns[0]`, then down in equal steps to -1 at turn `turns[1]`, and never below."""
    free, most = turns
    return -min(1.0, max(0, turn - free) / (most - free))


def ending(action: Action, state: State, useful: bool) -> dict[str, float]:
    """`absence` or `stop`: whether to stop, or to go on, was right. Never both; empty where going on was right.

    Absence judges whether the target is there: stopping on an empty mask is 1 where it is absent and -1 where it is present;
    stopping on a mask of an absent target, and clicking where it is absent and nothing is drawn, are -1. Stop judges the rest:
    stopping is 1 where no useful click is left, and otherwise minus the IoU that is missing; clicking is -1 where none is left.
    """
    present = state.reference.present
    if isinstance(action, Click):
        if useful:
            return {}
        return {"stop": -1.0} if present else {"absence": -1.0}
    if state.empty or not present:
        return {"absence": 1.0 if state.empty and not present else -1.0}
    return {"stop": state.iou - 1 if useful else 1.0}
